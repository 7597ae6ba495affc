"""Several ranks: what they exchange, and the batches that each takes."""

import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from tests.ranks import free_port, on_ranks, work
from utils.data.loader import Order
from utils.system import dist
from utils.system.errors import UserError
from utils.system.sync_bn import SyncBatchNorm2d, synchronise_norms


def exchange(rank: int) -> Any:
    first, second = nn.Linear(2, 3, bias=False), nn.Linear(3, 1)
    optimizer = torch.optim.SGD([{"params": [*second.parameters()]}, {"params": [*first.parameters()]}], lr=0.1)
    first.weight.grad = torch.full((3, 2), 1.0 + rank)
    second.bias.grad = torch.tensor([10.0 * rank])  # second.weight has none: frozen on every rank
    dist.sum_gradients(optimizer)
    norm = nn.BatchNorm1d(2)
    assert norm.running_mean is not None
    norm.running_mean += rank + 5
    dist.share_buffers(norm)
    return {
        "grads": [p.grad for p in (first.weight, second.bias)],
        "frozen": second.weight.grad is None,
        "mean": norm.running_mean,
        "terms": dist.mean_terms({"a": torch.tensor(1.0 + rank), "b": torch.tensor(4.0)}, [0.75, 0.25][rank]),
        "highest": dist.highest(rank * 3),
        "share": dist.share({"from": rank}),
        "gather": dist.gather([rank, "x" * rank]),
    }


def test_what_ranks_exchange(tmp_path: Path) -> None:
    for found in on_ranks(exchange, tmp_path):
        assert torch.equal(found["grads"][0], torch.full((3, 2), 3.0))
        assert torch.equal(found["grads"][1], torch.tensor([10.0]))
        assert found["frozen"]
        assert torch.equal(found["mean"], torch.tensor([5.0, 5.0]))
        assert {k: float(v) for k, v in found["terms"].items()} == {"a": 1.25, "b": 4.0}
        assert (found["highest"], found["share"], found["gather"]) == (3, {"from": 0}, [[0, ""], [1, "x"]])


def images() -> torch.Tensor:
    return torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 10


def norm_case(layer: nn.Module, x: torch.Tensor, places: slice) -> dict[str, Any]:
    """A forward and backward pass of some of the images, with a loss that weighs every value differently."""
    x = x.clone().requires_grad_()
    out = layer(x)
    weight = torch.linspace(0, 1, images().numel()).view_as(images())[places]
    (out.square() * weight).sum().backward()
    norm = next(m for m in layer.modules() if isinstance(m, nn.BatchNorm2d))
    grads = [norm.weight.grad, norm.bias.grad]
    return {"out": out.detach(), "x": x.grad, "grads": grads, "mean": norm.running_mean, "var": norm.running_var}


def made() -> nn.Sequential:
    layer = nn.Sequential(nn.BatchNorm2d(3, eps=1e-3, momentum=0.03))
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([1.0, 2.0, -1.0]))  # type: ignore[operator]
    return layer


def sync_case(rank: int) -> Any:
    places = [slice(0, 3), slice(3, 5)][rank]
    layer = made()
    synchronise_norms(layer)
    assert isinstance(layer[0], SyncBatchNorm2d)
    assert list(layer.state_dict()) == list(made().state_dict())
    return norm_case(layer, images()[places], places)


def test_norms_over_all_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Unequal shares, values far from 0: outputs, gradients and running statistics of nn.BatchNorm2d."""
    parts, whole = on_ranks(sync_case, tmp_path), norm_case(made(), images(), slice(0, 5))
    close = {"rtol": 1e-4, "atol": 1e-4}
    assert torch.allclose(torch.cat([p["out"] for p in parts]), whole["out"], **close)
    assert torch.allclose(torch.cat([p["x"] for p in parts]), whole["x"], **close)
    for i in range(2):
        assert torch.allclose(sum(p["grads"][i] for p in parts), whole["grads"][i], **close)
    for p, name in itertools.product(parts, ("mean", "var")):
        assert torch.allclose(p[name], whole[name], rtol=1e-5)


def lost_case(out: Path, rank: int) -> None:
    if rank == 0:
        try:
            dist.highest(0)
        except UserError as error:
            (out / "said").write_text(str(error))
    os._exit(0)


def test_a_lost_rank_is_an_error_that_says_so(tmp_path: Path) -> None:
    mp.spawn(work, (2, free_port(), tmp_path, partial(lost_case, tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    assert (tmp_path / "said").read_text().startswith("rank 0 lost another rank")


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["plain", "grouped", "weighted", "started"])
def test_any_number_of_ranks_sees_one_sequence(ranks: int, kind: str) -> None:
    """Every global batch is the one of a single process, in parts of equal length but for the last."""

    def order(rank: int, of: int) -> Order:
        made = Order(50, batch_size=24, shuffle=True, seed=3, grouped=kind == "grouped", rank=rank, ranks=of)
        made.weights = np.arange(50.0) if kind == "weighted" else None
        made.set_epoch(4, int(kind == "started"))
        return made

    alone = list(order(0, 1))
    parts = [list(order(r, ranks)) for r in range(ranks)]
    counts = [order(r, ranks).images() for r in range(ranks)]
    assert len(alone) == len(order(0, 1)) == (2 if kind == "started" else 3)
    for i, batch in enumerate(alone):
        images = [counts[r][i][0] for r in range(ranks)]
        joined = [s for r in range(ranks) for s in parts[r][i][: images[r]]]
        assert joined == batch
        assert sum(counts[r][i][1] for r in range(ranks)) == pytest.approx(1)
        if len(batch) == 24:
            assert set(images) == {24 // ranks}
        assert all(parts[r][i] for r in range(ranks))  # nobody without a batch: all take part in each exchange
    assert len(alone[-1]) == 2
    assert [counts[r][-1][0] for r in range(ranks)].count(0) == max(ranks - 2, 0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_evaluation_deals_whole_batches(ranks: int) -> None:
    alone = list(Order(10, batch_size=3, shuffle=False, seed=0))
    orders = [Order(10, batch_size=3, shuffle=False, seed=0, rank=r, ranks=ranks, whole=True) for r in range(ranks)]
    parts = [list(o) for o in orders]
    assert [parts[i % ranks][i // ranks] for i in range(4)] == alone
    assert [len(o) for o in orders] == [len(p) for p in parts]
    assert sum(count for o in orders for count, _ in o.images()) == 10
