"""Plain loss: values and gradients of the original programs, cases by hand, layouts, extremes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import loss as loss_module
from models.anchored import assign as assign_module
from models.anchored import ota as ota_module
from models.anchored.assign import Rows
from models.loss import DetectionLoss, LossSettings, Softplus, scale_gains
from tests.conformance.reference import items_of, loss_case, loss_keys
from tests.golden import close, golden, keys, near

STRIDE = torch.tensor([8.0, 16.0, 32.0])
PIXELS = torch.tensor(
    [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]]]
)
ANCHORS = PIXELS / STRIDE.view(3, 1, 1)


def criterion(nc: int = 4, **settings: Any) -> DetectionLoss:
    return DetectionLoss(nc, ANCHORS, LossSettings(**settings), STRIDE)


def raw(batch: int, nc: int, height: int = 64, width: int = 96, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, height // s, width // s, 5 + nc, generator=g) for s in (8, 16, 32)]


def boxes(n: int, batch: int, nc: int, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack((torch.randint(batch, (n,), generator=g), torch.randint(nc, (n,), generator=g)), 1)
    return torch.cat((ids, torch.rand(n, 2, generator=g), torch.rand(n, 2, generator=g) * 0.6 + 0.02), 1)


def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Static tables and no look at values, as where looking would wait for the device."""
    monkeypatch.setattr(assign_module, "may_look", lambda tensor: False)
    monkeypatch.setattr(ota_module, "may_look", lambda tensor: False)


@pytest.mark.parametrize("family", ["yolov7", "yolov5"])
def test_items_and_gradients_equal_the_original(family: str) -> None:
    ref = golden()
    cases = [k for k in loss_keys(ref.json(f"loss/{family}.json")) if not k.startswith("ota/")]
    norms = 0
    for key in cases:
        case = loss_case(ref, family, key)
        terms = case.criterion(case.det, case.target)
        assert near(items_of(terms), case.items), f"{key}: {items_of(terms)} against {case.items}"
        (sum(terms.values()) * case.batch).backward()
        if case.grad:
            assert near([float(r.grad.norm()) for r in case.det], case.grad), key
            norms += 1
    assert len(cases) >= 85 and norms >= 80


@pytest.mark.parametrize("family", ["yolov7", "yolov5"])
def test_every_element_of_the_gradient_and_of_the_objectness_target(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The objectness target is put together from what the loss reads: deciding rows and their overlap with the box."""
    ref, seen = golden(), []
    arrays = ref.npz(f"loss/{family}.npz")
    files = set(arrays.files)

    def sorted_rows(*args: Any) -> Any:
        seen.append(by_cell(*args))
        return seen[-1]

    def overlap(*args: Any, **more: Any) -> Tensor:
        seen.append(iou(*args, **more))
        return seen[-1]

    by_cell, iou = loss_module.by_cell, loss_module.iou
    monkeypatch.setattr(loss_module, "by_cell", sorted_rows)
    monkeypatch.setattr(loss_module, "iou", overlap)
    gradients = objectness = 0
    for key in keys(f"loss/{family}.json", "results"):
        if key.startswith("ota/") or f"{key}/tobj0" not in files:
            continue
        case = loss_case(ref, family, key)
        seen.clear()
        terms = case.criterion(case.det, case.target)
        (rows, runs), ciou = seen
        loss: Any = case.criterion
        quality = (1 - loss.settings.gr) + loss.settings.gr * ciou.detach().clamp(min=0)
        for i, level in enumerate(case.det):
            here = runs.decides & (rows.level == i)
            found = torch.zeros(level.shape[:4])
            found[rows.image[here], rows.anchor[here], rows.gy[here], rows.gx[here]] = quality[here]
            close(found, arrays[f"{key}/tobj{i}"], atol=1e-5, what=f"{key} tobj{i}")
            objectness += 1
        if f"{key}/grad0" in files:
            (sum(terms.values()) * case.batch).backward()
            for i, level in enumerate(case.det):
                assert level.grad is not None
                close(level.grad, arrays[f"{key}/grad{i}"], rtol=1e-3, atol=1e-6, what=f"{key} grad{i}")
                gradients += 1
    assert objectness >= 90 and gradients >= 20


def test_one_box_by_hand() -> None:
    """All logits 0: every probability 1/2, every predicted box (0.5, 0.5) in its cell with the anchor's size."""
    det = [torch.zeros(1, 3, h, h, 9) for h in (8, 4, 2)]
    box = torch.tensor([[0.0, 2.0, 4.5 / 8, 4.5 / 8, 10 / 64, 13 / 64]])  # anchor 0 of level 0, mid-cell: a perfect box
    terms = criterion(box=1.0, obj=1.0, cls=1.0, anchor_t=1.05)(det, box)
    assert float(terms["box"]) == pytest.approx(0, abs=1e-5)
    assert float(terms["cls"]) == pytest.approx(math.log(2), rel=1e-5), "one level has the row, four classes at 1/2"
    assert float(terms["obj"]) == pytest.approx((4 + 1 + 0.4) * math.log(2), rel=1e-5)


def test_levels_without_rows_add_no_box_or_class_term_but_objectness() -> None:
    det = [torch.zeros(2, 3, h, h, 9, requires_grad=True) for h in (8, 4, 2)]
    terms = criterion()(det, torch.zeros(0, 6))
    assert terms["box"].item() == terms["cls"].item() == 0
    assert terms["obj"].item() == pytest.approx(5.4 * math.log(2), rel=1e-6)
    sum(terms.values()).backward()
    assert all(r.grad is not None and r.grad[..., 4].abs().min() > 0 for r in det)
    assert all(r.grad[..., [0, 1, 2, 3, 5, 6, 7, 8]].abs().max() == 0 for r in det if r.grad is not None)


def test_one_class_has_no_class_term() -> None:
    terms = criterion(nc=1)(raw(2, 1), boxes(6, 2, 1))
    assert float(terms["cls"]) == 0 and float(terms["box"]) > 0


def test_of_rows_in_one_cell_the_last_sets_the_objectness_target() -> None:
    """Two boxes in one cell: swapping them swaps which overlap the cell is trained to."""
    det = [torch.zeros(1, 3, h, h, 9) for h in (8, 4, 2)]
    good, poor = [0.0, 2.0, 4.5 / 8, 4.5 / 8, 10 / 64, 13 / 64], [0.0, 1.0, 4.5 / 8, 4.5 / 8, 5 / 64, 5 / 64]
    loss = criterion(anchor_t=2.7)
    det[0][0, 0, 4, 4, 4] = 3.0  # a confident cell: cheap where its target is 1
    first, last = (float(loss(det, torch.tensor(rows))["obj"]) for rows in ([good, poor], [poor, good]))
    assert last < first
    assert first - last == pytest.approx(4 / (3 * 64) * 3.0 * (1 - 25 / 130), abs=0.01), "logit times target difference"


def test_duplicated_boxes_change_nothing_but_the_order() -> None:
    """Means over rows: every box twice is every box once."""
    det, target = raw(2, 4), boxes(7, 2, 4)
    once, twice = criterion()(det, target), criterion()(det, torch.cat((target, target)))
    for name in ("box", "cls"):
        assert float(once[name]) == pytest.approx(float(twice[name]), rel=1e-5)


def test_objectness_of_a_batch_is_the_mean_of_its_images() -> None:
    det, target = raw(3, 4), boxes(20, 3, 4)
    whole = criterion()(det, target)
    images = []
    for i in range(3):
        mine = target[target[:, 0] == i].clone()
        mine[:, 0] = 0
        images.append(criterion()([r[i : i + 1] for r in det], mine))
    assert float(whole["obj"]) == pytest.approx(np.mean([float(t["obj"]) for t in images]), rel=1e-5)


def test_a_batch_of_equal_images_has_the_loss_of_one() -> None:
    det, target = raw(1, 4), boxes(9, 1, 4)
    other = target.clone()
    other[:, 0] = 1
    one, two = criterion()(det, target), criterion()([torch.cat((r, r)) for r in det], torch.cat((target, other)))
    for name in one:
        assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-5)


def test_the_order_of_images_does_not_matter() -> None:
    det, target = raw(2, 4), boxes(20, 2, 4)
    swapped = target.clone()
    swapped[:, 0] = 1 - target[:, 0]
    one, two = criterion()(det, target), criterion()([r.flip(0) for r in det], swapped)
    for name in one:
        assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-5)


@pytest.mark.parametrize("ota", [False, True])
def test_static_tables_as_on_cuda_give_the_result_of_compact_ones(ota: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA idle rows stay, with weight 0. They must not matter, nor send a gradient."""
    target = boxes(30, 2, 4)
    results = []
    for keep in (False, True):
        if keep:
            as_on_cuda(monkeypatch)
        det = [r.requires_grad_() for r in raw(2, 4)]
        terms = criterion(ota=ota)(det, target)
        sum(terms.values()).backward()
        results.append((terms, [r.grad for r in det]))
    assert items_of(results[0][0]) == pytest.approx(items_of(results[1][0]), rel=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("ota", "n"), [(False, 5000), (True, 1000), pytest.param(True, 5000, marks=pytest.mark.slow)])
def test_thousands_of_boxes(ota: bool, n: int) -> None:
    det = [r.requires_grad_() for r in raw(4, 4, 128, 160)]
    terms = criterion(ota=ota)(det, boxes(n, 4, 4))
    sum(terms.values()).backward()
    assert all(v.isfinite() for v in terms.values()) and items_of(terms)[0] > 0
    assert all(r.grad is not None and r.grad.isfinite().all() for r in det)


@pytest.mark.parametrize("ota", [False, True])
def test_grids_of_any_shape(ota: bool) -> None:
    """Grid sizes come from the predictions: a portrait input and its transposed landscape agree."""
    det, target = raw(2, 4, 96, 64), boxes(12, 2, 4)
    square = DetectionLoss(4, torch.full((3, 2, 2), 3.0), LossSettings(ota=ota), STRIDE)
    det = [r[:, :2] for r in det]
    flipped = [r.transpose(2, 3)[..., [1, 0, 3, 2, *range(4, 9)]].contiguous() for r in det]
    one, two = square(det, target), square(flipped, target[:, [0, 1, 3, 2, 5, 4]])
    for name in ("box", "cls"):
        assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-4), name
    assert float(one["obj"]) == pytest.approx(float(two["obj"]), rel=1e-2), "which of two rows is last may differ"


def test_decoded_and_raw_pairs_are_taken() -> None:
    det, target = raw(2, 4), boxes(5, 2, 4)
    plain, pair = criterion()(det, target), criterion()((torch.zeros(2, 100, 9), det), target)
    assert {k: float(v) for k, v in plain.items()} == {k: float(v) for k, v in pair.items()}
    assert float(criterion()(tuple(det), target)["box"]) == float(plain["box"])


@pytest.mark.parametrize(
    ("det", "said"),
    [
        (raw(1, 4)[:2], r"3 raw levels.*\(1, 3, 8, 12, 9\), \(1, 3, 4, 6, 9\)"),
        (raw(1, 5), r"\[B,3,H,W,9\].*\(1, 3, 8, 12, 10\)"),
        ([r[:, :2] for r in raw(1, 4)], r"\(1, 2, 8, 12, 9\)"),
        ([r.flatten(1, 3) for r in raw(1, 4)], r"\(1, 288, 9\)"),
        ([*raw(1, 4)[:2], raw(2, 4)[2]], r"\(2, 3, 2, 3, 9\)"),
        (torch.zeros(1, 100, 9), "Tensor"),
        ((torch.zeros(1, 100, 9), torch.zeros(1, 100, 9)), r"\(1, 100, 9\)"),
        ({"det": 1}, "dict"),
        (None, "NoneType"),
    ],
)
def test_other_layouts_are_refused_with_their_shapes(det: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        criterion()(det, torch.zeros(0, 6))


def test_softplus_to_the_last_digits_and_its_gradient() -> None:
    x = torch.cat((torch.linspace(-100, 100, 20001), torch.tensor([0.0, -1e-8, 1e-8, 3e38, -3e38])))
    mine, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    found, want = Softplus.apply(mine), torch.nn.functional.softplus(exact, threshold=700)
    torch.testing.assert_close(found.double(), want, rtol=4e-7, atol=1e-37)
    found.sum().backward()
    want.sum().backward()
    assert mine.grad is not None and exact.grad is not None
    torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=4e-7, atol=1e-37)


def test_switches_act() -> None:
    det, target = raw(2, 4), boxes(10, 2, 4)
    base = criterion()(det, target)
    for settings, changed in (
        ({"box": 0.1}, {"box"}),
        ({"cls": 1.0}, {"cls"}),
        ({"obj": 2.0}, {"obj"}),
        ({"cls_pw": 2.0}, {"cls"}),
        ({"obj_pw": 2.0}, {"obj"}),
        ({"fl_gamma": 1.5}, {"obj", "cls"}),
        ({"label_smoothing": 0.1}, {"cls"}),
        ({"gr": 0.5}, {"obj"}),
        ({"anchor_t": 2.0}, {"box", "obj", "cls"}),
    ):
        other = criterion(**settings)(det, target)
        assert {k for k in base if float(base[k]) != float(other[k])} == changed, settings
    assert float(criterion(box=0.1)(det, target)["box"]) == pytest.approx(2 * float(base["box"]), rel=1e-6)


def test_gains_scale_with_levels_classes_and_size() -> None:
    """YOLOv5/YOLOv7: box 3/nl, cls nc/80 3/nl, obj (img/640)^2 3/nl."""
    s = scale_gains(LossSettings(box=0.05, cls=0.5, obj=1.0), 4, 20, 320)
    assert (s.box, s.cls, s.obj) == pytest.approx((0.0375, 0.5 * 0.25 * 0.75, 0.25 * 0.75))
    assert tuple(scale_gains(LossSettings(), 3, 80, 640))[:3] == pytest.approx(tuple(LossSettings())[:3])


def test_half_precision_predictions_give_a_float32_loss() -> None:
    det, target = raw(2, 4), boxes(10, 2, 4)
    full, half = criterion()(det, target), criterion()([r.bfloat16() for r in det], target)
    for name in full:
        assert half[name].dtype == torch.float32
        assert float(half[name]) == pytest.approx(float(full[name]), rel=0.02)


def test_one_row_per_entry() -> None:
    """Rows is what travels between assignment and loss: names, not positions."""
    assert Rows._fields == ("level", "image", "anchor", "gy", "gx", "target", "weight")
