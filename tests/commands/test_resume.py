"""A run that is stopped or killed anywhere and resumed is the run that was not: weights, average, optimizer, rows."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.toy import FOUR_HEADS, same, toy
from utils.weights.checkpoint import read_checkpoint

Process = "subprocess.Popen[str]"


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def flags(data: Path, project: Path, name: str) -> list[str]:
    common = toy(data, project, name, epochs=3, batch=2)
    learning = ["--freeze", "10", "--unfreeze", "0:40-77", "1:10-39@0.5"]
    return [*common, *FOUR_HEADS, *learning, "--image-weights", "--audit", "--save-steps", "2"]


@pytest.fixture(scope="module")
def unbroken(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("unbroken")
    process = start(*flags(small_shapes, project, "a"))
    assert process.wait(300) == 0
    return project / "a"


def test_sigterm_saves_and_says_how_to_go_on(unbroken: Path, small_shapes: Path, tmp_path: Path) -> None:
    """Asked to stop within an epoch: exit code 0, the command printed, and the resumed run is the unbroken one."""
    process = start(*flags(small_shapes, tmp_path, "a"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "a/weights/last.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert f"python train.py --resume {tmp_path / 'a'}" in out, out
    meta = read_checkpoint(tmp_path / "a/weights/last.pt")["meta"]
    assert 0 < meta["step"] < 18
    assert start("--resume", str(tmp_path / "a")).wait(300) == 0
    same(unbroken, tmp_path / "a")


@pytest.mark.parametrize(
    "extra", [["--workers", "2", "--cache-images"], pytest.param(["--workers", "8"], marks=pytest.mark.slow)],
    ids=" ".join,
)  # fmt: skip
def test_workers_and_cache_change_no_bit(unbroken: Path, small_shapes: Path, tmp_path: Path, extra: list[str]) -> None:
    """The loader starts no more workers than there are cores: eight of both are made believe."""
    words = [sys.executable, "tests/launch.py", "cores:8", "train.py", *flags(small_shapes, tmp_path, "a"), *extra]
    out = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert out.returncode == 0, out.stderr
    same(unbroken, tmp_path / "a")


def kill_and_resume(data: Path, project: Path, moments: Sequence[str], epochs: int, seed: int) -> list[str]:
    """A run killed at these moments, each within a few steps of going on; then it finishes. Returns the moments at
    which a kill hit; one that a life has no more of (the run was over) did not."""
    draw = np.random.default_rng(seed)
    run, hits = project / "a", []
    new = [*flags(data, project, "a"), "--epochs", str(epochs), "--save-steps", "1"]
    for moment in [*moments, ""]:
        number = draw.uniform(0.01, 0.3) if moment == "time" else draw.integers(1, 4)
        words = ["--resume", str(run)] if list(run.glob("weights/*.pt")) else [*new, "--exist-ok"]
        command = [sys.executable, "tests/launch.py", f"kill:{moment}:{number}", "train.py", *words]
        process = subprocess.run(
            command if moment else [sys.executable, "train.py", *words],
            cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, timeout=600,
        )  # fmt: skip
        if process.returncode == -signal.SIGKILL:
            hits.append(moment)
            continue
        assert process.returncode == 0, process.stderr[-2000:]
    return hits


@pytest.mark.slow
def test_killed_at_the_tenderest_moments(unbroken: Path, small_shapes: Path, tmp_path: Path) -> None:
    """In the middle of a file, between two names, between two rows: at another time of each life."""
    moments = ["write", "rename", "rows"]
    assert kill_and_resume(small_shapes, tmp_path, moments, epochs=3, seed=1) == moments
    same(unbroken, tmp_path / "a")


@pytest.mark.slow
def test_killed_twenty_times(small_shapes: Path, tmp_path: Path) -> None:
    """Twenty random moments, half of them while something is written; the files are those of the unbroken run."""
    draw = np.random.default_rng(2)
    writing = ["write", "rename", "rows"] * 3 + ["write"]
    moments = [
        str(m) for m in draw.permutation([*writing, *["time", "step"] * 3, "setup", "setup", *["evaluation"] * 2])
    ]
    whole = [*flags(small_shapes, tmp_path / "whole", "a"), "--epochs", "12", "--save-steps", "1"]
    assert start(*whole).wait(1200) == 0
    hits = kill_and_resume(small_shapes, tmp_path, moments, epochs=12, seed=3)
    assert len(moments) == 20 and hits == moments
    assert kill_and_resume(small_shapes, tmp_path, ["end"], epochs=12, seed=4) == ["end"]
    same(tmp_path / "whole/a", tmp_path / "a")
