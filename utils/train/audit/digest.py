"""A fingerprint of each of many tensors, computed where they lie: equal for equal bits, for comparing without copying.

digest = sum over positions i of (2i + 1) x_i (2 x_i + 1) in 64-bit integers that wrap, x_i the element's bits. As
x (2x + 1) is a bijection and 2i + 1 is odd, a change of one element always shows, other changes but for a chance of
about 2^-60; integers add up the same in any order.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes per element
CHUNK = 1 << 18  # elements taken together: few kernels, little memory


def digest(tensors: Sequence[Tensor]) -> Tensor:
    """int64 [T], one number per tensor, on the first one's device. Shape and type are not part of it."""
    if not tensors:
        return torch.zeros(0, dtype=torch.int64)
    found = torch.zeros(len(tensors), dtype=torch.int64, device=tensors[0].device)
    for places in chunks(tensors):
        found[places] = chunk_digest([tensors[i] for i in places]).to(found.device)
    return found


def chunks(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Numbers of tensors on one device, of about CHUNK elements together."""
    for device in dict.fromkeys(t.device for t in tensors):
        places: list[int] = []
        size = 0
        for i, t in enumerate(tensors):
            if t.device == device:
                if places and size + t.numel() > CHUNK:
                    yield places
                    places, size = [], 0
                places.append(i)
                size += t.numel()
        yield places


def chunk_digest(tensors: Sequence[Tensor]) -> Tensor:
    """int64 [T] of tensors on one device."""
    bits = torch.cat([bits_of(t) for t in tensors]).long()  # [n]
    mixed = (bits * 2).add_(1).mul_(bits)
    sizes = [t.numel() for t in tensors]
    ends = torch.tensor(list(accumulate(sizes)), device=bits.device)
    starts = ends - torch.tensor(sizes, device=bits.device)
    plain = spans(mixed, starts, ends)
    placed = spans(mixed.mul_(torch.arange(len(bits), device=bits.device)), starts, ends)
    return 2 * placed - (2 * starts - 1) * plain


def bits_of(tensor: Tensor) -> Tensor:
    """Integers [n] of the elements' bits."""
    flat = tensor.detach().reshape(-1)
    return flat.view(INTEGER[flat.element_size()])


def spans(values: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Sums of values[start:end], the spans side by side from 0 to the end."""
    if len(starts) == 1:
        return values.sum()[None]
    running = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return running[ends] - running[starts]
