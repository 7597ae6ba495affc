"""Loss of heads without anchors: named terms box, cls and dfl from the task-aligned assignment (YOLOv8, YOLO11).

With w = what a cell is to score (models.free.assign) and S = sum of w over the batch, at least 1:
    box = sum of w (1 - CIoU) / S
    cls = sum over all cells and classes of BCE / S; the target is w at the class of the cell's box, elsewhere 0
    dfl = sum of w CE / S; CE = mean over the four sides of the cross entropy with the two bins beside the distance,
          shared between them (distribution focal loss, arXiv:2006.04388)
each times its gain. The trainer multiplies the sum by the batch size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.free.assign import Boxes, Cells, task_aligned
from models.host import on_device
from models.iou import corners, iou
from models.loss import Criterion, LossSettings, as_empty

BINS = 16  # distances 0..15 of a side from the cell's centre, in cells
KINDS = ("box", "cls", "dfl")


def flat(levels: Sequence[Tensor]) -> Tensor:
    """[B,C,H,W] per level -> [B,C,M] float32, cells by level, row, column."""
    return torch.cat([level.flatten(2) for level in levels], 2).float()


def centres(levels: Sequence[Tensor], stride: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Centre x, y [M,2] and stride [M,1] of every cell, in pixels."""
    points, steps = [], []
    for level, step in zip(levels, stride, strict=True):
        y, x = (torch.arange(n, device=level.device, dtype=torch.float32) + 0.5 for n in level.shape[2:])
        grid = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), 2).view(-1, 2)
        points.append(grid * step)
        steps.append(torch.full_like(grid[:, :1], step))
    return torch.cat(points), torch.cat(steps)


def expected(logit: Tensor, dim: int) -> Tensor:
    """Mean distance, in cells, of logits of its bins along `dim`."""
    shape = [BINS if i == dim % logit.dim() else 1 for i in range(logit.dim())]
    return (logit.softmax(dim) * torch.arange(BINS, device=logit.device, dtype=logit.dtype).view(shape)).sum(dim)


def boxes_of(distance: Tensor, centre: Tensor, step: Tensor) -> Tensor:
    """Distances l, t, r, b [...,4] in cells from centres [...,2] in pixels -> corners [...,4] in pixels."""
    away = distance * step
    return torch.cat((centre - away[..., :2], centre + away[..., 2:]), -1)


class FreeLoss(Criterion):
    """forward(levels [B,4*16+nc,H,W], target [N,6]) -> {box, cls, dfl}."""

    terms = KINDS

    def __init__(self, nc: int, settings: LossSettings, stride: Sequence[float]) -> None:
        """stride: pixels per cell of each level."""
        super().__init__()
        self.nc, self.settings, self.stride = nc, settings, tuple(stride)

    def forward(self, det: Any, target: Tensor, most: int | None = None) -> dict[str, Tensor]:
        levels, s = checked(det, len(self.stride), 4 * BINS + self.nc), self.settings
        predicted, (centre, step) = flat(levels), centres(levels, self.stride)
        boxes = in_pixels(target, levels, self.stride)
        with torch.no_grad():
            side = predicted[:, : 4 * BINS].unflatten(1, (4, BINS))  # [B,4,16,M]
            now = boxes_of(expected(side, 2).transpose(1, 2), centre, step)  # [B,M,4]
            found = task_aligned(Cells(predicted[:, 4 * BINS :], now, centre), boxes, self.stride[:2][-1])
        weight, total = found.weight, found.weight.sum().clamp(min=1)
        rows = predicted[found.image, :, found.cell]  # [R,64+nc]
        corner = boxes.corners[found.target]
        off, dfl = box_terms(rows[:, : 4 * BINS].view(-1, 4, BINS), centre[found.cell], step[found.cell], corner)
        box = (weight * off).sum()
        hit = boxes.cls[found.target, None] == torch.arange(self.nc, device=target.device)
        cls = as_empty(predicted[:, 4 * BINS :], 0).sum() - (rows[:, 4 * BINS :] * hit * weight[:, None]).sum()
        return {"box": box / total * s.box, "cls": cls / total * s.cls, "dfl": (weight * dfl).sum() / total * s.dfl}


def in_pixels(target: Tensor, levels: Sequence[Tensor], stride: Sequence[float]) -> Boxes:
    """Targets [N,6] as fractions -> in pixels of the picture that levels [B,C,H,W] were made of."""
    height, width = (n * stride[0] for n in levels[0].shape[2:])
    corner = torch.stack(corners(target[:, 2:6] * on_device([[width, height, width, height]], target)), 1)
    return Boxes(target[:, 0].long(), target[:, 1].long(), corner)


def box_terms(side: Tensor, centre: Tensor, step: Tensor, corner: Tensor) -> tuple[Tensor, Tensor]:
    """1 - CIoU and CE [R] of distributions [R,4,16] at cells, with centre x, y [R,2] and stride [R,1] in pixels, that
    answer for boxes [R,4], corners in pixels."""
    overlap = iou(boxes_of(expected(side, 2), centre, step), corner, xywh=False, kind="ciou")
    want = torch.cat((centre - corner[:, :2], corner[:, 2:] - centre), 1) / step
    want = want.clamp(0, BINS - 1 - 0.01)[..., None]  # [R,4,1]
    low, log = want.long(), side.log_softmax(2)
    share = want - low
    dfl = -(log.gather(2, low) * (1 - share) + log.gather(2, low + 1) * share).mean((1, 2))
    return 1 - overlap, dfl


def checked(det: Any, count: int, channels: int) -> list[Tensor]:
    """The levels; ValueError with shapes for anything else."""
    if isinstance(det, list | tuple) and len(det) == count and all(isinstance(r, Tensor) for r in det):
        if all(r.dim() == 4 and r.shape[1] == channels for r in det):
            return list(det)
        raise ValueError(f"the loss needs levels of shape [B,{channels},H,W], got {[tuple(r.shape) for r in det]}")
    raise ValueError(f"the loss needs {count} levels of shape [B,{channels},H,W]")
