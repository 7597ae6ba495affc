"""Matching, AP and confusion matrix: the originals' and COCO's numbers, slow versions of the rules, hand-made cases."""

import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.head import Part
from tests.shared import shared
from utils.evaluation.ap import GRID, Ap, ap_from_curve, average_precision, fitness, smooth
from utils.evaluation.boxes import to_native
from utils.evaluation.matching import (
    NMS_OFFSET,
    THRESHOLDS,
    Pairs,
    coco_counted,
    confusion_matrix,
    find_pairs,
    tp_table,
)
from utils.evaluation.nms import nms


@pytest.fixture(scope="module")
def inputs() -> Any:
    return np.load(shared("golden/metrics/inputs.npz"))


def gold(name: str) -> Any:
    return np.load(shared(f"golden/metrics/{name}.npz"))


def end_to_end(inputs: Any, rule: str, v5_metric: bool = False) -> tuple[NDArray[Any], NDArray[Any], Ap, NDArray[Any]]:
    """Decoded predictions -> NMS -> native pixels -> matching -> AP: detections [N,7], tp, AP, confusion matrix."""
    gain, pad_x, pad_y = inputs["gain_pad"].tolist()
    gt = torch.from_numpy(inputs["gt"])
    out = nms(
        [Part(torch.from_numpy(inputs["preds"]), torch.arange(10))],
        0.001,
        0.65,
        multi_label=True,
        offset=NMS_OFFSET[rule],
    )
    det = torch.cat(out)
    det[:, :4] = to_native(det[:, :4], (gain, gain, pad_x, pad_y), (480, 640))
    image, gt_image, gt = np.repeat(np.arange(len(out)), [len(d) for d in out]), gt[:, 0].long().numpy(), gt[:, 1:]
    tp = tp_table(find_pairs(det, image, gt, gt_image, rule), len(det), rule)
    rows = np.concatenate([image[:, None].astype(np.float32), det.numpy()], 1)
    ap = average_precision(tp, rows[:, 5], rows[:, 6], gt[:, 0].numpy(), rule, v5_metric)
    return rows, tp, ap, confusion_matrix(det, image, gt, gt_image, 10, rule)


@pytest.mark.parametrize(("rule", "v5_metric", "file", "key"), [
    ("v7", False, "yolov7", "e2e_v5metric0"), ("v7", True, "yolov7", "e2e_v5metric1"), ("v5", False, "yolov5", "e2e"),
])  # fmt: skip
def test_end_to_end_equals_the_originals(inputs: Any, rule: str, v5_metric: bool, file: str, key: str) -> None:
    want = gold(file)
    dets, tp, found, confusion = end_to_end(inputs, rule, v5_metric)
    np.testing.assert_allclose(dets, want["e2e_dets_native"], atol=1e-4)
    np.testing.assert_array_equal(tp, want[f"{key}/tp"])
    for name in ("p", "r", "f1", "ap", "classes"):
        np.testing.assert_allclose(getattr(found, name), want[f"{key}/{name}"], atol=1e-9, err_msg=name)
    means = [found.p.mean(), found.r.mean(), found.ap[:, 0].mean(), found.ap.mean()]
    np.testing.assert_allclose(means, want[f"{key}/results"][:4], atol=1e-9)
    maps = np.full(10, found.ap.mean())  # the originals put the mean where a class has no objects
    maps[found.classes] = found.ap.mean(1)
    np.testing.assert_allclose(maps, want[f"{key}/maps"], atol=1e-9)
    matrix = want["confusion_matrix"].copy()
    if rule == "v7":  # it stores matched pairs as [true, predicted], but the background row and column as we do
        matrix[:10, :10] = matrix[:10, :10].T
    np.testing.assert_array_equal(confusion, matrix)
    if rule == "v5":
        np.testing.assert_array_equal(found.counts, [want["e2e/tp_c"], want["e2e/fp_c"]])


def test_default_equals_coco(inputs: Any) -> None:
    """Every class and threshold as pycocotools has it, though its file holds rounded boxes and scores."""
    _, _, found, _ = end_to_end(inputs, "coco")
    want = gold("coco")
    np.testing.assert_allclose(found.ap.T, want["e2e/ap_per_iou_class"][:, found.classes], atol=1e-9)
    np.testing.assert_allclose(
        [found.ap.mean(), found.ap[:, 0].mean(), found.ap[:, 5].mean()], want["e2e/stats"][:3], atol=1e-9
    )


@pytest.mark.parametrize(("rule", "file", "suffix", "v5_metric"), [
    ("v7", "yolov7", "_v5metric0", False), ("v7", "yolov7", "_v5metric1", True), ("v5", "yolov5", "", False),
])  # fmt: skip
@pytest.mark.parametrize(("key", "tp"), [("ap_raw", "ap_tp"), ("ap_raw1", "ap2_tp")])
def test_ap_of_given_true_positives(
    inputs: Any, rule: str, file: str, suffix: str, v5_metric: bool, key: str, tp: str
) -> None:
    want = gold(file)
    found = average_precision(
        inputs[tp], inputs["ap_conf"], inputs["ap_pred_cls"], inputs["ap_target_cls"], rule, v5_metric
    )
    for name in ("p", "r", "f1", "ap", "classes"):
        np.testing.assert_allclose(getattr(found, name), want[f"{key}{suffix}/{name}"], atol=1e-9, err_msg=name)
    if rule == "v5":
        np.testing.assert_array_equal(found.counts, [want[f"{key}/tp"], want[f"{key}/fp"]])


def test_ap_of_a_curve_and_fitness() -> None:
    seven, five = gold("yolov7"), gold("yolov5")
    curve = seven["compute_ap/recall"][:, None], seven["compute_ap/precision"][:, None]
    assert ap_from_curve(*curve, "v7")[0] == pytest.approx(float(seven["compute_ap/v5_0"]), abs=1e-12)
    assert ap_from_curve(*curve, "v7", True)[0] == pytest.approx(float(seven["compute_ap/v5_1"]), abs=1e-12)
    curve = five["compute_ap/recall"][:, None], five["compute_ap/precision"][:, None]
    assert ap_from_curve(*curve, "v5")[0] == pytest.approx(float(five["compute_ap/ap"]), abs=1e-12)
    rows = [[0.5, 0.4, 0.6, 0.3], [0.1, 0.2, 0.3, 0.4]]
    np.testing.assert_allclose([fitness(r[2], r[3]) for r in rows], seven["fitness"], atol=1e-12)


def random_image(g: np.random.Generator, n: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU [n,m] with many ties and near ties, and classes."""
    iou = g.choice([0.0, 0.3, 0.5, 0.55, 0.6, 0.72, 0.9, 0.95, 1.0], (n, m)) * g.choice([1.0, 0.999], (n, m))
    return torch.from_numpy(iou), torch.from_numpy(g.integers(0, 2, n + m))


def pairs_of(iou: torch.Tensor, det_cls: Any, gt_cls: Any, det: int = 0, gt: int = 0) -> Pairs:
    """IoU [n,m] and classes of one image -> its pairs; rows are numbered from `det` and `gt`."""
    d, g = ((iou >= 0.5) & (det_cls[:, None] == gt_cls)).nonzero(as_tuple=True)
    return Pairs(d.numpy() + det, g.numpy() + gt, iou[d, g].double().numpy())


def joined(pairs: list[Pairs]) -> Pairs:
    return Pairs(*(np.concatenate([getattr(p, name) for p in pairs]) for name in ("det", "gt", "iou")))


def coco_by_definition(iou: NDArray[Any], det_cls: NDArray[Any], gt_cls: NDArray[Any]) -> NDArray[np.bool_]:
    """One detection after the other, one threshold after the other."""
    tp = np.zeros((len(iou), len(THRESHOLDS)), bool)
    for t, threshold in enumerate(THRESHOLDS):
        taken: set[int] = set()
        for d in range(len(iou)):
            best, mine = min(threshold, 1 - 1e-10), -1
            for g in range(iou.shape[1]):
                if g not in taken and det_cls[d] == gt_cls[g] and iou[d, g] >= best:
                    best, mine = iou[d, g], g
            if mine >= 0:
                taken.add(mine)
                tp[d, t] = True
    return tp


def v7_by_definition(iou: NDArray[Any], det_cls: NDArray[Any], gt_cls: NDArray[Any]) -> NDArray[np.bool_]:
    tp, taken = np.zeros((len(iou), len(THRESHOLDS)), bool), set()
    for d in range(len(iou)):
        own = np.where(det_cls[d] == gt_cls, iou[d], -1)
        g = int(own.argmax())
        if own[g] > 0.5 and g not in taken:
            taken.add(g)
            tp[d] = own[g] > np.float32(THRESHOLDS)
    return tp


def v5_by_definition(iou: NDArray[Any], det_cls: NDArray[Any], gt_cls: NDArray[Any]) -> NDArray[np.bool_]:
    tp = np.zeros((len(iou), len(THRESHOLDS)), bool)
    for t, threshold in enumerate(np.float32(THRESHOLDS)):
        taken = set()
        for d in range(len(iou)):
            own = np.where(det_cls[d] == gt_cls, iou[d], -1)
            g = int(own.argmax())
            if own[g] >= threshold and g not in taken:
                taken.add(g)
                tp[d, t] = True
    return tp


@pytest.mark.parametrize(
    ("rule", "slow"), [("coco", coco_by_definition), ("v7", v7_by_definition), ("v5", v5_by_definition)]
)
def test_matching_equals_its_definition(rule: str, slow: Any) -> None:
    g = np.random.default_rng(5)
    pairs, want, n_det, n_gt = [], [], 0, 0
    for _ in range(200):
        n, m = int(g.integers(0, 12)), int(g.integers(1, 7))
        iou, cls = random_image(g, n, m)
        iou = iou if rule == "coco" else iou.float()
        pairs.append(pairs_of(iou, cls[:n], cls[n:], n_det, n_gt))
        want.append(slow(iou.numpy(), cls[:n].numpy(), cls[n:].numpy()))
        n_det, n_gt = n_det + n, n_gt + m
    got, expected = tp_table(joined(pairs), n_det, rule), np.concatenate(want)
    assert 0.05 < expected.mean() < 0.6
    np.testing.assert_array_equal(got, expected)


def test_the_rules_differ_where_they_should() -> None:
    """Detection 0 overlaps object 0 by .7; detection 1 overlaps object 0 by .9 and object 1 by .6."""
    iou = torch.tensor([[0.7, 0.0], [0.9, 0.6]])
    pairs = pairs_of(iou.double(), torch.zeros(2), torch.zeros(2))
    hits = {rule: tp_table(pairs, 2, rule)[:, [0, 5]].tolist() for rule in ("coco", "v5", "v7")}  # at IoU .5 and .75
    assert hits["coco"] == [[True, False], [True, True]], "the second best object is taken where the best is gone"
    assert hits["v5"] == [[True, False], [False, True]], "only the best object is looked at, per threshold"
    assert hits["v7"] == [[True, False], [False, False]], "who came first owns the object at all thresholds"


def test_a_threshold_is_reached_or_exceeded() -> None:
    iou, cls = torch.tensor([[0.5]]), torch.zeros(1)
    assert tp_table(pairs_of(iou.double(), cls, cls), 1, "coco")[0, 0]
    assert tp_table(pairs_of(iou, cls, cls), 1, "v5")[0, 0]
    assert not tp_table(pairs_of(iou, cls, cls), 1, "v7")[0, 0]


def test_no_detections_or_objects() -> None:
    empty = pairs_of(torch.zeros(3, 0), torch.zeros(3), torch.zeros(0))
    for rule in ("coco", "v5", "v7"):
        assert not tp_table(empty, 3, rule).any()
        assert tp_table(pairs_of(torch.zeros(0, 3), torch.zeros(0), torch.zeros(3)), 0, rule).shape == (0, 10)
        found = average_precision(np.zeros((0, 10), bool), np.zeros(0), np.zeros(0), np.array([4, 4]), rule)
        assert found.classes.tolist() == [4] and found.ap.max() == 0 and found.p[0] == found.r[0] == 0
        found = average_precision(np.zeros((2, 10), bool), np.ones(2), np.zeros(2), np.zeros(0), rule)
        assert len(found.classes) == 0 and found.ap.shape == (0, 10)
    with pytest.raises(ValueError, match="v9"):
        tp_table(empty, 3, "v9")


def test_perfect_and_half_by_hand() -> None:
    """Two objects. Both found: AP 1. One found, then a miss: precision 1 up to recall .5, that is 51 of 101 points."""
    conf, cls = np.array([0.9, 0.8]), np.zeros(2)
    assert average_precision(np.ones((2, 10), bool), conf, cls, np.zeros(2), "coco").ap == pytest.approx(1.0)
    tp = np.repeat([[True], [False]], 10, 1)
    assert average_precision(tp, conf, cls, np.zeros(2), "coco").ap == pytest.approx(51 / 101)
    # v5: the line falls from (.5, 1) over (.5, .5) to (1, 0): .5 + .125, but for the trapezoid at the jump
    assert average_precision(tp, conf, cls, np.zeros(2), "v5").ap == pytest.approx(0.6225, abs=5e-3)


def test_order_of_detections_does_not_matter() -> None:
    g = np.random.default_rng(0)
    tp, conf, cls = g.random((300, 10)) < 0.4, g.permutation(300) / 300, g.integers(0, 4, 300)
    gt = g.integers(0, 4, 200)
    for rule in ("coco", "v5", "v7"):
        a = average_precision(tp, conf, cls, gt, rule)
        order = g.permutation(300)
        b = average_precision(tp[order], conf[order], cls[order], gt, rule)
        np.testing.assert_array_equal(a.ap, b.ap)
        np.testing.assert_array_equal(a.f1, b.f1)


@pytest.mark.parametrize(("rule", "v5_metric"), [("coco", False), ("v5", False), ("v7", False), ("v7", True)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_points_between_hits_do_not_count(rule: str, v5_metric: bool, share: float) -> None:
    """The whole curve of every detection gives the same numbers to the last bit."""
    g = np.random.default_rng(3)
    n, tp = 2000, g.random((2000, 10)) < share * np.linspace(1, 0.2, 10)
    conf, cls, gt = g.choice(np.linspace(0, 1, 500), n).astype(np.float32), g.integers(0, 3, n), g.integers(0, 4, 900)
    found = average_precision(tp, conf, cls, gt, rule, v5_metric)
    assert found.classes.tolist() == [0, 1, 2, 3] and not found.ap[3].any()
    assert ((found.ap[:3, 0] > 0) == (share > 0)).all()
    for c in range(3):
        order = np.argsort(-conf, kind="stable")
        order = order[cls[order] == c]
        hits = tp[order].cumsum(0, dtype=np.float64)
        recall, precision = hits / (gt == c).sum(), hits / np.arange(1, len(hits) + 1)[:, None]
        np.testing.assert_array_equal(found.ap[c], ap_from_curve(recall, precision, rule, v5_metric))
        for curve, values, left in ((found.curves.p, precision, 1), (found.curves.r, recall, 0)):
            np.testing.assert_array_equal(curve[c], np.interp(-GRID, -conf[order], values[:, 0], left=left))
        at = min(int(recall[-1, 0] / 2 * 999), 999)
        if rule == "coco":
            assert found.curves.pr[c, at] == precision[recall[:, 0] >= GRID[at], 0].max()


def test_equal_scores_keep_their_order() -> None:
    """Half of the detections share a score; the right ones come first among them: precision is 1 up to full recall."""
    conf = np.tile([0.3, 0.2, 0.1, 0.2], 16)
    right = (conf == 0.3) | ((conf == 0.2) & (np.arange(64) < 16))
    found = average_precision(np.repeat(right[:, None], 10, 1), conf, np.zeros(64), np.zeros(24), "coco")
    assert found.ap == pytest.approx(1)


def test_best_confidence_is_where_mean_f1_peaks() -> None:
    """One class; the right detections score above .6, the wrong ones below .4."""
    conf = np.concatenate([np.linspace(0.6, 0.9, 50), np.linspace(0.1, 0.4, 50)])
    tp = np.repeat(np.arange(100) < 50, 10).reshape(100, 10)
    for rule in ("coco", "v5", "v7"):
        found = average_precision(tp, conf, np.zeros(100), np.zeros(50), rule)
        assert found.p[0] > 0.99 and found.r[0] > 0.95
        low, high = (
            (599, 600) if rule == "v7" else (540, 600)
        )  # v7 takes the peak itself, the others the middle of a hill
        assert low <= found.curves.best <= high


def test_smooth_keeps_length_level_and_ends() -> None:
    y = np.zeros(1000)
    y[500] = 101
    out = smooth(y, 0.1)
    assert len(out) == 1000 and (out[450:551] == pytest.approx(1)) and out[449] == out[551] == 0
    assert smooth(np.full(1000, 0.3), 0.1) == pytest.approx(0.3)


def test_coco_counts_the_hundred_best_of_each_image_and_class() -> None:
    image = np.repeat([0, 1], [250, 30])
    cls = np.concatenate([np.arange(250) % 2, np.zeros(30, int)])
    counted = coco_counted(image, cls)
    assert counted[:200].all() and not counted[200:250].any() and counted[250:].all()
    assert coco_counted(np.zeros(0, int), np.zeros(0, int)).shape == (0,)


def test_speed() -> None:
    """At least 49,000 detections a second, matching and AP together, in the slowest rule."""
    g = np.random.default_rng(0)
    n, m = 100_000, 20_000
    det = np.sort(g.integers(0, n, 60_000))
    pairs = Pairs(det, det * m // n + g.integers(0, 3, len(det)), g.uniform(0.5, 1, len(det)))
    conf, cls, gt = g.random(n), g.integers(0, 80, n), g.integers(0, 80, m)
    started = time.perf_counter()
    average_precision(tp_table(pairs, n, "coco"), conf, cls, gt, "coco")
    assert n / (time.perf_counter() - started) > 49_000
