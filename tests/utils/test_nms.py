"""Non-maximum suppression: kept boxes and their order equal the originals' and those of a slow version."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.head import Part
from tests.shared import shared
from utils import nms as module
from utils.boxes import box_iou
from utils.nms import nms


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
    iou = box_iou(rows[:, :4].double(), rows[:, :4].double())
    for i in range(len(rows)):
        if not any(rows[i, 5] == rows[j, 5] and iou[i, j] > iou_thres for j in kept):
            kept.append(i)
    return rows[kept]


@pytest.fixture(scope="module")
def gold() -> tuple[Any, Any, dict[str, dict[str, Any]]]:
    settings = json.loads(shared("golden/nms/yolov7.json").read_text())["settings"]
    return np.load(shared("golden/nms/inputs.npz")), np.load(shared("golden/nms/yolov7.npz")), settings


@pytest.mark.parametrize("way", ["moved boxes", "per class", "float32 offset of the original"])
def test_kept_boxes_and_order_equal_yolov7(gold: Any, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, want, settings = gold
    monkeypatch.setattr(module, "PER_CLASS_FROM", 0 if way == "per class" else 10_000_000)
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
