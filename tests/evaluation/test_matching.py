"""Pairs and confusion matrix of a whole data set: equal to plain loops over images, boxes and objects."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.evaluation.test_ap import coco_by_definition, v5_by_definition, v7_by_definition
from utils.evaluation import matching
from utils.evaluation.boxes import paired_iou
from utils.evaluation.matching import confusion_matrix, find_pairs, meeting, tp_table

Scene = tuple[list[Tensor], list[Tensor]]


def scene(seed: int, images: int = 40, nc: int = 3, grid: int = 8) -> Scene:
    """Images with 0..14 detections and 0..5 objects on a coarse grid of corners: equal IoUs abound."""
    g = np.random.default_rng(seed)
    dets, gts = [], []
    for _ in range(images):
        n, m = int(g.integers(0, 15)), int(g.integers(0, 6))
        corner = g.integers(0, grid, (m + n, 2))
        box = np.concatenate([corner, corner + g.integers(1, grid, (m + n, 2))], 1)
        if m:  # most detections lie on or near an object
            box[m:] = box[g.integers(0, m, n)] + g.integers(-1, 2, (n, 4)) * (g.random((n, 4)) < 0.3)
        score = np.sort(g.choice([0.1, 0.25, 0.3, 0.6, 0.9], (n, 1)), 0)[::-1]
        dets.append(torch.from_numpy(np.concatenate([box[m:] * 10 / 3, score, g.integers(0, nc, (n, 1))], 1)).float())
        gts.append(torch.from_numpy(np.concatenate([g.integers(0, nc, (m, 1)), box[:m] * 10 / 3], 1)).float())
    return dets, gts


def flat(dets: list[Tensor], gts: list[Tensor]) -> tuple[Tensor, NDArray[Any], Tensor, NDArray[Any]]:
    """What find_pairs and confusion_matrix take."""
    image, gt_image = (np.repeat(np.arange(len(x)), [len(rows) for rows in x]) for x in (dets, gts))
    return torch.cat(dets), image, torch.cat(gts), gt_image


def confusion_by_definition(det: Tensor, gt: Tensor, nc: int, rule: str) -> NDArray[Any]:
    """One image: rounds of picking, written out."""
    sure = [i for i in range(len(det)) if det[i, 4] > 0.25]
    iou = paired_iou(det[:, None, :4], gt[:, 1:]).tolist()
    takers: dict[int, tuple[float, int]] = {}
    for i in sure:
        best = max(iou[i], default=0.0)
        if best > np.float32(0.45):
            g = iou[i].index(best)
            if g not in takers or best > takers[g][0]:
                takers[g] = (best, i)
    matrix = np.zeros((nc + 1, nc + 1), int)
    for g in range(len(gt)):
        matrix[int(det[takers[g][1], 5]) if g in takers else nc, int(gt[g, 0])] += 1
    if takers or rule == "coco":
        for i in sorted(set(sure) - {i for _, i in takers.values()}):
            matrix[int(det[i, 5]), nc] += 1
    return matrix


def test_meeting_lists_all_equal_numbers_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    g = np.random.default_rng(0)
    a, b = g.integers(0, 9, 50), g.integers(0, 9, 30)
    want = [(i, j) for i in range(50) for j in range(30) if a[i] == b[j]]
    for block in (1, 7, 10_000):
        monkeypatch.setattr(matching, "BLOCK", block)
        parts = list(meeting(a, b))
        assert [(i, j) for x, y in parts for i, j in zip(x.tolist(), y.tolist(), strict=True)] == want
        assert max(len(x) for x, _ in parts) < block + 30
    for x, y in ((a[:0], b), (a, b[:0]), (a, b + 100)):
        assert sum(len(i) for i, _ in meeting(x, y)) == 0


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize(
    ("rule", "slow"), [("coco", coco_by_definition), ("v7", v7_by_definition), ("v5", v5_by_definition)]
)
def test_true_positives_of_a_data_set_equal_the_definition(
    rule: str, slow: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "BLOCK", block)
    dets, gts = scene(1)
    got = tp_table(find_pairs(*flat(dets, gts), rule), sum(map(len, dets)), rule)
    want = []
    for det, gt in zip(dets, gts, strict=True):
        if not len(gt):
            want.append(np.zeros((len(det), 10), bool))
            continue
        a, b = det[:, :4], gt[:, 1:]
        iou = paired_iou(a[:, None].double(), b.double()) if rule == "coco" else paired_iou(a[:, None], b)
        want.append(slow(iou.numpy(), det[:, 5].numpy(), gt[:, 0].numpy()))
    assert 0.1 < np.concatenate(want).mean() < 0.6
    np.testing.assert_array_equal(got, np.concatenate(want))


def test_pairs_are_of_one_image_and_class_in_the_type_of_the_rule() -> None:
    """Two images with the same box; of the 16 combinations four are of one image and one class."""
    third = 10 / 3
    det = torch.tensor([[0.0, 0.0, 10.0, 10.0, 0.9, 0.0], [0.0, 0.0, 10.0, 10.0, 0.8, 1.0]] * 2)
    gt = torch.tensor([[1.0, 0.0, 0.0, 10.0, 10 - third], [0.0, 0.0, 0.0, 10.0, 10.0]] * 2)
    image = np.array([0, 0, 1, 1])
    for rule, kind in (("coco", np.float64), ("v5", np.float32), ("v7", np.float32)):
        pairs = find_pairs(det, image, gt, image, rule)
        assert pairs.det.tolist() == [0, 1, 2, 3] and pairs.gt.tolist() == [1, 0, 3, 2]
        area = kind(np.float32(10 - third)) * kind(10)  # of the object and of what it shares with the detection
        np.testing.assert_array_equal(pairs.iou, [1.0, float(area / (kind(100) + area - area))] * 2)
    assert len(find_pairs(det[:0], image[:0], gt, image, "coco").det) == 0
    assert len(find_pairs(det, image, gt[:0], image[:0], "coco").det) == 0


@pytest.mark.parametrize("block", [1, 1 << 20])
@pytest.mark.parametrize("rule", ["coco", "v7", "v5"])
def test_confusion_equals_its_definition(rule: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "BLOCK", block)
    for seed in range(3):
        dets, gts = scene(seed)
        want = sum(confusion_by_definition(d, g, 3, rule) for d, g in zip(dets, gts, strict=True))
        got = confusion_matrix(*flat(dets, gts), 3, rule)
        assert got[:3, :3].sum() > 20 and got[3].sum() > 20 and got[:, 3].sum() > 20
        np.testing.assert_array_equal(got, want)


def test_confusion_by_hand() -> None:
    """Object of class 0 found as class 1, object of class 2 missed, one stray detection, one too faint."""
    gt = torch.tensor([[0.0, 0, 0, 10, 10], [2.0, 50, 50, 60, 60]])
    det = torch.tensor([[0.0, 0, 10, 9, 0.9, 1], [80, 80, 90, 90, 0.8, 2], [50, 50, 60, 60, 0.2, 2]])
    want = np.zeros((4, 4), int)
    want[1, 0] = want[3, 2] = want[2, 3] = 1
    np.testing.assert_array_equal(confusion_matrix(*flat([det], [gt]), 3), want)
    alone = confusion_matrix(*flat([det[1:2]], [gt]), 3)
    assert alone[2, 3] == 1 and alone[3].sum() == 2
    dropped = confusion_matrix(*flat([det[1:2], det], [gt, gt]), 3, "v5")
    assert dropped[2, 3] == 1, "the originals drop the detections of an image where none meets an object"
    assert confusion_matrix(*flat([det[:0]], [gt[:0]]), 3).sum() == 0


def test_of_thousands_of_classes_those_that_occur_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.zeros((5, 5), np.int64)
    counts[1, 1], counts[3, 1], counts[4, 3], counts[0, 4] = 5, 2, 2, 1  # classes 1 and 3 are true, 0 a false find
    names = ["a", "b", "c", "d"]
    assert matching.occurring(counts, names) == (counts, [*names, "background"])
    monkeypatch.setattr(matching, "SHOWN", 3)
    shown, labels = matching.occurring(counts, names)
    assert labels == ["a", "b", "d", "background"]
    assert shown.tolist() == [[0, 0, 0, 1], [0, 5, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]
    monkeypatch.setattr(matching, "SHOWN", 2)
    assert matching.occurring(counts, names)[1] == ["b", "d", "background"], "the most frequent"


def test_confusion_is_one_to_one() -> None:
    """Each object and each sure detection is counted once, whatever overlaps."""
    dets, gts = scene(5)
    matrix = confusion_matrix(*flat(dets, gts), 3)
    assert matrix[:, :3].sum() == sum(map(len, gts))
    assert matrix[:3].sum() == sum(int((d[:, 4] > 0.25).sum()) for d in dets)
