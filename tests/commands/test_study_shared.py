"""A study by several processes on one folder, killed in between: the tables of one process alone, to the digit."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT, CommandLine
from tests.study.test_child import until
from tests.toy import common
from utils.runs.record import read_rows

ARMS = [word for i in range(6) for word in ("--arm", f"rate {i}: --lr0 0.00{i + 1}")]


def words(data: Path, project: Path, *more: str) -> list[str]:
    study = ["-m", "utils", "study", "--project", str(project), "--seeds", "0,1", "--columns", "mAP50,val_box", *more]
    return [*study, *ARMS, "--", *common(data, epochs=2)]


def started(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.slow
def test_killed_and_shared_it_is_the_serial_one(small_shapes: Path, tmp_path: Path, command_line: CommandLine) -> None:
    alone = command_line(*words(small_shapes, tmp_path / "alone"), timeout=1200)
    assert alone.returncode == 0, alone.stderr
    project = tmp_path / "shared"
    first = started(words(small_shapes, project, "--jobs", "2"))
    until(lambda: len(list(project.glob("*/results.csv"))) > 3, first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=120)
    second = started(words(small_shapes, project, "--jobs", "2"))
    until(lambda: len(list(project.glob("*/result.yaml"))) > 5, second)
    second.send_signal(signal.SIGTERM)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 128 + signal.SIGTERM and "stopped: " in err
    assert (project / "study.md").is_file(), "the table so far"
    both = [started(words(small_shapes, project)) for _ in range(2)]
    said = [process.communicate(timeout=1200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("is trained by" in out for out, _ in said)
    assert read_rows(project / "study.csv") == read_rows(tmp_path / "alone/study.csv")
