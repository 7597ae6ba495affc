"""The hyper-parameter and head files that ship with the project hold the documented values."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.shared import ROOT, shared
from utils.config.hyp import OF_ANCHORS

BASE = {
    "lr0": 0.01, "lrf": 0.01, "momentum": 0.937, "weight_decay": 0.0005, "warmup_epochs": 3, "warmup_momentum": 0.8,
    "warmup_bias_lr": 0.1, "box": 0.05, "cls": 0.5, "cls_pw": 1, "obj": 1, "obj_pw": 1, "iou_t": 0.2, "anchor_t": 4,
    "fl_gamma": 0, "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 0, "translate": 0.1, "scale": 0.5, "shear": 0,
    "perspective": 0, "flipud": 0, "fliplr": 0.5, "mosaic": 1, "mixup": 0.05, "copy_paste": 0, "paste_in": 0.05,
    "loss_ota": 1,
}  # fmt: skip
P5 = {"lrf": 0.1, "cls": 0.3, "obj": 0.7, "translate": 0.2, "scale": 0.9, "mixup": 0.15, "paste_in": 0.15}
DIFFERS: dict[str, dict[str, float]] = {
    "scratch.tiny": {},
    "scratch.tiny.noota": {"loss_ota": 0},
    "scratch.tiny.noota.stage2": {"loss_ota": 0, "lr0": 0.001},
    "scratch.tiny.noota.stage3": {"loss_ota": 0, "lr0": 0.0005, "warmup_epochs": 2, "warmup_bias_lr": 0.05},
    "scratch.tiny.noota.stage4": {"loss_ota": 0, "lr0": 0.0001, "lrf": 0.1, "warmup_epochs": 1, "warmup_bias_lr": 0.01},
    "gradual_unfreeze_f74to50": {"loss_ota": 0, "lr0": 0.005},
    "gradual_unfreeze_f74to29": {"loss_ota": 0, "lr0": 0.001, "lrf": 0.1},
    "gradual_unfreeze_stage3_f50to0": {"loss_ota": 0, "lr0": 0.002, "lrf": 0.1, "warmup_epochs": 5},
    "scratch.p5": P5,
    "scratch.p6": P5 | {"lrf": 0.2},
    "scratch.custom": P5 | {"scale": 0.5, "mixup": 0, "paste_in": 0},
}

# COCO ids of the pairs that the anticonfusion grouping keeps apart
PAIRS = [
    (2, 7), (3, 1), (15, 16), (18, 19), (42, 43), (43, 44), (42, 44), (40, 41), (47, 49), (56, 57), (64, 65), (67, 65),
    (68, 69), (30, 31), (24, 26), (5, 7), (2, 5), (57, 59), (17, 19),
]  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    parsed = yaml.safe_load(path.read_text())
    assert isinstance(parsed, dict)
    return parsed


@pytest.mark.parametrize("name", DIFFERS)
def test_hyp_file_is_the_base_recipe_with_its_documented_differences(name: str) -> None:
    assert load(ROOT / f"data/hyp.{name}.yaml") == BASE | DIFFERS[name]


def test_every_hyp_file_has_every_key_and_only_numbers() -> None:
    files = sorted((ROOT / "data").glob("hyp.*.yaml"))
    assert len(files) >= len(DIFFERS)
    for file in files:
        hyp = load(file)
        wanted = BASE.keys() - OF_ANCHORS | {"dfl", "linear_lr"} if "dfl" in hyp else BASE.keys()
        assert hyp.keys() - {"close_mosaic"} == wanted, file.name
        assert all(type(v) in (int, float) or k == "linear_lr" for k, v in hyp.items()), file.name


def head_file(grouping: str) -> dict[str, Any]:
    return load(ROOT / f"data/coco_320_1b4h_{grouping}.yaml")


@pytest.mark.parametrize("grouping", ["standard", "geometry", "anticonfusion"])
def test_head_file_puts_every_class_into_exactly_one_head(grouping: str) -> None:
    spec = head_file(grouping)
    assert (spec["nc"], spec["heads"], spec["grouping"]) == (80, 4, grouping)
    assert list(spec["head_assignments"]) == [f"head_{i}" for i in range(4)]
    classes = [c for head in spec["head_assignments"].values() for c in head["classes"]]
    assert sorted(classes) == list(range(80))


@pytest.mark.parametrize("grouping", ["standard", "geometry", "anticonfusion"])
def test_head_file_equals_the_reference_grouping(grouping: str) -> None:
    reference = json.loads(shared("golden/models/head_configs.json").read_text())[grouping]
    heads = head_file(grouping)["head_assignments"].values()
    assert [head["classes"] for head in heads] == reference["head_classes"]  # order = local ids
    assert [head["weight"] for head in heads] == reference["weights"]


def test_anticonfusion_keeps_its_pairs_apart_and_its_counts_add_up() -> None:
    heads = list(head_file("anticonfusion")["head_assignments"].values())
    owner = {c: i for i, head in enumerate(heads) for c in head["classes"]}
    assert len({frozenset(pair) for pair in PAIRS}) == 19
    assert [pair for pair in PAIRS if owner[pair[0]] == owner[pair[1]]] == []
    assert sum(head["sample_count"] for head in heads) == 860_001
