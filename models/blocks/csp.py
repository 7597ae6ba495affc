"""Bottlenecks and the cross-stage-partial blocks around them (CSPNet, arXiv:1911.11929) of the YOLOv5, YOLOR and
YOLOv7 families.

All take and return [B,C,H,W]. `n` is how many inner blocks are stacked; it is the repeat count of the YAML row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks.layers import Conv, RepConv, batch_norm


class Bottleneck(nn.Module):
    """Two convolutions, 1x1 and 3x3 unless k says otherwise, with a residual when shapes allow it."""

    scales_width = True
    spatial: type[nn.Module] = Conv  # its second convolution

    def __init__(
        self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5, k: Sequence[int] = (1, 3)
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, k[0], 1)
        self.cv2 = self.spatial(hidden, c2, k[1], 1, g=g)
        self.add = shortcut and c1 == c2
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class Res(nn.Module):
    """ResNet's 1x1, 3x3, 1x1 bottleneck, with a residual when shapes allow it."""

    scales_width = True
    spatial: type[nn.Module] = Conv  # its 3x3 convolution

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = self.spatial(hidden, hidden, 3, 1, g=g)
        self.cv3 = Conv(hidden, c2, 1, 1)
        self.add = shortcut and c1 == c2
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv3(self.cv2(self.cv1(x)))
        return x + y if self.add else y


class ResX(Res):
    """ResNeXt's bottleneck: 32 groups."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 32, e: float = 0.5) -> None:
        super().__init__(c1, c2, shortcut, g, e)


class RepBottleneck(Bottleneck):
    """Bottleneck whose 3x3 convolution is a RepConv."""

    spatial = RepConv


class RepRes(Res):
    """ResNet's bottleneck whose 3x3 convolution is a RepConv."""

    spatial = RepConv


class RepResX(ResX):
    """ResNeXt's bottleneck whose 3x3 convolution is a RepConv."""

    spatial = RepConv


class CrossConv(nn.Module):
    """A 1xk, then a kx1 convolution, with a residual where asked for and shapes allow it."""

    scales_width = True

    def __init__(
        self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, e: float = 1.0, shortcut: bool = False
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, (1, k), (1, s))
        self.cv2 = Conv(hidden, c2, (k, 1), (s, 1), g=g)
        self.add = shortcut and c1 == c2
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class BottleneckCSP(nn.Module):
    """CSP block with plain convolutions at the join, normalised and activated together."""

    scales_width = True
    takes_repeats = True

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = nn.Conv2d(c1, hidden, 1, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c2, 1, 1)
        self.bn = batch_norm(2 * hidden)
        self.act = nn.SiLU()
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        y: Tensor = self.cv4(self.act(self.bn(joined)))
        return y


class CSP(nn.Module):
    """What the three forms share: the stack of inner blocks of the deep path."""

    scales_width = True
    takes_repeats = True
    inner: type[nn.Module] = Bottleneck
    inner_e = 1.0

    def deep(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(self.inner(c, c, shortcut, g, e=self.inner_e) for _ in range(n)))


class CSPA(CSP):
    """Both paths start from the input; the deep one is a stack of inner blocks."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1, 1)
        self.m = self.deep(hidden, n, shortcut, g)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return y


class CSPB(CSP):
    """One entry convolution, then the deep path and a 1x1 path part from its output. No residuals by default."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1, 1)
        self.m = self.deep(hidden, n, shortcut, g)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y: Tensor = self.cv3(torch.cat((self.m(x), self.cv2(x)), 1))
        return y


class CSPC(CSP):
    """As CSPA with one more 1x1 convolution behind the deep path."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(hidden, hidden, 1, 1)
        self.cv4 = Conv(2 * hidden, c2, 1, 1)
        self.m = self.deep(hidden, n, shortcut, g)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv4(torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1))
        return y


class BottleneckCSPA(CSPA):
    """CSPA of plain bottlenecks."""


class C3(CSPA):
    """YOLOv5's name for the same block."""


class BottleneckCSPB(CSPB):
    """CSPB of plain bottlenecks."""


class BottleneckCSPC(CSPC):
    """CSPC of plain bottlenecks."""


class ResCSPA(CSPA):
    """CSPA of ResNet bottlenecks."""

    inner = Res
    inner_e = 0.5


class ResCSPB(CSPB):
    """CSPB of ResNet bottlenecks, with residuals."""

    inner = Res
    inner_e = 0.5

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)


class ResCSPC(CSPC):
    """CSPC of ResNet bottlenecks."""

    inner = Res
    inner_e = 0.5


class ResXCSPA(ResCSPA):
    """CSPA of ResNeXt bottlenecks: 32 groups."""

    inner_e = 1.0

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 32, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)


class ResXCSPB(ResCSPB):
    """CSPB of ResNeXt bottlenecks: 32 groups."""

    inner_e = 1.0

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 32, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)


class ResXCSPC(ResCSPC):
    """CSPC of ResNeXt bottlenecks: 32 groups."""

    inner_e = 1.0

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 32, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)


class RepBottleneckCSPA(CSPA):
    """CSPA of bottlenecks with RepConv."""

    inner = RepBottleneck


class RepBottleneckCSPB(CSPB):
    """CSPB of bottlenecks with RepConv, without residuals."""

    inner = RepBottleneck


class RepBottleneckCSPC(CSPC):
    """CSPC of bottlenecks with RepConv."""

    inner = RepBottleneck


class RepResCSPA(CSPA):
    """CSPA of ResNet bottlenecks with RepConv."""

    inner, inner_e = RepRes, 0.5


class RepResCSPB(CSPB):
    """CSPB of ResNet bottlenecks with RepConv, without residuals."""

    inner, inner_e = RepRes, 0.5


class RepResCSPC(CSPC):
    """CSPC of ResNet bottlenecks with RepConv."""

    inner, inner_e = RepRes, 0.5


class RepResXCSPA(RepResCSPA):
    """CSPA of ResNeXt bottlenecks with RepConv: 32 groups."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 32, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)


class RepResXCSPB(RepResCSPB):
    """CSPB of ResNeXt bottlenecks with RepConv: 32 groups, without residuals."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 32, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)


class RepResXCSPC(RepResCSPC):
    """CSPC of ResNeXt bottlenecks with RepConv: 32 groups."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 32, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)


class C3x(C3):
    """C3 of cross convolutions."""

    def deep(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(CrossConv(c, c, 3, 1, g, 1.0, shortcut) for _ in range(n)))
