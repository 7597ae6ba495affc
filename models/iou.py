"""Overlap of paired boxes, differentiable: IoU, GIoU (arXiv:1902.09630), DIoU and CIoU (arXiv:1911.08287).

Boxes are [...,4] in any one frame; the last dimension is (cx, cy, w, h) or (x0, y0, x1, y1). Leading dimensions
broadcast.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["iou", "giou", "diou", "ciou"]
EPS = 1e-7


def corners(box: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """cx, cy, w, h -> x0, y0, x1, y1 as four tensors."""
    cx, cy, w, h = box.unbind(-1)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def not_negative(x: Tensor) -> Tensor:
    """x, or 0 where it is below. Gradient 1 at 0: boxes that just touch attract (clamp differs by torch release)."""
    return x.masked_fill(x < 0, 0)


def iou(box1: Tensor, box2: Tensor, *, xywh: bool = True, kind: Kind = "iou", eps: float = EPS) -> Tensor:
    """Overlap of box1 with box2 [...]: 1 = equal. The penalties of giou/diou/ciou can make it negative.

    eps keeps empty boxes finite; the weight of CIoU's aspect term carries no gradient, as in the paper.
    """
    ax0, ay0, ax1, ay1 = corners(box1) if xywh else box1.unbind(-1)
    bx0, by0, bx1, by1 = corners(box2) if xywh else box2.unbind(-1)
    aw, ah = ax1 - ax0, ay1 - ay0 + eps
    bw, bh = bx1 - bx0, by1 - by0 + eps
    inter = not_negative(torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)) * not_negative(
        torch.minimum(ay1, by1) - torch.maximum(ay0, by0)
    )
    union = aw * ah + bw * bh - inter + eps
    overlap = inter / union
    if kind == "iou":
        return overlap
    hull_w = torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)
    hull_h = torch.maximum(ay1, by1) - torch.minimum(ay0, by0)
    if kind == "giou":
        hull = hull_w * hull_h + eps
        return overlap - (hull - union) / hull
    diagonal = hull_w**2 + hull_h**2 + eps
    distance = ((bx0 + bx1 - ax0 - ax1) ** 2 + (by0 + by1 - ay0 - ay1) ** 2) / 4
    if kind == "diou":
        return overlap - distance / diagonal
    # eps once more: it decides the gradient of a box without height
    aspect = (4 / math.pi**2) * (torch.atan(bw / (bh + eps)) - torch.atan(aw / (ah + eps))) ** 2
    with torch.no_grad():
        weight = aspect / (aspect - overlap + (1 + eps))
    return overlap - (distance / diagonal + aspect * weight)


def pairwise_iou(box1: Tensor, box2: Tensor) -> Tensor:
    """Plain IoU of xyxy boxes that are already paired by broadcasting, without eps: 0/0 never occurs for boxes of
    positive area."""
    ax0, ay0, ax1, ay1 = box1.unbind(-1)  # one coordinate at a time: a quarter of the memory
    bx0, by0, bx1, by1 = box2.unbind(-1)
    inter = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp_(min=0)
    inter = inter.mul_((torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp_(min=0))
    return inter / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inter)
