"""Comparison of runs: figures from the runs' files, means over seeds, what is missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from utils import compare
from utils.measure import by_size

COLUMNS = ["epoch", "box", "obj/head_0", "lr_bias", "P", "R", "mAP50", "mAP", "val_box", "val_obj/head_0", "match"]


def write_run(folder: Path, rows: list[list[Any]], seed: int = 0, epochs: int = 4, **config: Any) -> Path:
    """A run folder as train.py leaves it, without weights."""
    folder.mkdir(parents=True)
    settings = {"config": {"seed": seed, "epochs": epochs, "name": folder.name, "lr0": 0.01, **config}, "patches": {}}
    (folder / "run.yaml").write_text(yaml.safe_dump({**settings, "parameters": {"trainable_params": 1234}}))
    lines = [",".join(COLUMNS), *(",".join(str(v) for v in row) for row in rows)]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    timing = [f"{i},{s},{m}" for i, (s, m) in enumerate([(9.0, 0.5), (3.0, 1.5), (5.0, 1.0), (4.0, 1.0)])]
    (folder / "timing.csv").write_text("\n".join(["epoch,seconds,memory_gib", *timing]) + "\n")
    return folder


ROWS = [
    [0, 3.0, 1.0, 0.1, 0.2, 0.1, 0.30, 0.10, 2.0, 1.0, "coco"],
    [1, 2.0, 1.0, 0.1, 0.3, 0.2, 0.60, 0.37, 2.0, 1.0, "coco"],
    [2, 1.5, 1.0, 0.1, 0.5, 0.4, 0.62, 0.50, 1.5, 1.0, "coco"],
    [3, 1.0, 0.5, 0.1, 0.4, 0.3, 0.61, 0.40, 1.6, 1.0, "coco"],
]


@pytest.fixture(autouse=True)
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs have no data set; measuring is tested with real runs in tests/cli/test_ablate.py."""

    def missing(folder: Path, *_: object) -> None:
        raise compare.UserError(f"there is no {folder / 'weights/best.pt'}")

    monkeypatch.setattr(compare, "measure", missing)


def test_figures_by_hand(tmp_path: Path) -> None:
    values = compare.read_entry(write_run(tmp_path / "a", ROWS), "cpu").values
    assert values == {
        "epochs": 4,
        "best epoch": 3,
        "best mAP@0.5": 0.62,
        "best mAP@0.5:0.95": 0.5,
        "final mAP@0.5": 0.61,
        "final mAP@0.5:0.95": 0.4,
        "P": 0.5,
        "R": 0.4,
        "epochs to 90 % of final": 2,
        "validation - training loss, last epoch": pytest.approx(2.6 - 1.5),
        "seconds per epoch": 4.5,
        "peak memory GiB": 1.5,
        "trainable parameters": 1234,
    }


def test_means_over_seeds_of_like_runs_only(tmp_path: Path) -> None:
    other = [[*row[:7], row[7] + 0.1, *row[8:]] for row in ROWS]
    runs = [
        write_run(tmp_path / "a0", ROWS, seed=0),
        write_run(tmp_path / "a1", other, seed=1),
        write_run(tmp_path / "b", ROWS, seed=0, lr0=0.02),
    ]
    ((name, count, spread),) = compare.means([compare.read_entry(r, "cpu") for r in runs])
    assert (name, count) == ("a0", 2)
    assert spread["best mAP@0.5:0.95"] == pytest.approx((0.55, 0.0707107))
    assert spread["P"] == (0.5, 0.0)


def test_what_is_missing_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a", ROWS), tmp_path / "gone", write_run(tmp_path / "empty", [])]
    compare.compare(runs, tmp_path / "out")
    table = [line.split(",") for line in (tmp_path / "out/comparison.csv").read_text().splitlines()]
    assert [row[0] for row in table] == ["run", "a", "gone", "empty"]
    assert set(table[2][1:]) == set(table[3][1:]) == {"missing"}
    said = capsys.readouterr().out
    assert "gone holds no finished epoch" in said and "a: best.pt could not be evaluated: there is no" in said
    page = (tmp_path / "out/comparison.html").read_text()
    assert "missing" in page and "data:image/png;base64," in page
    assert "http" not in page and "<script" not in page


def test_average_precision_by_object_size() -> None:
    """One object of each size; the small one is found, the medium one missed, a large one is not there."""

    class Found:
        names = ["a"]  # noqa: RUF012
        paths = ["x.png"]  # noqa: RUF012
        detections = [torch.tensor([[10.0, 10.0, 30.0, 30.0, 0.9, 0.0]])]  # noqa: RUF012

    truth = {"x.png": np.array([[10.0, 10.0, 30.0, 30.0, 0.0], [100.0, 100.0, 160.0, 160.0, 0.0]])}
    sizes = by_size(Found(), truth, {"x.png": [200, 300]})  # type: ignore[arg-type]
    assert sizes == {"small": pytest.approx(1.0), "medium": 0.0, "large": -1.0}
