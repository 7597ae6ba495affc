"""An ablation over freeze points through the command line, gone on with, and compared."""

import csv
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.toy import common
from utils.study import ablate
from utils.system.errors import UserError


@pytest.mark.slow
def test_runs_are_named_skipped_resumed_and_compared(
    small_shapes: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    project = tmp_path / "ablate"
    words = ["-m", "utils", "ablate", "--freeze-list", "0,999,50", "--project", str(project), "--"]
    words += common(small_shapes)
    never = command_line(*words)
    assert never.returncode == 2 and "arm freeze_999: --freeze 999: the model has 78 modules" in never.stderr
    words[words.index("0,999,50")] = "0,50"
    done = command_line(*words)
    assert done.returncode == 0, done.stderr
    with open(project / "comparison/comparison.csv", newline="") as f:
        table = {row["run"]: row for row in csv.DictReader(f)}
    assert list(table) == ["no_freeze_seed0", "freeze_50_seed0"]
    trainable = [table[f"{arm}_seed0"]["trainable parameters"] for arm in ("no_freeze", "freeze_50")]
    assert int(trainable[0]) > int(trainable[1]) > 0
    assert float(table["no_freeze_seed0"]["AP@0.5:0.95 of small objects"]) >= 0
    assert (
        "no_freeze_seed0 (baseline)" in done.stdout
        and "no_freeze_seed0 (baseline)" in (project / "comparison/comparison.html").read_text()
    )
    assert (project / "study.md").is_file(), "an ablation is a study"
    assert 0 < float(table["freeze_50_seed0"]["peak memory, GiB"]) < 64
    pictures = {"learning.png", "PR.png", "F1.png", "confusion.png", "images.png"}
    assert pictures <= {p.name for p in (project / "comparison").iterdir()}

    before = (project / "freeze_50_seed0/weights/last.pt").stat().st_mtime_ns
    shutil.rmtree(project / "no_freeze_seed0/weights")  # as if it had died before its first checkpoint
    (project / "no_freeze_seed0/result.yaml").unlink()
    again = command_line(*words)
    assert again.returncode == 0, again.stderr
    assert "freeze_50_seed0: finished before" in again.stdout
    assert (project / "freeze_50_seed0/weights/last.pt").stat().st_mtime_ns == before
    assert (project / "no_freeze_seed0/weights/last.pt").is_file()


def test_help(command_line: CommandLine) -> None:
    for tool, flag in (("ablate", "--freeze-list"), ("study", "--arm")):
        done = command_line("-m", "utils", tool, "--help")
        assert done.returncode == 0 and flag in done.stdout and "--columns" in done.stdout


def test_flags_that_the_ablation_sets() -> None:
    for words, message in (
        (["--freeze-list", "0,3"], "give train.py's flags after `--`"),
        (["--freeze-list", "0,x", "--", "--data", "a"], "--freeze-list 0,x: expected whole numbers"),
        (["--freeze-list", "0,0", "--", "--data", "a"], "--freeze-list 0,0: a number stands there twice"),
        (["--freeze-list", "0", "--", "--freeze", "3"], "--freeze: set for each run"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            ablate.main(words)
