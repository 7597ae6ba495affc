"""What the loss asks of a device: never to wait for it, no operation whose order of summation is the device's own, and
a number of calls that does not grow with the batch.

There need not be a GPU: operations are seen as they are dispatched, forward and backward, and once on tensors that
only claim to be on CUDA.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.anchored import ota
from models.loss import Criterion, DetectionLoss, LossSettings
from patches.multihead.loss import MultiHeadLoss, SummedHeadLoss
from tests.conformance.reference import head_table
from tests.models.test_loss import ANCHORS, STRIDE, as_on_cuda, boxes

GROUPS = ((3, 0), (1,), (5, 2, 4))
WIDTH = {"one": 11, "heads": 21, "sum": 21}
FORMS = [(form, ota_on) for form in WIDTH for ota_on in (False, True)]

# The host waits: it reads a value, needs one to know a shape, or copies from its own memory.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "item", "unique", "_unique2", "unique_dim", "bincount",
         "repeat_interleave", "is_nonzero", "equal", "lift_fresh", "lift_fresh_copy", "allclose"}  # fmt: skip
# Unordered on CUDA by the documentation of torch.use_deterministic_algorithms, whatever its mode makes of them.
UNORDERED = {"scatter_add", "index_add", "put", "histc", "bincount", "kthvalue", "median", "nanmedian", "cumsum_float",
             "index_put_accumulate", "embedding_dense_backward", "embedding_bag", "index_reduce", "scatter_reduce_sum",
             "scatter_reduce_mean", "scatter_reduce_prod", "index_copy", "grid_sampler_2d_backward",
             "nll_loss_forward", "segment_reduce_mean"}  # fmt: skip


class Calls(TorchDispatchMode):
    """Counts operations by name; what matters about their arguments is part of the name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.largest = 0  # elements of a result

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.rstrip("_")
        if name in ("index", "index_put", "_index_put_impl"):
            if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
                name = "masked_select"
            elif name != "index" and kwargs.get("accumulate", args[3] if len(args) > 3 else False):
                name = "index_put_accumulate"
        elif name in ("cumsum", "cumprod") and args[0].is_floating_point():
            name += "_float"
        elif name in ("scatter_reduce", "segment_reduce"):
            name += f"_{kwargs.get('reduce', args[4] if len(args) > 4 else args[1])}"
        self.names[name] += 1
        out = func(*args, **kwargs)
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))])
        return out


def loss_of(form: str, **settings: Any) -> Criterion:
    if form == "one":
        return DetectionLoss(6, ANCHORS, LossSettings(**settings), STRIDE)
    kind = MultiHeadLoss if form == "heads" else SummedHeadLoss
    return kind(head_table(GROUPS, (1.0, 2.0, 1.5), False), ANCHORS, LossSettings(**settings), STRIDE)


def levels(batch: int, width: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, 64 // s, 96 // s, width, generator=g).requires_grad_() for s in (8, 16, 32)]


def calls(form: str, ota_on: bool, batch: int, backward: bool = True) -> Counter[str]:
    det, target, loss = levels(batch, WIDTH[form]), boxes(7 * batch, batch, 6), loss_of(form, ota=ota_on)
    most = int(target[:, 0].long().bincount().max())
    with Calls() as seen:
        total = torch.stack(list(loss(det, target, most).values())).sum()
        if backward:
            total.backward()
    return seen.names


@pytest.mark.parametrize(("form", "ota_on"), FORMS)
def test_on_cuda_the_host_never_waits(form: str, ota_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda(monkeypatch)
    seen = calls(form, ota_on, 4)
    assert not seen.keys() & WAITS
    assert seen["index"] > 5, "the counting sees the loss"


@pytest.mark.parametrize("settings", [{}, {"cls_pw": 2.0, "obj_pw": 2.0, "fl_gamma": 1.5, "label_smoothing": 0.1}])
@pytest.mark.parametrize(("form", "ota_on"), FORMS)
def test_tensors_said_to_be_on_cuda_pass_through(form: str, ota_on: bool, settings: dict[str, Any]) -> None:
    """Any read of a value or shape that depends on one, and any tensor left on the CPU, is an error here."""
    loss = loss_of(form, ota=ota_on, **settings)
    with FakeTensorMode() as mode:
        for name, buffer in list(loss.named_buffers()):
            setattr(loss, name, mode.from_tensor(buffer).to("cuda"))
        det = [torch.randn(2, 3, 64 // s, 96 // s, WIDTH[form], device="cuda") for s in (8, 16, 32)]
        terms = loss(det, torch.rand(14, 6, device="cuda"), 9)
    assert all(v.device.type == "cuda" and v.ndim == 0 for v in terms.values())


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(("form", "ota_on"), FORMS)
def test_no_sum_in_an_order_of_the_devices_own(
    form: str, ota_on: bool, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if static:
        as_on_cuda(monkeypatch)
    seen = calls(form, ota_on, 2)
    unordered = UNORDERED if static else UNORDERED - {"bincount"}  # of integers, on the CPU, to know shapes
    assert not seen.keys() & unordered
    assert 1 <= seen["segment_reduce_sum"] <= 3, "backward is seen too: once per level that has rows"


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("form", "ota_on"), FORMS)
def test_runs_and_repeats_in_deterministic_mode(form: str, ota_on: bool) -> None:
    def grads() -> list[Tensor]:
        det, target = levels(2, WIDTH[form]), boxes(40, 2, 6)
        torch.stack(list(loss_of(form, ota=ota_on)(det, target).values())).sum().backward()
        return [level.grad for level in det if level.grad is not None]

    free = grads()
    with deterministic():
        again = grads()
    assert len(free) == 3 and all(torch.equal(a, b) for a, b in zip(free, again, strict=True))


@pytest.mark.parametrize(("form", "ota_on"), FORMS)
def test_the_number_of_calls_does_not_grow_with_the_batch(
    form: str, ota_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_cuda(monkeypatch)
    small, large = (sum(calls(form, ota_on, batch, backward=False).values()) for batch in (2, 64))
    assert small == large < 700


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="torch 2.11 loses a gradient in tracing: there the loss must stay outside of what is compiled",
)
@pytest.mark.parametrize(("form", "ota_on"), [("one", False), ("sum", True)])
def test_one_graph_under_compile(form: str, ota_on: bool) -> None:
    """Traced only: no break, the same values and gradients."""
    loss, target = loss_of(form, ota=ota_on), boxes(14, 2, 6)
    traced = torch.compile(loss, backend="eager", fullgraph=True)
    results = []
    for each in (loss, traced):
        det = levels(2, WIDTH[form])
        terms = torch.stack(list(each(det, target, 9).values()))
        terms.sum().backward()
        results.append([terms.detach(), *(level.grad for level in det if level.grad is not None)])
    assert len(results[0]) == 4
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_chunks_of_pairs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    det, target = levels(3, 11), boxes(60, 3, 6)
    for static in (False, True):
        with monkeypatch.context() as patched:
            if static:
                as_on_cuda(patched)
            found = []
            for pairs in (ota.PAIRS, 500):
                patched.setattr(ota, "PAIRS", pairs)
                loss = loss_of("one", ota=True)
                assert isinstance(loss, DetectionLoss)
                found.append(loss.assign(det, target))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
            assert found[0].weight.sum() > 20


@pytest.mark.parametrize("static", [False, True])
def test_a_crowd_takes_no_more_memory_than_its_candidates(static: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 boxes in one picture: 300 times as many pairs as candidates, a chunk of them at a time."""
    if static:
        as_on_cuda(monkeypatch)
    det, target, loss = levels(1, 11), boxes(300, 1, 6), loss_of("one", ota=True)
    largest = []
    for pairs in (1 << 24, 1 << 15):
        monkeypatch.setattr(ota, "PAIRS", pairs)
        with Calls() as seen:
            loss(det, target)
        largest.append(seen.largest)
    assert largest[1] <= max(4 << 15, 300 * 45 * 11) < largest[0]


def test_a_bound_on_the_boxes_of_a_picture_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_cuda(monkeypatch)
    det, target = levels(3, 11), boxes(60, 3, 6)
    most = int(target[:, 0].long().bincount().max())
    loss = loss_of("one", ota=True)
    assert isinstance(loss, DetectionLoss) and most < 40
    bounded, free = loss.assign(det, target, most), loss.assign(det, target)
    assert all(torch.equal(a, b) for a, b in zip(bounded, free, strict=True))


def index_put(x: Tensor) -> Tensor:
    return torch.zeros(3).index_put((torch.tensor([0, 0, 1]),), x, accumulate=True)


@pytest.mark.parametrize(
    ("call", "seen_as"),
    [
        (lambda x: float(x.detach()[0]), "_local_scalar_dense"),
        (lambda x: x[x > 0], "masked_select"),
        (lambda x: torch.tensor([1.0]) + x, "lift_fresh"),
        (lambda x: F.one_hot(x.long(), 4), "_local_scalar_dense"),
        (lambda x: x.cumsum(0), "cumsum_float"),
        (index_put, "index_put_accumulate"),
        (lambda x: x[torch.tensor([0, 0])].sum().backward(), "index_put_accumulate"),
        (lambda x: x.index_select(0, torch.tensor([0, 0])).sum().backward(), "index_add"),
        (lambda x: x.gather(0, torch.tensor([0, 0])).sum().backward(), "scatter_add"),
        (lambda x: x.scatter_reduce(0, torch.tensor([0, 0]), x, "sum"), "scatter_reduce_sum"),
    ],
)
def test_the_counting_sees_what_it_must(call: Callable[[Tensor], Any], seen_as: str) -> None:
    with Calls() as seen:
        call(torch.ones(3, requires_grad=True))
    assert seen_as in seen.names and seen_as in WAITS | UNORDERED
