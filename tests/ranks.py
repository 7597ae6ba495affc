"""A test's own function on several ranks: processes that have met as those of torchrun do."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from utils.system import dist


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def joined(rank: int, ranks: int, port: int) -> Iterator[None]:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.join(torch.device("cpu"))
    yield
    dist.leave()


def work(rank: int, ranks: int, port: int, out: Path, case: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    with joined(rank, ranks, port):
        torch.save(case(rank), out / f"{rank}.pt")
    os._exit(0)  # see utils.system.errors.run_main


def on_ranks(case: Callable[[int], Any], out: Path, ranks: int = 2) -> list[Any]:
    """case(rank) in as many processes; what each returned."""
    mp.spawn(work, (ranks, free_port(), out, case), nprocs=ranks)  # type: ignore[no-untyped-call]
    return [torch.load(out / f"{i}.pt", weights_only=True) for i in range(ranks)]
