"""Blocks of the YOLOv8 and YOLO11 families: CSP blocks that keep the output of every inner block, and attention over
positions.

All take and return [B,C,H,W]; `n` is the repeat count of the YAML row.
"""

import torch
from torch import Tensor, nn

from models.blocks.csp import C3, Bottleneck
from models.blocks.layers import Conv


class Inner(Bottleneck):
    """Two 3x3 convolutions, with a residual when shapes allow it; e: share of the channels between them."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__(c1, c2, shortcut, g, e, (3, 3))


class C2f(nn.Module):
    """One entry convolution in two halves; inner blocks in a chain begin at the second, and the halves and every output
    of the chain are joined."""

    scales_width = True
    takes_repeats = True

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        self.hidden = int(c2 * e)
        self.cv1 = Conv(c1, 2 * self.hidden, 1, 1)
        self.cv2 = Conv((2 + n) * self.hidden, c2, 1, 1)
        self.m = nn.ModuleList(self.inner(shortcut, g) for _ in range(n))
        self.out_channels = c2

    def inner(self, shortcut: bool, g: int) -> nn.Module:
        return Inner(self.hidden, self.hidden, shortcut, g, e=1.0)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        y: Tensor = self.cv2(torch.cat(parts, 1))
        return y


class C3k(C3):
    """C3 of blocks with two 3x3 convolutions."""

    inner = Inner


class C3k2(C2f):
    """C2f whose inner blocks are narrow ones, or C3k of two."""

    def __init__(
        self,
        c1: int,
        c2: int,
        n: int = 1,
        c3k: bool = False,
        e: float = 0.5,
        attn: bool = False,
        g: int = 1,
        shortcut: bool = True,
    ) -> None:
        if attn:
            raise ValueError("C3k2 with attention (YOLO26) is not supported")
        self.c3k = c3k
        super().__init__(c1, c2, n, shortcut, g, e)

    def inner(self, shortcut: bool, g: int) -> nn.Module:
        c = self.hidden
        return C3k(c, c, 2, shortcut, g) if self.c3k else Inner(c, c, shortcut, g)


class Attention(nn.Module):
    """Attention of every position to every other (arXiv:1706.03762), with a depth-wise convolution of the values in
    place of a position's code. Keys have half as many channels as values."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads, self.of_value = heads, channels // heads
        self.of_key = self.of_value // 2
        self.qkv = Conv(channels, channels + 2 * self.of_key * heads, 1, act=False)
        self.proj = Conv(channels, channels, 1, act=False)
        self.pe = Conv(channels, channels, 3, 1, g=channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        parts = self.qkv(x).view(b, self.heads, -1, h * w).split((self.of_key, self.of_key, self.of_value), 2)
        q, k, v = parts  # [B,heads,c,H*W]
        share = (q.transpose(2, 3) @ k * self.of_key**-0.5).softmax(3)  # [B,heads,H*W,H*W]
        y: Tensor = self.proj((v @ share.transpose(2, 3)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w)))
        return y


class PSABlock(nn.Module):
    """Attention, then two 1x1 convolutions at each position, both with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = Attention(channels, max(channels // 64, 1))
        self.ffn = nn.Sequential(Conv(channels, 2 * channels, 1), Conv(2 * channels, channels, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        y: Tensor = x + self.ffn(x)
        return y


class C2PSA(nn.Module):
    """CSP block whose deep half is a chain of attention blocks."""

    scales_width = True
    takes_repeats = True

    def __init__(self, c1: int, c2: int, n: int = 1, e: float = 0.5) -> None:
        super().__init__()
        if c1 != c2:
            raise ValueError(f"it keeps its {c1} channels, but its first argument makes {c2}")
        hidden = int(c1 * e)
        self.cv1 = Conv(c1, 2 * hidden, 1, 1)
        self.cv2 = Conv(2 * hidden, c1, 1, 1)
        self.m = nn.Sequential(*(PSABlock(hidden) for _ in range(n)))
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        plain, deep = self.cv1(x).chunk(2, 1)
        y: Tensor = self.cv2(torch.cat((plain, self.m(deep)), 1))
        return y
