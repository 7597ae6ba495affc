"""A run that ends early, through the command line."""

import signal
import subprocess
import sys
from pathlib import Path

import yaml

from tests.conftest import ROOT, CommandLine
from tests.toy import toy
from utils.checkpoint import read_checkpoint
from utils.record import read_rows


def life(words: list[str], condition: str, launcher: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *launcher, "tests/launch.py", condition, "train.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def events(run: Path) -> list[tuple[str, str]]:
    return [(row["epoch"], row["event"]) for row in read_rows(run / "guard.csv")]


def test_patience_ends_a_run_and_its_resume(small_shapes: Path, tmp_path: Path) -> None:
    """Killed in the epoch that will be its last."""
    condition = "worth:0.1,0.3,0.2,0.3,0.9"
    out = life([*toy(small_shapes, tmp_path, "a", epochs=9), "--patience", "2"], f"kill:step:11+{condition}")
    assert out.returncode == -signal.SIGKILL, out.stderr
    run = tmp_path / "a"
    for _ in range(2):  # it ends, and stays at its end
        out = life(["--resume", str(run)], condition)
        assert out.returncode == 0, out.stderr
        assert "ended after epoch 4 of 9: no better fitness in 2 evaluated epochs (--patience)" in out.stdout
        assert len(read_rows(run / "results.csv")) == 4 and events(run) == [("3", "end")]
    assert "best.pt: P " in out.stdout and (run / "val_batch0_pred.jpg").is_file()
    assert read_checkpoint(run / "weights/best.pt")["meta"]["epoch"] == 1
    assert yaml.safe_load((run / "result.yaml").read_text())["ended"].startswith("no better fitness")


def test_nothing_to_guard(small_shapes: Path, tmp_path: Path, command_line: CommandLine) -> None:
    out = command_line("train.py", *toy(small_shapes, tmp_path, "a"), "--guard-drop", "0.01")
    assert out.returncode == 2 and "this run has no opening to guard" in out.stderr
    assert not (tmp_path / "a").exists()
