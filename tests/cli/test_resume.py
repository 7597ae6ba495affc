"""A run that is stopped or killed anywhere and resumed is the run that was not: weights, average, optimizer, rows."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from utils.checkpoint import read_checkpoint

Process = "subprocess.Popen[str]"


def start(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def flags(data: Path, project: Path, name: str) -> list[str]:
    words = ["--data", str(data), "--cfg", "cfg/training/demo-1b4h.yaml", "--hyp", "data/hyp.demo.yaml", "--img", "64"]
    words += ["--heads", "4", "--head-config", "data/shapes_1b4h.yaml", "--freeze", "10", "--image-weights"]
    words += ["--batch", "2", "--nominal-batch", "4", "--epochs", "3", "--workers", "0", "--device", "cpu"]
    return [*words, "--save-steps", "2", "--project", str(project), "--name", name]


def same(a: Path, b: Path) -> None:
    """Both runs ended in the same state, to the bit."""
    for name in ("last.pt", "best.pt"):
        x, y = (read_checkpoint(run / "weights" / name) for run in (a, b))
        for part in ("ema", "model", "patches"):
            if part in x:
                assert all(torch.equal(x[part][k], y[part][k]) for k in x[part]), (name, part)
        if "optimizer" in x:
            states = (c["optimizer"]["state"] for c in (x, y))
            one, two = ({(i, k): v for i, s in state.items() for k, v in s.items()} for state in states)
            assert one.keys() == two.keys()
            assert all(torch.equal(v, two[k]) if isinstance(v, torch.Tensor) else v == two[k] for k, v in one.items())
        assert {k: x["meta"].get(k) for k in ("epoch", "step", "best", "map")} == {
            k: y["meta"].get(k) for k in ("epoch", "step", "best", "map")
        }
    for name in ("results.csv", "results.txt"):
        assert (a / name).read_text() == (b / name).read_text(), name


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


@pytest.mark.parametrize("extra", [["--workers", "2"], ["--cache-images"]], ids=" ".join)
def test_workers_and_cache_change_no_bit(unbroken: Path, small_shapes: Path, tmp_path: Path, extra: list[str]) -> None:
    assert start(*flags(small_shapes, tmp_path, "a"), *extra).wait(300) == 0
    same(unbroken, tmp_path / "a")


def kill_and_resume(unbroken: Path, data: Path, project: Path, kills: int, seed: int) -> None:
    """SIGKILL at random moments until `kills` of them hit; then let it finish."""
    draw = np.random.default_rng(seed)
    run, hits = project / "a", 0
    words = flags(data, project, "a")
    for _ in range(20 * kills):
        process = start(*words)
        while not run.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(float(draw.uniform(0.1, 4.0)))
        if process.poll() is None and hits < kills:
            os.kill(process.pid, signal.SIGKILL)
            hits += 1
        code = process.wait(300)
        if code == 0:
            break
        words = (
            ["--resume", str(run)] if (run / "weights/last.pt").exists() else [*flags(data, project, "a"), "--exist-ok"]
        )
    assert hits > 0
    same(unbroken, run)


def test_killed_twice(unbroken: Path, small_shapes: Path, tmp_path: Path) -> None:
    kill_and_resume(unbroken, small_shapes, tmp_path, kills=2, seed=1)


@pytest.mark.slow
def test_killed_twenty_times(unbroken: Path, small_shapes: Path, tmp_path: Path) -> None:
    kill_and_resume(unbroken, small_shapes, tmp_path, kills=20, seed=2)
