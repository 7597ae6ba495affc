"""Which prediction answers for which box: the plain anchor assignment and OTA, each for the whole batch at once.

Names: N targets, A anchors per cell, R rows (entries) of a level, K groups. A row says: this cell and anchor of this
image answers for this target.
Rows keep the order offset-major, then anchor, then target: where several rows share a cell, the last one in this order
sets the objectness target.

On CUDA every table keeps its full static size and `weight` (0 or 1) says which rows count, so nothing waits for the
device. On the CPU, where looking is free, rows of weight 0 are dropped; the sums are over the same rows.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.iou import pairwise_iou

OFFSETS = (
    (0.0, 0.0),
    (0.5, 0.0),
    (0.0, 0.5),
    (-0.5, 0.0),
    (0.0, -0.5),
)  # subtracted: centre, left, up, right, down cell
TOP_IOUS = 10  # OTA: a box gets as many predictions as its best ten overlaps add up to
IOU_COST = 3.0


class Rows(NamedTuple):
    """Entries of one level, all [R]."""

    image: Tensor  # long
    anchor: Tensor  # long
    gy: Tensor  # long, cell row
    gx: Tensor  # long, cell column
    target: Tensor  # long, row of the target table
    weight: Tensor  # float, 1 = counts


Read = Callable[[int, Rows], Tensor]  # (level, rows) -> raw predictions of those cells, [R,5+C]


def drop_idle(rows: Rows) -> Rows:
    """Without the rows of weight 0, where that costs no synchronisation."""
    if rows.weight.is_cuda:
        return rows
    used = rows.weight.nonzero().squeeze(1)
    return Rows(*(column[used] for column in rows))


def plain_rows(target: Tensor, anchors: Tensor, height: int, width: int, anchor_t: float) -> Rows:
    """Anchors whose side ratio to the box is below `anchor_t`, in the centre cell and its two nearest neighbours
    (YOLOv5).

    target [N,6] image,class,cx,cy,w,h in 0..1; anchors [A,2] w,h in cells; height, width of the grid -> Rows of 5*A*N
    (see drop_idle).
    """
    size = torch.tensor([width, height], device=target.device, dtype=target.dtype)
    centre, wh = target[:, 2:4] * size, target[:, 4:6] * size  # [N,2] in cells
    ratio = wh[None] / anchors[:, None]  # [A,N,2]
    fits = torch.maximum(ratio, 1 / ratio).amax(2) < anchor_t  # [A,N]

    mirrored = size - centre
    near_low = (centre % 1 < 0.5) & (centre > 1)  # [N,2] left, up
    near_high = (mirrored % 1 < 0.5) & (mirrored > 1)  # [N,2] right, down
    opens = torch.cat((torch.ones_like(near_low[:, :1]), near_low, near_high), 1).T  # [5,N]

    shift = torch.tensor(OFFSETS, device=target.device, dtype=target.dtype)
    cell = (centre[None] - shift[:, None]).long()  # [5,N,2] x, y
    shape = (len(OFFSETS), len(anchors), len(target))
    row = torch.arange(len(target), device=target.device).expand(shape)
    anchor = torch.arange(len(anchors), device=target.device).view(1, -1, 1).expand(shape)
    return Rows(
        image=target[:, 0].long().expand(shape).reshape(-1),
        anchor=anchor.reshape(-1),
        gy=cell[..., 1].clamp(0, height - 1)[:, None].expand(shape).reshape(-1),
        gx=cell[..., 0].clamp(0, width - 1)[:, None].expand(shape).reshape(-1),
        target=row.reshape(-1),
        weight=(fits[None] & opens[:, None]).to(target.dtype).reshape(-1),
    )


def box_targets(rows: Rows, target: Tensor, height: int, width: int) -> Tensor:
    """What each row's box should be, [R,4]: centre relative to the row's cell, width and height, all in cells."""
    size = torch.tensor([width, height, width, height], device=target.device, dtype=target.dtype)
    box = target[rows.target, 2:6] * size
    corner = torch.stack((rows.gx, rows.gy), 1).to(box.dtype)
    return torch.cat((box[:, :2] - corner, box[:, 2:]), 1)


def decode_rows(pred: Tensor, prior: Tensor) -> Tensor:
    """Raw predictions [R,>=4] and anchors [R,2] in cells -> boxes [R,4], centre relative to the cell, in cells."""
    y = pred[:, :4].sigmoid()
    return torch.cat((y[:, :2] * 2 - 0.5, (y[:, 2:4] * 2) ** 2 * prior), 1)


@torch.no_grad()
def ota_rows(
    levels: Sequence[Rows],
    read: Read,
    target: Tensor,
    group: Tensor,
    groups: int,
    anchors: Tensor,
    stride: Tensor,
    image_size: tuple[int, int],
) -> list[Rows]:
    """Dynamic assignment (OTA, arXiv:2103.14259, in SimOTA's form, arXiv:2107.08430) among the plain candidates.

    levels: candidates per level. read: their raw predictions. group [N] long in 0..groups-1: targets compete only
    within their group (the image; the image and the head). anchors [L,A,2] in cells, stride [L], image_size (height,
    width) in pixels, by which the boxes are scaled.
    Cost of a pair = class BCE against the one-hot class, of sqrt(class * objectness), plus 3 * -log IoU. Each target
    takes its k cheapest candidates, k = the sum of its ten best IoUs, at least 1; equal costs go to the earlier
    candidate. A candidate wanted by several goes to the cheapest of the group.
    Returns the same rows with the target they were given and weight 1, or weight 0.
    """
    rows = Rows(*(torch.cat(column) for column in zip(*levels, strict=True)))  # C candidates
    if not len(target) or not len(rows.image):
        return list(levels)
    boxes, logit = candidate_predictions(levels, read, anchors, stride)  # [C,4] xyxy pixels, [C,nc]
    loss_if_none = F.softplus(logit).sum(1)  # [C], BCE against "no class"; a class c costs logit[c] less

    # candidates sorted by group; those that do not count go behind the last group
    group_of = torch.where(rows.weight > 0, group[rows.target], groups)  # [C]
    order = group_of.argsort(stable=True)
    count = torch.bincount(group_of, minlength=groups + 1)  # [groups+1]
    start = count.cumsum(0) - count
    most = int(count[:groups].max())  # the largest group
    if most == 0:  # no target fits any anchor
        return [level._replace(weight=torch.zeros_like(level.weight)) for level in levels]
    column = torch.arange(most, device=target.device)  # [M]
    real = column < count[group][:, None]  # [N,M]
    place = (start[group][:, None] + column).clamp(max=len(order) - 1)  # [N,M] position in the sorted list
    candidate = order[place]  # [N,M]

    height, width = image_size
    gt = target[:, 2:6] * torch.tensor([width, height, width, height], device=target.device, dtype=target.dtype)
    gt = torch.cat((gt[:, :2] - gt[:, 2:] / 2, gt[:, :2] + gt[:, 2:] / 2), 1)  # [N,4] xyxy pixels
    overlap = pairwise_iou(gt[:, None], boxes[candidate]) * real  # [N,M]
    of_class = logit[candidate, target[:, 1].long()[:, None]]  # [N,M]
    cost = loss_if_none[candidate] - of_class - IOU_COST * torch.log(overlap + 1e-8)
    cost = cost.masked_fill(~real, torch.inf)

    wanted = cheapest(cost, real, overlap.topk(min(TOP_IOUS, overlap.shape[1])).values.sum(1).long().clamp(min=1))
    matched, given = settle(wanted, cost, place, len(order))
    weight = torch.zeros_like(rows.weight).index_copy(0, order, matched.to(rows.weight.dtype))
    owner = torch.zeros_like(rows.target).index_copy(0, order, given)
    sizes = [len(level.image) for level in levels]
    return [
        level._replace(target=t, weight=w)
        for level, t, w in zip(levels, owner.split(sizes), weight.split(sizes), strict=True)
    ]


def candidate_predictions(levels: Sequence[Rows], read: Read, anchors: Tensor, stride: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [C,4] xyxy in pixels, and logit(sqrt(class * objectness)) [C,nc], of all candidates."""
    boxes, logits = [], []
    for i, rows in enumerate(levels):
        pred = read(i, rows).float()  # [R,5+nc]
        box = decode_rows(pred, anchors[i][rows.anchor])
        centre = (box[:, :2] + torch.stack((rows.gx, rows.gy), 1)) * stride[i]
        half = box[:, 2:] * stride[i] / 2
        boxes.append(torch.cat((centre - half, centre + half), 1))
        score = (pred[:, 5:].sigmoid() * pred[:, 4:5].sigmoid()).sqrt()
        logits.append(torch.log(score / (1 - score)))
    return torch.cat(boxes), torch.cat(logits)


def cheapest(cost: Tensor, real: Tensor, k: Tensor) -> Tensor:
    """For each row of cost [N,M] its k [N] lowest entries, ties to the lower column -> bool [N,M]."""
    most = min(TOP_IOUS, cost.shape[1])
    lowest = cost.topk(most, largest=False).values  # [N,most] ascending
    limit = lowest.gather(1, (k - 1).clamp(max=most - 1)[:, None])  # [N,1] the k-th lowest
    below = cost < limit
    tied = (cost == limit) & real
    room = k[:, None] - below.sum(1, keepdim=True)
    return (below | (tied & (tied.cumsum(1) <= room))) & real


def settle(wanted: Tensor, cost: Tensor, place: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """wanted, cost, place [N,M]; place = position of the pair's candidate in 0..candidates-1.

    Returns per position: matched (bool) and the target it goes to. A position wanted twice goes to the target of its
    group with the lowest cost, ties to the earlier target, whether or not that target wanted it.
    """
    n = len(cost)
    flat, pick = place.flatten(), wanted.flatten()
    target = torch.arange(n, device=cost.device)[:, None].expand_as(cost).flatten()
    none = torch.full((candidates,), n, device=cost.device)
    claims = torch.zeros_like(none).scatter_reduce(0, flat, pick.long(), "sum")
    claimant = none.scatter_reduce(0, flat, target.where(pick, n), "amin")
    lowest = torch.full((candidates,), torch.inf, device=cost.device).scatter_reduce(0, flat, cost.flatten(), "amin")
    at_lowest = (cost.flatten() == lowest[flat]) & cost.flatten().isfinite()
    best = none.scatter_reduce(0, flat, target.where(at_lowest, n), "amin")
    given = torch.where(claims > 1, best, claimant)
    return claims > 0, given.clamp(max=n - 1)
