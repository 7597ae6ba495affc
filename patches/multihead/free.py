"""Several heads without anchors: each a whole detector of its own, box and class branches, on one trunk.

Raw output of a level: [B,P,H,W], the heads side by side, P = sum of 4*16 + n_h channels.

Loss, on the scale of one head with all classes. Boxes compete for cells within their image and head. With w = what a
cell is to score (models.free.assign), v_h = head weight / mean weight, S = sum of v_h w over all heads, at least 1:
box = sum of v_h w (1 - CIoU) / S; dfl likewise; cls = sum over all cells and classes of v_h BCE / S, each class at the
head that owns it. `--head-loss sum` adds up the heads' own losses, each over its own S, times its weight.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.class_names import Columns
from models.free.assign import Boxes, Cells, Matches, task_aligned
from models.free.head import FreeDetect, FreeHead
from models.free.loss import BINS, KINDS, box_terms, boxes_of, centres, checked, expected, flat, in_pixels
from models.head import Part, Rows, View
from models.loss import Criterion, LossSettings, as_empty
from patches.multihead.head_file import HeadTable
from patches.multihead.loss import term_names
from utils.seams import State

BOX = 4 * BINS


class MultiHeadFreeDetect(FreeHead):
    """Detectors `heads.{head}`. List of [B,c,H,W] -> list of [B,P,H,W]."""

    plain_mark = "cv2.0.2.weight"

    def __init__(self, c1: Sequence[int], nc: int, plain: bool, *, table: HeadTable, loss: str) -> None:
        if table.nc != nc:
            raise ValueError(f"the head file is for {table.nc} classes, the data has {nc}")
        heads = [FreeDetect(c1, nc, plain, table.columns(h)) for h in range(len(table.groups))]
        super().__init__(nc, len(c1), [list(g) for g in table.groups], list(table.names))
        self.table, self.loss = table, loss
        self.heads = nn.ModuleList(heads)
        self.widths = [BOX + table.columns(h) for h in range(len(heads))]
        self.own = [[c - 5 for c in table.used(h)[5:]] for h in range(len(heads))]  # of each head, its classes' columns

    def detectors(self) -> list[FreeDetect]:
        return [head for head in self.heads if isinstance(head, FreeDetect)]

    def attach(self, stride: Sequence[int]) -> None:
        super().attach(stride)
        for head in self.detectors():
            head.attach(stride)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [torch.cat(level, 1) for level in zip(*(head(xs) for head in self.heads), strict=True)]

    def per_head(self, det: Sequence[Tensor]) -> list[list[Tensor]]:
        """Views [B,4*16+n_h,H,W], by head, then level."""
        return [list(levels) for levels in zip(*(raw.split(self.widths, 1) for raw in det), strict=True)]

    def criterion(self, settings: LossSettings) -> Criterion:
        return MultiHeadFreeLoss(self.table, settings, self.steps, summed=self.loss == "sum")

    def decode(self, det: list[Tensor]) -> list[Part]:
        parts = []
        for head, group, own, levels in zip(self.detectors(), self.groups, self.own, self.per_head(det), strict=True):
            (part,) = head.decode(levels)
            pred = part.pred[..., [0, 1, 2, 3, *(4 + c for c in own)]] if self.table.full_head else part.pred
            parts.append(part._replace(pred=pred, classes=torch.tensor(group, device=pred.device)))
        return parts

    def views(self, det: list[Tensor]) -> list[View]:
        heads = [head.views(levels) for head, levels in zip(self.detectors(), self.per_head(det), strict=True)]
        order = [c for group in self.table.groups for c in group]
        back = [order.index(c) for c in range(self.nc)]
        found = []
        for level in zip(*heads, strict=True):
            cls = torch.cat([view.cls[..., own] for view, own in zip(level, self.own, strict=True)], -1)
            found.append(View(torch.cat([view.box for view in level], -2), None, cls[..., back]))
        return found

    def rows(self) -> list[Rows]:
        found: list[Rows] = []
        for h, group in enumerate(self.table.groups):
            classes, levels = list(range(self.nc)) if self.table.full_head else list(group), range(len(self.steps))
            found += [Rows(f"heads.{h}.cv3.{i}.2.", h, classes, lead=0) for i in levels]
            others = ["cv2.", *(f"cv3.{i}.{part}." for i in levels for part in (0, 1))]
            found += [Rows(f"heads.{h}.{start}", h, None) for start in others]
        return found

    def misfit(self, detector: Mapping[str, Tensor], by_name: bool) -> str:
        """Why these heads cannot be cut out of a plain detector with this state; empty where they can."""
        box, count = f"heads.0.{self.plain_mark}", len(detector["cv3.0.2.bias"])
        if detector[self.plain_mark].shape != self.state_dict()[box].shape:
            return "has box branches of another width"
        return "" if by_name or count == self.nc else f"has {count} classes, this data has {self.nc}"

    def sliced(self, detector: Mapping[str, Tensor], columns: Columns) -> State:
        """State of the heads cut out of a plain detector's. columns: of each class its number there, None where it has
        none.

        Every head gets the box branches and the hidden layers of the class branches, each class row goes to the head
        that owns the class. What the detector has not, or of another shape, keeps its fresh values.
        """
        own, state = self.state_dict(), State()
        for h, (group, used) in enumerate(zip(self.table.groups, self.own, strict=True)):
            pairs = [(here, there) for c, here in zip(group, used, strict=True) if (there := columns[c]) is not None]
            for key, old in detector.items():
                name, parts = f"heads.{h}.{key}", key.split(".")
                if name not in own or own[name].shape[1:] != old.shape[1:]:
                    continue
                if parts[0] == "cv3" and parts[2] == "2":
                    new = own[name].detach().clone()
                    new[[here for here, _ in pairs]] = old[[there for _, there in pairs]].to(new)
                    state[name] = new
                elif own[name].shape == old.shape:
                    state[name] = old
        return state


class MultiHeadFreeLoss(Criterion):
    """forward(levels [B,P,H,W], target [N,6]) -> {box/head_0, ..., cls/head_0, ..., dfl/head_0, ...}; K heads."""

    owner: Tensor  # [nc] head of each class
    local: Tensor  # [nc] its number within that head
    first: Tensor  # [K] first channel of each head
    channel: Tensor  # [nc] its channel in the raw output
    weights: Tensor  # [K]

    def __init__(self, table: HeadTable, settings: LossSettings, stride: Sequence[float], summed: bool) -> None:
        """stride: pixels per cell of each level. summed: the heads' losses are added up."""
        super().__init__()
        self.table, self.settings, self.stride, self.summed = table, settings, tuple(stride), summed
        self.k, self.terms = len(table.groups), term_names(len(table.groups), KINDS)
        widths = [BOX + table.columns(h) for h in range(self.k)]
        self.starts = [sum(widths[:h]) for h in range(self.k + 1)]
        of: dict[int, int] = {}
        for h, group in enumerate(table.groups):
            of |= {c: self.starts[h] + BOX + used - 5 for c, used in zip(group, table.used(h)[5:], strict=True)}
        given = torch.tensor(table.weights, dtype=torch.float32)
        for name, value in {
            "owner": torch.tensor(table.owner),
            "local": torch.tensor(table.local),
            "first": torch.tensor(self.starts[:-1]),
            "channel": torch.tensor([of[c] for c in range(table.nc)]),
            "weights": given if summed else given / given.mean(),
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, det: Any, target: Tensor, most: int | None = None) -> dict[str, Tensor]:
        levels, s = checked(det, len(self.stride), self.starts[-1]), self.settings
        predicted, (centre, step) = flat(levels), centres(levels, self.stride)
        boxes = in_pixels(target, levels, self.stride)
        with torch.no_grad():
            found = self.assign(predicted, centre, step, boxes)
        corner, cls = boxes.corners[found.target], boxes.cls[found.target]
        head, image = self.owner[cls], found.image // self.k  # [R]
        side = self.first[head][:, None] + torch.arange(BOX, device=head.device)  # [R,64] channels
        rows = predicted[image[:, None], side, found.cell[:, None]].view(-1, 4, BINS)
        off, dfl = box_terms(rows, centre[found.cell], step[found.cell], corner)
        logit = predicted[image, self.channel[cls], found.cell]  # [R] of the box's class

        mine = head[:, None] == torch.arange(self.k, device=head.device)  # [R,K]
        columns = torch.stack((found.weight, off * found.weight, logit * found.weight, dfl * found.weight))
        total, box, hit, sides = torch.where(mine, columns[:, :, None], 0).sum(1)  # [K] each
        total = total.clamp(min=1) if self.summed else (self.weights * total).sum().clamp(min=1)
        empty = torch.stack([as_empty(self.classes_of(predicted, h), 0).sum() for h in range(self.k)])
        share = self.weights / total
        values = torch.cat((box * share * s.box, (empty - hit) * share * s.cls, sides * share * s.dfl))
        return dict(zip(self.terms, values.unbind(), strict=True))

    def assign(self, predicted: Tensor, centre: Tensor, step: Tensor, boxes: Boxes) -> Matches:
        """Boxes compete within their image and head, as if each pair of these were an image: image * K + head."""
        most, now, logits = max(map(len, self.table.groups)), [], []
        for h, start in enumerate(self.starts[:-1]):
            side = predicted[:, start : start + BOX].unflatten(1, (4, BINS))  # [B,4,16,M]
            now.append(boxes_of(expected(side, 2).transpose(1, 2), centre, step))  # [B,M,4]
            own = self.classes_of(predicted, h)
            logits.append(nn.functional.pad(own, (0, 0, 0, most - own.shape[1])))  # [B,most,M]
        cells = Cells(torch.stack(logits, 1).flatten(0, 1), torch.stack(now, 1).flatten(0, 1), centre)
        image = boxes.image * self.k + self.owner[boxes.cls]
        return task_aligned(cells, Boxes(image, self.local[boxes.cls], boxes.corners), self.stride[:2][-1])

    def classes_of(self, predicted: Tensor, head: int) -> Tensor:
        """Logits [B,n,M] of the classes that the head owns, in its order."""
        if self.table.full_head:
            return predicted[:, self.channel[list(self.table.groups[head])]]
        return predicted[:, self.starts[head] + BOX : self.starts[head + 1]]
