"""Conversions, scaling and IoU: against reference values, by hand, and by properties."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.conformance.checks_data import centred
from tests.shared import shared
from utils.evaluation import boxes


@pytest.fixture(scope="module")
def gold() -> Any:
    return np.load(shared("golden/geometry/yolov7.npz"))


def test_conversions_equal_the_reference(gold: Any) -> None:
    np.testing.assert_array_equal(boxes.xywh_to_xyxy(torch.from_numpy(gold["xywh"])), gold["xywh2xyxy"])
    moved = boxes.xywhn_to_xyxy(torch.from_numpy(gold["xywhn"]), 640, 480, 7, 3)
    np.testing.assert_array_equal(moved, gold["xywhn2xyxy_w640_h480_padw7_padh3"])


def test_arrays_and_tensors_convert_alike(gold: Any) -> None:
    np.testing.assert_array_equal(boxes.xywh_to_xyxy(gold["xywh"]), gold["xywh2xyxy"])
    np.testing.assert_array_equal(
        boxes.to_native(gold["boxes_xyxy"], (0.5, 0.25, 3, 7), (480, 640)),
        boxes.to_native(torch.from_numpy(gold["boxes_xyxy"]), (0.5, 0.25, 3, 7), (480, 640)),
    )


def test_iou_matrices_equal_the_reference(gold: Any) -> None:
    a, b = torch.from_numpy(gold["xywh"])[:20], torch.from_numpy(gold["xywh2"])[:16]
    iou, want = boxes.paired_iou(boxes.xywh_to_xyxy(a)[:, None], boxes.xywh_to_xyxy(b)).numpy(), gold["box_iou_matrix"]
    known = ~np.isnan(want)  # the reference divides 0 by 0 for two empty boxes; here that is 0
    np.testing.assert_array_equal(iou[known], want[known])
    assert (~known).any() and (iou[~known] == 0).all()


def test_scaling_equals_the_reference(gold: Any) -> None:
    cases = json.loads(shared("golden/geometry/yolov7.json").read_text())["scale"]
    assert len(cases) == 10
    for case in cases:
        size, native = tuple(case["img1_shape"]), tuple(case["img0_shape"])
        gain_pad = centred(size, native)
        if case["ratio_pad"]:
            gain_pad = (*case["ratio_pad"][0], *case["ratio_pad"][1])
        out = boxes.to_native(torch.from_numpy(gold["boxes_xyxy"]), gain_pad, native)
        np.testing.assert_array_equal(out, gold[case["key"]], err_msg=case["key"])


def test_there_and_back() -> None:
    start = torch.tensor([[10.0, 20.0, 110.0, 60.0], [0.0, 0.0, 200.0, 100.0]])
    there = start * torch.tensor([1.5, 1.25, 1.5, 1.25]) + torch.tensor([4.0, 9.0, 4.0, 9.0])
    torch.testing.assert_close(boxes.to_native(there, (1.5, 1.25, 4.0, 9.0), (100, 200)), start)


def test_inputs_are_left_alone() -> None:
    start = torch.rand(5, 4)
    before = start.clone()
    for f in (
        boxes.xywh_to_xyxy,
        lambda x: boxes.clip(x, 0.1, 0.1),
        lambda x: boxes.to_native(x, (2, 2, 1, 1), (1, 1)),
    ):
        f(start)
        assert torch.equal(start, before)


def test_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    b = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0]])
    torch.testing.assert_close(boxes.paired_iou(a[:, None], b), torch.tensor([[1 / 7, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert boxes.paired_iou(a[:, None], torch.zeros(0, 4)).shape == (2, 0)
