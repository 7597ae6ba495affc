"""Folding of constants, for evaluation and for frozen rows: fewer operations, the same outputs up to rounding.

Conv      BatchNorm in eval mode is y = s (x - mean) + bias, s = weight / sqrt(var + eps): it goes into the weight and
          bias of the convolution before it.
RepConv   The 1x1 branch is a 3x3 kernel with only its centre set, the identity branch one with a 1 at the own channel:
          the three become one 3x3 convolution `rbr_reparam` (RepVGG, arXiv:2101.03697, section 3.2).
IDetect   The implicit constants go into the 1x1 convolutions and stay behind as exact 0 and 1, so that state keys and
          parameter counts are the published ones.

BatchNorms that do not follow a single convolution (BottleneckCSP's joint one) and other heads are left as they are.
"""

from copy import deepcopy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.layers import Conv, ImplicitA, ImplicitM, RepConv
from models.head import IDetect, folded_rows

Module = TypeVar("Module", bound=nn.Module)


def fuse(model: Module) -> Module:
    """A copy of the model for evaluation: eval mode, no gradients, everything folded.

    The given model is left alone. Fusing a fused model changes nothing.
    """
    return folded(model).eval()


def folded(given: Module) -> Module:
    """A copy without gradients, everything folded, what is left in the modes it was in. Every norm must be in eval."""
    copy = deepcopy(given).requires_grad_(False)
    for module in list(copy.modules()):
        if isinstance(module, Conv):
            if isinstance(module.bn, nn.BatchNorm2d):
                module.conv, module.bn = with_norm(module.conv, module.bn), nn.Identity()
        elif isinstance(module, RepConv):
            join_branches(module)
        elif isinstance(module, IDetect):
            fold_implicit(module)
    return copy


def norm_factors(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale [C] and shift [C] of a BatchNorm in eval mode: y = scale * x + shift."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def like(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution with these numbers, in their memory order, and otherwise as `conv`; the kernel size is the
    weight's. Draws no random number."""
    k = weight.shape[2:]
    pad = (conv.padding[0], conv.padding[1]) if not isinstance(conv.padding, str) else (k[0] // 2, k[1] // 2)
    new = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (k[0], k[1]),
        (conv.stride[0], conv.stride[1]),
        pad,
        (conv.dilation[0], conv.dilation[1]),
        conv.groups,
        device="meta",
    )
    new.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    new.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return new


def with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that equals norm(conv(x)) in eval mode."""
    scale, shift = norm_factors(norm)
    bias = shift if conv.bias is None else shift + conv.bias * scale
    return like(conv, conv.weight * scale.view(-1, 1, 1, 1), bias)


def identity_kernel(conv: nn.Conv2d) -> Tensor:
    """[C,C/groups,3,3]: a 1 at the centre of each channel's own kernel."""
    kernel = torch.zeros_like(conv.weight)
    channel = torch.arange(conv.out_channels, device=kernel.device)
    kernel[channel, channel % kernel.shape[1], 1, 1] = 1
    return kernel


def join_branches(rep: RepConv) -> None:
    """In place: the branches of a RepConv become `rbr_reparam`."""
    if not isinstance(rep.rbr_dense, nn.Sequential) or not isinstance(rep.rbr_1x1, nn.Sequential):
        return  # already one convolution
    dense, dense_norm = rep.rbr_dense
    point, point_norm = rep.rbr_1x1
    assert isinstance(dense, nn.Conv2d) and isinstance(point, nn.Conv2d)
    parts = [(dense.weight, dense_norm), (F.pad(point.weight, (1, 1, 1, 1)), point_norm)]
    if rep.rbr_identity is not None:
        parts.append((identity_kernel(dense), rep.rbr_identity))
    weight, bias = torch.zeros_like(dense.weight), dense.weight.new_zeros(dense.out_channels)
    for kernel, norm in parts:
        assert isinstance(norm, nn.BatchNorm2d)
        scale, shift = norm_factors(norm)
        weight, bias = weight + kernel * scale.view(-1, 1, 1, 1), bias + shift
    rep.rbr_reparam = like(dense, weight, bias)
    rep.rbr_dense = rep.rbr_1x1 = rep.rbr_identity = None


def fold_implicit(head: IDetect) -> None:
    """In place: the implicit constants go into the convolutions of the head."""
    for level, (add, mul) in enumerate(zip(head.ia, head.im, strict=True)):
        conv = head.m[level]
        assert isinstance(conv, nn.Conv2d) and isinstance(add, ImplicitA) and isinstance(mul, ImplicitM)
        head.m[level] = like(conv, *folded_rows(head.state_dict(), level))
        add.implicit.zero_()
        mul.implicit.fill_(1)
