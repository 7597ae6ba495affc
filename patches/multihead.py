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

from models.assign import Rows, box_targets, decode_rows
from models.graph import Build
from models.head import AnchorHead, Part, prior_biases
from models.iou import iou
from models.layers import CBAM
from models.loss import (
    Criterion,
    DetectionLoss,
    LossSettings,
    assign,
    bce,
    flat_cell,
    last_row_map,
    one_hot,
    raw_levels,
)
from utils.config import opt
from utils.errors import UserError
from utils.head_file import HeadTable, read_head_file, restored_table
from utils.seams import Patch, State


class MultiHeadDetect(AnchorHead):
    """1x1 convolutions `heads.{head}.{level}`. List of [B,c,H,W] -> list of [B,A,H,W,P]."""

    stores_anchor_grid = True

    def __init__(self, c1: Sequence[int], nc: int, anchors: Any, *, table: HeadTable, loss: str) -> None:
        super().__init__(c1, nc, anchors)
        if table.nc != nc:
            raise ValueError(f"the head file is for {table.nc} classes, the data has {nc}")
        self.table, self.loss = table, loss
        self.groups, self.group_names = [list(g) for g in table.groups], list(table.names)
        a, widths = self.anchors_per_cell, [5 + table.columns(h) for h in range(len(table.groups))]
        self.heads = nn.ModuleList(nn.ModuleList(nn.Conv2d(c, a * width, 1) for c in c1) for width in widths)
        self.slices = [slice(a, b) for a, b in pairwise(table.starts)]

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

    def sliced(self, detector: Mapping[str, Tensor]) -> State:
        """State of `heads` cut out of a plain detector's (keys m.L.weight, m.L.bias, with IDetect also ia.L.implicit,
        im.L.implicit).

        Every head gets the box and objectness rows, each class row goes to the head that owns the class; implicit
        constants are folded in.
        """
        state: State = {}
        a = self.anchors_per_cell
        for level in range(self.levels):
            weight, bias = detector[f"m.{level}.weight"], detector[f"m.{level}.bias"]
            if (add := detector.get(f"ia.{level}.implicit")) is not None:
                bias = bias + weight.flatten(1) @ add.flatten()
            if (mul := detector.get(f"im.{level}.implicit")) is not None:
                weight, bias = weight * mul.view(-1, 1, 1, 1), bias * mul.flatten()
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
    adding up to box, obj, cls."""

    anchors: Tensor  # [L,A,2] in cells
    stride: Tensor  # [L] pixels
    owner: Tensor  # [nc] head of each class
    box_columns: Tensor  # [K,5]
    class_columns: Tensor  # [nc]
    head_weight: Tensor  # [K], mean 1

    def __init__(self, table: HeadTable, anchors: Tensor, settings: LossSettings, stride: Tensor) -> None:
        super().__init__()
        self.table, self.settings, self.k = table, settings, len(table.groups)
        self.terms = term_names(self.k)
        starts = torch.tensor(table.starts[:-1])
        owner = torch.tensor(table.owner)
        own_columns = {
            c: table.starts[h] + k
            for h, g in enumerate(table.groups)
            for c, k in zip(g, table.used(h)[5:], strict=True)
        }
        weight = torch.tensor(table.weights, dtype=torch.float32)
        self.width = table.starts[-1]
        for name, value in {
            "anchors": anchors.clone(),
            "stride": stride.clone(),
            "owner": owner,  # [nc]
            "box_columns": starts[:, None] + torch.arange(5),  # [K,5]
            "class_columns": torch.tensor([own_columns[c] for c in range(table.nc)]),  # [nc]
            "head_weight": weight / weight.mean(),  # [K]
        }.items():
            self.register_buffer(name, value, persistent=False)
        self.balance = DetectionLoss(table.nc, anchors, settings, stride).balance

    def forward(self, det: Any, target: Tensor) -> dict[str, Tensor]:
        raws = raw_levels(det, self.anchors, self.width)
        s, nc = self.settings, self.table.nc
        head_of = self.owner[target[:, 1].long()]  # [N]

        def read(level: int, rows: Rows) -> Tensor:
            """[R,5+nc]: box and objectness of the row's head, class logits of all heads in global order."""
            picked = raws[level][rows.image, rows.anchor, rows.gy, rows.gx]  # [R,P]
            columns = torch.cat((self.box_columns[head_of[rows.target]], self.class_columns.expand(len(picked), nc)), 1)
            return picked.gather(1, columns)

        def read_own(level: int, rows: Rows) -> Tensor:
            """As read, with the classes of other heads impossible: OTA weighs a head's own classes only."""
            pred = read(level, rows).float()
            foreign = self.owner.ne(head_of[rows.target][:, None])  # [R,nc]
            return torch.cat((pred[:, :5], pred[:, 5:].masked_fill(foreign, -torch.inf)), 1)

        grids = [(raw.shape[2], raw.shape[3]) for raw in raws]
        group = target[:, 0].long() * self.k + head_of
        levels = assign(target, grids, self.anchors, self.stride, s, read_own, group, len(raws[0]) * self.k)
        box = obj = cls = self.head_weight.new_zeros(self.k)
        for i, (raw, rows, (h, w)) in enumerate(zip(raws, levels, grids, strict=True)):
            pred = read(i, rows).float()
            head = head_of[rows.target]  # [R]
            weight = rows.weight * self.head_weight[head]
            total = weight.sum()
            total = total.where(total > 0, 1)
            overlap = iou(decode_rows(pred, self.anchors[i][rows.anchor]), box_targets(rows, target, h, w), kind="ciou")
            box = box + self.by_head(weight * (1 - overlap) / total, head)
            want = one_hot(target[rows.target, 1].long(), nc, s.label_smoothing)
            logits = bce(pred[:, 5:], want, s.cls_pw, s.fl_gamma) * weight[:, None] / (total * nc)  # [R,nc]
            cls = cls + self.by_head(logits.sum(0), self.owner)
            obj = (
                obj
                + self.objectness(raw, rows, head, (1 - s.gr) + s.gr * overlap.detach().clamp(min=0)) * self.balance[i]
            )
        values = torch.cat((box * s.box, obj * s.obj, cls * s.cls))
        return dict(zip(self.terms, values.unbind(), strict=True))

    def by_head(self, value: Tensor, head: Tensor) -> Tensor:
        """Sums of value [R] per head [K], in a fixed order."""
        member = torch.nn.functional.one_hot(head, self.k).to(value.dtype)  # [R,K]
        return (value[:, None] * member).sum(0)

    def objectness(self, raw: Tensor, rows: Rows, head: Tensor, quality: Tensor) -> Tensor:
        """Mean over cells, per head [K]. At its own positives a head counts w_h; where no head or another has a
        positive, w_h / K."""
        logit = raw[..., self.box_columns[:, 4]]  # [B,A,H,W,K]
        cell = flat_cell(rows, raw) * self.k + head
        want = last_row_map(cell, rows.weight, quality, logit.numel()).view(logit.shape)
        own = last_row_map(cell, rows.weight, torch.ones_like(quality), logit.numel()).view(logit.shape)
        weight = self.head_weight * (own + (1 - own) / self.k)
        loss = bce(logit, want, self.settings.obj_pw, self.settings.fl_gamma) * weight
        return loss.sum((0, 1, 2, 3)) / (logit.numel() / self.k)


class SummedHeadLoss(Criterion):
    """The original's form: each head's own loss over its own boxes, times its weight, added up. One-class heads have no
    class term."""

    def __init__(self, table: HeadTable, anchors: Tensor, settings: LossSettings, stride: Tensor) -> None:
        super().__init__()
        self.table = table
        self.terms = term_names(len(table.groups))
        self.losses = nn.ModuleList(DetectionLoss(len(group), anchors, settings, stride) for group in table.groups)
        self.anchors, self.width = anchors, table.starts[-1]

    def forward(self, det: Any, target: Tensor) -> dict[str, Tensor]:
        raws = raw_levels(det, self.anchors, self.width)
        owner = torch.tensor(self.table.owner, device=target.device)[target[:, 1].long()]
        local = torch.tensor(self.table.local, device=target.device, dtype=target.dtype)[target[:, 1].long()]
        mine = torch.cat((target[:, :1], local[:, None], target[:, 2:]), 1)
        out: dict[str, Tensor] = {}
        for h, loss in enumerate(self.losses):
            columns = [self.table.starts[h] + c for c in self.table.used(h)]
            terms = loss([raw[..., columns] for raw in raws], mine[owner == h])
            out |= {f"{kind}/head_{h}": value * self.table.weights[h] for kind, value in terms.items()}
        return {name: out[name] for name in self.terms}


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
