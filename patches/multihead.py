"""--heads N --head-config FILE: one backbone, N heads, each with its own classes (1B4H).  Seam: layers.

The head owns its loss and its decoding, so train.py and test.py do not change. Raw output of a level: [B,A,H,W,P], the
heads side by side, P = sum of 5 + n_h columns; it comes from one convolution whose weights are the heads' own, joined.

Loss, on the scale of one head with all classes, so that rates, decay and warm-up carry over. With w_h = head weight /
mean head weight, over the rows (positives) of all heads: box = weighted mean of 1 - CIoU; cls = weighted mean over rows
of the BCE of all class logits, each scored against the row's class, whichever head holds it; obj = mean over cells of
w_h * BCE at the head's own positives, and of the mean over heads elsewhere.
`--head-loss sum` adds up four independent losses instead, as the original did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from models.assign import Rows, box_targets, decode_rows, drop_idle, on_device, plain_rows
from models.cells import by_cell, look, read
from models.graph import Build
from models.head import AnchorHead, Part, View, folded_rows, prior_biases
from models.iou import iou
from models.layers import CBAM
from models.loss import (
    Criterion,
    LossSettings,
    as_empty,
    bce,
    cell_shares,
    grids_of,
    image_size,
    level_sums,
    one_hot,
    raw_levels,
)
from models.ota import ota_rows
from utils.config import opt
from utils.errors import UserError
from utils.head_file import HeadTable, read_head_file, restored_table
from utils.seams import Patch, State


class MultiHeadDetect(AnchorHead):
    """1x1 convolutions `heads.{head}.{level}`. List of [B,c,H,W] -> list of [B,A,H,W,P]."""

    stores_anchor_grid = True
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

    def sliced(self, detector: Mapping[str, Tensor]) -> State:
        """State of `heads` cut out of a plain detector's (keys as in models.head.folded_rows).

        Every head gets the box and objectness rows, each class row goes to the head that owns the class.
        """
        state: State = {}
        a = self.anchors_per_cell
        for level in range(self.levels):
            weight, bias = folded_rows(detector, level)
            rows, biases = weight.unflatten(0, (a, 5 + self.nc)), bias.view(a, 5 + self.nc)
            for h, (group, conv) in enumerate(zip(self.groups, self.convs(level), strict=True)):
                assert conv.bias is not None
                pick = [0, 1, 2, 3, 4, *(5 + c for c in group)]
                new_w, new_b = (
                    conv.weight.detach().clone().unflatten(0, (a, -1)),
                    conv.bias.detach().clone().view(a, -1),
                )
                new_w[:, self.table.used(h)], new_b[:, self.table.used(h)] = rows[:, pick], biases[:, pick]
                state[f"heads.{h}.{level}.weight"], state[f"heads.{h}.{level}.bias"] = (
                    new_w.flatten(0, 1),
                    new_b.flatten(),
                )
        return state


class MultiHeadDetectAttn(MultiHeadDetect):
    """With one CBAM per head and level before its convolution, `attentions.{head}.{level}`."""

    def __init__(self, c1: Sequence[int], nc: int, anchors: Any, *, table: HeadTable, loss: str) -> None:
        super().__init__(c1, nc, anchors, table=table, loss=loss)
        self.attentions = nn.ModuleList(nn.ModuleList(CBAM(c) for c in c1) for _ in table.groups)

    def level(self, x: Tensor, i: int) -> Tensor:
        maps = [
            conv(attention[i](x)).unflatten(1, (self.anchors_per_cell, -1))
            for conv, attention in zip(self.convs(i), self.attentions, strict=True)
            if isinstance(attention, nn.ModuleList)
        ]
        return torch.cat(maps, 2).flatten(1, 2)


def term_names(heads: int) -> tuple[str, ...]:
    return tuple(f"{kind}/head_{h}" for kind in ("box", "obj", "cls") for h in range(heads))


class MultiHeadLoss(Criterion):
    """The normalised combination described above. forward(raw levels [B,A,H,W,P], target [N,6]) -> {box/head_0, ...},
    adding up to box, obj, cls. All heads and levels at once; K heads."""

    anchors: Tensor  # [L,A,2] in cells
    stride: Tensor  # [L] pixels
    owner: Tensor  # [nc] head of each class
    columns: Tensor  # [5*K+nc] box and objectness head by head, then the classes in global order
    head_weight: Tensor  # [K], mean 1

    def __init__(self, table: HeadTable, anchors: Tensor, settings: LossSettings, stride: Tensor) -> None:
        super().__init__()
        self.table, self.settings, self.k = table, settings, len(table.groups)
        self.terms = term_names(self.k)
        for name, value in {
            "anchors": anchors.clone(),
            "stride": stride.clone(),
            "owner": torch.tensor(table.owner),
            "columns": torch.tensor(table.sorted_columns),
            "head_weight": self.weights(torch.tensor(table.weights, dtype=torch.float32)),
        }.items():
            self.register_buffer(name, value, persistent=False)
        self.finest = float(stride[0])

    def weights(self, given: Tensor) -> Tensor:
        """Weights of the heads [K] as used, from those of the head file."""
        return given / given.mean()

    def assign(self, raws: Sequence[Tensor], target: Tensor, most: int | None = None) -> Rows:
        """Which cells answer for which box. With OTA boxes compete within their image and head."""
        s, grids = self.settings, grids_of(raws)
        rows = drop_idle(plain_rows(target, self.anchors, grids, s.anchor_t))
        if not s.ota:
            return rows
        head_of = self.owner[target[:, 1].long()]  # [N]
        group, groups = target[:, 0].long() * self.k + head_of, len(raws[0]) * self.k
        pred = self.own_only(look(raws, rows)[:, self.columns], head_of[rows.target])
        size = image_size(grids[0], self.finest, s.square_ota)
        return drop_idle(ota_rows(rows, pred, target, group, groups, self.anchors, self.stride, size, most))

    def forward(self, det: Any, target: Tensor, most: int | None = None) -> dict[str, Tensor]:
        raws = raw_levels(det, self.anchors, self.table.starts[-1])
        s, nc, grids = self.settings, self.table.nc, grids_of(raws)
        head_of = self.owner[target[:, 1].long()]  # [N]
        rows = self.assign(raws, target, most)
        rows, runs = by_cell(rows, raws, head_of[rows.target], self.k)
        pred, cells = read(
            raws, rows, runs, [start + 4 for start in self.table.starts[:-1]], self.columns
        )  # [R,5*K+nc], L x [K,B,A,H,W]

        head = head_of[rows.target]  # [R]
        mine = head[:, None] == torch.arange(self.k, device=head.device)  # [R,K]
        own = self.of_own_head(pred, mine)  # [R,5]
        share, each = self.shares(rows, head, mine)  # [R]
        prior = self.anchors[rows.level, rows.anchor]
        overlap = iou(decode_rows(own, prior), box_targets(rows, target, grids), kind="ciou")
        box = torch.where(mine, (share * (1 - overlap))[:, None], 0).sum(0)  # [K]

        want = one_hot(target[rows.target, 1].long(), nc, s.label_smoothing)
        by_class = (bce(pred[:, 5 * self.k :], want, s.cls_pw, s.fl_gamma) * each).sum(0)  # [nc]
        heads = torch.arange(self.k, device=head.device)[:, None]
        cls = torch.where(self.owner == heads, by_class, 0).sum(1)  # [K]

        at_own, elsewhere = self.cell_weights()  # [K]
        per_cell = cell_shares(cells)
        quality = (1 - s.gr) + s.gr * overlap.detach().clamp(min=0)
        change = bce(own[:, 4], quality, s.obj_pw, s.fl_gamma) * at_own[head]
        change = change - as_empty(own[:, 4], s.fl_gamma) * elsewhere[head]
        at_rows = on_device([per_cell], change)[0][rows.level] * runs.decides
        obj = torch.where(mine, (change * at_rows)[:, None], 0).sum(0)  # [K]
        for dense, of_cell in zip(cells, per_cell, strict=True):
            obj = obj + as_empty(dense, s.fl_gamma).flatten(1).sum(1) * elsewhere * of_cell
        values = torch.cat((box * s.box, obj * s.obj, cls * s.cls))
        return dict(zip(self.terms, values.unbind(), strict=True))

    def of_own_head(self, pred: Tensor, mine: Tensor) -> Tensor:
        """Box and objectness [R,5] of the rows' own heads; mine [R,K] says which that is."""
        boxes = pred[:, : 5 * self.k].unflatten(1, (self.k, 5))  # [R,K,5]
        return torch.where(mine[:, :, None], boxes, 0).sum(1)

    def own_only(self, pred: Tensor, head: Tensor) -> Tensor:
        """[R,5*K+nc] -> [R,5+nc] with the classes of other heads impossible: OTA weighs a head's own classes only."""
        mine = head[:, None] == torch.arange(self.k, device=head.device)
        classes = pred[:, 5 * self.k :].masked_fill(self.owner != head[:, None], -torch.inf)
        return torch.cat((self.of_own_head(pred, mine), classes), 1)

    def shares(self, rows: Rows, head: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
        """What a row counts in the box term [R], and each of its class logits in the class term [R,nc or 1]."""
        weight = rows.weight * self.head_weight[head]
        total = level_sums(rows, weight, len(self.anchors))  # [L]
        share = weight / total.where(total > 0, 1)[rows.level]
        return share, share[:, None] / self.table.nc

    def cell_weights(self) -> tuple[Tensor, Tensor]:
        """What a head's objectness counts, [K]: at cells of its own positives, elsewhere."""
        return self.head_weight, self.head_weight / self.k


class SummedHeadLoss(MultiHeadLoss):
    """The original's form: each head's own loss over its own boxes, times its weight, added up. One-class heads have no
    class term."""

    def weights(self, given: Tensor) -> Tensor:
        return given

    def shares(self, rows: Rows, head: Tensor, mine: Tensor) -> tuple[Tensor, Tensor]:
        total = level_sums(rows, mine * rows.weight[:, None], len(self.anchors)).clamp(min=1)  # [L,K]
        share = rows.weight / total[rows.level, head] * self.head_weight[head]
        own = self.owner == head[:, None]  # [R,nc]
        count = own.sum(1, keepdim=True)
        return share, torch.where(own & (count > 1), share[:, None] / count, 0)

    def cell_weights(self) -> tuple[Tensor, Tensor]:
        return self.head_weight, self.head_weight


@dataclass(frozen=True, kw_only=True)
class Flags:
    heads: int = opt(0, "number of heads; must agree with the head file", low=0)
    head_config: str = opt("", "head file: which head owns which classes")
    head_loss: str = opt(
        "mean",
        "combination of the heads' losses: mean = on the scale of one head; sum = the original",
        choices=("mean", "sum"),
    )
    head_table: dict[str, Any] | None = opt(None, "the head file's content, as stored in checkpoints", hidden=True)


class MultiHead(Patch[Flags]):
    def __init__(self, flags: Flags) -> None:
        super().__init__(flags)
        if flags.head_table is not None:
            self.table = restored_table(flags.head_table)
        else:
            if not flags.head_config:
                raise UserError("--heads needs --head-config FILE, which says which head owns which classes")
            self.table = read_head_file(flags.head_config, flags.heads)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "head_table": dict(vars(self.table))}

    def layers(self) -> Mapping[str, Build]:
        attention = {"MultiHeadDetectAttn": MultiHeadDetectAttn, "MultiHeadDetectAttention": MultiHeadDetectAttn}
        kinds = {"MultiHeadDetect": MultiHeadDetect, **attention}
        return {name: partial(kind, table=self.table, loss=self.flags.head_loss) for name, kind in kinds.items()}

    def on_model_built(self, model: Any, terms: tuple[str, ...]) -> None:
        if len(model.groups) != len(self.table.groups):
            raise UserError("--heads: the model YAML has no MultiHeadDetect row; use one of the -1b4h model files")


patch = MultiHead
