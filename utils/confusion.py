"""Confusion matrix [nc+1, nc+1]: row = predicted class, column = true class, last = background.

Detections with confidence above 0.25 and objects are paired whatever their classes: each detection picks its object of
highest IoU above 0.45, then each object the detection of highest IoU among those that picked it. Column nc: detections
without an object; row nc: objects without a detection.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from utils.boxes import box_iou

CONF, IOU = 0.25, 0.45


def image_confusion(det: torch.Tensor, gt: torch.Tensor, nc: int, rule: str = "coco") -> NDArray[np.int64]:
    """det [n,6] x1,y1,x2,y2,conf,class and gt [m,5] class,x1,y1,x2,y2 of an image in one frame -> its matrix.

    rule v5 or v7 repeats a peculiarity of the originals: where no detection of an image meets any object, its
    detections are not counted at all. The default counts them as false.
    """
    det = det[det[:, 4] > CONF]
    iou = box_iou(gt[:, 1:5], det[:, :4])  # [m,n]
    gt_cls, det_cls = gt[:, 0].long().numpy(), det[:, 5].long().numpy()
    g, d = (iou > IOU).nonzero(as_tuple=True)
    value, pairs = iou[g, d].numpy(), torch.stack([g, d], 1).numpy()  # [P], [P,2]
    for side in (1, 0):  # keep the highest IoU of each detection, then of each object
        order = np.argsort(-value, kind="stable")
        value, pairs = value[order], pairs[order]
        first = np.unique(pairs[:, side], return_index=True)[1]
        value, pairs = value[first], pairs[first]
    matrix = np.zeros((nc + 1, nc + 1), np.int64)
    np.add.at(matrix, (det_cls[pairs[:, 1]], gt_cls[pairs[:, 0]]), 1)
    matrix[nc] += np.bincount(np.delete(gt_cls, pairs[:, 0]), minlength=nc + 1)
    if len(pairs) or rule == "coco":
        matrix[:, nc] += np.bincount(np.delete(det_cls, pairs[:, 1]), minlength=nc + 1)
    return matrix
