"""Ghost blocks: half of the channels by a convolution, the other half from them by a cheap depth-wise one (GhostNet,
arXiv:1911.11907). All take and return [B,C,H,W]."""

import torch
from torch import Tensor, nn

from models.blocks.csp import C3, CSPA, CSPB, CSPC
from models.blocks.layers import Conv, DWConv, Stem


class GhostConv(nn.Module):
    """A convolution to half of the channels, and a depth-wise 5x5 one of its output to the rest."""

    scales_width = True

    def __init__(
        self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool | nn.Module | None = True
    ) -> None:
        super().__init__()
        half = c2 // 2
        self.cv1 = Conv(c1, half, k, s, None, g, act)
        self.cv2 = Conv(half, half, 5, 1, None, half, act)
        self.out_channels = 2 * half

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cv1(x)
        return torch.cat((y, self.cv2(y)), 1)


class GhostBottleneck(nn.Module):
    """GhostConv to half of the channels, a depth-wise convolution where stride is 2, GhostConv without activation; the
    shortcut is the input itself at stride 1, a depth-wise and a 1x1 convolution of it at stride 2."""

    scales_width = True

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        hidden, halves = c2 // 2, s == 2
        self.conv = nn.Sequential(
            GhostConv(c1, hidden, 1, 1),
            DWConv(hidden, hidden, k, s, act=False) if halves else nn.Identity(),
            GhostConv(hidden, c2, 1, 1, act=False),
        )
        self.shortcut = (
            nn.Sequential(DWConv(c1, c1, k, s, act=False), Conv(c1, c2, 1, 1, act=False)) if halves else nn.Identity()
        )
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.shortcut(x)
        return y


class Ghost(GhostBottleneck):
    """YOLOv7's name for the same block."""


def stack(c: int, n: int) -> nn.Module:
    return nn.Sequential(*(GhostBottleneck(c, c) for _ in range(n)))


class GhostCSPA(CSPA):
    """CSPA of ghost bottlenecks."""

    def deep(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return stack(c, n)


class GhostCSPB(CSPB):
    """CSPB of ghost bottlenecks."""

    def deep(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return stack(c, n)


class GhostCSPC(CSPC):
    """CSPC of ghost bottlenecks."""

    def deep(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return stack(c, n)


class C3Ghost(C3):
    """C3 of ghost bottlenecks."""

    def deep(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return stack(c, n)


class GhostStem(Stem):
    """Stem of ghost convolutions."""

    conv = GhostConv
