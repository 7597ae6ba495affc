"""Pooling without a gradient is the operator's, to the bit; with one, or in a trace, it is the operator."""

import pytest
import torch
import torch.nn.functional as F

from models.blocks.layers import SP, MaxPool2d, max_pool

KINDS = [(2, 2, 0), (3, 2, 1), (5, 1, 2), (13, 1, 6), (3, 3, 0), (2, 1, 0), (1, 1, 0), (3, 4, 1)]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("k", "s", "p"), KINDS)
def test_the_same_maxima(k: int, s: int, p: int, form: torch.memory_format) -> None:
    g = torch.Generator().manual_seed(0)
    for size in ((16, 16), (13, 20), (k, k + 1), (27, 13)):
        x = torch.randn(2, 5, *size, generator=g).contiguous(memory_format=form)
        x[0, 0, 0, 0], x[1, 2, -1, -1] = -torch.inf, torch.inf
        wanted = F.max_pool2d(x, k, s, p)
        assert torch.equal(max_pool(x, k, s, p), wanted)
        assert torch.equal(max_pool(x.clone().requires_grad_(), k, s, p), wanted)
        assert torch.equal(MaxPool2d(5, k, s, p)(x), wanted)


def test_not_a_number_spreads_as_it_does_in_the_operator() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 4] = torch.nan
    assert torch.equal(max_pool(x, 5, 1, 2).isnan(), F.max_pool2d(x, 5, 1, 2).isnan())


def test_too_small_an_image_is_refused() -> None:
    for x in (torch.zeros(1, 1, 2, 9), torch.zeros(1, 1, 2, 9, requires_grad=True)):
        with pytest.raises(RuntimeError, match="too small"):
            max_pool(x, 3, 2)


def test_ties_give_their_gradient_to_the_operators_choice() -> None:
    """The maxima are equal either way; where several equal them, only the operator says which one learns."""
    x = torch.zeros(1, 1, 6, 6, requires_grad=True)
    max_pool(x, 2, 2).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.count_nonzero(), torch.tensor(9)), "one of the four of each window"


def test_a_trace_holds_the_operator() -> None:
    trace = torch.jit.trace(SP(3, 5), torch.rand(1, 3, 8, 8))  # type: ignore[no-untyped-call]
    assert "max_pool2d" in str(trace.graph) and "maximum" not in str(trace.graph)
