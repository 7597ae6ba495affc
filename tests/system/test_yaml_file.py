"""The one YAML reader: what is wrong with a file is one error that names it, whatever the parser makes of it."""

import os
from pathlib import Path

import pytest

from tests.shared import ROOT
from utils.system.errors import UserError
from utils.system.yaml_file import located, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"lr0: 0.1\nlrf: 0.1\nlr0: 0.2\n", "line 3: key 'lr0' is given twice, first in line 1"),
        (b"heads:\n  a: {w: 1, w: 2}\n", "line 2: key 'w' is given twice"),
        (b"x: 2024-13-45", "month must be in"),
        (b"x: !!int many", "invalid literal"),
        (b"x: " + b"9" * 5000, "digits"),
        (b"x: " + b"[" * 5000, "recursion"),
        (b"x: " + b"[" * 150 + b"]" * 150, "over 100 levels deep"),
        (BOMB.encode(), "aliases stand for more than 2,000,000 values"),
        (b"x: &x [1, *x]", "contains itself"),
        (b"x: \xff\xfe\xfa", "decode"),
        (b"x: [", "not valid YAML"),
        (b"- 1", "must hold `key: value` lines, got list"),
        (b"", "got NoneType"),
        (b"[1]: 2\n{}: 3", "unhashable"),
        (b"x: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_wrong_file_is_one_error_that_names_it(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "f.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_yaml(tmp_path / "f.yaml", "--hyp")
    message = str(error.value)
    assert message.startswith(f"--hyp: {tmp_path / 'f.yaml'}") and said in message and len(message) < 600, message


@pytest.mark.parametrize("path", ["nowhere.yaml", "x" * 5000, "a\0b.yaml", "~nosuchuser/x.yaml", "."])
def test_a_path_that_leads_to_no_file_is_an_error(path: str) -> None:
    with pytest.raises(UserError, match="--cfg: ") as error:
        read_yaml(path, "--cfg")
    assert len(str(error.value)) < 500
    assert located("~nosuchuser/x.yaml") == Path("~nosuchuser/x.yaml")


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.yaml")
    with pytest.raises(UserError, match="no regular file"):
        read_yaml(tmp_path / "f.yaml", "--data")


def test_what_is_right_is_read(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nown: {<<: *base, b: 3}\n1: x\n'1': y\n"
    (tmp_path / "f.yaml").write_bytes(b"\xef\xbb\xbf" + text.encode())  # with the mark that Windows' editors write
    assert read_yaml(tmp_path / "f.yaml") == {"base": {"a": 1, "b": 2}, "own": {"a": 1, "b": 3}, 1: "x", "1": "y"}


def test_files_are_found_beside_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("data/hyp.demo.yaml") == ROOT / "data/hyp.demo.yaml"
    assert located("demo.yaml", ["cfg/training"]) == ROOT / "cfg/training/demo.yaml"
    (tmp_path / "data").mkdir()
    (tmp_path / "data/hyp.demo.yaml").write_text("lr0: 1.0")
    assert located("data/hyp.demo.yaml") == Path("data/hyp.demo.yaml"), "the working folder comes first"
    with pytest.raises(UserError, match=r"there is no file 'own\.yaml', nor in the program's cfg/training"):
        read_yaml("own.yaml", "--cfg", ["cfg/training"])
