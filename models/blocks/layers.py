"""Building blocks of the YOLOv5 and YOLOv7 families: convolutions, CSP blocks, pooling pyramids.

Tensors are [B,C,H,W]. A block is built as `Block(c_in, *args)` where c_in is a channel count or, for blocks that join
several inputs, a list of them;
each states its `out_channels`. Two class attributes tell the YAML parser what it may do with a row's numbers:
  scales_width    the first argument is an output channel count that `width_multiple` scales
  takes_repeats   the row's repeat count goes into the block (as its second argument) instead of stacking copies of it
Attribute names (cv1, rbr_dense, ...) are those of published checkpoints, so that their tensors fit by name.
"""

import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BN_EPS, BN_MOMENTUM = 1e-3, 0.03


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with the constants of both families (PyTorch's own are 1e-5 and 0.1)."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def auto_pad(kernel: int | Sequence[int], padding: int | None) -> int | tuple[int, ...]:
    """Padding that keeps the size at stride 1, unless given. kernel: of both sides, or [rows, columns]."""
    if padding is not None:
        return padding
    return kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)


def activation(act: bool | nn.Module | None) -> nn.Module:
    """True -> SiLU, a module -> itself, False or None -> identity."""
    if isinstance(act, nn.Module):
        return act
    return nn.SiLU() if act else nn.Identity()


class Conv(nn.Module):
    """Convolution, BatchNorm, activation. [B,c1,H,W] -> [B,c2,H/s,W/s]"""

    scales_width = True

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int | Sequence[int] = 1,
        s: int | tuple[int, int] = 1,
        p: int | None = None,
        g: int = 1,
        act: bool | nn.Module | None = True,
    ) -> None:
        super().__init__()
        size = k if isinstance(k, int) else tuple(k)
        if not isinstance(size, int) and len(size) != 2:
            raise ValueError(f"a kernel is one number or [rows, columns], got {k}")
        self.conv = nn.Conv2d(c1, c2, size, s, auto_pad(k, p), groups=g, bias=False)  # type: ignore[arg-type]
        self.bn: nn.Module = batch_norm(c2)  # models.fuse replaces it by Identity
        self.act = activation(act)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class DWConv(Conv):
    """Depth-wise convolution: as many groups as both channel counts allow."""

    def __init__(
        self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, act: bool | nn.Module | None = True
    ) -> None:
        super().__init__(c1, c2, k, s, p, math.gcd(c1, c2), act)


class Concat(nn.Module):
    """Joins its inputs along a dimension (channels by default)."""

    def __init__(self, c1: Sequence[int], dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension
        self.out_channels = sum(c1)

    def forward(self, xs: list[Tensor]) -> Tensor:
        return torch.cat(xs, self.dimension)


class Shortcut(nn.Module):
    """Adds two inputs of equal shape."""

    def __init__(self, c1: Sequence[int], dimension: int = 0) -> None:
        super().__init__()
        self.out_channels = c1[0]

    def forward(self, xs: list[Tensor]) -> Tensor:
        return xs[0] + xs[1]


class Chuncat(nn.Module):
    """Halves each input and joins all first halves, then all second ones."""

    def __init__(self, c1: Sequence[int], dimension: int = 1) -> None:
        super().__init__()
        self.dimension, self.out_channels = dimension, sum(c1)

    def forward(self, xs: list[Tensor]) -> Tensor:
        halves = [x.chunk(2, self.dimension) for x in xs]
        return torch.cat([first for first, _ in halves] + [second for _, second in halves], self.dimension)


class Foldcut(nn.Module):
    """Adds the second half of the channels to the first."""

    def __init__(self, c1: int, dimension: int = 1) -> None:
        super().__init__()
        self.dimension, self.out_channels = dimension, c1 // 2

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, self.dimension)
        return first + second


class WeightedConcat(nn.Module):
    """Concat whose inputs have learned shares: w / (sum of w + 0.0001), w at least 0 (BiFPN's fast
    fusion, arXiv:1911.09070, section 3.3)."""

    def __init__(self, c1: Sequence[int], dimension: int = 1) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(len(c1)))
        self.dimension, self.out_channels = dimension, sum(c1)

    def forward(self, xs: list[Tensor]) -> Tensor:
        w = self.w.relu()
        return torch.cat([x * share for x, share in zip(xs, w / (w.sum() + 1e-4), strict=True)], self.dimension)


class Upsample(nn.Upsample):
    """nn.Upsample(size, scale_factor, mode), as rows `[None, 2, 'nearest']` spell it."""

    def __init__(
        self, c1: int, size: int | None = None, scale_factor: float | None = None, mode: str = "nearest"
    ) -> None:
        super().__init__(size, scale_factor, mode)
        self.out_channels = c1


class ConvTranspose2d(nn.ConvTranspose2d):
    """nn.ConvTranspose2d(channels, kernel, stride, padding, output padding)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p1: int = 0, p2: int = 0, g: int = 1) -> None:
        super().__init__(c1, c2, k, s, p1, p2, groups=g)


class DWConvTranspose2d(ConvTranspose2d):
    """Depth-wise transposed convolution: as many groups as both channel counts allow."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p1: int = 0, p2: int = 0) -> None:
        super().__init__(c1, c2, k, s, p1, p2, math.gcd(c1, c2))


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the constants of both families."""

    def __init__(self, c1: int) -> None:
        super().__init__(c1, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.out_channels = c1


def max_pool(x: Tensor, k: int, s: int, p: int = 0) -> Tensor:
    """F.max_pool2d(x, k, s, p). [B,C,H,W] -> [B,C,(H+2p-k)//s+1,(W+2p-k)//s+1]

    Where no gradient is asked for, a CPU takes the same maxima over rows, then over columns, 5 to 20 times faster than
    the operator, which also notes where they lie. Compilers and exporters get the operator.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    rows, columns = (n + 2 * p - k for n in x.shape[2:])  # from the first window to the last that may lie there
    if x.requires_grad or x.device.type != "cpu" or traced or min(rows, columns) < 0:
        return F.max_pool2d(x, k, s, p)
    if p:
        x = F.pad(x, (p, p, p, p), value=-math.inf)
    x = reduce(torch.maximum, (x[:, :, i : i + rows + 1 : s] for i in range(k)))
    return reduce(torch.maximum, (x[..., i : i + columns + 1 : s] for i in range(k)))


class MaxPool2d(nn.Module):
    """Max pooling (kernel, stride = kernel, padding 0)."""

    def __init__(self, c1: int, k: int, s: int | None = None, p: int = 0) -> None:
        super().__init__()
        self.k, self.s, self.p, self.out_channels = k, s or k, p, c1

    def forward(self, x: Tensor) -> Tensor:
        return max_pool(x, self.k, self.s, self.p)


class MP(MaxPool2d):
    """Max pooling with stride = kernel; halves the size by default."""

    def __init__(self, c1: int, k: int = 2) -> None:
        super().__init__(c1, k)


class ZeroPad2d(nn.ZeroPad2d):
    """nn.ZeroPad2d(padding)."""

    def __init__(self, c1: int, padding: list[int]) -> None:
        super().__init__(tuple(padding))  # type: ignore[arg-type]
        self.out_channels = c1


class SP(MaxPool2d):
    """Max pooling that keeps the size (stride 1, half padding)."""

    def __init__(self, c1: int, k: int = 3, s: int = 1) -> None:
        super().__init__(c1, k, s, k // 2)


class ReOrg(nn.Module):
    """Space to depth: [B,C,H,W] -> [B,4C,H/2,W/2], in the order (even,even) (odd,even) (even,odd) (odd,odd) of
    (row,column)."""

    def __init__(self, c1: int) -> None:
        super().__init__()
        self.out_channels = 4 * c1

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)


class Contract(nn.Module):
    """Space to depth by a factor: [B,C,H,W] -> [B,C*g*g,H/g,W/g]."""

    def __init__(self, c1: int, gain: int = 2) -> None:
        super().__init__()
        self.gain, self.out_channels = gain, c1 * gain**2

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        g = self.gain
        return x.view(b, c, h // g, g, w // g, g).permute(0, 3, 5, 1, 2, 4).reshape(b, c * g * g, h // g, w // g)


class Expand(nn.Module):
    """Depth to space by a factor, the reverse of Contract: [B,C,H,W] -> [B,C/(g*g),H*g,W*g]."""

    def __init__(self, c1: int, gain: int = 2) -> None:
        super().__init__()
        if c1 % gain**2:
            raise ValueError(f"its {c1} channels are no multiple of {gain**2}")
        self.gain, self.out_channels = gain, c1 // gain**2

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        g = self.gain
        return x.view(b, g, g, c // g**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // g**2, h * g, w * g)


class Focus(nn.Module):
    """Space to depth followed by a convolution (stem of YOLOv5 before 6.0)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1) -> None:
        super().__init__()
        self.reorg = ReOrg(c1)
        self.conv = Conv(4 * c1, c2, k, s, p, g)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.reorg(x))
        return y


class DownC(nn.Module):
    """Halving by two parallel paths, strided convolution and max pooling, each giving half the channels."""

    scales_width = True

    def __init__(self, c1: int, c2: int, n: int = 1, k: int = 2) -> None:
        super().__init__()
        self.cv1 = Conv(c1, c1, 1, 1)
        self.cv2 = Conv(c1, c2 // 2, 3, k)
        self.cv3 = Conv(c1, c2 // 2, 1, 1)
        self.mp = MP(c1, k)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.cv2(self.cv1(x)), self.cv3(self.mp(x))), 1)


class Stem(nn.Module):
    """Input stem of the ResNet-CSP models: quarter size through a strided convolution and two parallel halvings."""

    scales_width = True
    conv: type[nn.Module] = Conv

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1) -> None:
        super().__init__()
        half = c2 // 2
        self.cv1 = self.conv(c1, half, 3, 2)
        self.cv2 = self.conv(half, half, 1, 1)
        self.cv3 = self.conv(half, half, 3, 2)
        self.pool = MP(half)
        self.cv4 = self.conv(2 * half, c2, 1, 1)
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y: Tensor = self.cv4(torch.cat((self.cv3(self.cv2(x)), self.pool(x)), 1))
        return y


class RepConv(nn.Module):
    """Three parallel branches, 3x3, 1x1 and identity, each with its BatchNorm, summed (RepVGG, arXiv:2101.03697).

    models.fuse turns them into one 3x3 convolution `rbr_reparam`.
    """

    scales_width = True

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        act: bool | nn.Module | None = True,
    ) -> None:
        super().__init__()
        if k != 3:
            raise ValueError(f"RepConv needs a 3x3 kernel, got {k}")
        self.act = activation(act)
        pad = k // 2 if p is None else p
        self.rbr_identity: nn.Module | None = batch_norm(c1) if c1 == c2 and s == 1 else None
        self.rbr_dense: nn.Module | None = nn.Sequential(
            nn.Conv2d(c1, c2, k, s, pad, groups=g, bias=False), batch_norm(c2)
        )
        self.rbr_1x1: nn.Module | None = nn.Sequential(
            nn.Conv2d(c1, c2, 1, s, pad - k // 2, groups=g, bias=False), batch_norm(c2)
        )
        self.rbr_reparam: nn.Module | None = None  # stands for all three after models.fuse
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.rbr_dense, self.rbr_1x1, self.rbr_identity, self.rbr_reparam)
        y: Tensor = self.act(torch.stack([b(x) for b in branches if b is not None]).sum(0))
        return y


class ImplicitA(nn.Module):
    """Learned constant added to every position (YOLOR, arXiv:2105.04206). Starts near 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.zeros(1, channels, 1, 1))
        nn.init.normal_(self.implicit, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.implicit + x


class ImplicitM(nn.Module):
    """Learned constant multiplied into every position. Starts near 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.implicit = nn.Parameter(torch.ones(1, channels, 1, 1))
        nn.init.normal_(self.implicit, mean=1.0, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.implicit * x
