"""A study as an array of a real Slurm of one node: shared by its tasks, requeued, the table of one process."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.test_study_shared import words
from tests.conftest import ROOT, CommandLine
from utils.runs.record import read_rows

MISSING = [p for p in ("munged", "slurmctld", "slurmd", "setpriv") if shutil.which(p) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"no local Slurm: {', '.join(MISSING)} missing"),
    pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="a local Slurm is started by root"),
]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    script = ["bash", str(ROOT / "scripts/slurm_local.sh")]
    subprocess.run([*script, "start", str(tmp_path / "slurm")], check=True, capture_output=True, timeout=120)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm/slurm.conf"))
    yield tmp_path / "slurm"
    subprocess.run([*script, "stop", str(tmp_path / "slurm")], check=True, timeout=120)


def asked(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_an_array_shares_a_study(small_shapes: Path, tmp_path: Path, slurm: Path, command_line: CommandLine) -> None:
    """The command of docs/studies.md. The first task is requeued in the middle of a run, as at a preemption."""
    project = tmp_path / "shared"
    batch = tmp_path / "study.sh"
    command = " ".join(f"'{word}'" for word in [sys.executable, *words(small_shapes, project)])
    batch.write_text(f"#!/bin/bash\ncd '{ROOT}'\nexec {command}\n")
    job = asked(
        "sbatch", "--parsable", "--array=0-1", "--ntasks=1", "--requeue", "--signal=B:TERM@120", "--open-mode=append",
        f"--output={tmp_path}/task-%a.txt", str(batch),
    )  # fmt: skip
    until = time.monotonic() + 1200
    while len(list(project.glob("*/results.csv"))) < 3 and time.monotonic() < until:
        time.sleep(0.5)
    asked("scontrol", "requeue", f"{job}_0")
    while asked("squeue", "--noheader") and time.monotonic() < until:
        time.sleep(1)
    said = [(tmp_path / f"task-{i}.txt").read_text() for i in (0, 1)]
    assert all(text.count("tables and picture:") == 1 for text in said), said
    assert all("is trained by" in text for text in said), "they worked at the same time"
    alone = command_line(*words(small_shapes, tmp_path / "alone"), timeout=1200)
    assert alone.returncode == 0, alone.stderr
    assert read_rows(project / "study.csv") == read_rows(tmp_path / "alone/study.csv")
