"""One try: a piece of work in a child process with limits, and what became of it.

What users may meet is success or a UserError (exit code 2). Anything else is a fault: a traceback, a crash, more time
or more memory than the limits, a message that fills the screen.
"""

import io
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

from utils.system.errors import UserError

SECONDS = 60.0  # of waiting: machines may be busy
MEMORY = 4 << 30  # bytes more than before, of the child and its own children; an odd but honest model has that many
CEILING = 12 << 30  # of addresses: no try may take the machine down
LONGEST = 6000  # characters of a message


@dataclass(frozen=True)
class Verdict:
    """fault: empty where all is well. said: the UserError, if there was one."""

    fault: str
    said: str = ""
    seconds: float = 0.0


def attempt(
    work: Callable[[], object], folder: Path = Path(), seconds: float = SECONDS, memory: int = MEMORY
) -> Verdict:
    """work() in a copy of this process, within `folder`. Its output is dropped."""
    reading, writing = os.pipe()
    begun = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of copies of processes with threads
        child = os.fork()
    if not child:
        os.close(reading)
        os.chdir(folder)
        _answer(work, writing, memory)
    os.close(writing)
    text, until = b"", begun + seconds
    while select.select([reading], [], [], max(until - time.monotonic(), 0))[0]:
        if not (part := os.read(reading, 1 << 16)):
            break
        text += part
        if text.endswith(b"\n"):
            break
    late = time.monotonic() >= until and not text
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with suppress(ProcessLookupError):  # it had not become a group of its own yet
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    took = time.monotonic() - begun
    if late:
        return Verdict(f"not done within {seconds:g} s", seconds=took)
    if not text:
        return Verdict(f"it died without a word (wait status {status})", seconds=took)
    return Verdict(*json.loads(text), seconds=took)


def _answer(work: Callable[[], object], writing: int, memory: int) -> None:
    fault, said = "", ""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        sys.stdin = io.StringIO()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = _resident()
        resource.setrlimit(resource.RLIMIT_AS, (CEILING, CEILING))
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            fault, said = _done(work)
        more = max(_peak(resource.RUSAGE_SELF), _peak(resource.RUSAGE_CHILDREN)) - before
        if not fault and more > memory:
            fault = f"{more >> 20} MiB of memory"
        if not fault and "Traceback (most recent call last)" in (text := printed.getvalue()):
            fault = text[text.index("Traceback") :][:4000]
    except BaseException:
        fault = traceback.format_exc()
    os.write(writing, json.dumps([fault, said[:LONGEST]]).encode() + b"\n")
    os._exit(0)


def _done(work: Callable[[], object]) -> tuple[str, str]:
    """(what is wrong, what the UserError said)"""
    try:
        work()
    except UserError as error:
        said = str(error)
        try:
            said.encode()
        except UnicodeEncodeError as wrong:
            return f"a message that cannot be printed: {wrong}", ascii(said)
        return (f"a message of {len(said)} characters" if len(said) > LONGEST else ""), said
    except SystemExit as asked:
        return ("" if asked.code in (None, 0, 1, 2, 3) else f"exit code {asked.code}"), ""
    except BaseException as error:
        lines = traceback.format_exception(error, limit=-8)
        return "".join(line[:2000] for line in lines)[-6000:], ""
    return "", ""


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _peak(who: int) -> int:
    return resource.getrusage(who).ru_maxrss << 10
