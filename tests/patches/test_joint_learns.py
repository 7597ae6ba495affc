"""What is learnt is the class and nothing else: on held-out pictures random labels stay at ln C, true ones do not."""

import csv
import math
import shutil
from pathlib import Path

import pytest

from tests.shared import ROOT
from tests.toy import trained
from utils.data import read_data
from utils.rng import rng

FLAGS = ("--classify", "--adam", "--mosaic", "0", "--batch", "8", "--nominal-batch", "8", "--cls-dropout", "0")


def held_out(data: Path, project: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Cross-entropy and accuracy on the validation set after the last epoch."""
    monkeypatch.chdir(ROOT)
    run = trained(data, project, name, *FLAGS, epochs=5)
    row = list(csv.DictReader((run.dir / "results.csv").open()))[-1]
    assert float(row["image_known"]) == 48 and float(row["image_chance"]) == 0.25
    return float(row["image_ce"]), float(row["image_acc"])


def shuffle_labels(labels: Path) -> None:
    """Each split's last lines change places among its files."""
    for split in ("train", "val"):
        files = sorted((labels / split).glob("*.txt"))
        texts = [file.read_text().splitlines() for file in files]
        order = rng(0, "shuffled labels").permutation(len(files))
        for i, file in enumerate(files):
            file.write_text("\n".join([*texts[i][:-1], texts[order[i]][-1]]) + "\n")


@pytest.mark.slow
def test_true_labels_are_learnt_and_random_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "data/shapes_joint.yaml").read_text().replace("{train: 320, val: 80}", "{train: 96, val: 48}")
    (tmp_path / "true.yaml").write_text(text)
    read_data(tmp_path / "true.yaml")
    shutil.copytree(tmp_path / "shapes_joint", tmp_path / "shuffled")
    shuffle_labels(tmp_path / "shuffled/labels")
    kept = [line for line in text.splitlines() if not line.startswith(("generator", "images", "seed", "path"))]
    (tmp_path / "random.yaml").write_text("\n".join(["path: shuffled", *kept]) + "\n")
    learnt, right = held_out(tmp_path / "true.yaml", tmp_path, "a", monkeypatch)
    noise, _ = held_out(tmp_path / "random.yaml", tmp_path, "b", monkeypatch)
    assert abs(noise - math.log(4)) < 0.02, f"random labels: {noise}"
    assert learnt < math.log(4) - 0.3 and right > 0.5, f"true labels: {learnt}, accuracy {right}"
