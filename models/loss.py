"""Detection loss: named terms box, obj and cls from an assignment.

box = mean over rows of 1 - CIoU;  obj = BCE of every cell's objectness against its row's IoU, levels weighted 4, 1,
0.4;
cls = mean over rows and classes of BCE;  each times its gain (YOLOv5/YOLOv7). The trainer multiplies the sum by the
batch size.

Objectness as computed: every cell as if it held no box, and at the rows that decide, by how much their target changes
that. Nothing here waits for the device, and no sum depends on an order that a device chooses (see models.cells).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anchored.assign import Rows, box_targets, decode_rows, drop_idle, plain_rows
from models.anchored.gather import by_cell, look, read
from models.anchored.ota import TOP, ota_rows
from models.host import on_device
from models.iou import iou

LOSS_KINDS = ("box", "obj", "cls")  # of a detector's loss terms: `box`, or `box/head_0`, ...
DETECTION_KINDS = (*LOSS_KINDS, "dfl")  # those of any head
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
    dfl: float = 0.0  # of heads without anchors (models.free.loss)


class Criterion(nn.Module):
    """forward(det, target [N,6] image,class,cx,cy,w,h in 0..1, most) -> {name: scalar}, exactly the names in `terms`.

    most: the most boxes of one picture, where the host knows it; OTA's tables on CUDA take that size, or the size for
    all boxes in one picture.

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
    weight = logit.new_full((), pos_weight) if pos_weight != 1 else None
    loss = F.binary_cross_entropy_with_logits(logit, target, pos_weight=weight, reduction="none")
    if gamma:
        p = logit.sigmoid()
        p_true = target * p + (1 - target) * (1 - p)
        loss = loss * (target * 0.25 + (1 - target) * 0.75) * (1 - p_true) ** gamma
    return loss


class Softplus(torch.autograd.Function):
    """log(1 + e^x) as max(x, 0) + 2 atanh(z / (2 + z)), z = e^-|x|: exact to the last digits, as log1p is, which on
    some CPUs takes ten times as long."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        z = x.abs().neg_().exp_()
        return z.div_(z + 2).atanh_().mul_(2).add_(x.clamp(min=0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        out: Tensor = grad * x.sigmoid()
        return out


def as_empty(logit: Tensor, gamma: float) -> Tensor:
    """`bce` of float32 logits against 0."""
    loss: Tensor = Softplus.apply(logit)
    return loss * 0.75 * logit.sigmoid() ** gamma if gamma else loss


def one_hot(index: Tensor, classes: int, smoothing: float) -> Tensor:
    """[R] -> [R,classes] with 1 - smoothing/2 at the class and smoothing/2 elsewhere."""
    hit = index[:, None] == torch.arange(classes, device=index.device)
    return hit.float() * (1 - smoothing) + smoothing / 2


def level_sums(rows: Rows, weight: Tensor, levels: int) -> Tensor:
    """Sums per level [L,...] of weight [R,...]."""
    member = rows.level == torch.arange(levels, device=weight.device)[:, None]  # [L,R]
    return torch.where(member.view(*member.shape, *[1] * (weight.dim() - 1)), weight, 0).sum(1)


class DetectionLoss(Criterion):
    """Loss of one head with nc classes. forward(raw levels [B,A,H,W,5+nc], target [N,6]) -> {box, obj, cls}.

    anchors [L,A,2] in cells, stride [L] pixels. With one class the class term is 0: objectness says it all.
    """

    terms = LOSS_KINDS
    anchors: Tensor
    stride: Tensor

    def __init__(self, nc: int, anchors: Tensor, settings: LossSettings, stride: Tensor) -> None:
        super().__init__()
        self.nc, self.settings = nc, settings
        self.register_buffer("anchors", anchors.clone(), persistent=False)
        self.register_buffer("stride", stride.clone(), persistent=False)
        self.finest = float(stride[0])

    def assign(
        self, raws: Sequence[Tensor], target: Tensor, most: int | None = None, reach: float = 0.5, top: int = TOP
    ) -> Rows:
        """Which cells answer for which box; reach, top: see `plain_rows` and `ota_rows`."""
        s, grids = self.settings, grids_of(raws)
        rows = drop_idle(plain_rows(target, self.anchors, grids, s.anchor_t, reach))
        if not s.ota:
            return rows
        size = image_size(grids[0], self.finest, s.square_ota)
        group, groups = target[:, 0].long(), len(raws[0])
        seen = look(raws, rows)
        return drop_idle(ota_rows(rows, seen, target, group, groups, self.anchors, self.stride, size, most, top))

    def forward(self, det: object, target: Tensor, most: int | None = None) -> dict[str, Tensor]:
        raws = raw_levels(det, self.anchors, 5 + self.nc)
        return self.measure(raws, self.assign(raws, target, most), target)

    def measure(self, raws: Sequence[Tensor], rows: Rows, target: Tensor) -> dict[str, Tensor]:
        """The terms of an assignment."""
        s, grids = self.settings, grids_of(raws)
        rows, runs = by_cell(rows, raws)
        pred, cells = read(raws, rows, runs, objectness=[4])  # [R,5+nc], L x [1,B,A,H,W]

        share = rows.weight / level_sums(rows, rows.weight, len(raws)).clamp(min=1)[rows.level]
        prior = self.anchors[rows.level, rows.anchor]
        overlap = iou(decode_rows(pred, prior), box_targets(rows, target, grids), kind="ciou")
        box = (share * (1 - overlap)).sum()
        cls = box.new_zeros(())
        if self.nc > 1:
            want = one_hot(target[rows.target, 1].long(), self.nc, s.label_smoothing)
            cls = (bce(pred[:, 5:], want, s.cls_pw, s.fl_gamma).sum(1) * share).sum() / self.nc
        per_cell = cell_shares(cells)
        quality = (1 - s.gr) + s.gr * overlap.detach().clamp(min=0)
        change = bce(pred[:, 4], quality, s.obj_pw, s.fl_gamma) - as_empty(pred[:, 4], s.fl_gamma)
        at_rows = on_device([per_cell], change)[0][rows.level] * runs.decides
        obj = (change * at_rows).sum()
        for dense, each in zip(cells, per_cell, strict=True):
            obj = obj + as_empty(dense, s.fl_gamma).sum() * each
        return {"box": box * s.box, "obj": obj * s.obj, "cls": cls * s.cls}


def grids_of(raws: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(raw.shape[2], raw.shape[3]) for raw in raws]


def image_size(grid: tuple[int, int], stride: float, square: bool) -> tuple[int, int]:
    """(height, width) in pixels from the finest grid and its stride; square: the height twice."""
    height, width = round(grid[0] * stride), round(grid[1] * stride)
    return height, height if square else width


def cell_shares(cells: Sequence[Tensor]) -> list[float]:
    """What a cell's objectness counts, per level: balance / number of cells. cells: [K,B,A,H,W] per level."""
    balance = BALANCE.get(len(cells), (1.0,) * len(cells))
    return [weight / (dense.numel() / len(dense)) for weight, dense in zip(balance, cells, strict=True)]
