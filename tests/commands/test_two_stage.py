"""scripts/two_stage.sh at toy size: stopped in its first stage, gone on with, and skipped when it is finished."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.toy import toy, trained
from utils.system.yaml_file import read_yaml
from utils.weights.checkpoint import read_checkpoint


def test_both_stages(small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    start = trained(small_shapes, tmp_path, "start").dir / "weights/best.pt"
    words = toy(small_shapes, tmp_path, "x")
    flags = [
        w
        for f in ("--img", "--batch", "--nominal-batch", "--workers", "--device")
        for w in (f, words[words.index(f) + 1])
    ]
    settings = {
        "WEIGHTS": str(start), "DATA": str(small_shapes), "CFG": "cfg/training/demo.yaml", "FREEZE": "backbone 30",
        "HYP1": "data/hyp.demo.yaml", "HYP2": "data/hyp.demo.stage2.yaml", "LR1": "0.003", "EPOCHS1": "2",
        "EPOCHS2": "1", "PROJECT": str(tmp_path), "PREFIX": "t", "PYTHON": sys.executable, "CONTINUE": "1",
    }  # fmt: skip

    def chain(python: str = sys.executable) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "scripts/two_stage.sh", *flags, "--audit"], cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, **settings, "PYTHON": python},
        )  # fmt: skip

    killed = tmp_path / "python"  # dies after the last epoch's row is written, before its checkpoint
    killed.write_text(
        f'#!/bin/sh\nshift 2\nexec {sys.executable} tests/launch.py child:kill:rows:3 utils/__main__.py "$@"\n'
    )
    killed.chmod(0o755)
    first, second = tmp_path / "t_1_frozen", tmp_path / "t_2_open"
    broken = chain(str(killed))
    assert broken.returncode == 1 and "it was killed (SIGKILL)" in broken.stderr, broken.stderr
    assert read_checkpoint(first / "weights/last.pt")["meta"]["next_epoch"] == 1 and not second.exists()
    done = chain()
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(first / "weights/last.pt")["meta"]["next_epoch"] == 2
    assert "| 1_frozen" in done.stdout and "| backbone 30" in done.stdout and "| 2_open" in done.stdout
    assert "2_open: " in (tmp_path / "t_chain/chain.log").read_text(), "checked"

    before, one, two = (
        read_checkpoint(p)["ema"] for p in (start, first / "weights/best.pt", second / "weights/last.pt")
    )
    for key in before:
        if not key.endswith((".anchors", ".anchor_grid")):
            frozen = int(key.split(".")[1]) in (*range(29), 30)
            assert torch.equal(before[key], one[key]) == frozen and not torch.equal(one[key], two[key]), key
    recorded = read_yaml(second / "run.yaml", "run.yaml")
    assert recorded["start"]["weights"] == str(first / "weights/best.pt")
    assert (recorded["config"]["lr0"], read_yaml(first / "run.yaml", "")["config"]["lr0"]) == (0.0005, 0.003)

    dates = [p.stat().st_mtime_ns for run in (first, second) for p in sorted((run / "weights").iterdir())]
    again = chain()
    assert again.returncode == 0 and again.stdout.count("finished before") == 2
    assert dates == [p.stat().st_mtime_ns for run in (first, second) for p in sorted((run / "weights").iterdir())]
