"""Which cell answers for which box: the task-aligned assignment (TOOD, arXiv:2108.07755), for the whole batch at once.

Of the cells whose centre lies in a box, the box wants the ten of largest metric = sqrt(score of its class) * CIoU^6. A
cell that several boxes want goes to the box of its image that has the largest CIoU there, whether that one wanted it or
not. What a cell is to score is metric / largest metric of its box * largest CIoU of its box.

Ties, on any device: of equal metrics the cell that comes first (level, row, column), of equal CIoUs the box that comes
first. Two things differ from YOLOv8 on purpose: cells of metric 0 are not wanted (there some fill up the ten, score 0,
and decide where other cells go), and a box whose centre is the very corner of the picture counts (there it may be taken
for padding).

Names: N targets, M cells of all levels, P pairs of a target and a cell, R rows = up to ten pairs per target. As with
anchors, on CUDA tables keep their full static size and nothing waits for the device; on the CPU pairs that do not count
are dropped. Targets are taken in portions, so that memory does not grow with their number.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from models.host import may_look
from models.iou import iou

WANTED = 10  # cells per box
PAIRS = 1 << 21  # that are looked at together
EPS = 1e-9
LAST = 2**31 - 1


class Cells(NamedTuple):
    """What a batch predicts, without gradients, and where its cells lie."""

    logit: Tensor  # [B,nc,M] of the classes
    box: Tensor  # [B,M,4] corners in pixels
    centre: Tensor  # [M,2] x, y in pixels


class Boxes(NamedTuple):
    """The targets."""

    image: Tensor  # [N] long
    cls: Tensor  # [N] long
    corners: Tensor  # [N,4] in pixels


class Matches(NamedTuple):
    """Cells that answer for a box, each cell once, [R]. Rows of weight 0 do not count."""

    image: Tensor  # long
    cell: Tensor  # long
    target: Tensor  # long, row of the target table
    weight: Tensor  # what the cell is to score for the class of its box, 0..1


def aligned(cells: Cells, boxes: Boxes, target: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Metric and CIoU (not below 0) of pairs target [P], cell [P]."""
    image = boxes.image[target]
    overlap = iou(boxes.corners[target], cells.box[image, cell], xywh=False, kind="ciou").clamp(min=0)
    return cells.logit[image, boxes.cls[target], cell].sigmoid().sqrt() * overlap**6, overlap


def sortable(value: Tensor, number: Tensor) -> Tensor:
    """Keys that order by value [P], not below 0, then by number [P], the smallest last: the bits of a float that is not
    negative order as the float does."""
    return value.float().view(torch.int32).long() << 32 | (LAST - number)


def numbers_in(keys: Tensor) -> Tensor:
    return LAST - (keys & LAST)


def widened(corners: Tensor, least: float) -> Tensor:
    """Boxes [N,4] with sides of at least `least`, about the same centres: none is too small to hold a cell's centre."""
    centre, side = (corners[:, :2] + corners[:, 2:]) / 2, (corners[:, 2:] - corners[:, :2]).clamp(min=least)
    return torch.cat((centre - side / 2, centre + side / 2), 1)


def task_aligned(cells: Cells, boxes: Boxes, least: float) -> Matches:
    """least: pixels; when cells are looked for, a side that is shorter counts as so long."""
    room = widened(boxes.corners, least)
    owners = torch.zeros(cells.box.shape[:2].numel(), dtype=torch.long, device=room.device)
    portions = torch.arange(len(room), device=room.device).split(max(PAIRS // len(cells.centre), 1))
    found = [wanted(cells, boxes, room, portion, owners) for portion in portions]
    metric, cell = (torch.cat(columns) for columns in zip(*found, strict=True))  # [N,10], by falling metric
    target = torch.arange(len(room), device=room.device)[:, None].expand(cell.shape)
    counts = metric > 0
    if may_look(counts):
        return settled(cells, boxes, target[counts], cell[counts], counts[counts], owners)
    return settled(cells, boxes, target.flatten(), cell.flatten(), counts.flatten(), owners)


def wanted(cells: Cells, boxes: Boxes, room: Tensor, portion: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
    """Metric and cell [n,10] of what the targets `portion` [n] want, best first; metric nan: no further cell lies in
    room [N,4]. Into owners [B*M] goes a key of the box with the largest CIoU at each cell."""
    corner, places = room[portion, None], len(cells.centre)
    inside = torch.cat((cells.centre - corner[..., :2], corner[..., 2:] - cells.centre), 2).amin(2) > EPS  # [n,M]
    if may_look(inside):
        row, cell = inside.nonzero(as_tuple=True)
    else:
        row = torch.arange(len(portion), device=room.device).repeat_interleave(places)
        cell = torch.arange(places, device=room.device).repeat(len(portion))
    target, within = portion[row], inside[row, cell]
    metric, overlap = aligned(cells, boxes, target, cell)
    key = sortable(overlap, target) * within
    owners.scatter_reduce_(0, boxes.image[target] * places + cell, key, "amax")
    keys = torch.full(inside.shape, -1, device=room.device)
    keys[row, cell] = torch.where(within, sortable(metric, cell), -1)
    best = keys.topk(min(WANTED, places), 1).values
    return (best >> 32).int().view(torch.float32), numbers_in(best)


def settled(cells: Cells, boxes: Boxes, target: Tensor, cell: Tensor, counts: Tensor, owners: Tensor) -> Matches:
    """Pairs [R] that are wanted, where `counts`, with each cell given to one box."""
    image, rows = boxes.image[target], torch.arange(len(target), device=target.device)
    place = image * len(cells.centre) + cell
    contested = torch.zeros_like(owners).scatter_add_(0, place, counts.long())[place] > 1
    target = torch.where(contested, numbers_in(owners[place]), target)
    none = torch.full_like(owners, len(rows))
    first = none.scatter_reduce_(0, place, torch.where(counts, rows, len(rows)), "amin")[place]
    counts = counts & (first == rows)
    if may_look(counts):
        image, cell, target, counts = (column[counts] for column in (image, cell, target, counts))
    metric, overlap = (value * counts for value in aligned(cells, boxes, target, cell))
    of_box = metric.new_zeros(2, len(boxes.image))
    most, largest = (t.scatter_reduce(0, target, v, "amax") for t, v in zip(of_box, (metric, overlap), strict=True))
    weight = metric / (most[target] + EPS) * largest[target]
    return Matches(image, cell, target, weight)
