"""Auxiliary heads (YOLOv7, arXiv:2207.02696, section 4.2): a second detector for each level that helps training alone.

The lead detector is an IDetect on the first half of the inputs; the auxiliary one reads the second half. Only while
training does the raw output hold both: [lead of each level, auxiliary of each level].
Loss: that of the lead head plus a quarter of that of the auxiliary head. Both are assigned by the lead head's
predictions; the auxiliary one among more cells, all four neighbours of a box's centre ("coarse to fine").
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.head import IDetect, Part, Rows, View, prior_biases
from models.loss import Criterion, DetectionLoss, LossSettings, raw_levels

AUXILIARY_SHARE = 0.25
REACH = 1.0  # cells from a box's centre within which a neighbour may answer for it, in the auxiliary head
TOP = 20  # of a box's best overlaps this many say how many predictions it takes, in both heads


class AuxiliaryLoss(DetectionLoss):
    """Loss of a lead head and its auxiliary head; of the lead head alone where the output holds no other.

    forward(raw [B,A,H,W,5+nc] of each level, lead then auxiliary, target [N,6]) -> {box, obj, cls}.
    """

    def forward(self, det: object, target: Tensor, most: int | None = None) -> dict[str, Tensor]:
        levels = len(self.anchors)
        second: object = None
        if isinstance(det, (list, tuple)) and len(det) == 2 * levels:
            det, second = det[:levels], det[levels:]
        lead = raw_levels(det, self.anchors, 5 + self.nc)
        terms = self.measure(lead, self.assign(lead, target, most, top=TOP), target)
        if second is None:
            return terms
        auxiliary = raw_levels(second, self.anchors, 5 + self.nc)
        extra = self.measure(auxiliary, self.assign(lead, target, most, REACH, TOP), target)
        return {name: term + AUXILIARY_SHARE * extra[name] for name, term in terms.items()}


class IAuxDetect(IDetect):
    """A lead IDetect on the first half of the inputs and, while training, plain convolutions `m2` on the second.

    List of 2L [B,c,H,W] -> list of [B,A,H,W,5+nc]: 2L while training, else the lead head's L.
    """

    def __init__(self, c1: Sequence[int], nc: int, anchors: Sequence[Sequence[float]]) -> None:
        if not isinstance(c1, list) or len(c1) % 2:
            raise ValueError("its `from` must list the lead head's rows, then as many of the auxiliary head")
        levels = len(c1) // 2
        super().__init__(c1[:levels], nc, anchors)
        ia, im = self.ia, self.im
        del self.ia, self.im  # to come behind m2, as in the original's files
        self.m2 = nn.ModuleList(nn.Conv2d(c, self.anchors_per_cell * (5 + nc), 1) for c in c1[levels:])
        self.ia, self.im = ia, im

    def attach(self, stride: Sequence[int]) -> None:
        lead, auxiliary = stride[: self.levels], stride[self.levels :]
        if list(lead) != list(auxiliary):
            raise ValueError(f"the lead head's strides are {list(lead)}, the auxiliary head's {list(auxiliary)}")
        super().attach(lead)
        for conv, step in zip(self.m2, lead, strict=True):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            prior_biases(conv.bias, 5 + self.nc, step, self.nc)

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        lead = super().forward(xs[: self.levels])
        if not self.training:
            return lead
        shape = (self.anchors_per_cell, 5 + self.nc)
        extra = [conv(x).unflatten(1, shape) for conv, x in zip(self.m2, xs[self.levels :], strict=True)]
        return lead + [y.permute(0, 1, 3, 4, 2) for y in extra]

    def criterion(self, settings: LossSettings) -> Criterion:
        return AuxiliaryLoss(self.nc, self.anchors, settings, self.stride)

    def decode(self, det: list[Tensor]) -> list[Part]:
        return super().decode(det[: self.levels])

    def views(self, det: list[Tensor]) -> list[View]:
        return super().views(det[: self.levels])

    def rows(self) -> list[Rows]:
        return [*super().rows(), Rows("m2.", 0, list(range(self.nc)))]
