"""Augmentation by epoch: what changes, what closes, and that nothing else moves."""

from pathlib import Path

import pytest
import torch

from utils.config.train import Config
from utils.data.augment import AugmentParams, AugmentPlan
from utils.data.build import make_loaders
from utils.data.dataset import DetectionDataset, Sample
from utils.data.spec import read_data
from utils.seams import Patches


def test_a_value_holds_until_a_later_change() -> None:
    plan = AugmentPlan(AugmentParams(mosaic=1, scale=0.5, mixup=0.2))
    plan = plan.changed([(5, {"scale": 0.1}), (2, {"scale": 0.3, "mosaic": 0.5})])
    found = [(p.mosaic, p.scale, p.mixup) for p in map(plan.at, range(7))]
    assert found == [(1, 0.5, 0.2)] * 2 + [(0.5, 0.3, 0.2)] * 3 + [(0.5, 0.1, 0.2)] * 2


def test_closing_wins_over_changes() -> None:
    plan = AugmentPlan(AugmentParams(mosaic=1, mixup=1), closes=3).changed([(4, {"mosaic": 0.7})])
    assert [(p.mosaic, p.mixup) for p in map(plan.at, range(6))] == [(1, 1)] * 3 + [(0, 0)] * 3
    assert AugmentPlan(AugmentParams(mosaic=1), closes=-2).at(0).mosaic == 0, "longer than the run"


@pytest.fixture(scope="module")
def sets(small_shapes: Path) -> dict[str, DetectionDataset]:
    """The training set by --close-mosaic and mosaic, six epochs."""
    spec = read_data(str(small_shapes))

    def made(**more: float) -> DetectionDataset:
        cfg = Config(epochs=6, img_size=(64,), workers=0, batch_size=4, **{"mosaic": 1.0, "mixup": 0.5, **more})  # type: ignore[arg-type]
        loader = make_loaders(cfg, spec, Patches({}), 64, 32)[0]
        assert isinstance(loader.dataset, DetectionDataset)
        return loader.dataset

    return {"open": made(), "closed": made(close_mosaic=2), "none": made(mosaic=0.0)}


def same(a: DetectionDataset, b: DetectionDataset, epoch: int) -> list[bool]:
    pairs = [(a[Sample(epoch, i)], b[Sample(epoch, i)]) for i in range(len(a))]
    return [torch.equal(x["image"], y["image"]) and torch.equal(x["target"], y["target"]) for x, y in pairs]


def test_close_mosaic(sets: dict[str, DetectionDataset]) -> None:
    """Before its epochs not a bit differs; in them pictures are those of a run without mosaic."""
    for epoch in range(6):
        assert all(same(sets["closed"], sets["open" if epoch < 4 else "none"], epoch))
    assert not any(same(sets["open"], sets["none"], 5))


def test_a_changed_set_leaves_the_old_one_alone(sets: dict[str, DetectionDataset]) -> None:
    other = sets["open"].changing([(2, {"mosaic": 0.0})])
    assert all(same(other, sets["open"], 1)) and all(same(other, sets["none"], 2))
    assert not any(same(sets["open"], sets["none"], 2))
