"""Cross-stage-partial blocks (CSPNet, arXiv:1911.11929) and spatial pyramid pooling of the YOLOv5/YOLOR/YOLOv7
families.

All take and return [B,C,H,W]. `n` is how many inner blocks are stacked; it is the repeat count of the YAML row.
"""

import torch
from torch import Tensor, nn

from models.blocks.layers import Conv, batch_norm, max_pool


class Bottleneck(nn.Module):
    """1x1 then 3x3 convolution, with a residual when shapes allow it."""

    scales_width = True

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, c2, 3, 1, g=g)
        self.add = shortcut and c1 == c2
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


class ResBottleneck(nn.Module):
    """ResNet's 1x1, 3x3, 1x1 bottleneck, with a residual when shapes allow it."""

    scales_width = True

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, hidden, 3, 1, g=g)
        self.cv3 = Conv(hidden, c2, 1, 1)
        self.add = shortcut and c1 == c2
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv3(self.cv2(self.cv1(x)))
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


class CSPA(nn.Module):
    """Both paths start from the input; the deep one is a stack of inner blocks."""

    scales_width = True
    takes_repeats = True
    inner: type[nn.Module] = Bottleneck
    inner_e = 1.0

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1, 1)
        self.m = nn.Sequential(*(self.inner(hidden, hidden, shortcut, g, e=self.inner_e) for _ in range(n)))
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return y


class CSPB(nn.Module):
    """One entry convolution, then the deep path and a 1x1 path part from its output. No residuals by default."""

    scales_width = True
    takes_repeats = True
    inner: type[nn.Module] = Bottleneck
    inner_e = 1.0

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1, 1)
        self.m = nn.Sequential(*(self.inner(hidden, hidden, shortcut, g, e=self.inner_e) for _ in range(n)))
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y: Tensor = self.cv3(torch.cat((self.m(x), self.cv2(x)), 1))
        return y


class CSPC(nn.Module):
    """As CSPA with one more 1x1 convolution behind the deep path."""

    scales_width = True
    takes_repeats = True
    inner: type[nn.Module] = Bottleneck
    inner_e = 1.0

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(hidden, hidden, 1, 1)
        self.cv4 = Conv(2 * hidden, c2, 1, 1)
        self.m = nn.Sequential(*(self.inner(hidden, hidden, shortcut, g, e=self.inner_e) for _ in range(n)))
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

    inner = ResBottleneck
    inner_e = 0.5


class ResCSPB(CSPB):
    """CSPB of ResNet bottlenecks, with residuals."""

    inner = ResBottleneck
    inner_e = 0.5

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)


class ResCSPC(CSPC):
    """CSPC of ResNet bottlenecks."""

    inner = ResBottleneck
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


def cascaded_pools(x: Tensor, kernels: tuple[int, ...]) -> list[Tensor]:
    """Stride-1 max pools of growing odd kernels, each computed from the one before: a k2 pool = a (k2-k1+1) pool of the
    k1 pool.

    Exact (max of maxima over the same window; padding is -inf), and about twice as fast as pooling each from the input.
    """
    pooled, last = [], 1
    for k in kernels:
        step = k - last + 1
        x = max_pool(x, step, 1, step // 2)
        pooled.append(x)
        last = k
    return pooled


class SPP(nn.Module):
    """Spatial pyramid pooling with parallel kernels (arXiv:1406.4729)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, k: tuple[int, ...] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1, 1)
        self.kernels, self.out_channels = tuple(k), c2

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y: Tensor = self.cv2(torch.cat([x, *cascaded_pools(x, self.kernels)], 1))
        return y


class SPPF(nn.Module):
    """SPP by applying one kernel three times in a row. act False: no activation before the pools, as some releases of
    Ultralytics build it."""

    scales_width = True

    def __init__(self, c1: int, c2: int, k: int = 5, act: bool = True) -> None:
        super().__init__()
        if not isinstance(act, bool):
            raise ValueError(f"its third argument says whether the first convolution is activated, got {act!r}")
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1, act=act)
        self.cv2 = Conv(hidden * 4, c2, 1, 1)
        self.kernel, self.out_channels = k, c2

    def forward(self, x: Tensor) -> Tensor:
        pools = [self.cv1(x)]
        for _ in range(3):
            pools.append(max_pool(pools[-1], self.kernel, 1, self.kernel // 2))
        y: Tensor = self.cv2(torch.cat(pools, 1))
        return y


class SPPCSPC(nn.Module):
    """CSP block around spatial pyramid pooling (YOLOv7, arXiv:2207.02696)."""

    scales_width = True
    takes_repeats = True

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        shortcut: bool = False,
        g: int = 1,
        e: float = 0.5,
        k: tuple[int, ...] = (5, 9, 13),
    ) -> None:
        super().__init__()
        hidden = int(2 * c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(hidden, hidden, 3, 1)
        self.cv4 = Conv(hidden, hidden, 1, 1)
        self.cv5 = Conv((len(k) + 1) * hidden, hidden, 1, 1)
        self.cv6 = Conv(hidden, hidden, 3, 1)
        self.cv7 = Conv(2 * hidden, c2, 1, 1)
        self.kernels, self.out_channels = tuple(k), c2

    def forward(self, x: Tensor) -> Tensor:
        deep = self.cv4(self.cv3(self.cv1(x)))
        deep = self.cv6(self.cv5(torch.cat([deep, *cascaded_pools(deep, self.kernels)], 1)))
        y: Tensor = self.cv7(torch.cat((deep, self.cv2(x)), 1))
        return y
