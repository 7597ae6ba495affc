"""IoU family: reference values and gradients of the original program, cases by hand, properties."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.iou import Kind, iou, pairwise_iou
from tests.golden import golden

KINDS: tuple[Kind, ...] = ("iou", "giou", "diou", "ciou")


def boxes(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_the_original(kind: Kind) -> None:
    arrays = golden().npz("geometry/yolov7.npz")
    one, two = (torch.from_numpy(arrays[name]) for name in ("xywh", "xywh2"))
    corners = torch.from_numpy(arrays["xywh2xyxy"])
    one.requires_grad_()
    found = iou(one, two, kind=kind)
    want = torch.from_numpy(arrays[f"bbox_{kind}_xywh"])
    known = ~want.isnan()
    torch.testing.assert_close(found[known], want[known], rtol=1e-5, atol=1e-6)
    found[known].sum().backward()
    assert one.grad is not None
    torch.testing.assert_close(one.grad, torch.from_numpy(arrays[f"bbox_{kind}_xywh_grad_box1"]), rtol=1e-4, atol=1e-6)
    assert known.sum() > 60 and found.isfinite().all()
    half = two[:, 2:] / 2
    other = torch.cat((two[:, :2] - half, two[:, :2] + half), 1)
    want = torch.from_numpy(arrays[f"bbox_{kind}_xyxy"])
    known = ~want.isnan()
    found = iou(corners, other, xywh=False, kind=kind)
    torch.testing.assert_close(found[known], want[known], rtol=1e-5, atol=1e-5)


def test_by_hand() -> None:
    """Unit squares moved by half a side: overlap 1/3; hull 1.5; centres .5 apart, diagonal of the hull 1.5^2 + 1."""
    a, b = boxes((0, 0, 1, 1)), boxes((0.5, 0, 1, 1))
    assert iou(a, b).item() == pytest.approx(1 / 3, abs=1e-6)
    assert iou(a, b, kind="giou").item() == pytest.approx(1 / 3, abs=1e-6), "the hull of aligned squares is their union"
    assert iou(a, b, kind="diou").item() == pytest.approx(1 / 3 - 0.25 / 3.25, abs=1e-6)
    assert iou(a, b, kind="ciou").item() == pytest.approx(1 / 3 - 0.25 / 3.25, abs=1e-6), "equal shapes"
    apart = boxes((3, 0, 1, 1))
    assert iou(a, apart).item() == 0
    assert iou(a, apart, kind="giou").item() == pytest.approx(-2 / 4, abs=1e-6), "hull 4, of which 2 are empty"
    assert iou(a, apart, kind="diou").item() == pytest.approx(-9 / 17, abs=1e-6)


def test_the_aspect_term_of_ciou() -> None:
    """A wide and a tall box of one centre: v = 4/pi^2 (atan 4 - atan 1/4)^2, weight v / (v - IoU + 1)."""
    a, b = boxes((0, 0, 4, 1)), boxes((0, 0, 1, 4))
    v = 4 / math.pi**2 * (math.atan(4) - math.atan(0.25)) ** 2
    overlap = 1 / 7
    assert iou(a, b, kind="ciou").item() == pytest.approx(overlap - v * v / (v - overlap + 1), abs=1e-5)


def test_the_aspect_weight_carries_no_gradient() -> None:
    """d/dw of w(v) v with w fixed is w dv/dw; with w free it would be larger."""
    a = torch.tensor([[0.0, 0.0, 3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    iou(a, b, kind="ciou").sum().backward()
    assert a.grad is not None
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(3)) ** 2
    weight = v / (v - 1 / 3 + 1)
    slope = 4 / math.pi**2 * 2 * (math.atan(3) - math.atan(1)) / (1 + 9)  # dv/dw at w 3, h 1
    overlap, hull = -1 / 9, 0.0  # d(1/w)/dw; the centres agree, so the distance term is 0
    assert a.grad[0, 2].item() == pytest.approx(overlap - hull - weight * slope, rel=1e-4)


def test_properties_on_random_boxes() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.cat((torch.rand(500, 2, generator=generator) * 4, torch.rand(500, 2, generator=generator) * 3 + 0.1), 1)
        for _ in range(2)
    )
    values = {kind: iou(a, b, kind=kind) for kind in KINDS}
    assert 0.1 < (values["iou"] > 0).float().mean() < 1
    assert ((values["iou"] >= 0) & (values["iou"] <= 1)).all()
    for kind in KINDS:
        assert (values[kind] <= values["iou"] + 1e-6).all(), "penalties only take away"
        torch.testing.assert_close(iou(b, a, kind=kind), values[kind], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(iou(a, a, kind=kind), torch.ones(500), rtol=0, atol=1e-5)
        torch.testing.assert_close(iou(a * 7, b * 7, kind=kind), values[kind], rtol=1e-4, atol=1e-5)
    assert (values["ciou"] <= values["diou"] + 1e-6).all() and (values["giou"] >= -1).all()


def test_touching_boxes_attract() -> None:
    """At distance 0 the one-sided slope counts: moving right by d gives overlap 10 d of a union of 200."""
    a = torch.tensor([[10.0, 10.0, 10.0, 10.0]], requires_grad=True)
    iou(a, boxes((20, 10, 10, 10))).sum().backward()
    assert a.grad is not None and a.grad[0, 0].item() == pytest.approx(10 / 200, rel=1e-5)


def test_empty_boxes_stay_finite() -> None:
    a = torch.zeros(1, 4, requires_grad=True)
    for kind in KINDS:
        value = iou(a, torch.zeros(1, 4), kind=kind)
        (gradient,) = torch.autograd.grad(value.sum(), a)
        assert value.isfinite().all() and gradient.isfinite().all()


def test_paired_by_broadcasting() -> None:
    a, b = boxes((0, 0, 2, 2), (4, 4, 6, 6)), boxes((1, 1, 3, 3), (0, 0, 2, 2), (8, 8, 9, 9))
    np.testing.assert_allclose(pairwise_iou(a[:, None], b), [[1 / 7, 1, 0], [0, 0, 0]], rtol=1e-6)
