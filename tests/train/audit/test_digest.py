"""Digests of tensors: any bit counts, and so does the order; the memory layout does not."""

import itertools

import torch

from utils.train.audit.digest import digest


def test_digest_sees_any_bit_and_any_order() -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=draw).to(d) for n in (1, 3, 300_000, 7) for d in (torch.float, torch.half)]
    tensors += [torch.arange(9).view(3, 3), torch.tensor(5), torch.zeros(0), torch.tensor([True, False])]
    before = digest(tensors).tolist()
    assert before == [int(digest([t])) for t in tensors] and len(set(before)) == len(tensors)
    assert int(digest([torch.randn(2, 3, 4, 4, generator=draw)])) != before[0]
    square = torch.randn(2, 3, 4, 4, generator=draw)
    assert int(digest([square])) == int(digest([square.to(memory_format=torch.channels_last)]))
    for bit, place in itertools.product(range(32), (0, 1, 299_999)):
        changed = tensors[4].clone()
        changed.view(torch.int32)[place] ^= 1 << bit if bit < 31 else -(1 << 31)
        assert int(digest([changed])) != before[4]
    assert all(int(digest([t])) != before[4] for t in (tensors[4].flip(0), -tensors[4], tensors[4].roll(1)))
