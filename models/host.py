"""What the host may do while a device computes, without waiting for it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def may_look(tensor: Tensor) -> bool:
    """Whether the host may read this tensor's values without waiting and without leaving a compiled graph."""
    return not (tensor.is_cuda or torch.compiler.is_compiling())


def on_device(values: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """A small table [n,m] of numbers known to the host, in the type and on the device of `like`.

    By fills: torch.tensor would copy from the host, and on CUDA wait for it.
    """
    return torch.stack([torch.stack([like.new_full((), v) for v in row]) for row in values])
