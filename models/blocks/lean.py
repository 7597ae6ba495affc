"""Blocks of few operations: depth-wise, partial and mixed convolutions and what is built of them. All take and return
[B,C,H,W]."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.csp import C3
from models.blocks.layers import Conv, batch_norm


class MixConv2d(nn.Module):
    """Parallel convolutions of several kernel sizes, whose channels share c2 evenly (MixNet, arXiv:1907.09595)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (1, 3), s: int = 1) -> None:
        super().__init__()
        shares = even_shares(c2, len(k))
        self.m = nn.ModuleList(
            nn.Conv2d(c1, c, size, s, size // 2, groups=math.gcd(c1, c), bias=False)
            for c, size in zip(shares, k, strict=True)
        )
        self.bn = batch_norm(c2)
        self.act = nn.SiLU()
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(torch.cat([m(x) for m in self.m], 1)))
        return y


def even_shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers that differ by 1 at most; the first and the last ones are the smaller."""
    places = [int(i * (parts - 1e-6) / max(total - 1, 1)) for i in range(total)]
    return [places.count(part) for part in range(parts)]


class RobustConv(nn.Module):
    """Depth-wise k x k convolution, 1x1 convolution, and a learned scale per channel that starts near 0 (ConvNeXt's
    order, arXiv:2201.03545)."""

    scales_width = True

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 7,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        act: bool | nn.Module | None = True,
        scale: float = 1e-6,
    ) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((c2,), scale))
        self.conv_dw = Conv(c1, c1, k, s, p, c1, act)
        self.conv1x1 = nn.Conv2d(c1, c2, 1)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv1x1(self.conv_dw(x)) * self.gamma.view(1, -1, 1, 1)
        return y


class RobustConv2(nn.Module):
    """RobustConv computed at a size smaller by s, and brought back by a transposed convolution."""

    scales_width = True

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 7,
        s: int = 4,
        p: int | None = None,
        g: int = 1,
        act: bool | nn.Module | None = True,
        scale: float = 1e-6,
    ) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((c2,), scale))
        self.conv_strided = Conv(c1, c1, k, s, p, c1, act)
        self.conv_deconv = nn.ConvTranspose2d(c1, c2, s, s)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv_deconv(self.conv_strided(x)) * self.gamma.view(1, -1, 1, 1)
        return y


def shuffled(x: Tensor, groups: int = 2) -> Tensor:
    """Channels dealt out in turn to the groups they came from. [B,C,H,W]"""
    y: Tensor = x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)  # type: ignore[no-untyped-call]
    return y


class ShuffleV2Block(nn.Module):
    """ShuffleNetV2's unit: at stride 1 half of the channels pass by and half go through 1x1, depth-wise 3x3, 1x1; at
    stride 2 both branches read all; then the channels are shuffled (arXiv:1807.11164, figure 3)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, s: int = 1) -> None:
        super().__init__()
        if s not in (1, 2) or (s == 1 and c1 != c2):
            raise ValueError(f"its stride is 1 and keeps {c1} channels, or 2; got {s} and {c2} channels")
        half = c2 // 2
        self.branch1 = nn.Sequential() if s == 1 else nn.Sequential(*spatial(c1, s), *pointwise(c1, half))
        self.branch2 = nn.Sequential(
            *pointwise(half if s == 1 else c1, half), *spatial(half, s), *pointwise(half, half)
        )
        self.s, self.out_channels = s, c2

    def forward(self, x: Tensor) -> Tensor:
        passing, worked = x.chunk(2, 1) if self.s == 1 else (x, x)
        return shuffled(torch.cat((self.branch1(passing), self.branch2(worked)), 1))


class Shuffle_Block(ShuffleV2Block):
    """YOLOv5-Lite's name for the same block."""


def pointwise(c1: int, c2: int) -> list[nn.Module]:
    return [nn.Conv2d(c1, c2, 1, bias=False), batch_norm(c2), nn.ReLU()]


def spatial(c: int, s: int) -> list[nn.Module]:
    return [nn.Conv2d(c, c, 3, s, 1, groups=c, bias=False), batch_norm(c)]


class conv_bn_relu_maxpool(nn.Module):
    """ShuffleNet's stem: 3x3 convolution and 3x3 max pooling, each of stride 2 (arXiv:1807.11164, table 5)."""

    scales_width = True

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(c1, c2, 3, 2, 1, bias=False), batch_norm(c2), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.maxpool(self.conv(x))
        return y


class PConv(nn.Module):
    """Partial convolution: a 3x3 convolution of the first 1/n of the channels; the rest pass by (FasterNet,
    arXiv:2303.03667). Its first argument is its channel count, which it keeps."""

    scales_width = True

    def __init__(self, c1: int, c2: int, n: int = 4) -> None:
        super().__init__()
        if c1 != c2:
            raise ValueError(f"it keeps its {c1} channels, but its first argument makes {c2}")
        self.worked = c1 // n
        self.partial_conv3 = nn.Conv2d(self.worked, self.worked, 3, 1, 1, bias=False)
        self.out_channels = c1

    def forward(self, x: Tensor) -> Tensor:
        worked, passing = x.split([self.worked, x.shape[1] - self.worked], 1)
        return torch.cat((self.partial_conv3(worked), passing), 1)


class ConvNextBlock(nn.Module):
    """Depth-wise 7x7 convolution, LayerNorm, a linear pair of 4 times the width with GELU, a learned scale, a residual
    (ConvNeXt, arXiv:2201.03545)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, scale: float = 1e-6) -> None:
        super().__init__()
        if c1 != c2:
            raise ValueError(f"it keeps its {c1} channels, but its first argument makes {c2}")
        self.dwconv = nn.Conv2d(c1, c1, 7, padding=3, groups=c1)
        self.norm = nn.LayerNorm(c1, eps=1e-6)
        self.pwconv1 = nn.Linear(c1, 4 * c1)
        self.pwconv2 = nn.Linear(4 * c1, c1)
        self.gamma = nn.Parameter(torch.full((c1,), scale))
        self.out_channels = c1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # [B,H,W,C]
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class CNeB(C3):
    """C3 of ConvNeXt blocks."""

    def deep(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(ConvNextBlock(c, c) for _ in range(n)))
