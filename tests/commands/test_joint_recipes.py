"""scripts/gradnorm_50.sh and dual_backbone_50.sh, at toy size: joint training as it is done from the shell."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

AUGMENTATION = (
    *("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr"),
    *("mosaic", "mixup", "copy_paste", "paste_in"),
)


@pytest.fixture(scope="module")
def joint_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data YAML of 12 training and 8 validation pictures with a class of the whole image."""
    folder = tmp_path_factory.mktemp("joint")
    text = (ROOT / "data/shapes_joint.yaml").read_text().replace("{train: 320, val: 80}", "{train: 12, val: 8}")
    (folder / "joint.yaml").write_text(text)
    return folder / "joint.yaml"


def recipe(script: str, data: Path, project: Path, *flags: str) -> tuple[Path, dict[str, Any]]:
    """The run's folder and its run.yaml. flags come after those of the script."""
    settings = {"DATA": str(data), "CFG": "cfg/training/demo.yaml", "HYP": "data/hyp.demo.yaml", "IMG": "64"}
    toy = ["--workers", "0", "--device", "cpu", *flags]
    done = subprocess.run(
        ["bash", f"scripts/{script}.sh", *toy], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, **settings, "PROJECT": str(project), "NAME": "run", "PYTHON": sys.executable},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = yaml.safe_load((project / "run/run.yaml").read_text())
    assert all(content["config"][key] == 0 for key in (*AUGMENTATION, "patience"))
    assert content["config"]["batch_size"] == 8 and " --epochs 50 " in content["command"]
    return project / "run", content


@pytest.mark.slow
def test_gradnorm_in_one_network(joint_shapes: Path, tmp_path: Path) -> None:
    folder, content = recipe("gradnorm_50", joint_shapes, tmp_path, "--epochs", "2", "--nominal-batch", "4")
    assert content["patches"]["weighting"]["gradnorm_alpha"] == 1.5 and content["patches"]["joint"]["classify"] is True
    history = json.loads((folder / "history.json").read_text())
    assert [row["epoch"] for row in history] == [0, 1]
    for row in history:
        assert set(row["weight"]) == set(row["grad_norm"]) == {"detection", "image_class"}
        assert row["grad_norm"]["image_class"] > 0 and -1 <= row["cosine"]["detection:image_class"] <= 1
        assert {"mAP50", "image_acc", "image_majority"} <= set(row["metric"])
    assert (folder / "history.png").is_file()


@pytest.mark.slow
def test_two_networks(joint_shapes: Path, tmp_path: Path) -> None:
    """With --mtl the history is written, without norms: the tasks meet nowhere."""
    folder, content = recipe("dual_backbone_50", joint_shapes, tmp_path, "--epochs", "1", "--mtl", "fixed")
    assert "joint" not in content["patches"]
    (row,) = csv.DictReader((folder / "history.csv").read_text().splitlines())
    assert row["grad_norm/detection"] == row["cosine/detection:image_class"] == ""
    assert float(row["weight/image_class"]) == 1 and float(row["metric/image_known"]) > 0
