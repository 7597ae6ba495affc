"""Which detection found which object: the three rules in use, for all detections and all IoU thresholds at once.

`find_pairs` gives sparse `Pairs` of a whole data set: detection and object of one image and class with IoU >= 0.5;
`tp_table` turns them into true positives [N,T], T thresholds 0.50, 0.55, ..., 0.95. N detections and M objects come
with the numbers of their images; an image's detections stand by falling score. All images are worked on at once, in
blocks of bounded size: the cost is that of the boxes that can meet, whatever the number of images.

coco  (default) per class and threshold, detections by falling score: each takes the free object of highest IoU that
      reaches the threshold. Only the 100 best detections of a class in an image count. IoU in float64.
v5    (YOLOv5) a detection looks at its object of highest IoU only; per threshold the first that reaches it gets it.
v7    (YOLOv7) as v5, but an object's first detection with IoU > 0.5 owns it at all thresholds; IoU must exceed them.

`coco` equals pycocotools to 1e-9 on the same boxes and scores. What remains different in practice: an annotation file
has crowd regions and boxes of its own precision that YOLO labels do not have, and a result file has rounded boxes and
scores; `utils.coco_eval` evaluates such files themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from utils.evaluation.boxes import paired_iou

RULES = ("coco", "v7", "v5")
THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_MAX_DET = 100  # per image and class
BLOCK = 1 << 20  # box pairs looked at together: about 100 MB
NMS_OFFSET = {
    "coco": None,
    "v7": 4096.0,
    "v5": 7680.0,
}  # see utils.nms: the originals' rounding belongs to their numbers

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pairs:
    """P candidate matches: `det` [P] and `gt` [P] row numbers, `iou` [P]; sorted by `det`."""

    det: Ints
    gt: Ints
    iou: Floats


def meeting(a: Ints, b: Ints) -> Iterator[tuple[Ints, Ints]]:
    """All index pairs i [P], j [P] with a[i] == b[j], by rising i, then j; in blocks of about BLOCK pairs."""
    order = np.argsort(b, kind="stable")
    keys, first, count = np.unique(b[order], return_index=True, return_counts=True)
    if len(keys) == 0:
        return
    at = np.minimum(np.searchsorted(keys, a), len(keys) - 1)
    i = (keys[at] == a).nonzero()[0]
    at = at[i]
    end = count[at].cumsum()
    cuts = np.searchsorted(end, np.arange(BLOCK, end[-1] if len(end) else 0, BLOCK))
    for rows, group in zip(np.split(i, cuts), np.split(at, cuts), strict=True):
        n = count[group]
        step = np.arange(n.sum()) - np.repeat(n.cumsum() - n, n)  # 0, 1, ... within each row
        yield np.repeat(rows, n), order[np.repeat(first[group], n) + step]


def find_pairs(det: torch.Tensor, det_image: Ints, gt: torch.Tensor, gt_image: Ints, rule: str) -> Pairs:
    """det [N,6] x1,y1,x2,y2,conf,class and gt [M,5] class,x1,y1,x2,y2, corners in native pixels, with the numbers of
    their images [N], [M] -> pairs of one image and class with IoU >= 0.5, in the number type the rule is defined with.
    """
    det_cls, gt_cls = det[:, 5].long().numpy(), gt[:, 0].long().numpy()
    classes = max(det_cls.max(initial=0), gt_cls.max(initial=0)) + 1
    found = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for d, g in meeting(det_image * classes + det_cls, gt_image * classes + gt_cls):
        a, b = det[d, :4], gt[g, 1:5]
        iou = paired_iou(a.double(), b.double()) if rule == "coco" else paired_iou(a, b)
        near = (iou >= 0.5).numpy()
        found.append(Pairs(d[near], g[near], iou.double().numpy()[near]))
    return Pairs(*(np.concatenate([getattr(p, name) for p in found]) for name in ("det", "gt", "iou")))


def tp_table(pairs: Pairs, n_det: int, rule: str) -> Bools:
    """Pairs of any number of images -> true positives [n_det, T] by `rule`."""
    if rule == "coco":
        return _coco(pairs, n_det)
    if rule in ("v5", "v7"):
        return _best_only(pairs, n_det, rule)
    raise ValueError(f"unknown match rule {rule!r}; known: {', '.join(RULES)}")


def _best_only(pairs: Pairs, n_det: int, rule: str) -> Bools:
    """v5 and v7: each detection keeps its best pair, then each object its first detection."""
    order = np.lexsort((-pairs.iou, pairs.det))  # stable: of equal IoUs the first object
    det, first = np.unique(pairs.det[order], return_index=True)
    gt, iou = pairs.gt[order][first], pairs.iou[order][first]
    thresholds = torch.linspace(0.5, 0.95, 10).double().numpy()  # the originals compare float32 numbers
    tp = np.zeros((n_det, len(THRESHOLDS)), bool)
    if rule == "v7":
        over = iou > thresholds[0]
        det, gt, iou = det[over], gt[over], iou[over]
        owner = np.unique(gt, return_index=True)[1]
        tp[det[owner]] = iou[owner, None] > thresholds
        return tp
    row, column = (iou[:, None] >= thresholds).nonzero()  # row-major: the best detection of an object comes first
    winner = np.unique(gt[row] * len(thresholds) + column, return_index=True)[1]
    tp[det[row[winner]], column[winner]] = True
    return tp


def _coco(pairs: Pairs, n_det: int) -> Bools:
    """COCO's rule as offers in rounds: every free detection offers itself to its best object not yet tried, and each
    object keeps the best-scored offer so far. As all objects prefer the higher score, this ends where serving the
    detections one after the other would: in the one stable matching (Gale and Shapley 1962).
    """
    order = np.lexsort((-pairs.gt, -pairs.iou, pairs.det))  # of equal IoUs COCO takes the later object
    det, gt, iou = pairs.det[order], pairs.gt[order], pairs.iou[order]
    entry, level = (iou[:, None] >= np.minimum(THRESHOLDS, 1 - 1e-10)).nonzero()
    order = np.lexsort((entry, level))  # by level, then detection, then preference
    entry, level = entry[order], level[order]
    who = level * n_det + det[entry]  # [E] one per detection and threshold
    n_gt = int(gt.max(initial=-1)) + 1
    what = level * n_gt + gt[entry]  # [E] one per object and threshold

    offer = np.unique(who, return_index=True)[1]  # first entry of each detection
    holder = np.full(
        len(THRESHOLDS) * n_gt, len(who), np.int64
    )  # entry each object holds; a lower entry of a level has a better score
    while len(offer):
        before = holder[what[offer]]
        np.minimum.at(holder, what[offer], offer)
        lost = np.concatenate(
            [offer[holder[what[offer]] != offer], before[(before < len(who)) & (holder[what[offer]] != before)]]
        )
        lost = np.unique(lost)
        nxt = lost + 1  # the next preference, if it is of the same detection and threshold
        nxt = nxt[nxt < len(who)]
        offer = nxt[who[nxt] == who[nxt - 1]]
    tp = np.zeros((n_det, len(THRESHOLDS)), bool)
    held = holder[holder < len(who)]
    tp[det[entry[held]], level[held]] = True
    return tp


def coco_counted(image: Ints, cls: Ints) -> Bools:
    """[N] image and class of detections ordered by falling score within each image -> [N], those COCO counts."""
    if len(image) == 0:
        return np.zeros(0, bool)
    order = np.lexsort((cls, image))  # stable: the score order survives within an image and class
    key = np.stack([image[order], cls[order]], 1)
    new = np.concatenate([[True], (key[1:] != key[:-1]).any(1)])
    start = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    counted = np.empty(len(order), bool)
    counted[order] = np.arange(len(order)) - start < COCO_MAX_DET
    return counted


CONF, IOU = 0.25, 0.45
SHOWN = 1000  # classes of a matrix that is drawn or written; all of 20,000 would be 400 million cells


def confusion_matrix(
    det: torch.Tensor, det_image: Ints, gt: torch.Tensor, gt_image: Ints, nc: int, rule: str = "coco"
) -> NDArray[np.int64]:
    """det [N,6] x1,y1,x2,y2,conf,class and gt [M,5] class,x1,y1,x2,y2, corners in native pixels, with the numbers of
    their images [N], [M] -> the matrix of all images together.

    rule v5 or v7 repeats a peculiarity of the originals: where no detection of an image meets any object, its
    detections are not counted at all. The default counts them as false.
    """
    sure = det[:, 4] > CONF
    det, det_image = det[sure], det_image[sure.numpy()]
    det_cls, gt_cls = det[:, 5].long().numpy(), gt[:, 0].long().numpy()
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
    for d, g in meeting(det_image, gt_image):
        iou = paired_iou(gt[g, 1:5], det[d, :4])
        near = (iou > IOU).numpy()
        found.append((d[near], g[near], iou.numpy()[near]))
    d, g, value = (np.concatenate(x) for x in zip(*found, strict=True))
    met = np.unique(det_image[d])
    best = _highest(value, d, g)
    d, g, value = d[best], g[best], value[best]
    best = _highest(value, g, d)
    d, g = d[best], g[best]
    matrix = np.zeros((nc + 1, nc + 1), np.int64)
    np.add.at(matrix, (det_cls[d], gt_cls[g]), 1)
    matrix[nc] += np.bincount(np.delete(gt_cls, g), minlength=nc + 1)
    alone = np.ones(len(det), bool) if rule == "coco" else np.isin(det_image, met)
    alone[d] = False
    matrix[:, nc] += np.bincount(det_cls[alone], minlength=nc + 1)
    return matrix


def occurring(counts: NDArray[np.int64], names: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
    """A confusion matrix [nc+1,nc+1] and its nc names as they are shown: all of them, of over SHOWN classes those that
    occur, the SHOWN most frequent at most. The last row and column, the background, is named and stays."""
    labels = [*names, "background"]
    if len(names) <= SHOWN:
        return counts, labels
    often = counts[:-1].sum(1) + counts[:, :-1].sum(0)
    kept = np.sort(np.argsort(-often, kind="stable")[: min(int((often > 0).sum()), SHOWN)])
    kept = np.append(kept, len(names))
    return counts[np.ix_(kept, kept)], [labels[i] for i in kept]


def _highest(value: NDArray[np.floating], of: Ints, other: Ints) -> Ints:
    """Of pairs [P] with values [P]: the one of highest value for each number in `of`, of equal ones by `other`."""
    order = np.lexsort((other, -value, of))
    return order[np.unique(of[order], return_index=True)[1]]
