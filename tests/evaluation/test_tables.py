"""Tables and label files of an evaluation, from figures put in by hand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from utils.evaluation.tables import label_lines, number, result_table, write_classes, write_per_class_ap

NAN = float("nan")


@pytest.fixture
def result() -> Any:
    """Three classes, of which the second has no objects."""
    shares = np.array([0.5, NAN, 0.25])
    return SimpleNamespace(
        names=["cat", "dog", "cow"], n_gt=np.array([4, 0, 2]), p=shares, r=shares, f1_per_class=shares, ap50=shares,
        ap=shares / 2, mp=0.375, mr=0.375, f1=0.375, map50=0.375, map=0.1875, images=7, rule="COCO", per_head={},
        said="", match="coco",
    )  # fmt: skip


def test_classes_without_objects_have_no_share(result: Any, tmp_path: Path) -> None:
    write_classes(tmp_path / "c.csv", result)
    assert (tmp_path / "c.csv").read_text().splitlines() == [
        "class,objects,P,R,F1,AP50,AP", "cat,4,0.5,0.5,0.5,0.5,0.25", "dog,0,,,,,", "cow,2,0.25,0.25,0.25,0.25,0.125"
    ]  # fmt: skip
    write_per_class_ap(result, tmp_path / "new/ap.json")
    found = json.loads((tmp_path / "new/ap.json").read_text())
    assert found["map50"] == 0.375 and found["per_class"] == {
        "0": {"ap50": 0.5, "ap": 0.25, "name": "cat"},
        "2": {"ap50": 0.25, "ap": 0.125, "name": "cow"},
    }


def test_the_printed_table(result: Any) -> None:
    assert "no mAP to compare" in result_table(result, False, lowest=0.25) and "no mAP" not in result_table(
        result, False
    )
    short, long = result_table(result, per_class=False), result_table(result, per_class=True)
    assert [line.split() for line in short.splitlines()[2:]] == [
        ["all", "6", "0.3750", "0.3750", "0.3750", "0.3750", "0.1875"]
    ]
    assert [line.split()[0] for line in long.splitlines()[2:]] == ["all", "cat", "cow"]


def test_detections_as_label_lines() -> None:
    found = torch.tensor([[10.0, 20.0, 30.0, 60.0, 0.5, 2.0]])
    assert label_lines(found, (100, 200), False) == "2 0.100000 0.400000 0.100000 0.400000\n"
    assert label_lines(found, (100, 200), True).endswith(" 0.500000\n")
    assert label_lines(found[:0], (100, 200), False, [0.2, 0.7, 0.1]) == "0 1 0\n"


def test_a_figure_that_was_not_measured_is_a_dash() -> None:
    assert number(math.nan) == "-" and number(0.25) == "0.2500"
