"""--help is read from the patches' text, without torch; it must say what the patches themselves would say."""

import ast
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared import ROOT
from utils import seams
from utils.config import detect, export, test, train
from utils.config.help import patch_file, patch_table, read_flags, record_name
from utils.config.options import TOPICS, Program, flag, help_topic
from utils.system.errors import UserError

TRAIN = train.program()


def test_flags_read_from_text_are_those_of_the_imported_patches() -> None:
    places = {record_name(place): place for place in patch_table().values()}
    kinds = seams.kinds(places)
    assert list(TRAIN.schemas) == list(kinds)
    for name, kind in kinds.items():
        shown = [f for f in dataclasses.fields(kind.Flags) if not f.metadata.get("hidden")]
        read = dataclasses.fields(read_flags(patch_file(places[name])))
        assert [(f.name, f.default, f.metadata) for f in read] == [(f.name, f.default, f.metadata) for f in shown]
    imported = Program("train.py", TRAIN.about, train.Config, {name: kind.Flags for name, kind in kinds.items()})
    assert imported.help("all") == TRAIN.help("all")


def test_a_flag_that_is_no_literal_is_an_error_not_a_gap(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("class Flags:\n    one: int = opt(1, 'one')\n    two: int = opt(LIMIT, 'two')\n")
    with pytest.raises(ValueError, match="malformed node"):
        read_flags(tmp_path / "odd.py")
    (tmp_path / "odd.py").write_text("class Flags:\n    one: complex = opt(1, 'one')\n")
    with pytest.raises(KeyError, match="complex"):
        read_flags(tmp_path / "odd.py")
    (tmp_path / "odd.py").write_text("class Flags:\n    one: int = opt(1, 'one', 'oddities')\n")
    with pytest.raises(ValueError, match="topic 'oddities'"):
        read_flags(tmp_path / "odd.py")


@pytest.mark.parametrize("script", ["train.py", "test.py", "detect.py", "export.py", "bench.py"])
def test_help_imports_no_torch(script: str) -> None:
    out, loaded = help_and_heavy(script)
    assert out.startswith(f"usage: {'python -m bench' if script == 'bench.py' else script}") and not loaded
    assert ("--rounds" if script == "bench.py" else "--weights") in out


def help_and_heavy(script: str, *words: str) -> tuple[str, list[str]]:
    """What `SCRIPT WORDS --help` prints, and the heavy modules that its process has loaded when it ends."""
    heavy = ["torch", "torchvision", "cv2", "scipy", "matplotlib", "numpy"]
    code = f"""
import atexit, runpy, sys
atexit.register(lambda: print([m for m in {heavy} if m in sys.modules]))
sys.argv = [{script!r}, *{words!r}, "--help"]
runpy.run_path({script!r}, run_name="__main__")
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    *lines, last = out.splitlines()
    return "\n".join(lines), ast.literal_eval(last)


def test_only_a_help_without_a_model_is_answered_early(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["-h", "--freeze", "3"], ["--help", "heads"]):
        with pytest.raises(SystemExit) as ended:
            train.help_alone(words)
        assert ended.value.code == 0 and capsys.readouterr().out
    for words in (["--img", "64"], [], ["--cfg", "demo.yaml", "--help"], ["--cfg=demo.yaml", "--help"]):
        train.help_alone(words)
        assert not capsys.readouterr().out


def test_topics_show_every_option_once() -> None:
    overview, whole = TRAIN.help(), TRAIN.help("all")
    for f, _ in TRAIN.fields():
        shown = TRAIN.help(f.metadata["topic"])
        assert all(flag(f.name) in text.replace(",", " ").split() for text in (overview, shown, whole)), f.name
        assert "_" not in f.name or "--" + f.name not in whole, "other spellings are not shown"
    parts = [TRAIN.help(topic) for topic in TOPICS]
    assert sum(part.count("\n  --") for part in parts) == whole.count("\n  --") == len(TRAIN.fields())
    assert TRAIN.help("weights") == TRAIN.help("model"), "a word of the title does"
    with pytest.raises(UserError, match="--help colour: there is no such topic; there are: start, data"):
        TRAIN.help("colour")


@pytest.mark.parametrize("program", [detect.PROGRAM, test.program(), export.PROGRAM], ids=lambda p: str(p.name))
def test_a_short_program_shows_all_of_its_options(program: Program[object]) -> None:
    assert all(flag(f.name) in program.help() for f, _ in program.fields())


@pytest.mark.parametrize(
    ("words", "topic"),
    [
        ([], None),
        (["--help"], ""),
        (["-h", "--img", "64"], ""),
        (["--help", "heads"], "heads"),
        (["--help=heads"], "heads"),
        (["a", "--", "--help"], None),
    ],
)
def test_what_help_is_asked_for(words: list[str], topic: str | None) -> None:
    assert help_topic(words) == topic


def test_a_reader_that_has_enough_ends_the_help_quietly() -> None:
    """As `train.py --help all | head -1`, with the pipe closed before anything is written."""
    read, write = os.pipe()
    os.close(read)
    out = subprocess.run([sys.executable, "train.py", "--help", "all"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (out.returncode, out.stderr) == (0, b"")
