"""OTA: dynamic assignment (arXiv:2103.14259, in SimOTA's form, arXiv:2107.08430) among the plain candidates.

Names: C candidates (rows of the plain assignment), N targets, G groups, M candidates and Q targets of the largest
group. Targets compete only within their group: the image; with several heads the image and the head.
Cost of a pair = class BCE against the one-hot class, of sqrt(class * objectness), plus 3 * -log IoU. Each target takes
its k cheapest candidates, k = the sum of its ten best IoUs, at least 1; equal costs go to the earlier candidate. A
candidate wanted by several goes to the target of its group with the lowest cost, whether or not that one wanted it.

The BCE of a pair is the candidate's sum over all classes "if none of them" plus what its target's class changes, so
that nothing of N x C x classes exists. Pairs [N,M] come in chunks. No sum is scattered: minima do not depend on order.

Where the host may look, only pairs whose boxes touch are costed, and of the others those that can win: without overlap
a cost depends on the target's class alone, and overlap only lowers it, so that the k cheapest of all pairs lie among
those that touch and the k cheapest of their class without overlap. Crowds of thousands take seconds so.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from models.anchored.assign import Rows, decode_rows
from models.host import may_look
from models.iou import pairwise_iou

TOP = 10  # a box gets as many predictions as its best ten overlaps add up to
IOU_COST = 3.0
PAIRS = 1 << 21  # of a chunk; about 100 bytes each
CROWD = 1 << 13  # pairs of a group, on average, from which on finding those that can win is the shorter way
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1: a class that is certain costs 0, not 0 * inf


class Table(NamedTuple):
    """What pairs are made of: all that a cost needs."""

    box: Tensor  # [4,C] xyxy of the predictions, pixels
    if_none: Tensor  # [C] class cost, were no class wanted
    change: Tensor  # [C,nc] what wanting this class changes
    want: Tensor  # [N,4] xyxy of the targets, pixels
    label: Tensor  # [N] long, class

    def pair(self, target: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
        """IoU and cost of pairs, indices that broadcast."""
        overlap = pairwise_iou(self.want[target], self.box[:, candidate].movedim(0, -1))
        return overlap, self.cost(target, candidate, overlap)

    def cost(self, target: Tensor, candidate: Tensor, overlap: Tensor) -> Tensor:
        change = self.change[candidate, self.label[target]]
        return (self.if_none[candidate] + change).sub_((overlap + 1e-8).log_().mul_(IOU_COST))

    def apart(self, target: Tensor, candidate: Tensor) -> Tensor:
        """Costs, did the boxes not overlap."""
        shape = torch.broadcast_shapes(target.shape, candidate.shape)
        return self.cost(target, candidate, self.if_none.new_zeros(shape))


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

    def split(self) -> tuple[Tensor, ...]:
        """The entries of each group, ascending. The host looks."""
        sizes = self.size.tolist()
        entries: tuple[Tensor, ...] = self.order[: sum(sizes)].split(sizes)
        return entries


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
    top: int = TOP,
) -> Rows:
    """The same rows with the target they were given and weight 1, or weight 0.

    rows: plain candidates [C]; pred [C,5+nc] float, raw. target [N,6]; group [N] long in 0..groups-1. anchors [L,A,2]
    in cells, stride [L], image_size (height, width) in pixels, by which the boxes are scaled. most: a bound on the
    targets of one group, known to the host; used where the host may not look (without it, N). top: of a box's best
    overlaps this many are added up, to say how many predictions it takes.
    """
    n, c = len(target), len(rows.image)
    if not n or not c:
        return rows
    candidates = grouped(torch.where(rows.weight > 0, group[rows.target], groups), groups)
    rivals = grouped(group, groups)
    table = pair_table(rows, pred, target, anchors, stride, image_size)
    if may_look(pred):
        m, q = int(candidates.size.max()), int(rivals.size.max())
        if m == 0:  # no target fits any anchor
            return rows._replace(weight=torch.zeros_like(rows.weight))
    else:
        q = n if most is None else min(most, n)
        m = c // n * q
    if may_look(pred) and n * m > CROWD * groups:
        given = group.new_full((c,), n)
        for own, members in zip(rivals.split(), candidates.split(), strict=True):
            if len(own) and len(members):
                given[members] = match_crowd(table, own, members, min(top, m))
    else:
        given = match_all(table, rivals, candidates, group, m, q, top)
    return rows._replace(target=given.clamp(max=n - 1), weight=(given < n).to(rows.weight.dtype))


def match_all(table: Table, rivals: Groups, candidates: Groups, group: Tensor, m: int, q: int, top: int) -> Tensor:
    """The target that each of the C candidates is given, or N, by all pairs of each group, which has at most `m`
    candidates and `q` targets. group [N]."""
    n, c = len(table.want), len(table.if_none)
    everyone = torch.arange(n, device=group.device)
    # what each target takes: [N,T], `c` where it takes less
    taken = torch.cat([all_choices(table, candidates, t, group, m, c, top) for t in chunks(everyone, m)])
    claim, by = taken.flatten(), everyone[:, None].expand_as(taken).flatten()
    first = by.new_full((c + 1,), n).scatter_reduce(0, claim, by, "amin")
    last = by.new_full((c + 1,), -1).scatter_reduce(0, claim, by, "amax")
    contested = (first != last)[claim] & (claim < c)
    if may_look(claim):
        which = contested.nonzero().squeeze(1)
        owner = by.clone()
        for part in chunks(which, q):
            owner[part] = cheapest_rival(table, rivals, claim[part], group[by[part]], q)
    else:
        parts = chunks(torch.arange(len(claim), device=claim.device), q)
        best = torch.cat([cheapest_rival(table, rivals, claim[p].clamp(max=c - 1), group[by[p]], q) for p in parts])
        owner = torch.where(contested, best, by)
    return by.new_full((c + 1,), n).scatter_reduce(0, claim, owner, "amin")[:c]


def match_crowd(table: Table, target: Tensor, candidate: Tensor, top: int) -> Tensor:
    """The target that each of the candidates [M] of a group is given, or N, by the pairs that can win.

    target [Q]: all of the group, ascending. The host looks.
    """
    m, n = len(candidate), len(table.want)
    want, box = table.want[target].T.contiguous(), table.box[:, candidate]
    classes, kind = table.label[target].unique(return_inverse=True)
    place = torch.arange(len(target), device=target.device)
    first = torch.full_like(classes, len(target)).scatter_reduce(0, kind, place, "amin")  # of its class
    likely = torch.cat([cheapest(table.apart(target[f, None], candidate), min(top, m)) for f in chunks(first, m)])

    low, high = torch.full_like(candidate, n), torch.full_like(candidate, -1)
    for part in chunks(side_by_side(want, place), m):
        row, column, real = near(want[:, part], box, likely[kind[part]], top)
        overlap, cost = (spread(x, real) for x in table.pair(target[part[row]], candidate[column]))
        pick, wanted = choices(overlap, cost, real, top)
        claim = spread(column, real).gather(1, pick)[wanted]
        by = target[part, None].expand_as(pick)[wanted]
        low.scatter_reduce_(0, claim, by, "amin")
        high.scatter_reduce_(0, claim, by, "amax")
    first = first.sort().values
    for part in chunks(side_by_side(box, (low < high).nonzero().squeeze(1)), len(target)):
        best = first[cheapest(table.apart(target[first], candidate[part, None]), 1)]
        row, column, real = near(box[:, part], want, best, 1)
        _, cost = table.pair(target[column], candidate[part[row]])
        pick = cheapest(spread(cost, real).masked_fill_(~real, torch.inf), 1)
        low[part] = target[spread(column, real).gather(1, pick).squeeze(1)]
    return low


def side_by_side(box: Tensor, index: Tensor) -> Tensor:
    """An index of xyxy boxes, by size in octaves and then by height in the image: parts of it lie in a strip."""
    x0, y0, x1, y1 = box[:, index]
    order = y0.argsort()
    octave = ((x1 - x0) * (y1 - y0))[order].log2_().floor_()
    return index[order[octave.argsort(stable=True)]]


def near(box: Tensor, other: Tensor, likely: Tensor, least: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of xyxy boxes [4,n] with others [4,m] that overlap, or that are listed in the box's `likely` [n,T].

    -> row [P] and column [P] of the pairs, row by row, ascending, and the places [n,W] they take in a table of the
    boxes (see spread), W the most that one has, at least `least`.
    """
    x0, y0, x1, y1 = box[:, :, None]
    inside = (other[1] < y1.max()).logical_and_(other[3] > y0.min())  # the strip in which all of them lie
    strip = inside.index_fill_(0, likely.flatten(), True).nonzero().squeeze(1)
    ox0, oy0, ox1, oy1 = other.index_select(1, strip)
    pairs = (x0 < ox1).logical_and_(x1 > ox0).logical_and_(y0 < oy1).logical_and_(y1 > oy0)
    pairs.scatter_(1, torch.searchsorted(strip, likely), True)
    row, column = pairs.nonzero(as_tuple=True)
    count = torch.bincount(row, minlength=len(likely))
    width = torch.arange(max(int(count.max()), least), device=row.device)
    return row, strip[column], width < count[:, None]


def spread(value: Tensor, real: Tensor) -> Tensor:
    """Values [P] of pairs in their places [n,W], 0 elsewhere."""
    return value.new_zeros(real.shape).masked_scatter_(real, value)


def chunks(index: Tensor, width: int) -> Iterator[Tensor]:
    """Parts of an index whose pairs with `width` others are at most PAIRS."""
    if len(index):
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


def all_choices(
    table: Table, candidates: Groups, target: Tensor, group: Tensor, most: int, none: int, top: int
) -> Tensor:
    """The candidates [n,T] that targets [n] take, `none` in the places they leave empty."""
    candidate, real = candidates.members(group[target], most)  # [n,M]
    overlap, cost = table.pair(target[:, None], candidate)
    column, wanted = choices(overlap.masked_fill_(~real, 0), cost, real, min(top, most))
    return candidate.gather(1, column).where(wanted, none)


def choices(overlap: Tensor, cost: Tensor, real: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """IoU, 0 where not real, and cost of targets with their candidates [n,W] -> the `top` cheapest columns [n,T] and
    which of them each target takes."""
    k = overlap.topk(top).values.sum(1).long().clamp(min=1).minimum(real.sum(1))  # [n]
    column = cheapest(cost.masked_fill_(~real, torch.inf), top)
    return column, torch.arange(top, device=cost.device) < k[:, None]


def cheapest_rival(table: Table, rivals: Groups, candidate: Tensor, group: Tensor, most: int) -> Tensor:
    """For candidates [n] of these groups [n] the target [n] with the lowest cost, of equal ones the first."""
    target, real = rivals.members(group, most)  # [n,Q]
    _, cost = table.pair(target, candidate[:, None])
    return target.gather(1, cheapest(cost.masked_fill_(~real, torch.inf), 1)).squeeze(1)


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
