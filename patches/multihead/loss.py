"""The loss of several heads, on the scale of one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.anchored.assign import Rows, box_targets, decode_rows, drop_idle, plain_rows
from models.anchored.gather import by_cell, look, read
from models.anchored.ota import ota_rows
from models.host import on_device
from models.iou import iou
from models.loss import (
    LOSS_KINDS,
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
from patches.multihead.head_file import HeadTable


def term_names(heads: int, kinds: Sequence[str] = LOSS_KINDS) -> tuple[str, ...]:
    return tuple(f"{kind}/head_{h}" for kind in kinds for h in range(heads))


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

    def forward(self, det: object, target: Tensor, most: int | None = None) -> dict[str, Tensor]:
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
