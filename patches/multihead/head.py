"""The detector with several heads."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models.blocks.attention import CBAM
from models.class_names import Columns
from models.head import AnchorHead, Part, Rows, View, folded_rows, prior_biases
from models.loss import Criterion, LossSettings
from patches.multihead.head_file import HeadTable
from patches.multihead.loss import MultiHeadLoss, SummedHeadLoss
from utils.seams import State


class MultiHeadDetect(AnchorHead):
    """1x1 convolutions `heads.{head}.{level}`. List of [B,c,H,W] -> list of [B,A,H,W,P]."""

    stores_anchor_grid = True
    plain_mark = "m.0.weight"
    columns: Tensor  # [5*K+nc] box and objectness head by head, then the classes in global order

    def __init__(self, c1: Sequence[int], nc: int, anchors: Any, *, table: HeadTable, loss: str) -> None:
        super().__init__(c1, nc, anchors)
        if table.nc != nc:
            raise ValueError(f"the head file is for {table.nc} classes, the data has {nc}")
        self.table, self.loss = table, loss
        self.groups, self.group_names = [list(g) for g in table.groups], list(table.names)
        a, widths = self.anchors_per_cell, [5 + table.columns(h) for h in range(len(table.groups))]
        self.heads = nn.ModuleList(nn.ModuleList(nn.Conv2d(c, a * width, 1) for c in c1) for width in widths)
        self.slices = [slice(a, b) for a, b in pairwise(table.starts)]
        self.register_buffer("columns", torch.tensor(table.sorted_columns), persistent=False)

    def convs(self, level: int) -> list[nn.Conv2d]:
        return [head[level] for head in self.heads if isinstance(head, nn.ModuleList)]  # type: ignore[misc]

    def attach(self, stride: Sequence[int]) -> None:
        super().attach(stride)
        for level, step in enumerate(stride):
            for conv, cols in zip(self.convs(level), self.slices, strict=True):
                assert conv.bias is not None
                prior_biases(conv.bias, cols.stop - cols.start, step, self.nc)

    def level(self, x: Tensor, i: int) -> Tensor:
        """All heads of a level by one convolution: rows joined per anchor. [B,c,H,W] -> [B,A*P,H,W]"""
        a, convs = self.anchors_per_cell, self.convs(i)
        weight = torch.cat([c.weight.unflatten(0, (a, -1)) for c in convs], 1).flatten(0, 1)
        bias = torch.cat([c.bias.view(a, -1) for c in convs if c.bias is not None], 1).flatten()
        return nn.functional.conv2d(x, weight, bias)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [
            self.level(x, i).unflatten(1, (self.anchors_per_cell, -1)).permute(0, 1, 3, 4, 2) for i, x in enumerate(xs)
        ]

    def per_head(self, det: Sequence[Tensor]) -> list[list[Tensor]]:
        """Views [B,A,H,W,5+n_h], by head, then level."""
        return [[raw[..., cols] for raw in det] for cols in self.slices]

    def criterion(self, settings: LossSettings) -> Criterion:
        kind = SummedHeadLoss if self.loss == "sum" else MultiHeadLoss
        return kind(self.table, self.anchors, settings, self.stride)

    def decode(self, det: list[Tensor]) -> list[Part]:
        parts = []
        for h, (group, raws) in enumerate(zip(self.groups, self.per_head(det), strict=True)):
            pred = torch.cat([self.decode_level(raw, i) for i, raw in enumerate(raws)], 1)
            if self.table.full_head:
                pred = pred[..., self.table.used(h)]
            parts.append(Part(pred, torch.tensor(group, device=pred.device)))
        return parts

    def views(self, det: list[Tensor]) -> list[View]:
        k, found = len(self.groups), []
        for raw in det:
            boxes, cls = raw.index_select(-1, self.columns).split([5 * k, self.nc], -1)
            boxes = boxes.unflatten(-1, (k, 5))  # [B,A,H,W,K,5]
            found.append(View(boxes[..., :4], boxes[..., 4], cls))
        return found

    def rows(self) -> list[Rows]:
        whole = list(range(self.nc))
        groups = [list(g) for g in self.table.groups]
        return [Rows(f"heads.{h}.", h, whole if self.table.full_head else g) for h, g in enumerate(groups)]

    def misfit(self, detector: Mapping[str, Tensor], by_name: bool) -> str:
        """Why these heads cannot be cut out of a plain detector with this state; empty where they can. by_name: its
        classes are known by their names."""
        (rows, channels), want = detector["m.0.weight"].shape[:2], self.anchors_per_cell * (5 + self.nc)
        if detector["anchors"].shape != self.anchors.shape or (rows != want and not by_name):
            return f"has {rows} outputs per level, this data needs {want}"
        fits = all(detector[f"m.{i}.weight"].shape[1] == self.convs(i)[0].in_channels for i in range(self.levels))
        return "" if fits else f"reads {channels} channels at its first level"

    def sliced(self, detector: Mapping[str, Tensor], columns: Columns) -> State:
        """State of `heads` cut out of a plain detector's (keys as in models.head.folded_rows), and its anchors.
        columns: of each class its number there, None where it has none.

        Every head gets the box and objectness rows, each class row goes to the head that owns the class; a class that
        the detector has not keeps its fresh row.
        """
        state: State = {}
        a = self.anchors_per_cell
        for level in range(self.levels):
            weight, bias = folded_rows(detector, level)
            rows, biases = weight.unflatten(0, (a, -1)), bias.view(a, -1)
            for h, (group, conv) in enumerate(zip(self.groups, self.convs(level), strict=True)):
                assert conv.bias is not None
                used = self.table.used(h)
                pairs = [(5 + there, here) for c, here in zip(group, used[5:], strict=True)
                         if (there := columns[c]) is not None]  # fmt: skip
                pick, put = [*range(5), *(a for a, _ in pairs)], [*range(5), *(b for _, b in pairs)]
                new_w, new_b = (
                    conv.weight.detach().clone().unflatten(0, (a, -1)),
                    conv.bias.detach().clone().view(a, -1),
                )
                new_w[:, put], new_b[:, put] = rows[:, pick], biases[:, pick]
                state[f"heads.{h}.{level}.weight"], state[f"heads.{h}.{level}.bias"] = (
                    new_w.flatten(0, 1),
                    new_b.flatten(),
                )
        return {**state, "anchors": detector["anchors"]}


class MultiHeadDetectAttn(MultiHeadDetect):
    """With one CBAM per head and level before its convolution, `attentions.{head}.{level}`."""

    def __init__(self, c1: Sequence[int], nc: int, anchors: object, *, table: HeadTable, loss: str) -> None:
        super().__init__(c1, nc, anchors, table=table, loss=loss)
        self.attentions = nn.ModuleList(nn.ModuleList(CBAM(c, c) for c in c1) for _ in table.groups)

    def rows(self) -> list[Rows]:
        return [*super().rows(), *(Rows(f"attentions.{h}.", h, None) for h in range(len(self.table.groups)))]

    def level(self, x: Tensor, i: int) -> Tensor:
        maps = [
            conv(attention[i](x)).unflatten(1, (self.anchors_per_cell, -1))
            for conv, attention in zip(self.convs(i), self.attentions, strict=True)
            if isinstance(attention, nn.ModuleList)
        ]
        return torch.cat(maps, 2).flatten(1, 2)
