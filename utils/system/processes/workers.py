"""Between a loader's worker processes and this one: what a worker does with signals, whether there is room for the
batches under way, and what becomes of a worker that dies."""

import multiprocessing.queues
import os
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

import cv2
from torch import Tensor
from torch.utils.data import DataLoader

from utils.system.errors import UserError
from utils.system.processes.program import ASKING

T = TypeVar("T")
LOOK = 5  # seconds between two looks whether the workers live
PATIENCE = 600  # seconds for the next batch
AHEAD = 2  # batches under way for each worker
SHARED = "/dev/shm"
FAILED = 100  # exit code of a worker that could not hand over a batch; with the system's reason added
PIPES, SPARE = 8, 32  # file handles of a worker in this process, and for all else


class WorkerLost(UserError):
    """A worker has ended; its batches can be loaded in this process."""


def start_worker(_: int) -> None:
    """Workers are the parallelism; threads of OpenCV inside them would only compete. Signals to the process group or to
    every process of a job (Ctrl-C, a job's end) are the main process's: it finishes its step with the workers alive.
    A worker that cannot hand over a batch ends, so that nobody waits for it."""
    cv2.setNumThreads(0)
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]


def _give_up(error: BaseException, _: object) -> NoReturn:
    with suppress(OSError):
        os.write(2, f"\nloader worker: {error}\n".encode())
    number = getattr(error, "errno", None) or 0
    number = number or 28 * ("No space left" in str(error)) or 24 * ("open files" in str(error))  # torch's own errors
    os._exit(FAILED + number if number < FAILED else FAILED)


def why(code: int) -> str:
    """In words what ended a worker with this exit code, and what helps."""
    if code in (-signal.SIGBUS, FAILED + 28):
        return f"shared memory ({SHARED}) is full: {MORE_SHARED}"
    if code == FAILED + 24:
        return f"there are too few file handles: {MORE_HANDLES}"
    if code == -signal.SIGKILL:
        return "it was killed, by the system for lack of memory (fewer --workers need less) or by somebody"
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"its exit code is {code}"


MORE_SHARED = "give it more (docker run --shm-size=8g, mount -o remount,size=8g /dev/shm), or take fewer --workers"
MORE_HANDLES = "raise the limit (ulimit -n 4096), or take fewer --workers"


def fetched(loader: DataLoader[Any], begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    """What `begin()`, the loader's own iterator, gives. Errors: WorkerLost; UserError after PATIENCE without a batch.
    The loader's timeout must be LOOK where it has workers."""
    try:
        items = _begun(begin)
    except (RuntimeError, OSError, EOFError) as error:
        if _dead(loader) or not _timed_out(error):
            raise WorkerLost(_reason(loader, error)) from None
        drop(loader)  # the workers of the epoch before do not answer: others may
        items = _begun(begin)
    waited = 0
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except UserError:
            raise
        except (RuntimeError, OSError, EOFError) as error:
            if _dead(items) or not _timed_out(error):
                raise WorkerLost(_reason(items, error)) from None
            waited += LOOK
            if waited >= PATIENCE:
                raise UserError(f"no batch came in {PATIENCE} s: do the disk and the network still answer?") from None
            continue
        waited = 0
        yield item


def _timed_out(error: BaseException) -> bool:
    return str(error).startswith("DataLoader timed out")


def _begun(begin: Callable[[], Iterator[T]]) -> Iterator[T]:
    """torch raises in the middle of anything when a worker dies (SIGCHLD); here that is asked while waiting."""
    before = signal.getsignal(signal.SIGCHLD)
    items = begin()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return items


def _workers(items: object) -> Sequence[Any]:
    """Of an iterator, or of the one that a loader keeps."""
    found: Sequence[Any] = getattr(getattr(items, "_iterator", items), "_workers", ())
    return found


def _dead(items: object) -> list[int]:
    """Exit codes of the workers that have ended, though nobody told them to."""
    return [w.exitcode for w in _workers(items) if w.exitcode is not None]


def _reason(items: object, error: BaseException) -> str:
    """Errors: what is no death of a worker is raised as it is."""
    said, until = str(error), time.monotonic() + LOOK
    while not (codes := _dead(items)) and isinstance(error, (ConnectionError, EOFError)) and time.monotonic() < until:
        time.sleep(0.05)  # its end of the line is closed: it is about to end
    if codes:
        return f"a loader worker has died: {why(codes[0])}"
    if "open files" in said or "ancdata" in said:
        return f"there are too few file handles: {MORE_HANDLES}"
    if "DataLoader" in said:
        return said
    raise error


def drop(loader: DataLoader[Any]) -> None:
    """Its workers end now; the next iterator starts others."""
    for worker in _workers(loader):
        with suppress(OSError, ValueError):
            worker.kill()
    loader._iterator = None


def check_room(sample: Mapping[str, object], images: int, workers: int) -> None:
    """Whether the batches under way fit into shared memory and their tensors into the file handles. sample: a large
    one. images: of a batch of this process. Errors: UserError with the cure."""
    tensors = [value for value in sample.values() if isinstance(value, Tensor)]
    batches = AHEAD * workers + 1
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    batch = images * sum(t.nbytes for t in tensors) + 4096 * len(tensors)
    if os.path.isdir(SHARED) and (free := shutil.disk_usage(SHARED).free) < batches * batch * ranks:
        fits = max(int((free / ranks / batch - 1) / AHEAD), 0)
        raise UserError(
            f"--workers {workers}: {batches} batches of {batch / 1e6:.1f} MB under way{_each(ranks)} need "
            f"{batches * batch * ranks / 1e6:.1f} MB of shared memory, {SHARED} has {free / 1e6:.1f} MB free: "
            f"{MORE_SHARED} (--workers {fits} fits)"
        )
    need = len(os.listdir("/dev/fd")) + 2 * PIPES * workers + batches * len(tensors) + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < need <= hard or (soft < need and hard == resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    elif soft < need:
        raise UserError(
            f"--workers {workers} needs about {need} file handles, and this process may open {soft}: {MORE_HANDLES}"
        )


def _each(ranks: int) -> str:
    return f" on each of {ranks} ranks" if ranks > 1 else ""
