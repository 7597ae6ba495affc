"""Where the tasks of a real network meet, found from their losses."""

import pytest
import torch
from torch import Tensor, nn

from models.graph import Detector
from patches.weighting.shared_layer import describe, last_shared, rows_by_task, weights_of
from tests.conftest import ROOT
from utils.system.yaml_file import read_yaml

Losses = dict[str, Tensor]


@pytest.fixture
def model() -> Detector:
    return Detector(read_yaml(ROOT / "cfg/training/demo.yaml", "--cfg"), 3)


def add_view(model: Detector, row: int) -> None:
    channels = 3 if row < 0 else int(model.model[row].out_channels)  # type: ignore[arg-type]
    model.add_branch("view", row, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2)))


def losses_of(model: Detector) -> Losses:
    out = model(torch.rand(2, 3, 64, 64))
    return {"detection": torch.stack([d.sum() for d in out["det"]]).sum(), "view": out["view"].sum()}


@pytest.mark.parametrize(
    ("row", "found"),
    [(28, [28]), (37, [37]), (47, [47]), (73, [73]), (27, [23, 26])],  # 27 joins 23..26; 24 leads to 25, 25 to 26
)
def test_last_row_that_both_reach(model: Detector, row: int, found: list[int]) -> None:
    add_view(model, row)
    assert last_shared(model, rows_by_task(model, losses_of(model))) == found


def test_terms_of_a_detector_part_at_its_levels(model: Detector) -> None:
    det = model(torch.rand(2, 3, 64, 64))["det"]
    losses = {"box": torch.stack([d[..., :4].sum() for d in det]).sum()}
    losses["obj"] = torch.stack([d[..., 4].sum() for d in det]).sum()
    assert last_shared(model, rows_by_task(model, losses)) == [74, 75, 76]
    assert describe(model, [74]) == "74 (Conv, 17,280 weights)"


def test_frozen_rows_do_not_count(model: Detector) -> None:
    add_view(model, 28)
    for i in range(20, 29):
        model.model[i].requires_grad_(False)
    assert last_shared(model, rows_by_task(model, losses_of(model))) == [16, 19]  # row 20 joins them
    for i in range(20):
        model.model[i].requires_grad_(False)
    assert last_shared(model, rows_by_task(model, losses_of(model))) == []


def test_networks_apart_share_nothing(model: Detector) -> None:
    add_view(model, -1)
    assert last_shared(model, rows_by_task(model, losses_of(model))) == []


def test_weights_are_what_learns_and_is_no_norm(model: Detector) -> None:
    assert [p.shape for p in weights_of(model.model[0])] == [(16, 3, 3, 3)]
    model.model[0].requires_grad_(False)
    assert weights_of(model.model[0]) == []
