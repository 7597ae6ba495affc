"""Two stems: they begin as the detector alone, learn behind a frozen one, and join where nothing is passed by."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from models.graph import Detector
from patches.modality.stems import SecondStem, early_row, join_rows
from tests.conftest import ROOT


def detector(cfg: str = "demo") -> Detector:
    torch.manual_seed(0)
    spec = yaml.safe_load(Path(ROOT, f"cfg/training/{cfg}.yaml").read_text())
    return Detector(spec, 3)


def with_stem(row: int = 7) -> Detector:
    model = detector()
    model.add_branch("infrared", row, SecondStem(model, row))
    return model


def levels(model: Detector, image: Tensor) -> list[Tensor]:
    return [part.pred for part in model.eval().decode(model(image)["det"])]


def test_it_joins_where_nothing_behind_reads_past_it() -> None:
    """Row 51 of demo reads row 14, rows 9 and 10 read row 8."""
    assert join_rows(detector()) == [0, 1, 6, 7, 8, 13, 14]
    assert early_row(detector()) == 7


def test_the_stem_starts_as_the_rows_and_adds_nothing() -> None:
    alone, both = detector(), with_stem()
    stem = both.branches["infrared"]
    assert isinstance(stem, SecondStem)
    own = stem.rows.state_dict()
    assert own and all(torch.equal(v, alone.state_dict()[k]) for k, v in own.items())
    assert both.image_channels == 6 and both.in_channels == 3
    image = torch.rand(2, 6, 64, 64)
    found = both.eval()(image)
    assert "infrared" not in found, "it is no output"
    assert all(torch.equal(a, b) for a, b in zip(levels(both, image), levels(alone, image[:, :3]), strict=True))
    with torch.no_grad():
        stem.join.weight.fill_(0.01)
    assert not torch.equal(levels(both, image)[0], levels(alone, image[:, :3])[0]), "the second picture counts"


def test_the_shapes_are_those_of_one_picture() -> None:
    assert with_stem().shapes(128) == detector().shapes(128)


@pytest.mark.parametrize("frozen", [7, 20, 77])
def test_a_frozen_detector_lets_the_stem_learn(frozen: int) -> None:
    model = with_stem().train()
    stem = model.branches["infrared"]
    assert isinstance(stem, SecondStem)
    with torch.no_grad():
        stem.join.weight.normal_(0, 0.01)
    for row in model.model[:frozen]:
        row.requires_grad_(False).eval()
    image = torch.rand(2, 6, 64, 64)
    plain = torch.stack([x.square().mean() for x in model(image)["det"]]).sum().detach()
    model.fold_prefix()
    assert model.prefix() == 7 and set(model.stand_ins) <= set(range(7))
    loss = torch.stack([x.square().mean() for x in model(image)["det"]]).sum()
    assert float(loss.detach()) == pytest.approx(float(plain), rel=1e-4), "folded, the same"
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in stem.parameters())
    assert model.model[0].conv.weight.grad is None


def test_a_stem_at_rest_is_part_of_the_frozen_prefix() -> None:
    model = with_stem().train()
    for part in (*model.model[:20], model.branches["infrared"]):
        part.requires_grad_(False).eval()
    assert model.prefix() == 21, "row 20 has no parameters"
