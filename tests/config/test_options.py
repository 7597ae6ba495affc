"""The one option system: ranges, spellings, second names are alike in every program; what is wrong is one line."""

from dataclasses import dataclass
from typing import Any

import pytest

from utils.config import detect, export, test, tools, train
from utils.config.options import Program, opt
from utils.system.errors import UserError

PROGRAMS: dict[str, Any] = {
    "train": train.program(),
    "test": test.program(),
    "detect": detect.PROGRAM,
    "export": export.PROGRAM,
    "bench": tools.BENCH,
}
ALL = PROGRAMS | {"study": tools.STUDY, "ablate": tools.ABLATE}
NEEDED = {"test": ["--weights", "w.pt"], "detect": ["--weights", "w.pt", "--source", "x"], "export": ["--weights", "w"]}


@dataclass(frozen=True, kw_only=True)
class Options:
    runs: tuple[str, ...] = opt((), "folders", positional=True, nargs="+")
    batch_size: int = opt(16, "images", "schedule", low=1)
    share: float = opt(0.5, "a share", "schedule", low=0, high=1)
    deep: bool = opt(True, "deep", "model", negatable=True)
    places: tuple[int, ...] = opt((), "places", "model", nargs="+", low=0)
    kind: str = opt("a", "which", "model", choices=("a", "b"))
    arm: tuple[str, ...] = opt((), "arms", "start", repeated=True)


TOY = Program("toy.py", "A toy.", Options, rest="WORDS")


@pytest.mark.parametrize("word", ["--batch-size", "--batch_size", "--batch"])
def test_every_spelling_is_the_same_option(word: str) -> None:
    for words in ([word, "3"], [f"{word}=3"]):
        given = TOY.parse(["r", *words])
        assert given.cfg.batch_size == 3 and given.names == {"runs", "batch_size"}


def test_values() -> None:
    words = [
        "a",
        "b",
        "--no-deep",
        "--places",
        "0",
        "4",
        "--arm",
        "x: --freeze 3",
        "--arm=y: --lr0 -1",
        "--",
        "--img",
        "-",
    ]
    given = TOY.parse(words)
    assert given.cfg == Options(runs=("a", "b"), deep=False, places=(0, 4), arm=("x: --freeze 3", "y: --lr0 -1"))
    assert given.rest == ("--img", "-")
    assert TOY.parse(["a", "--share", "0.1", "--share", "0.2"]).cfg.share == 0.2, "the last one counts"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "0"], "--batch-size must be at least 1, got 0"),
        (["--batch", "many"], "--batch-size: expected a whole number, got 'many'"),
        (["--batch"], "--batch-size: expected one argument"),
        (["--share", "nan"], "--share must lie in 0..1, got nan"),
        (["--share", "7"], "--share must lie in 0..1, got 7"),
        (["--places", "1", "-1"], "--places must be at least 0, got -1"),
        (["--kind", "c"], "--kind must be one of a, b, got 'c'"),
        (["--batch-sise", "3"], "--batch-sise is not a flag of toy.py; did you mean --batch-size?"),
        (["--batc", "3"], "--batc is not a flag of toy.py; did you mean --batch-size?"),
        (["--zzz"], "--zzz is not a flag of toy.py; see --help"),
        (["--share", "0.1", "share=3"], "'share=3' belongs to no flag; write --share 3"),
        ([], "RUNS"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_flag(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        TOY.parse([*(["r"] if words else []), *words])
    assert said in str(error.value) and "\n" not in str(error.value) and "usage" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "value", "programs"),
    [
        ("--batch", "0", "train test export"),
        ("--batch", "-1", "train test export"),
        ("--workers", "-1", "train test"),
        ("--iou", "7", "test detect"),
        ("--conf", "-3", "test detect"),
        ("--conf", "2", "test detect"),
        ("--max-det", "-3", "detect"),
        ("--classes", "-1", "detect"),
        ("--img", "0", "train test detect export"),
        ("--img", "-64", "train test detect export"),
        ("--seed", "-1", "train"),
        ("--lr0", "inf", "train"),
        ("--gradnorm-lr", "-1", "train"),
        ("--rounds", "0", "bench"),
    ],
)
def test_ranges_of_the_programs(word: str, value: str, programs: str) -> None:
    for name in programs.split():
        with pytest.raises(UserError, match=rf"^{word}"):
            PROGRAMS[name].parse([*NEEDED.get(name, []), word, value])


@pytest.mark.parametrize("name", sorted(ALL))
def test_help_in_each_program(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where words behind `--` are needed, and other options are."""
    with pytest.raises(SystemExit) as ended:
        ALL[name].parse(["--help"])
    assert ended.value.code == 0 and "[OPTIONS]" in capsys.readouterr().out
