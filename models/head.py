"""Detection heads: output layout, decoding, and the protocol by which the rest asks for both and for the loss.

Raw output of one level: [B,A,H,W,5+C] logits (x, y, w, h, objectness, classes); levels are listed from fine to coarse.
Decoding (YOLOv5/YOLOv7): centre = (2 sigmoid(xy) - 0.5 + cell) * stride, size = (2 sigmoid(wh))^2 * anchor, in input
pixels.
A head owns its loss and its decoding, so nobody asks for its class.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from models.blocks.layers import ImplicitA, ImplicitM
from models.loss import LOSS_KINDS, Criterion, DetectionLoss, LossSettings, scale_gains

NMS_IOU = 0.65  # YOLOv7's


class Part(NamedTuple):
    """Decoded predictions of one head."""

    pred: Tensor  # [B,M,5+n] cx, cy, w, h in input pixels, objectness, class probabilities
    classes: Tensor  # [n] long, global class id of each class column
    objectness: bool = True  # False: there is none, and pred is [B,M,4+n]


class View(NamedTuple):
    """Raw output of one level, sorted by what it says; K heads share the nc classes. All logits. Without anchors A is 1
    and there is no objectness."""

    box: Tensor  # [B,A,H,W,K,4]; without anchors [B,1,H,W,K,4*16], distributions of distances
    obj: Tensor | None  # [B,A,H,W,K]
    cls: Tensor  # [B,A,H,W,nc] classes in global order


class Rows(NamedTuple):
    """Tensors of a head whose rows go anchor by anchor: `lead` of the box and objectness, one per class."""

    start: str  # of their keys, `m.`; with several heads the head's number is in it, `heads.2.`
    head: int
    classes: list[int] | None  # class of each class column; None: these tensors have no such rows and go with the head
    lead: int = 5


class Head(Protocol):
    """What the trainer and the evaluator ask of a head."""

    groups: list[list[int]]  # global class ids of each part
    group_names: list[str]
    stride: Tensor  # [L] input pixels per cell

    def attach(self, stride: Sequence[int]) -> None: ...
    def loss_kinds(self) -> tuple[str, ...]:
        """Kinds of its loss terms: `box`, `cls`, ... A term is a kind, or `kind/part`."""

    def gains(self, settings: LossSettings, img_size: int) -> LossSettings:
        """Gains of a hyp file as this head and size need them."""

    def nms_iou(self) -> float:
        """IoU of NMS with which detections of such heads are evaluated, unless another is asked for."""

    def criterion(self, settings: LossSettings) -> Criterion: ...
    def decode(self, det: list[Tensor]) -> list[Part]: ...
    def views(self, det: list[Tensor]) -> list[View]: ...
    def rows(self) -> list[Rows]: ...
    def renumber(self, numbers: Sequence[int]) -> None: ...
    def priors(self) -> Tensor | None:
        """Sizes w,h [L,A,2] in cells that boxes are told relative to (anchors), NaN where the model YAML gives only
        their number; None: this kind of head has none, and no `fit_to_boxes`."""

    def fit_to_boxes(self, priors: Tensor) -> None:
        """Other priors [L,A,2], in cells; asked only of heads that have some."""


def image_heads(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """{branch: names of its classes} of a detector's branches that classify whole images: out[branch] is logits [B,C].
    A branch says so by its `names`."""
    branches = model.get_submodule("branches").named_children()
    return {name: tuple(branch.names) for name, branch in branches if hasattr(branch, "names")}  # type: ignore[arg-type]


class AnchorHead(nn.Module):
    """Anchors, strides and decoding shared by all heads.

    `anchors` (buffer) is [L,A,2] in cells of its level. Errors: ValueError when the anchors do not fit the inputs.
    """

    anchors: Tensor
    anchor_grid: Tensor  # the same in pixels, where it is stored
    stride: Tensor
    stores_anchor_grid = False  # YOLOv7's checkpoints carry the anchors a second time, in pixels

    def __init__(self, c1: Sequence[int], nc: int, anchors: Sequence[Sequence[float]] | int) -> None:
        super().__init__()
        if not isinstance(c1, list):
            raise ValueError("a detector's `from` must be a list of rows")
        unknown = isinstance(anchors, int) and not isinstance(anchors, bool) and anchors > 0
        if isinstance(anchors, int) and unknown:  # so many per level, whose sizes are still to be found
            anchors = [[1.0] * 2 * anchors for _ in c1]
        if not isinstance(anchors, list) or not all(isinstance(a, list) for a in anchors):
            raise ValueError(f"anchors are {anchors!r}: give a list of w,h pairs per level, or their number")
        if len(anchors) != len(c1) or any(len(a) % 2 or not len(a) for a in anchors):
            raise ValueError(
                f"the detector joins {len(c1)} levels, but anchors are {anchors}: give w,h pairs per level"
            )
        if len({len(a) for a in anchors}) > 1:
            counts = ", ".join(str(len(a) // 2) for a in anchors)
            raise ValueError(f"the levels have {counts} anchors; every level needs as many")
        if bad := [
            v for a in anchors for v in a if isinstance(v, bool) or not (isinstance(v, (int, float)) and 0 < v < 1e6)
        ]:
            raise ValueError(f"anchors hold {bad[0]!r}: widths and heights are numbers of pixels above 0")
        self.nc, self.levels, self.anchors_per_cell = nc, len(c1), len(anchors[0]) // 2
        self.groups, self.group_names = [list(range(nc))], ["all"]
        pixels = torch.tensor(anchors, dtype=torch.float32).view(self.levels, -1, 2)
        pixels = pixels.fill_(math.nan) if unknown else pixels
        self.register_buffer("anchors", pixels)
        if self.stores_anchor_grid:
            self.register_buffer("anchor_grid", pixels.clone().view(self.levels, 1, -1, 1, 1, 2))
        self.register_buffer("stride", torch.ones(self.levels), persistent=False)
        self.out_channels = 0

    def attach(self, stride: Sequence[int]) -> None:
        """Called once by the graph when the strides are known (input pixels per cell of each level)."""
        step = torch.tensor(stride, dtype=torch.float32, device=self.anchors.device)
        pixels = self.anchors
        area = pixels.prod(-1).mean(-1)  # [L]
        if pixels.device.type != "meta" and (area[-1] - area[0]) * (step[-1] - step[0]) < 0:
            pixels = pixels.flip(0)  # a YAML that lists anchors coarse level first
        self.stride = step
        self.anchors = pixels / step.view(-1, 1, 1)
        if self.stores_anchor_grid:
            self.anchor_grid = pixels.clone().view(self.levels, 1, -1, 1, 1, 2)

    def loss_kinds(self) -> tuple[str, ...]:
        return LOSS_KINDS

    def gains(self, settings: LossSettings, img_size: int) -> LossSettings:
        return scale_gains(settings, self.levels, self.nc, img_size)

    def nms_iou(self) -> float:
        return NMS_IOU

    def renumber(self, numbers: Sequence[int]) -> None:
        """Decoded class c is called numbers[c] from now on; the layout of the raw output stays."""
        self.groups = [[numbers[c] for c in group] for group in self.groups]

    def priors(self) -> Tensor | None:
        return self.anchors

    @torch.no_grad()
    def fit_to_boxes(self, priors: Tensor) -> None:
        self.anchors.copy_(priors)
        if self.stores_anchor_grid:
            self.anchor_grid.copy_((priors * self.stride.view(-1, 1, 1)).view(self.anchor_grid.shape))

    def decode_level(self, raw: Tensor, level: int) -> Tensor:
        """[B,A,H,W,5+C] logits -> [B,A*H*W,5+C], boxes in input pixels, the rest as probabilities, in the type of
        `raw`; of bfloat16, whose 8 digits would round a corner at 640 px by 2 px, in float32."""
        raw = raw.float() if raw.dtype == torch.bfloat16 else raw
        b, a, h, w, no = raw.shape
        y = raw.sigmoid()
        x_cell = torch.arange(w, device=raw.device, dtype=raw.dtype).view(1, 1, 1, w)
        y_cell = torch.arange(h, device=raw.device, dtype=raw.dtype).view(1, 1, h, 1)
        step = self.stride[level].to(raw.dtype)
        size = (self.anchors[level].to(raw.dtype) * step).view(1, a, 1, 1, 2)
        cx = (y[..., 0] * 2 - 0.5 + x_cell) * step
        cy = (y[..., 1] * 2 - 0.5 + y_cell) * step
        wh = (y[..., 2:4] * 2) ** 2 * size
        return torch.cat((cx[..., None], cy[..., None], wh, y[..., 4:]), -1).view(b, a * h * w, no)


def prior_biases(bias: Tensor, per_anchor: int, stride: float, classes: int) -> None:
    """In place: objectness as if 8 objects lay in a 640 px image, classes as if 0.6 of them were shared out evenly.

    The focal-loss prior (arXiv:1708.02002, section 3.3). bias [A*per_anchor].
    """
    with torch.no_grad():
        view = bias.view(-1, per_anchor)
        view[:, 4] += math.log(8 / (640 / stride) ** 2)
        view[:, 5 : 5 + classes] += math.log(0.6 / (classes - 0.99))


class Detect(AnchorHead):
    """The plain head: one 1x1 convolution per level. List of [B,c,H,W] -> list of [B,A,H,W,5+nc]."""

    def __init__(self, c1: Sequence[int], nc: int, anchors: Sequence[Sequence[float]]) -> None:
        super().__init__(c1, nc, anchors)
        self.m = nn.ModuleList(nn.Conv2d(c, self.anchors_per_cell * (5 + nc), 1) for c in c1)

    def attach(self, stride: Sequence[int]) -> None:
        super().attach(stride)
        for conv, step in zip(self.m, stride, strict=True):
            if isinstance(conv, nn.Conv2d) and conv.bias is not None:
                prior_biases(conv.bias, 5 + self.nc, step, self.nc)

    def level(self, x: Tensor, i: int) -> Tensor:
        y: Tensor = self.m[i](x)
        return y

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        out = []
        for i, x in enumerate(xs):
            y = self.level(x, i)  # [B,A*(5+nc),H,W]
            out.append(y.unflatten(1, (self.anchors_per_cell, 5 + self.nc)).permute(0, 1, 3, 4, 2))
        return out

    def criterion(self, settings: LossSettings) -> Criterion:
        return DetectionLoss(self.nc, self.anchors, settings, self.stride)

    def decode(self, det: list[Tensor]) -> list[Part]:
        pred = torch.cat([self.decode_level(raw, i) for i, raw in enumerate(det)], 1)
        return [Part(pred, torch.tensor(self.groups[0], device=pred.device))]

    def views(self, det: list[Tensor]) -> list[View]:
        return [View(raw[..., None, :4], raw[..., 4:5], raw[..., 5:]) for raw in det]

    def rows(self) -> list[Rows]:
        return [Rows("m.", 0, list(range(self.nc)))]


class IDetect(Detect):
    """Detect with YOLOR's implicit knowledge: a learned constant added before and one multiplied after each
    convolution."""

    stores_anchor_grid = True

    def __init__(self, c1: Sequence[int], nc: int, anchors: Sequence[Sequence[float]]) -> None:
        super().__init__(c1, nc, anchors)
        self.ia = nn.ModuleList(ImplicitA(c) for c in c1)
        self.im = nn.ModuleList(ImplicitM(self.anchors_per_cell * (5 + nc)) for _ in c1)

    def level(self, x: Tensor, i: int) -> Tensor:
        y: Tensor = self.im[i](self.m[i](self.ia[i](x)))
        return y

    def rows(self) -> list[Rows]:
        return [*super().rows(), Rows("im.", 0, list(range(self.nc)))]


def folded_rows(detector: Mapping[str, Tensor], level: int) -> tuple[Tensor, Tensor]:
    """Weight [A*(5+nc),c,1,1] and bias of the one convolution that a level of a plain detector amounts to.

    detector: its state, m.L.weight and m.L.bias; of an IDetect also ia.L.implicit and im.L.implicit, which make it
    im * conv(x + ia).
    """
    weight, bias = detector[f"m.{level}.weight"], detector[f"m.{level}.bias"]
    if (add := detector.get(f"ia.{level}.implicit")) is not None:
        bias = bias + weight.flatten(1) @ add.flatten()
    if (mul := detector.get(f"im.{level}.implicit")) is not None:
        weight, bias = weight * mul.view(-1, 1, 1, 1), bias * mul.flatten()
    return weight, bias
