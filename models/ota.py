"""OTA: dynamic assignment (arXiv:2103.14259, in SimOTA's form, arXiv:2107.08430) among the plain candidates.

Names: C candidates (rows of the plain assignment), N targets, G groups, M candidates and Q targets of the largest
group. Targets compete only within their group: the image; with several heads the image and the head.
Cost of a pair = class BCE against the one-hot class, of sqrt(class * objectness), plus 3 * -log IoU. Each target takes
its k cheapest candidates, k = the sum of its ten best IoUs, at least 1; equal costs go to the earlier candidate. A
candidate wanted by several goes to the target of its group with the lowest cost, whether or not that one wanted it.

The BCE of a pair is the candidate's sum over all classes "if none of them" plus what its target's class changes, so
that nothing of N x C x classes exists. Pairs [N,M] come in chunks. No sum is scattered: minima do not depend on order.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from models.assign import Rows, decode_rows, may_look
from models.iou import pairwise_iou

TOP = 10  # a box gets as many predictions as its best ten overlaps add up to
IOU_COST = 3.0
PAIRS = 1 << 21  # of a chunk; about 100 bytes each
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1: a class that is certain costs 0, not 0 * inf


class Table(NamedTuple):
    """What pairs are made of: all that a cost needs."""

    box: Tensor  # [4,C] xyxy of the predictions, pixels
    if_none: Tensor  # [C] class cost, were no class wanted
    change: Tensor  # [C,nc] what wanting this class changes
    want: Tensor  # [N,4] xyxy of the targets, pixels
    label: Tensor  # [N] long, class

    def pair(self, target: Tensor, candidate: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """IoU and cost of pairs, indices that broadcast to the shape of `real`; 0 and inf where not real."""
        box = self.box[:, candidate].movedim(0, -1)
        overlap = pairwise_iou(self.want[target], box).masked_fill_(~real, 0)
        cost = (self.if_none[candidate] + self.change[candidate, self.label[target]]).sub_(
            (overlap + 1e-8).log_().mul_(IOU_COST)
        )
        return overlap, cost.masked_fill_(~real, torch.inf)


class Groups(NamedTuple):
    """A table's entries group by group: those of group g are order[start[g] : start[g] + size[g]]."""

    order: Tensor  # long, stable
    start: Tensor  # [G]
    size: Tensor  # [G]

    def members(self, group: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """group [n] -> entries [n,most] of each one's group, and which of them are real."""
        column = torch.arange(most, device=group.device)
        place = (self.start[group][:, None] + column).clamp(max=len(self.order) - 1)
        return self.order[place], column < self.size[group][:, None]


def grouped(group: Tensor, groups: int) -> Groups:
    """group [n] long; entries of a number from `groups` on are in none."""
    order = group.argsort(stable=True)
    edge = torch.searchsorted(group[order], torch.arange(groups + 1, device=group.device))
    return Groups(order, edge[:-1], edge[1:] - edge[:-1])


@torch.no_grad()
def ota_rows(
    rows: Rows,
    pred: Tensor,
    target: Tensor,
    group: Tensor,
    groups: int,
    anchors: Tensor,
    stride: Tensor,
    image_size: tuple[int, int],
    most: int | None = None,
) -> Rows:
    """The same rows with the target they were given and weight 1, or weight 0.

    rows: plain candidates [C]; pred [C,5+nc] float, raw. target [N,6]; group [N] long in 0..groups-1. anchors [L,A,2]
    in cells, stride [L], image_size (height, width) in pixels, by which the boxes are scaled. most: a bound on the
    targets of one group, known to the host; used where the host may not look (without it, N).
    """
    n, c = len(target), len(rows.image)
    if not n or not c:
        return rows
    candidates = grouped(torch.where(rows.weight > 0, group[rows.target], groups), groups)
    rivals = grouped(group, groups)
    if may_look(pred):
        m, q = int(candidates.size.max()), int(rivals.size.max())
        if m == 0:  # no target fits any anchor
            return rows._replace(weight=torch.zeros_like(rows.weight))
    else:
        q = n if most is None else min(most, n)
        m = c // n * q
    table = pair_table(rows, pred, target, anchors, stride, image_size)
    everyone = torch.arange(n, device=group.device)

    # what each target takes: [N,T], `c` where it takes less
    taken = torch.cat([choices(table, candidates, t, group, m, c) for t in chunks(everyone, m)])
    claim, by = taken.flatten(), everyone[:, None].expand_as(taken).flatten()
    first = by.new_full((c + 1,), n).scatter_reduce(0, claim, by, "amin")
    last = by.new_full((c + 1,), -1).scatter_reduce(0, claim, by, "amax")
    contested = (first != last)[claim] & (claim < c)
    if may_look(pred):
        which = contested.nonzero().squeeze(1)
        owner = by.clone()
        for part in chunks(which, q):
            owner[part] = cheapest_rival(table, rivals, claim[part], group[by[part]], q)
    else:
        parts = chunks(torch.arange(len(claim), device=claim.device), q)
        best = torch.cat([cheapest_rival(table, rivals, claim[p].clamp(max=c - 1), group[by[p]], q) for p in parts])
        owner = torch.where(contested, best, by)
    given = by.new_full((c + 1,), n).scatter_reduce(0, claim, owner, "amin")[:c]
    return rows._replace(target=given.clamp(max=n - 1), weight=(given < n).to(rows.weight.dtype))


def chunks(index: Tensor, width: int) -> Iterator[Tensor]:
    """Parts of an index whose pairs with `width` others are at most PAIRS."""
    yield from index.split(max(PAIRS // max(width, 1), 1))


def pair_table(
    rows: Rows, pred: Tensor, target: Tensor, anchors: Tensor, stride: Tensor, image_size: tuple[int, int]
) -> Table:
    box = decode_rows(pred, anchors[rows.level, rows.anchor])
    step = stride[rows.level][:, None]
    centre, half = (box[:, :2] + torch.stack((rows.gx, rows.gy), 1)) * step, box[:, 2:] * step / 2
    score = (pred[:, 5:].sigmoid() * pred[:, 4:5].sigmoid()).sqrt_().clamp_(max=BELOW_ONE)  # [C,nc]
    denied = (1 - score).log_()  # minus the BCE where the class is not wanted; score.log() where it is
    height, width = image_size
    cx, cy, w, h = target[:, 2:6].unbind(1)
    cx, cy, w, h = cx * width, cy * height, w * width, h * height
    return Table(
        box=torch.cat((centre - half, centre + half), 1).T.contiguous(),
        if_none=-denied.sum(1),
        change=denied.sub_(score.log_()),
        want=torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), 1),
        label=target[:, 1].long(),
    )


def choices(table: Table, candidates: Groups, target: Tensor, group: Tensor, most: int, none: int) -> Tensor:
    """The candidates [n,T] that targets [n] take, `none` in the places they leave empty."""
    candidate, real = candidates.members(group[target], most)  # [n,M]
    overlap, cost = table.pair(target[:, None], candidate, real)
    top = min(TOP, most)
    k = overlap.topk(top).values.sum(1).long().clamp(min=1).minimum(real.sum(1))  # [n]
    column = cheapest(cost, top)
    wanted = torch.arange(top, device=cost.device) < k[:, None]
    return candidate.gather(1, column).where(wanted, none)


def cheapest_rival(table: Table, rivals: Groups, candidate: Tensor, group: Tensor, most: int) -> Tensor:
    """For candidates [n] of these groups [n] the target [n] with the lowest cost, of equal ones the first."""
    target, real = rivals.members(group, most)  # [n,Q]
    _, cost = table.pair(target, candidate[:, None], real)
    return target.gather(1, cheapest(cost, 1)).squeeze(1)


def cheapest(cost: Tensor, k: int) -> Tensor:
    """Columns [n,k] of the lowest of cost [n,m] float32, ascending, ties to the lower column.

    One integer holds cost and column: the bits of a float read as an integer are in the float's order, those below
    zero reversed.
    """
    bits = (cost + 0.0).view(torch.int32)  # + 0.0: no negative zero
    key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    key = key.bitwise_left_shift_(32).bitwise_or_(torch.arange(cost.shape[1], device=cost.device))
    lowest = key.topk(k, largest=False).values if k > 1 else key.amin(1, keepdim=True)
    return lowest & 0xFFFFFFFF
