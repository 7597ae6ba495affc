"""scripts/freeze_study.sh at toy size, on 16-bit images and a detector without anchors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.toy import common, trained
from utils.runs.record import read_rows
from utils.weights.checkpoint import read_checkpoint

FREE = ["--cfg", "cfg/training/demo-free.yaml", "--hyp", "data/hyp.demo.free.yaml"]


@pytest.mark.slow
def test_arms_have_equal_budgets_and_meet_on_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    data, text = tmp_path / "deep.yaml", (ROOT / "data/shapes.yaml").read_text()
    data.write_text(text.replace("{train: 320, val: 80}", "{train: 8, val: 4}") + "bits: 16\n")
    start = trained(data, tmp_path, "start", *FREE).dir / "weights/best.pt"
    flags = common(data)
    words = [w for f in ("--nominal-batch", "--workers", "--device") for w in (f, flags[flags.index(f) + 1])]
    project = tmp_path / "study"
    settings = {
        "MODEL": str(start), "DATA": str(data), "HYP": "data/hyp.demo.free.yaml", "IMG": "64", "BATCH": "4",
        "EPOCHS1": "1", "EPOCHS2": "1", "LAYERS": "6", "FREEZE_LIST": "3", "SEEDS": "0", "PROJECT": str(project),
        "PYTHON": sys.executable,
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "scripts/freeze_study.sh", *words], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, **settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]

    arms = {"no_freeze_seed0": (2, 0), "freeze_3_seed0": (2, 3), "two_stage_seed0_1_frozen": (1, 6),
            "two_stage_seed0_2_open": (1, 0)}  # fmt: skip
    first = read_checkpoint(start)["ema"]
    for name, (epochs, frozen) in arms.items():
        assert len(read_rows(project / name / "results.csv")) == epochs, name
        before = (
            read_checkpoint(project / "two_stage_seed0_1_frozen/weights/best.pt")["ema"] if "open" in name else first
        )
        after = read_checkpoint(project / name / "weights/last.pt")["ema"]
        moved = {int(k.split(".")[1]) for k in after if k.endswith("weight") and not torch.equal(before[k], after[k])}
        assert min(moved) == frozen and max(moved) == 23, name
        assert all(torch.equal(after[k], before[k]) for k in after if ".dfl." in k)
    page = (project / "freeze_study/comparison.html").read_text()
    assert all(name in page for name in arms if "frozen" not in name)
