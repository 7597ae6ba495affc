"""Which prediction answers for which box: the plain anchor assignment, for the whole batch and all levels at once.

Names: N targets, L levels, A anchors per cell, R rows (entries). A row says: this cell and anchor of this level and
image answers for this target.
Rows keep the order level-major, then offset, then anchor, then target: where several rows share a cell, the last one
in this order sets the objectness target.

On CUDA every table keeps its full static size and `weight` (0 or 1) says which rows count, so nothing waits for the
device. On the CPU, where looking is free, rows of weight 0 are dropped; the sums are over the same rows.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.host import may_look, on_device


class Rows(NamedTuple):
    """Entries of all levels, all [R]."""

    level: Tensor  # long, ascending
    image: Tensor  # long
    anchor: Tensor  # long
    gy: Tensor  # long, cell row
    gx: Tensor  # long, cell column
    target: Tensor  # long, row of the target table
    weight: Tensor  # float, 1 = counts


def take(rows: Rows, index: Tensor) -> Rows:
    return Rows(*(column[index] for column in rows))


def drop_idle(rows: Rows) -> Rows:
    """Without the rows of weight 0, where that costs no synchronisation."""
    return take(rows, rows.weight.nonzero().squeeze(1)) if may_look(rows.weight) else rows


def level_sizes(rows: Rows, levels: int) -> list[int]:
    """Rows of each level; on static tables all levels have as many."""
    if may_look(rows.level):
        return [int(n) for n in torch.bincount(rows.level, minlength=levels).tolist()]
    return [len(rows.level) // levels] * levels


def plain_rows(
    target: Tensor, anchors: Tensor, grids: Sequence[tuple[int, int]], anchor_t: float, reach: float = 0.5
) -> Rows:
    """Anchors whose side ratio to the box is below `anchor_t`, in the centre cell and the neighbours that the centre
    comes within `reach` of, in cells: 0.5 takes the two nearest (YOLOv5), 1 all four (YOLOv7's auxiliary heads).

    target [N,6] image,class,cx,cy,w,h in 0..1; anchors [L,A,2] w,h in cells; grids: (height, width) of each level
    -> Rows of L*5*A*N (see drop_idle).
    """
    size = on_device([(w, h) for h, w in grids], target)[:, None]  # [L,1,2]
    centre, wh = target[:, 2:4] * size, target[:, 4:6] * size  # [L,N,2] in cells
    ratio = wh[:, None] / anchors[:, :, None]  # [L,A,N,2]
    fits = torch.maximum(ratio, 1 / ratio).amax(3) < anchor_t  # [L,A,N]

    mirrored = size - centre
    near_low = (centre % 1 < reach) & (centre > 1)  # [L,N,2] left, up
    near_high = (mirrored % 1 < reach) & (mirrored > 1)  # [L,N,2] right, down
    opens = torch.cat((torch.ones_like(near_low[..., :1]), near_low, near_high), 2).transpose(1, 2)  # [L,5,N]

    step = torch.eye(2, device=target.device, dtype=target.dtype) * reach
    shift = torch.cat((torch.zeros_like(step[:1]), step, -step))  # [5,2] subtracted: centre, left, up, right, down
    cell = (centre[:, None] - shift[:, None]).long()  # [L,5,N,2] x, y
    gx = cell[..., 0].clamp(min=0).minimum((size.long() - 1)[..., 0:1])
    gy = cell[..., 1].clamp(min=0).minimum((size.long() - 1)[..., 1:2])
    shape = (len(grids), 5, anchors.shape[1], len(target))

    def spread(index: Tensor, axis: int) -> Tensor:
        """A column that varies along one axis of the table only."""
        return index.view([-1 if i == axis else 1 for i in range(4)]).expand(shape).reshape(-1)

    def count(n: int) -> Tensor:
        return torch.arange(n, device=target.device)

    return Rows(
        level=spread(count(shape[0]), 0),
        image=spread(target[:, 0].long(), 3),
        anchor=spread(count(shape[2]), 2),
        gy=gy[:, :, None].expand(shape).reshape(-1),
        gx=gx[:, :, None].expand(shape).reshape(-1),
        target=spread(count(shape[3]), 3),
        weight=(fits[:, None] & opens[:, :, None]).to(target.dtype).reshape(-1),
    )


def box_targets(rows: Rows, target: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    """What each row's box should be, [R,4]: centre relative to the row's cell, width and height, all in cells."""
    size = on_device([(w, h) for h, w in grids], target).repeat(1, 2)[rows.level]
    box = target[rows.target, 2:6] * size
    corner = torch.stack((rows.gx, rows.gy), 1).to(box.dtype)
    return torch.cat((box[:, :2] - corner, box[:, 2:]), 1)


def decode_rows(pred: Tensor, prior: Tensor) -> Tensor:
    """Raw predictions [R,>=4] and anchors [R,2] in cells -> boxes [R,4], centre relative to the cell, in cells."""
    y = pred[:, :4].sigmoid()
    return torch.cat((y[:, :2] * 2 - 0.5, (y[:, 2:4] * 2) ** 2 * prior), 1)
