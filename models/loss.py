"""Detection loss: named terms box, obj and cls from an assignment.

box = mean over rows of 1 - CIoU;  obj = BCE of every cell's objectness against its row's IoU, levels weighted 4, 1,
0.4;
cls = mean over rows and classes of BCE;  each times its gain (YOLOv5/YOLOv7). The trainer multiplies the sum by the
batch size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.assign import Rows, box_targets, decode_rows, drop_idle, ota_rows, plain_rows
from models.iou import iou

BALANCE = {3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06), 5: (4.0, 1.0, 0.25, 0.06, 0.02)}


class LossSettings(NamedTuple):
    """What the criterion is told; gains are used as given (models.loss.scale_gains adapts them to levels, classes and
    size)."""

    box: float = 0.05
    obj: float = 1.0
    cls: float = 0.5
    cls_pw: float = 1.0  # weight of positive class targets in the BCE
    obj_pw: float = 1.0
    anchor_t: float = 4.0  # largest side ratio between a box and its anchor
    fl_gamma: float = 0.0  # focal exponent, 0 = plain BCE (arXiv:1708.02002)
    label_smoothing: float = 0.0
    gr: float = 1.0  # objectness target = 1 - gr + gr * IoU
    ota: bool = False  # dynamic assignment instead of the plain one
    square_ota: bool = False  # YOLOv7's fault: boxes scaled by the image height on both axes in OTA's cost


class Criterion(nn.Module):
    """forward(det, target [N,6] image,class,cx,cy,w,h in 0..1) -> {name: scalar}, exactly the names in `terms`.

    A name is `kind` or `kind/part` (box, obj, cls; box/head_0, ...); kinds add up to the columns of the results file.
    """

    terms: tuple[str, ...]


def scale_gains(settings: LossSettings, levels: int, nc: int, img_size: int) -> LossSettings:
    """Gains of a hyp file, meant for 3 levels, 80 classes and 640 px, adapted to this model and image size."""
    return settings._replace(
        box=settings.box * 3 / levels,
        cls=settings.cls * nc / 80 * 3 / levels,
        obj=settings.obj * (img_size / 640) ** 2 * 3 / levels,
    )


def raw_levels(det: Any, anchors: Tensor, channels: int) -> list[Tensor]:
    """The raw outputs [B,A,H,W,5+C] per level, from them or from the pair (decoded, raw); anything else is a ValueError
    with shapes."""
    levels, per_cell = anchors.shape[:2]
    raw = det[1] if isinstance(det, tuple) and len(det) == 2 and not isinstance(det[1], Tensor) else det
    fits = (
        isinstance(raw, (list, tuple))
        and len(raw) == levels
        and all(
            isinstance(r, Tensor) and r.dim() == 5 and r.shape[1] == per_cell and r.shape[4] == channels for r in raw
        )
        and len({r.shape[0] for r in raw}) == 1
    )
    if not fits:
        got = (
            [tuple(r.shape) if isinstance(r, Tensor) else type(r).__name__ for r in raw]
            if isinstance(raw, (list, tuple))
            else type(raw).__name__
        )
        raise ValueError(f"the loss needs {levels} raw levels of shape [B,{per_cell},H,W,{channels}], got {got}")
    return list(raw)


def bce(logit: Tensor, target: Tensor, pos_weight: float, gamma: float) -> Tensor:
    """Elementwise BCE in float32; gamma > 0: the focal form with alpha 0.25 (arXiv:1708.02002, eq. 5)."""
    logit = logit.float()
    weight = torch.tensor(pos_weight, device=logit.device) if pos_weight != 1 else None
    loss = F.binary_cross_entropy_with_logits(logit, target, pos_weight=weight, reduction="none")
    if gamma:
        p = logit.sigmoid()
        p_true = target * p + (1 - target) * (1 - p)
        loss = loss * (target * 0.25 + (1 - target) * 0.75) * (1 - p_true) ** gamma
    return loss


def last_row_map(cell: Tensor, weight: Tensor, value: Tensor, cells: int) -> Tensor:
    """[cells] zeros with value [R] at cell [R] (long); of several rows of weight > 0 at one cell the last counts.
    Order-free on every device."""
    rank = torch.arange(1, len(cell) + 1, device=cell.device) * (weight > 0)
    last = torch.zeros(cells, dtype=torch.long, device=cell.device).scatter_reduce(0, cell, rank, "amax")
    wins = (rank > 0) & (last[cell] == rank)
    out = torch.zeros(cells + 1, device=cell.device, dtype=value.dtype)  # the extra place takes what lost
    return out.index_put((cell.where(wins, cells),), value)[:cells]


def flat_cell(rows: Rows, raw: Tensor) -> Tensor:
    """Position [R] of each row's cell in raw [B,A,H,W,...] flattened over its first four dimensions."""
    _, a, h, w = raw.shape[:4]
    return ((rows.image * a + rows.anchor) * h + rows.gy) * w + rows.gx


class DetectionLoss(Criterion):
    """Loss of one head with nc classes. forward(raw levels [B,A,H,W,5+nc], target [N,6]) -> {box, obj, cls}.

    anchors [L,A,2] in cells, stride [L] pixels. With one class the class term is 0: objectness says it all.
    """

    terms = ("box", "obj", "cls")
    anchors: Tensor
    stride: Tensor

    def __init__(self, nc: int, anchors: Tensor, settings: LossSettings, stride: Tensor) -> None:
        super().__init__()
        self.nc, self.settings = nc, settings
        self.register_buffer("anchors", anchors.clone(), persistent=False)
        self.register_buffer("stride", stride.clone(), persistent=False)

    @property
    def balance(self) -> tuple[float, ...]:
        levels = len(self.anchors)
        return BALANCE.get(levels, (1.0,) * levels)

    def forward(self, det: Any, target: Tensor) -> dict[str, Tensor]:
        raws = raw_levels(det, self.anchors, 5 + self.nc)
        s = self.settings

        def read(level: int, rows: Rows) -> Tensor:
            return raws[level][rows.image, rows.anchor, rows.gy, rows.gx]

        grids = [(raw.shape[2], raw.shape[3]) for raw in raws]
        levels = assign(
            target, grids, self.anchors, self.stride, s, read, group=target[:, 0].long(), groups=len(raws[0])
        )
        box = obj = cls = raws[0].new_zeros((), dtype=torch.float32)
        for i, (raw, rows, (h, w)) in enumerate(zip(raws, levels, grids, strict=True)):
            pred = read(i, rows).float()  # [R,5+nc]
            total = rows.weight.sum().clamp(min=1)
            overlap = iou(decode_rows(pred, self.anchors[i][rows.anchor]), box_targets(rows, target, h, w), kind="ciou")
            box = box + (rows.weight * (1 - overlap)).sum() / total
            if self.nc > 1:
                want = one_hot(target[rows.target, 1].long(), self.nc, s.label_smoothing)
                cls = cls + (rows.weight[:, None] * bce(pred[:, 5:], want, s.cls_pw, s.fl_gamma)).sum() / (
                    total * self.nc
                )
            quality = (1 - s.gr) + s.gr * overlap.detach().clamp(min=0)
            cells = raw[..., 4].numel()
            want_obj = last_row_map(flat_cell(rows, raw), rows.weight, quality, cells).view(raw.shape[:4])
            obj = obj + bce(raw[..., 4], want_obj, s.obj_pw, s.fl_gamma).mean() * self.balance[i]
        return {"box": box * s.box, "obj": obj * s.obj, "cls": cls * s.cls}


def assign(
    target: Tensor,
    grids: Sequence[tuple[int, int]],
    anchors: Tensor,
    stride: Tensor,
    settings: LossSettings,
    read: Any,
    group: Tensor,
    groups: int,
) -> list[Rows]:
    """Rows per level by the plain rule or, with settings.ota, by OTA among them (see models.assign)."""
    levels = [drop_idle(plain_rows(target, anchors[i], h, w, settings.anchor_t)) for i, (h, w) in enumerate(grids)]
    if not settings.ota:
        return levels
    height, width = (
        round(side * float(stride_0)) for side, stride_0 in zip(grids[0], (stride[0], stride[0]), strict=True)
    )
    size = (height, height if settings.square_ota else width)
    return [drop_idle(rows) for rows in ota_rows(levels, read, target, group, groups, anchors, stride, size)]


def one_hot(index: Tensor, classes: int, smoothing: float) -> Tensor:
    """[R] -> [R,classes] with 1 - smoothing/2 at the class and smoothing/2 elsewhere."""
    return F.one_hot(index, classes).float() * (1 - smoothing) + smoothing / 2
