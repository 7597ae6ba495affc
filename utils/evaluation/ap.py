"""Average precision per class and IoU threshold, and precision, recall and F1 at the best confidence.

Detections are ranked by falling confidence; after k of them recall = TP / objects and precision = TP / k.
coco  AP = mean over recall 0, 0.01, ..., 1 of the highest precision at that recall or a higher one, 0 where it is
      never reached (COCO's 101-point interpolation).
v5    AP = area by trapezoids at the same 101 points under the falling envelope of precision, drawn as straight lines
      from (recall 0, precision 1) through the ranked points to (1, 0).
v7    as v5, but the line falls to 0 already at 0.01 past the last recall; with `v5_metric` at 1, which is v5's form.
Shapes: N detections, T thresholds, K classes that have objects, G = 1000 points of confidence or recall in 0..1.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from utils.evaluation.matching import Floats, Ints

GRID = np.linspace(0, 1, 1000)  # confidences (or recalls) at which the curves are sampled
RECALLS = np.linspace(0, 1, 101)
SMOOTH = 0.1  # coco and v5 look for the peak of F1 averaged over this share of the grid; v7 does not average


@dataclass(frozen=True)
class Curves:
    """Curves [K,G] of the K classes with objects: precision, recall, F1 over confidence; precision over recall."""

    classes: Ints  # [K]
    p: Floats
    r: Floats
    f1: Floats
    pr: Floats  # at IoU 0.5
    best: int  # column of GRID where the mean F1 peaks


@dataclass(frozen=True)
class Ap:
    """AP [K,T] of the classes [K] that have objects, how many [K], and P, R, F1 [K] at the best confidence."""

    classes: Ints
    ap: Floats
    n_gt: Ints
    p: Floats
    r: Floats
    f1: Floats
    curves: Curves

    @property
    def counts(self) -> tuple[Floats, Floats]:
        """(true, false) positives [K] at the best confidence, estimated back from recall and precision."""
        tp = (self.r * self.n_gt).round()
        return tp, (tp / (self.p + 1e-16) - tp).round()


def average_precision(
    tp: NDArray[np.generic],
    conf: NDArray[np.floating],
    pred_cls: NDArray[np.generic],
    gt_cls: NDArray[np.generic],
    rule: str,
    v5_metric: bool = False,
) -> Ap:
    """tp [N,T], conf [N], class [N] of the detections in any order, class [M] of the objects -> Ap.

    Detections of equal confidence keep their order.
    """
    order = np.argsort(-conf, kind="stable")
    order = order[np.argsort(pred_cls[order], kind="stable")]  # by class, then falling confidence
    tp, conf, pred_cls = tp[order], conf[order], pred_cls[order]
    classes, n_gt = np.unique(gt_cls.astype(np.int64), return_counts=True)
    k, t = len(classes), tp.shape[1]
    ap, pr = np.zeros((k, t)), np.zeros((k, len(GRID)))
    p, r = np.zeros((k, len(GRID))), np.zeros((k, len(GRID)))
    bounds = zip(np.searchsorted(pred_cls, classes), np.searchsorted(pred_cls, classes, "right"), strict=True)
    for row, ((low, high), n) in enumerate(zip(bounds, n_gt, strict=True)):
        if low == high:
            continue
        hit, fall = tp[low:high], -conf[low:high]
        loose = hit[:, 0].cumsum(dtype=np.float64)  # at IoU 0.5
        p[row] = np.interp(-GRID, fall, loose / np.arange(1, high - low + 1), left=1)
        r[row] = np.interp(-GRID, fall, loose / (n + 1e-16), left=0)
        recall, precision = curve_at_hits(hit, n)
        ap[row] = ap_from_curve(recall, precision, rule, v5_metric)
        pr[row] = _envelope_at(recall[:, :1], precision[:, :1], GRID, rule, v5_metric)[0]
    f1 = 2 * p * r / (p + r + 1e-16)
    best = best_confidence(f1, rule)
    curves = Curves(classes, p, r, f1, pr, best)
    return Ap(classes, ap, n_gt, p[:, best], r[:, best], f1[:, best], curves)


def curve_at_hits(tp: NDArray[np.generic], n: int) -> tuple[Floats, Floats]:
    """tp [N,T] of a class by falling confidence, n objects -> recall and precision [M,T] where the curve turns: at
    hits, before them and at the end. Between two hits recall stays and precision falls, so no envelope and no
    interpolation ever reads the points in between; with 300 detections of an image that is nearly all of them.
    """
    some = np.asarray(tp.any(1))  # [N]
    turns = (some | np.append(some[1:], True)).nonzero()[0]  # [M]
    hits = tp[turns].cumsum(0, dtype=np.float64)
    return hits / (n + 1e-16), hits / (turns + 1)[:, None]


def ap_from_curve(recall: Floats, precision: Floats, rule: str, v5_metric: bool = False) -> Floats:
    """Recall and precision [n,T] after each of n detections -> AP [T]."""
    y = _envelope_at(recall, precision, RECALLS, rule, v5_metric)  # [T,101]
    return np.asarray(y.mean(1) if rule == "coco" else np.trapezoid(y, RECALLS, axis=1))


def _envelope_at(recall: Floats, precision: Floats, x: Floats, rule: str, v5_metric: bool) -> Floats:
    """The falling envelope of precision [n,T] at the recalls x [X] -> [T,X]."""
    t = recall.shape[1]
    one, zero = np.ones((1, t)), np.zeros((1, t))
    if rule == "coco":
        xs, ys = np.concatenate([recall, one * np.inf]), np.concatenate([precision, zero])
    else:
        end = one if rule == "v5" or v5_metric else recall[-1:] + 0.01
        xs, ys = np.concatenate([zero, recall, end]), np.concatenate([one, precision, zero])
    ys = np.maximum.accumulate(ys[::-1], 0)[::-1].T  # [T,n+2]
    xs = np.ascontiguousarray(xs.T)
    at = np.broadcast_to(x, (t, len(x)))
    # both searches are torch's because numpy's takes one row at a time
    side = torch.searchsorted(torch.from_numpy(xs), torch.from_numpy(at.copy()), right=rule != "coco").numpy()
    if rule == "coco":  # the first point that reaches the recall
        return np.take_along_axis(ys, side, 1)
    left, right = side - 1, np.minimum(side, xs.shape[1] - 1)
    x0, x1 = np.take_along_axis(xs, left, 1), np.take_along_axis(xs, right, 1)
    y0, y1 = np.take_along_axis(ys, left, 1), np.take_along_axis(ys, right, 1)
    width = np.where(x1 > x0, x1 - x0, 1)  # equal at the right end only, where y0 == y1
    return np.where(at > xs[:, -1:], ys[:, -1:], y0 + (y1 - y0) / width * (at - x0))


def best_confidence(f1: Floats, rule: str) -> int:
    """Column of the highest mean F1 of [K,G]; 0 where there is no class."""
    if len(f1) == 0:
        return 0
    mean = f1.mean(0)
    return int((mean if rule == "v7" else smooth(mean, SMOOTH)).argmax())


def smooth(y: Floats, share: float) -> Floats:
    """Moving average of y [G] over an odd number of points, about `share` of them; the ends are held."""
    n = round(len(y) * share * 2) // 2 + 1
    padded = np.pad(y, n // 2, mode="edge")
    return np.convolve(padded, np.full(n, 1 / n), mode="valid")


def fitness(map50: float, map5095: float) -> float:
    """The number a best checkpoint is chosen by."""
    return 0.1 * map50 + 0.9 * map5095
