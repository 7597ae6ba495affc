"""Reading a file of unknown origin in a child process, with limits on memory and time.

Whatever the file makes its reader do (never end, fill the memory, crash), the answer is tensors and a text, or one
UserError. The child starts as a copy of this process where the system can do that, which takes milliseconds.
"""

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from utils.system.errors import UserError, parsing

SECONDS, BYTES_PER_SECOND = 60, 5 << 20  # time for any file, and for the size of this one, on a slow disk
MEMORY, PER_BYTE = 1 << 30, 12  # bytes for any file, and for each of its bytes: read, widened, sent
Work = Callable[[Path], tuple[dict[str, Any], Mapping[str, Tensor]]]


def limited(work: Work, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """work(path) in a child process -> (what it says as plain JSON values, its tensors). UserError names the file."""
    size = path.stat().st_size
    seconds = SECONDS + size // BYTES_PER_SECOND
    kind = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(kind)
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(  # type: ignore[attr-defined]
        target=_answer, args=(theirs, work, path, seconds, MEMORY + PER_BYTE * size), daemon=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on copies of processes with threads
        child.start()
    theirs.close()
    until = time.monotonic() + seconds
    try:
        if not ours.poll(seconds):
            raise UserError(f"{path}: not read within {seconds} s; damaged, or made to keep its reader busy")
        text = ours.recv_bytes()
        if text[:1] == b"-":
            raise UserError(f"{path}: {text[1:].decode()}")
        if not ours.poll(max(until - time.monotonic(), 1)):
            raise UserError(f"{path}: not read within {seconds} s")
        return json.loads(text[1:]), safetensors.torch.load(ours.recv_bytes())
    except EOFError:
        raise UserError(f"{path}: damaged, or made to break its reader (it took too much memory or time)") from None
    finally:
        child.kill()
        child.join()
        ours.close()


def _answer(connection: Connection, work: Work, path: Path, seconds: int, memory: int) -> None:
    """In the child: one message "-" + what is wrong, or two: "+" + JSON, and the tensors."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    faulthandler.disable()  # how the child ends is said by the parent
    torch.set_num_threads(1)  # threads of a copied process do not live on
    _limit(seconds, memory)
    try:
        with parsing("damaged or not a checkpoint"):
            about, tensors = work(path)
            text = b"+" + json.dumps(about).encode()
            numbers = safetensors.torch.save({k: t.contiguous() for k, t in tensors.items()})
    except UserError as error:
        connection.send_bytes(b"-" + str(error).encode("utf-8", "replace"))
    else:
        connection.send_bytes(text)
        connection.send_bytes(numbers)


def _limit(seconds: int, memory: int) -> None:
    """Bound this process's memory (beyond what it has already) and computing time, as far as the system can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # ends it even where nobody waits for it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + memory,) * 2)
    except (ImportError, OSError, ValueError):
        return
