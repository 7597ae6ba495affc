"""Spatial pyramid pooling of the YOLOv5, YOLOR, YOLOv6 and YOLOv7 families. All take and return [B,C,H,W]."""

import torch
from torch import Tensor, nn

from models.blocks.csp import C3
from models.blocks.ghost import GhostConv
from models.blocks.layers import Conv, max_pool


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
    conv: type[nn.Module] = Conv

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
        self.cv1 = self.conv(c1, hidden, 1, 1)
        self.cv2 = self.conv(c1, hidden, 1, 1)
        self.cv3 = self.conv(hidden, hidden, 3, 1)
        self.cv4 = self.conv(hidden, hidden, 1, 1)
        self.cv5 = self.conv((len(k) + 1) * hidden, hidden, 1, 1)
        self.cv6 = self.conv(hidden, hidden, 3, 1)
        self.cv7 = self.conv(2 * hidden, c2, 1, 1)
        self.kernels, self.out_channels = tuple(k), c2

    def forward(self, x: Tensor) -> Tensor:
        deep = self.cv4(self.cv3(self.cv1(x)))
        deep = self.cv6(self.cv5(torch.cat([deep, *cascaded_pools(deep, self.kernels)], 1)))
        y: Tensor = self.cv7(torch.cat((deep, self.cv2(x)), 1))
        return y


class SPPFCSPC(SPPCSPC):
    """SPPCSPC by applying one kernel three times in a row."""

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5, k: int = 5
    ) -> None:
        super().__init__(c1, c2, n, shortcut, g, e, (k, 2 * k - 1, 3 * k - 2))


class GhostSPPCSPC(SPPCSPC):
    """SPPCSPC of ghost convolutions."""

    conv = GhostConv


class SimSPPF(SPPF):
    """SPPF whose convolutions have ReLU (YOLOv6, arXiv:2209.02976)."""

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__(c1, c2, k)
        self.cv1.act, self.cv2.act = nn.ReLU(), nn.ReLU()


class C3SPP(C3):
    """C3 around spatial pyramid pooling."""

    takes_repeats = False

    def __init__(
        self,
        c1: int,
        c2: int,
        k: tuple[int, ...] = (5, 9, 13),
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
    ) -> None:
        super().__init__(c1, c2, n, shortcut, g, e)
        self.m = SPP(int(c2 * e), int(c2 * e), k)
