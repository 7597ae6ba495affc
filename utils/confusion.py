"""Confusion matrix [nc+1, nc+1]: row = predicted class, column = true class, last = background.

Detections with confidence above 0.25 and objects of an image are paired whatever their classes: each detection picks
its object of highest IoU above 0.45, then each object the detection of highest IoU among those that picked it; of equal
ones the first. Column nc: detections without an object; row nc: objects without a detection.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from utils.boxes import paired_iou
from utils.matching import Ints, meeting

CONF, IOU = 0.25, 0.45


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


def _highest(value: NDArray[np.floating], of: Ints, other: Ints) -> Ints:
    """Of pairs [P] with values [P]: the one of highest value for each number in `of`, of equal ones by `other`."""
    order = np.lexsort((other, -value, of))
    return order[np.unique(of[order], return_index=True)[1]]
