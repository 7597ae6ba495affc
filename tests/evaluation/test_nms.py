"""Non-maximum suppression: kept boxes and their order equal the originals' and those of a slow version."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.head import Part
from tests.shared import shared
from utils.evaluation import nms as module
from utils.evaluation.boxes import paired_iou
from utils.evaluation.nms import nms


def dense_part(pred: Tensor) -> Part:
    return Part(pred, torch.arange(pred.shape[2] - 5))


def random_pred(seed: int, images: int, boxes: int, nc: int) -> Tensor:
    """Crowded boxes with confident scores."""
    g = torch.Generator().manual_seed(seed)
    xy, wh = torch.rand(images, boxes, 2, generator=g) * 200, torch.rand(images, boxes, 2, generator=g) * 80 + 20
    return torch.cat([xy, wh, torch.rand(images, boxes, 1 + nc, generator=g)], 2)


def by_definition(rows: Tensor, iou_thres: float) -> Tensor:
    """Greedy, one row after the other. rows [K,6] sorted."""
    kept: list[int] = []
    iou = paired_iou(rows[:, None, :4].double(), rows[:, :4].double())
    for i in range(len(rows)):
        if not any(rows[i, 5] == rows[j, 5] and iou[i, j] > iou_thres for j in kept):
            kept.append(i)
    return rows[kept]


def plainly(parts: list[Part], i: int, conf: float, iou: float, o: dict[str, Any]) -> Tensor:
    """Image i by loops over parts, boxes, classes and candidates."""
    found = []
    alone = len(parts) == 1 and len(parts[0].classes) == 1 and o.get("single_class_conf", "obj") == "obj"
    for pred, ids, objectness in parts:
        for box in pred[i]:
            scores = (box[4:5] if alone else box[5:] * box[4]) if objectness else box[4:]
            columns = range(len(ids)) if o["multi_label"] else [int(scores.argmax())]
            for k in columns:
                if (
                    (box[4] > conf or not objectness)
                    and scores[k] > conf
                    and int(ids[k]) in o.get("classes", range(99))
                ):
                    corners = torch.cat([box[:2] - box[2:4] / 2, box[:2] + box[2:4] / 2])
                    found.append([*corners, scores[k], ids[k].float()])
    found = sorted(found, key=lambda row: -row[4])[: o.get("max_nms", 30_000)]
    rows = torch.tensor(found).reshape(-1, 6)
    agnostic, offset = o.get("agnostic", False), o.get("offset")
    place = rows[:, :4].double() if offset is None else rows[:, :4] + rows[:, 5:] * (0 if agnostic else offset)
    meet = paired_iou(place[:, None], place) > iou
    if offset is None and not agnostic:
        meet &= rows[:, 5:] == rows[:, 5]
    kept: list[int] = []
    for k in range(len(rows)):
        if not meet[k, kept].any():
            kept.append(k)
    return rows[kept[: o.get("max_det", 300)]]


@pytest.fixture(scope="module")
def gold() -> tuple[Any, Any, dict[str, dict[str, Any]]]:
    settings = json.loads(shared("golden/nms/yolov7.json").read_text())["settings"]
    return np.load(shared("golden/nms/inputs.npz")), np.load(shared("golden/nms/yolov7.npz")), settings


@pytest.mark.parametrize("way", ["moved boxes", "per class", "float32 offset of the original"])
def test_kept_boxes_and_order_equal_yolov7(gold: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, want, settings = gold
    monkeypatch.setattr(module, "TOGETHER", {"cpu": 0 if way == "per class" else 10_000_000})
    for name in inputs.files:
        for setting, options in settings.items():
            options = {"multi_label": False, "offset": 4096.0 if "float32" in way else None, **options}
            out = nms([dense_part(torch.from_numpy(inputs[name]))], **options)
            for i, rows in enumerate(out):
                np.testing.assert_array_equal(rows, want[f"{name}/{setting}/{i}"], err_msg=f"{name}/{setting}/{i}")


def test_equals_the_definition() -> None:
    pred = random_pred(1, 2, 150, 3)
    everything = nms([dense_part(pred)], 0.2, 1.0, multi_label=True, max_det=10_000)
    for rows, out in zip(everything, nms([dense_part(pred)], 0.2, 0.4, multi_label=True, max_det=10_000), strict=True):
        want = by_definition(rows, 0.4)
        assert 20 < len(want) < len(rows)
        assert torch.equal(out, want)


SMALL_STEPS = {"FIRST": 1, "WIDENED": 1, "TOGETHER": {"cpu": 10}}


@pytest.mark.parametrize("steps", [{}, SMALL_STEPS, {"FIRST": 1, "TOGETHER": {"cpu": 10_000}}], ids=str)
@pytest.mark.parametrize("options", [
    {}, {"multi_label": False}, {"agnostic": True}, {"classes": [0, 4]}, {"max_det": 7}, {"max_nms": 50, "max_det": 5},
    {"offset": 4096.0}, {"offset": 4096.0, "agnostic": True}, {"offset": 60.0, "max_det": 9},
    {"free": True}, {"free": True, "multi_label": False, "max_det": 7}, {"free": True, "one": True},
    {"one": True, "max_det": 12}, {"one": True, "single_class_conf": "product"}, {"one": True, "offset": 7680.0},
], ids=str)  # fmt: skip
def test_a_batch_equals_plain_loops(
    options: dict[str, Any], steps: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes in one call, and however many candidates are tried first. One image has none."""
    for name, value in steps.items():
        monkeypatch.setattr(module, name, value)
    options = {"multi_label": True, **options}
    groups = [[0]] if options.pop("one", False) else [[2, 0], [1, 3, 4]]
    parts = [Part(random_pred(s, 4, 40, len(ids)), torch.tensor(ids)) for s, ids in enumerate(groups)]
    if options.pop("free", False):  # no objectness: its column is not there
        parts = [Part(p.pred[..., [0, 1, 2, 3, *range(5, p.pred.shape[2])]], p.classes, False) for p in parts]
        for part in parts:
            part.pred[2, :, 4:] = 0
    for part in parts:
        part.pred[2, :, 4] = 0
        part.pred[0, 10:, 4] *= 0.2  # images with few and with many candidates
    out = nms(parts, 0.1, 0.3, **options)
    assert [len(rows) > 3 for rows in out] == [True, True, False, True]
    for i, rows in enumerate(out):
        assert torch.equal(rows, plainly(parts, i, 0.1, 0.3, options)), i


def test_a_box_without_a_place_disturbs_no_other() -> None:
    pred = random_pred(5, 2, 60, 3)
    want = nms([dense_part(pred[1:])], 0.1, 0.4, multi_label=True)[0]
    for value in (torch.nan, torch.inf):
        pred[0, 3, 2] = value
        assert torch.equal(nms([dense_part(pred)], 0.1, 0.4, multi_label=True)[1], want)


def test_parts_equal_the_dense_form() -> None:
    """Two heads with their own boxes = one dense tensor with zeros for the classes a head does not own."""
    groups = [[2, 0], [1, 3, 4]]
    parts = [Part(random_pred(s, 2, 80, len(ids)), torch.tensor(ids)) for s, ids in enumerate(groups)]
    dense = torch.zeros(2, 160, 10)
    for k, part in enumerate(parts):
        dense[:, 80 * k : 80 * k + 80, :5] = part.pred[..., :5]
        dense[:, 80 * k : 80 * k + 80, 5 + part.classes] = part.pred[..., 5:]
    for multi_label in (True, False):
        a = nms(parts, 0.1, 0.5, multi_label=multi_label)
        b = nms([dense_part(dense)], 0.1, 0.5, multi_label=multi_label)
        for x, y in zip(a, b, strict=True):
            assert len(x) > 10
            assert torch.equal(x, y)


def test_score_of_a_single_class() -> None:
    pred = torch.tensor([[[50.0, 50.0, 20.0, 20.0, 0.8, 0.5]]])
    one = Part(pred, torch.tensor([0]))
    assert nms([one], 0.1, 0.5, multi_label=True)[0][0, 4] == pytest.approx(0.8)
    assert nms([one], 0.1, 0.5, multi_label=True, single_class_conf="product")[0][0, 4] == pytest.approx(0.4)
    other = Part(torch.zeros(1, 1, 7), torch.tensor([1, 2]))
    assert nms([one, other], 0.1, 0.5, multi_label=True)[0][0, 4] == pytest.approx(0.4), (
        "a head beside others uses the product"
    )
    with pytest.raises(ValueError, match="single_class_conf"):
        nms([one], 0.1, 0.5, multi_label=True, single_class_conf="cls")


def test_max_nms_max_det_and_ties() -> None:
    pred = torch.zeros(1, 30, 6)
    pred[0, :, 0] = torch.arange(30) * 100.0
    pred[0, :, 2:4], pred[0, :, 4:] = 10.0, 0.5
    pred[0, 20:, 4] = 0.9
    for limit in ({"max_nms": 12}, {"max_det": 12}):
        out = nms([dense_part(pred)], 0.1, 0.5, multi_label=True, **limit)[0]
        assert [int(x) for x in (out[:, 0] + 5) / 100] == [*range(20, 30), 0, 1], "best first, ties as they came"


def test_half_precision_and_empty() -> None:
    pred = random_pred(3, 1, 40, 2)
    out = nms([dense_part(pred.half())], 0.1, 0.5, multi_label=True)[0]
    assert out.dtype == torch.float32 and len(out)
    torch.testing.assert_close(out, nms([dense_part(pred.half().float())], 0.1, 0.5, multi_label=True)[0])
    assert [o.shape for o in nms([dense_part(pred[:, :0])], 0.1, 0.5, multi_label=True)] == [(0, 6)]
    assert nms([dense_part(pred * 0)], 0.1, 0.5, multi_label=False)[0].shape == (0, 6)


def test_not_a_number_is_no_detection() -> None:
    pred = random_pred(4, 1, 20, 2)
    pred[0, :10] = torch.nan
    assert torch.equal(
        nms([dense_part(pred)], 0.1, 0.5, multi_label=True)[0],
        nms([dense_part(pred[:, 10:])], 0.1, 0.5, multi_label=True)[0],
    )
