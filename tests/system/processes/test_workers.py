"""Workers of a loader: signals, death, and room for their batches."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from utils.system.errors import UserError
from utils.system.processes import workers
from utils.system.processes.program import ASKING
from utils.system.processes.workers import LOOK, WorkerLost, check_room, fetched, start_worker

BATCH = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "path": "a"}  # of a sample


class Numbers(Dataset[Any]):
    """Item i is (i, process); some items do what `at` says."""

    def __init__(self, at: Any = None) -> None:
        self.at = at or {}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> Any:
        if i in self.at:
            self.at[i]()
        return torch.tensor([i, os.getpid()])


def loader(data: Numbers) -> DataLoader[Any]:
    return DataLoader(data, batch_size=None, num_workers=2, worker_init_fn=start_worker, timeout=LOOK)


def items(data: Numbers) -> Iterator[Any]:
    found = loader(data)
    return fetched(found, found.__iter__)


def test_a_worker_ignores_what_the_whole_job_is_told() -> None:
    seen = []
    for i, process in items(Numbers()):
        seen.append(int(i))
        for number in ASKING:
            os.kill(int(process), number)
    assert seen == list(range(8))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
def test_a_dead_worker_is_one_error(number: int) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    found = items(Numbers({5: lambda: os.kill(os.getpid(), number)}))
    with pytest.raises(WorkerLost, match=r"a loader worker has died: .*(for lack of memory|/dev/shm.* is full)"):
        list(found)
    assert signal.getsignal(signal.SIGCHLD) is before


@pytest.mark.parametrize(("number", "said"), [(28, "is full"), (24, "too few file handles: raise .*ulimit -n")])
def test_what_cannot_be_handed_over_is_an_error(number: int, said: str) -> None:
    """The queue of torch prints it and goes on; nobody would ever get that batch."""

    class Unsent:
        def __reduce__(self) -> Any:
            raise OSError(number, "no room")

    class Broken(Numbers):
        def __getitem__(self, i: int) -> Any:
            return Unsent() if i == 5 else torch.zeros(1)

    with pytest.raises(WorkerLost, match=said):
        list(items(Broken()))


def test_a_slow_batch_is_waited_for_and_one_that_never_comes_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LOOK", 1)
    found = DataLoader(Numbers({2: lambda: time.sleep(2.5)}), batch_size=None, num_workers=1, timeout=1)
    assert len(list(fetched(found, found.__iter__))) == 8
    monkeypatch.setattr(workers, "PATIENCE", 2)
    found = DataLoader(Numbers({2: lambda: time.sleep(6)}), batch_size=None, num_workers=1, timeout=1)
    with pytest.raises(UserError, match="no batch came in 2 s"):
        list(fetched(found, found.__iter__))


def test_shared_memory_is_looked_at_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 workers: 9 batches of 16 pictures of 12,288 bytes, and a page for each tensor: 1.8 MB."""
    real = shutil.disk_usage("/")
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: real._replace(free=1_000_000))
    with pytest.raises(UserError, match=r"9 batches of 0\.2 MB .* 1\.8 MB .*1\.0 MB free.*--workers 1 fits"):
        check_room(BATCH, 16, 4)
    check_room(BATCH, 16, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="on each of 2 ranks"):
        check_room(BATCH, 16, 1)


def test_file_handles_are_looked_at_and_raised_where_that_is_allowed() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (80, before[1]))
        check_room(BATCH, 1, 4)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
