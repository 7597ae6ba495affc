"""Several processes, one per device, as torchrun starts them; alone, every function here does nothing.

Each rank takes its share of every global batch. Gradients are summed over the ranks by one all-reduce of one buffer, in
the order of the optimizer's groups, before the optimizer steps; then every rank takes the same step on the same
numbers. Nothing depends on which parameters train (they may change from epoch to epoch) nor on when a run was resumed,
which the buckets of DistributedDataParallel do. The price: the transfer does not overlap with the backward pass.

Objects and votes travel over gloo on the CPU, so that they cost no wait for the device.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor, nn

from utils.system.errors import UserError

T = TypeVar("T")


def launched() -> int:
    """Number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def world() -> int:
    """Ranks that work together."""
    return td.get_world_size() if td.is_initialized() else 1


def rank() -> int:
    """Of this process; known before the ranks have met, too."""
    return td.get_rank() if td.is_initialized() else int(os.environ.get("RANK", "0")) if launched() > 1 else 0


def main() -> bool:
    """Whether this rank prints and writes."""
    return rank() == 0


def join(device: torch.device) -> None:
    """Meet the other ranks, where torchrun started several. Output of the others is silenced."""
    if launched() == 1 or td.is_initialized():
        return
    with together():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        td.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=60))
    if not main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def leave() -> None:
    """The end of the common work, for all at the same time."""
    if td.is_initialized():
        barrier()
        td.destroy_process_group()


@contextmanager
def together() -> Iterator[None]:
    """A collective call; where another rank is gone it becomes an error that says so."""
    try:
        yield
    except (RuntimeError, td.DistError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"rank {os.environ.get('RANK')} lost another rank, so this job ends (its own message tells why; {reason})"
        ) from None


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 passes alone, then the others: what it writes (data, caches) they find."""
    if world() > 1 and not main():
        barrier()
    yield
    if world() > 1 and main():
        barrier()


def barrier() -> None:
    """Wait until every rank is here."""
    highest(0)


def highest(vote: int) -> int:
    """The largest of all ranks' votes."""
    if world() == 1:
        return vote
    votes = torch.tensor([vote])
    with together():
        td.all_reduce(votes, td.ReduceOp.MAX)
    return int(votes)


def total(value: Tensor) -> Tensor:
    """Sum over all ranks, on the device of the value."""
    if world() == 1:
        return value
    with together():
        td.all_reduce(value)
    return value


def share(value: T) -> T:
    """Rank 0's value (anything that pickles) on every rank."""
    if world() == 1:
        return value
    box = [value]
    with together():
        td.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather(value: T) -> list[T]:
    """Every rank's value, by rank, on every rank."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    with together():
        td.all_gather_object(found, value)
    return found


def table(values: Sequence[int]) -> list[list[int]]:
    """Every rank's numbers, by rank, on every rank."""
    if world() == 1:
        return [list(values)]
    mine = torch.tensor(values)
    found = [torch.empty_like(mine) for _ in range(world())]
    with together():
        td.all_gather(found, mine)
    return [x.tolist() for x in found]


def join_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """[n,...] of every rank, `counts` of them, in the order of the ranks [sum of n,...]. Gradients reach a rank's own
    rows alone."""
    if world() == 1:
        return rows
    padded = rows.detach().new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    found = [torch.empty_like(padded) for _ in counts]
    with together():
        td.all_gather(found, padded)
    return torch.cat([rows if r == rank() else x[:n] for r, (x, n) in enumerate(zip(found, counts, strict=True))])


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Gradients of this step, summed over the ranks. In place."""
    if world() == 1:
        return
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([g.reshape(-1).float() for g in grads])
    with together():
        td.all_reduce(flat)
    unpack(flat, grads)


def share_buffers(module: nn.Module) -> None:
    """Running statistics of rank 0, so that all ranks hold one model. In place."""
    if world() == 1:
        return
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    flat = torch.cat([b.reshape(-1).float() for b in buffers])
    with together():
        td.broadcast(flat, 0)
    unpack(flat, buffers)


def unpack(flat: Tensor, into: list[Tensor]) -> None:
    """[sum of sizes] -> the tensors, in their order."""
    with torch.no_grad():
        for piece, tensor in zip(flat.split([t.numel() for t in into]), into, strict=True):
            tensor.copy_(piece.view(tensor.shape))


def mean_terms(terms: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Scalars averaged over the ranks, each weighted by its share of the global batch's images."""
    if world() == 1:
        return terms
    values = torch.stack(list(terms.values())).detach() * share
    with together():
        td.all_reduce(values)
    return dict(zip(terms, values.unbind(), strict=True))
