"""How a program ends: by its own doing, by bad input, by a signal, or because nobody reads what it prints.

| exit code | meaning |
|---|---|
| 0 | done; of train.py also: stopped as asked, and saved |
| 1 | done, with an outcome that was to be told (a replay that differs, a study with failed runs) |
| 2 | bad input, or trouble from outside (disk, memory, a worker): one message that begins with `error:` |
| 128 + N | ended by signal N; 141: by `| head` |

Signals: SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal), SIGUSR1 (a scheduler's warning). The first one ends the
program where it is, with one line, or asks the run that trains (utils/system/processes/signals.py). A second one ends
the process at once, wherever it is. Nothing here imports torch.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from utils.system.errors import OutputLost, UserError, quiet_pipe

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ONE_REQUEST = 1.0  # seconds within which signals are one: schedulers and torchrun send several, or pass them on
ONE_KEY = 0.25  # the same for Ctrl-C, Ctrl-C


class Ended(KeyboardInterrupt):
    """Asked to end, where there is nothing to finish first."""

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(signal.Signals(number).name + (f": {said}" if said else ""))
        self.number = number


_handlers: list[object] = []  # which leave the second signal to `ending`
_listeners: list[Callable[[str], None]] = []


@contextmanager
def hearing(listener: Callable[[str], None]) -> Iterator[None]:
    """Trouble from which something can still be saved goes to `listener`, in words."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def ask(trouble: str) -> bool:
    """Tell whoever hears of trouble; False where nobody does, so that it has to be raised."""
    for listener in _listeners[-1:]:
        listener(trouble)
    return bool(_listeners)


class Output:
    """stdout or stderr that outlives its reader. Once it cannot be written, what follows goes nowhere. The loss of
    stdout is told: to whoever hears of trouble, else by OutputLost."""

    def __init__(self, stream: TextIO, told: bool) -> None:
        self.stream, self.told = stream, told

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self.lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self.lost(error)

    def lost(self, error: OSError) -> None:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # the flush at the end finds an open file
        said = f"the output cannot be written any more ({error.strerror})"
        if self.told and not ask(said):
            raise OutputLost(said, pipe=isinstance(error, BrokenPipeError))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting() -> Iterator[None]:
    """stdout and stderr as `Output`."""
    before = sys.stdout, sys.stderr
    nowhere = open(os.devnull, "w")  # noqa: SIM115  for one that was closed from the start
    out, err = (stream or nowhere for stream in before)
    sys.stdout, sys.stderr = cast(TextIO, Output(out, told=True)), cast(TextIO, Output(err, told=False))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def handling(first: Callable[[int], None]) -> Iterator[None]:
    """`first(number)` for every signal that asks, in this process alone. A SIGHUP that is ignored (nohup) stays so."""
    owner = os.getpid()

    def handler(number: int, _: FrameType | None) -> None:
        if os.getpid() == owner:  # and no process that has just been copied from it
            first(number)

    _handlers.append(handler)
    taken = [s for s in ASKING if not (s == signal.SIGHUP and signal.getsignal(s) == signal.SIG_IGN)]
    before = {s: signal.signal(s, handler) for s in taken}
    try:
        yield
    finally:
        for s, old in before.items():
            signal.signal(s, old)
        _handlers.remove(handler)


@contextmanager
def ending() -> Iterator[None]:
    """The first signal ends the program by `Ended`, unless somebody else handles it. A second one ends the process,
    even where its main thread waits for something that never comes: a thread of its own looks for it. Who takes the
    signals without `handling` takes the second one, too."""

    def end(number: int) -> NoReturn:
        raise Ended(number)

    read, write = os.pipe()
    os.set_blocking(write, False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    try:
        with handling(end):
            yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(write)


def _watch(read: int) -> None:
    first: list[tuple[float, int]] = []
    while data := os.read(read, 1):
        if data[0] not in ASKING or signal.getsignal(data[0]) not in _handlers:
            continue
        first = first or [(time.monotonic(), data[0])]
        since, number = first[0]
        keys = number == data[0] == signal.SIGINT and "WORLD_SIZE" not in os.environ
        if time.monotonic() - since >= (ONE_KEY if keys else ONE_REQUEST):
            die(data[0], f"{signal.Signals(data[0]).name}, the second signal: ended at once")


def die(number: int, said: str) -> NoReturn:
    """The end of the process and its workers by this signal, so that whoever started it sees what ended it."""
    with suppress(OSError):
        os.write(2, f"\n{said}\n".encode())
    end_children()
    with suppress(ValueError):  # outside of the main thread: then by exit code
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(128 + number)


def end_children() -> None:
    """Processes of ours, which take no other signal; those of a loader may be busy with something that never ends."""
    with suppress(ValueError):  # outside of the main thread
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would call it a failure
    for child in multiprocessing.active_children():
        with suppress(OSError, ValueError):
            child.kill()


def run_main(main: Callable[[list[str]], object]) -> None:
    """Run an entry point and end the process by the table above. A fault of ours keeps its traceback."""
    code: object = 0
    with lasting():
        try:
            with ending(), quiet_pipe():
                main(sys.argv[1:])
                sys.stdout.flush()
        except Ended as asked:
            die(asked.number, str(asked))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
        except OSError as error:  # what nobody named: a full disk, too few file handles, no right to
            print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
            code = 2
        except SystemExit as asked:
            code = asked.code
    end_children()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        raise SystemExit(code)
    # One of several ranks: threads of gloo sometimes outlive the interpreter and abort the process when everything is
    # done, which torchrun would call a failure. So the last steps of Python's own way out are left out.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
