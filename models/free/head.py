"""The head without anchors of YOLOv8 and YOLO11: a branch for boxes and one for classes at each level.

Raw output of one level: [B,4*16+nc,H,W] logits: left, top, right, bottom, each a distribution over distances of 0..15
cells from the cell's centre; then the classes. Levels are listed from fine to coarse. There is no objectness: the score
of a box is the probability of its class.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks.layers import Conv, DWConv
from models.free.loss import BINS, KINDS, FreeLoss, boxes_of, centres, expected, flat
from models.head import Part, Rows, View
from models.loss import Criterion, LossSettings

NMS_IOU = 0.7  # with which the published figures were made


class Distances(nn.Module):
    """The numbers of the bins, as published files hold them: a convolution that never learns."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.arange(BINS, dtype=torch.float32).view(1, BINS, 1, 1))


class FreeHead(nn.Module):
    """What heads without anchors answer alike, with one head and with several."""

    stride: Tensor

    def __init__(self, nc: int, levels: int, groups: list[list[int]], names: list[str]) -> None:
        super().__init__()
        self.nc, self.out_channels, self.groups, self.group_names = nc, 0, groups, names
        self.register_buffer("stride", torch.ones(levels), persistent=False)
        self.steps = [1] * levels  # the same for the host

    def attach(self, stride: Sequence[int]) -> None:
        """Called once by the graph when the strides are known."""
        self.steps = list(stride)
        self.stride = torch.tensor(stride, dtype=torch.float32, device=self.stride.device)

    def loss_kinds(self) -> tuple[str, ...]:
        return KINDS

    def gains(self, settings: LossSettings, img_size: int) -> LossSettings:
        return settings

    def nms_iou(self) -> float:
        return NMS_IOU

    def renumber(self, numbers: Sequence[int]) -> None:
        self.groups = [[numbers[c] for c in group] for group in self.groups]

    def priors(self) -> None:
        return None

    def fit_to_boxes(self, priors: Tensor) -> None:
        raise TypeError("a head without anchors has none to fit")


class FreeDetect(FreeHead):
    """List of [B,c,H,W] -> list of [B,4*16+nc,H,W]. Errors: ValueError where the inputs are no list.

    plain: both convolutions of the class branch are 3x3 (YOLOv8); else each is a depth-wise 3x3 and a 1x1 (YOLO11).
    columns: class outputs where this is one of several heads; its width and biases are those of all nc classes.
    """

    def __init__(self, c1: Sequence[int], nc: int, plain: bool, columns: int | None = None) -> None:
        if not isinstance(c1, list):
            raise ValueError("a detector's `from` must be a list of rows")
        columns = nc if columns is None else columns
        super().__init__(nc, len(c1), [list(range(columns))], ["all"])
        of_box, of_class = max(16, c1[0] // 4, 4 * BINS), max(c1[0], min(nc, 100))

        def two(c: int, hidden: int) -> list[nn.Module]:
            if plain:
                return [Conv(c, hidden, 3), Conv(hidden, hidden, 3)]
            return [nn.Sequential(DWConv(a, a, 3), Conv(a, hidden, 1)) for a in (c, hidden)]

        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(c, of_box, 3), Conv(of_box, of_box, 3), nn.Conv2d(of_box, 4 * BINS, 1)) for c in c1
        )
        self.cv3 = nn.ModuleList(nn.Sequential(*two(c, of_class), nn.Conv2d(of_class, columns, 1)) for c in c1)
        self.dfl = nn.ModuleDict({"conv": Distances()})

    def attach(self, stride: Sequence[int]) -> None:
        """Biases start as if 5 objects lay in a 640 px image, and boxes with all distances equally likely."""
        super().attach(stride)
        for box, cls, step in zip(self.cv2, self.cv3, stride, strict=True):
            nn.init.constant_(last(box).bias, 1.0)  # type: ignore[arg-type]
            nn.init.constant_(last(cls).bias, math.log(5 / self.nc / (640 / step) ** 2))  # type: ignore[arg-type]

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [torch.cat((box(x), cls(x)), 1) for x, box, cls in zip(xs, self.cv2, self.cv3, strict=True)]

    def criterion(self, settings: LossSettings) -> Criterion:
        return FreeLoss(self.nc, settings, self.steps)

    def decode(self, det: list[Tensor]) -> list[Part]:
        raw, (centre, step) = flat(det), centres(det, self.steps)
        distance = expected(raw[:, : 4 * BINS].unflatten(1, (4, BINS)), 2).transpose(1, 2)  # [B,M,4]
        low, high = boxes_of(distance, centre, step).split(2, 2)
        pred = torch.cat(((low + high) / 2, high - low, raw[:, 4 * BINS :].transpose(1, 2).sigmoid()), 2)
        return [Part(pred, torch.tensor(self.groups[0], device=pred.device), objectness=False)]

    def views(self, det: list[Tensor]) -> list[View]:
        parts = [raw[:, None].permute(0, 1, 3, 4, 2).split([4 * BINS, raw.shape[1] - 4 * BINS], -1) for raw in det]
        return [View(box[..., None, :], None, cls) for box, cls in parts]

    def rows(self) -> list[Rows]:
        return [Rows(f"cv3.{i}.2.", 0, list(range(self.nc)), lead=0) for i in range(len(self.cv3))]


def last(branch: nn.Module) -> nn.Conv2d:
    conv = list(branch.children())[-1]
    assert isinstance(conv, nn.Conv2d)
    return conv
