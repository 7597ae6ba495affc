"""Notes of a run: kept by kind, written once, and never those of another run."""

from pathlib import Path

import pytest

from utils.system import notes
from utils.system.notes import collecting, keep_in, note, read_notes


def said(folder: Path) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in read_notes(folder)]


def test_a_note_gives_its_text_and_is_kept_by_kind(tmp_path: Path) -> None:
    with collecting():
        assert note("data left out", "val: 3\n  one, two", count=3) == "val: 3\n  one, two"
        assert not (tmp_path / notes.NAME).exists()
        keep_in(tmp_path, fresh=True)
        note("resumed", "from step 7", epoch=2)
    assert said(tmp_path) == [("", "data left out", "3", "val: 3 one, two"), ("2", "resumed", "1", "from step 7")]
    assert (tmp_path / notes.NAME).read_text().splitlines()[0] == "epoch,kind,count,text"


def test_a_resume_doubles_nothing(tmp_path: Path) -> None:
    for resumed in (False, True, True):
        with collecting():
            note("data left out", "train: 1", count=1)
            keep_in(tmp_path, fresh=not resumed)
            note("teacher not better", "above", epoch=4)
            note("teacher not better", "above", epoch=5)
    rows = [("", "data left out", "1", "train: 1"), *(("45"[i], "teacher not better", "1", "above") for i in (0, 1))]
    assert said(tmp_path) == rows


def test_a_run_that_replaces_another_starts_with_none(tmp_path: Path) -> None:
    for text in ("of the first", "of the second"):
        with collecting():
            keep_in(tmp_path, fresh=True)
            note("kind", text)
    assert said(tmp_path) == [("", "kind", "1", "of the second")]


def test_nothing_is_left_of_a_run_in_the_next_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    with collecting():
        note("kind", "never written: the start was refused")
    with collecting():
        keep_in(one, fresh=True)
    note("kind", "of no run")
    with pytest.raises(ValueError, match="stop"), collecting():
        keep_in(two, fresh=True)
        note("kind", "two")
        raise ValueError("stop")
    note("kind", "of no run")
    assert said(one) == [] and said(two) == [("", "kind", "1", "two")]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    (tmp_path / notes.NAME).write_text("epoch,kind,count,text\n,kind,1,whole\n,kind,1,cu")
    assert said(tmp_path) == [("", "kind", "1", "whole")]
    with collecting():
        keep_in(tmp_path, fresh=False)
        note("kind", "next")
    assert [row[3] for row in said(tmp_path)] == ["whole", "next"]


def test_a_rank_that_does_not_write_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes.dist, "main", lambda: False)
    with collecting():
        keep_in(tmp_path, fresh=True)
        note("kind", "text")
    assert not (tmp_path / notes.NAME).exists()
