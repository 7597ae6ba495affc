"""A file is there whole or as it was."""

from pathlib import Path
from typing import BinaryIO

import pytest

from utils.system.errors import UserError
from utils.system.files import append_text, write_text, write_whole


def full(file: BinaryIO) -> None:
    file.write(b"half")
    raise OSError(28, "No space left on device")


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "first")
    with pytest.raises(UserError, match=r"a\.txt cannot be written: No space left on device"):
        write_whole(path, full)
    assert path.read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_file_of_before_stays_under_another_name(tmp_path: Path) -> None:
    path, kept = tmp_path / "last", tmp_path / "previous"
    for text in ("one", "two", "three"):
        write_whole(path, lambda file, text=text: file.write(text.encode()), keep=kept)  # type: ignore[misc]
    assert (path.read_text(), kept.read_text()) == ("three", "two")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "previous"]


def test_lines_are_added_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    append_text(path, "1\n")
    append_text(path, "2\n")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(UserError, match="cannot be written"):
        append_text(path, "3\n")
    with pytest.raises(UserError, match="cannot be written"):
        append_text(tmp_path / "new.csv", "1\n")
    assert path.read_text() == "1\n2\n" and not (tmp_path / "new.csv").exists()


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone/a\.txt cannot be written: No such file"):
        write_text(tmp_path / "gone/a.txt", "x")
