"""Attention: gates per channel, per position or both, and transformer blocks. All keep [B,C,H,W].

A gate's first argument is its channel count, as in the YAMLs of YOLOv5's and YOLOv7's forks; it has to be its input's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.csp import C3
from models.blocks.layers import Conv, batch_norm


def check_kept(c1: int, c2: int) -> None:
    """ValueError where the channel count that a row gives is not its input's."""
    if c1 != c2:
        raise ValueError(f"it keeps its {c1} channels, but its first argument makes {c2}")


class ChannelAttention(nn.Module):
    """Squeeze by average and by max pooling, a shared two-layer net, sigmoid gate per channel (CBAM,
    arXiv:1807.06521)."""

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        hidden = max(channels // ratio, 1)
        self.fc = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.fc(F.adaptive_avg_pool2d(x, 1)) + self.fc(F.adaptive_max_pool2d(x, 1))  # [B,C,1,1]
        y: Tensor = x * squeezed.sigmoid()
        return y


class SpatialAttention(nn.Module):
    """Mean and max over channels, a 7x7 convolution, sigmoid gate per position (CBAM, arXiv:1807.06521)."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)  # [B,2,H,W]
        gate: Tensor = self.conv(pooled).sigmoid()
        y: Tensor = x * gate
        return y


class CBAM(nn.Module):
    """Channel attention, then spatial attention. Its first argument is the channel count, which it keeps, as in the
    YAMLs of YOLOv5's and YOLOv7's forks."""

    scales_width = True

    def __init__(self, c1: int, c2: int, ratio: int = 16, kernel: int = 7) -> None:
        super().__init__()
        check_kept(c1, c2)
        self.channel_attention = ChannelAttention(c1, ratio)
        self.spatial_attention = SpatialAttention(kernel)
        self.out_channels = c1

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.spatial_attention(self.channel_attention(x))
        return y


class SE(nn.Module):
    """Squeeze and excitation: a gate per channel from the mean over positions (arXiv:1709.01507)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, ratio: int = 16) -> None:
        super().__init__()
        check_kept(c1, c2)
        hidden = max(c1 // ratio, 1)
        self.l1 = nn.Linear(c1, hidden, bias=False)
        self.l2 = nn.Linear(hidden, c1, bias=False)
        self.out_channels = c1

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.l2(self.l1(x.mean((2, 3))).relu()).sigmoid()  # [B,C]
        return x * gate[:, :, None, None]


class ECA(nn.Module):
    """A gate per channel from the means of its k neighbours in channel order (ECA-Net, arXiv:1910.03151)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, k: int = 3) -> None:
        super().__init__()
        check_kept(c1, c2)
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)
        self.out_channels = c1

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.conv(x.mean((2, 3))[:, None]).sigmoid()  # [B,1,C]
        return x * gate[:, 0, :, None, None]


class CoordAtt(nn.Module):
    """Coordinate attention: a gate per row and one per column of each channel (arXiv:2103.02907)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, reduction: int = 32) -> None:
        super().__init__()
        check_kept(c1, c2)
        hidden = max(8, c1 // reduction)
        self.conv1 = nn.Conv2d(c1, hidden, 1)
        self.bn1 = batch_norm(hidden)
        self.act = nn.Hardswish()
        self.conv_h = nn.Conv2d(hidden, c1, 1)
        self.conv_w = nn.Conv2d(hidden, c1, 1)
        self.out_channels = c1

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)  # [B,C,H,1], [B,C,W,1]
        y: Tensor = self.act(self.bn1(self.conv1(torch.cat((rows, columns), 2))))
        down, across = y.split([x.shape[2], x.shape[3]], 2)
        gate: Tensor = self.conv_h(down).sigmoid() * self.conv_w(across.transpose(2, 3)).sigmoid()
        return x * gate


class SimAM(nn.Module):
    """A gate per value, without parameters: how far it is from its channel's mean (SimAM, ICML 2021). Its first
    argument, a channel count, is taken for the forks' sake and changes nothing."""

    def __init__(self, c1: int, c2: int | None = None, e_lambda: float = 1e-4) -> None:
        super().__init__()
        self.e_lambda, self.out_channels = e_lambda, c1

    def forward(self, x: Tensor) -> Tensor:
        distance = (x - x.mean((2, 3), keepdim=True)) ** 2
        variance = distance.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        return x * (distance / (4 * (variance + self.e_lambda)) + 0.5).sigmoid()


class GAM_Attention(nn.Module):
    """Global attention: a gate per value from a net over channels, then one from two 7x7 convolutions
    (arXiv:2112.05561)."""

    scales_width = True

    def __init__(self, c1: int, c2: int, rate: int = 4) -> None:
        super().__init__()
        check_kept(c1, c2)
        hidden = c1 // rate
        self.channel_attention = nn.Sequential(nn.Linear(c1, hidden), nn.ReLU(), nn.Linear(hidden, c1))
        self.spatial_attention = nn.Sequential(
            nn.Conv2d(c1, hidden, 7, padding=3),
            batch_norm(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, c1, 7, padding=3),
            batch_norm(c1),
        )
        self.out_channels = c1

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.channel_attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).sigmoid()
        y: Tensor = x * self.spatial_attention(x).sigmoid()
        return y


class TransformerLayer(nn.Module):
    """Self-attention and a linear pair, each with a residual, without norms (after arXiv:2010.11929). [T,B,C]"""

    def __init__(self, c: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(c, c, bias=False)
        self.k = nn.Linear(c, c, bias=False)
        self.v = nn.Linear(c, c, bias=False)
        self.ma = nn.MultiheadAttention(c, heads)
        self.fc1 = nn.Linear(c, c, bias=False)
        self.fc2 = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)[0] + x
        y: Tensor = self.fc2(self.fc1(x)) + x
        return y


class TransformerBlock(nn.Module):
    """Positions as tokens, a learned linear embedding added, then transformer layers."""

    scales_width = True

    def __init__(self, c1: int, c2: int, heads: int, layers: int = 1) -> None:
        super().__init__()
        self.conv = Conv(c1, c2) if c1 != c2 else None
        self.linear = nn.Linear(c2, c2)
        self.tr = nn.Sequential(*(TransformerLayer(c2, heads) for _ in range(layers)))
        self.out_channels = c2

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.conv is None else self.conv(x)
        tokens = x.flatten(2).permute(2, 0, 1)  # [H*W,B,C]
        y: Tensor = self.tr(tokens + self.linear(tokens)).permute(1, 2, 0).view_as(x)
        return y


class C3TR(C3):
    """C3 around a transformer block with 4 heads; n is its number of layers."""

    def deep(self, c: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return TransformerBlock(c, c, 4, n)
