"""A train.py as a child process: started or resumed, heard, stopped, and how it ended. For a study and a chain alike.

It writes into RUN/log.txt, so that it never depends on who reads; what comes in is handed on while it runs. It has a
process group of its own and gets the signals of this process passed on, once each: the first one asks it to save and to
end, a second Ctrl-C ends it at once, a third one kills it. When this process dies, by kill -9 too, the system sends it
SIGTERM (Linux), so that it saves and ends: nothing is left running, and the same command goes on.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from utils.runs import lock
from utils.runs.resumable import LAST, PREVIOUS
from utils.system.errors import UserError
from utils.system.files import ROOT, append_text, naming
from utils.system.processes.program import ASKING

# Its own program until it is train.py: asks for the signal at its parent's death, and ends where that came first.
PACT = """import ctypes, os, sys
system = ctypes.CDLL(None)
if hasattr(system, "prctl"):
    system.prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit(143)
os.execv(sys.argv[2], sys.argv[2:])"""
OF_A_STOP = {s for n in ASKING for s in (-n, 128 + n)} | {0}  # exit codes of a run that did not come to its end
PATIENCE = 120  # seconds for the run of a process that was killed to save and to end
SILENCE = 3600  # seconds without a word after which a run counts as hung
LISTEN = 0.2  # seconds between two looks at what it wrote

Hear = Callable[[bytes], object]


class Log:
    """What is said, on the screen and in a file. A screen that is gone (a closed terminal, `| head`) ends nothing."""

    def __init__(self, file: Path | None = None, screen: bool = True) -> None:
        self.file, self.screen = file, screen
        self.line = b""  # of a run, not whole yet

    def say(self, text: str, error: bool = False) -> None:
        """A line of our own."""
        self.show(f"{text}\n", error)
        self.keep(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def hear(self, text: bytes) -> None:
        """What a run writes; of the states of a bar the file keeps the last."""
        self.show(text.decode(errors="replace"))
        *lines, self.line = (self.line + text).split(b"\n")
        whole = [line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace") for line in lines]
        self.keep("".join(f"{line}\n" for line in whole))
        self.line = self.line[-4000:]

    def show(self, text: str, error: bool = False) -> None:
        if not self.screen:
            return
        stream = sys.stderr if error else sys.stdout
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def keep(self, text: str) -> None:
        if self.file and text:
            append_text(self.file, text)


@dataclass
class Stops:
    """Which signals came, and to whom they go."""

    first: int = 0
    hurry: int = 0  # how often Ctrl-C came after that
    children: "set[subprocess.Popen[bytes]]" = field(default_factory=set)

    @contextmanager
    def listening(self) -> Iterator["Stops"]:
        """Take the signals for this time, but those that are ignored (nohup)."""
        before = {s: signal.getsignal(s) for s in ASKING}
        for s in ASKING:
            if before[s] != signal.SIG_IGN:
                signal.signal(s, self.note)
        try:
            yield self
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)

    def note(self, number: int, _: FrameType | None) -> None:
        if self.first and number != signal.SIGINT:
            return  # a terminal that closes, and a scheduler, may say it twice
        self.hurry += bool(self.first)
        self.first = self.first or number
        for child in list(self.children):
            self.pass_on(child)

    def end_all(self) -> None:
        """As if a scheduler asked for it: the runs under way save and end."""
        self.note(signal.SIGTERM, None)

    def pass_on(self, child: "subprocess.Popen[bytes]") -> None:
        if self.first:
            child.send_signal((signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[min(self.hurry, 2)])

    @property
    def code(self) -> int:
        """Exit code of a command that was stopped."""
        return 128 + self.first if self.first else 1


@dataclass(frozen=True)
class Ended:
    how: str  # finished, failed, stopped
    why: str = ""  # of a failure


def ended(folder: Path) -> bool:
    """Whether the run has come to its end, be it an early one by --patience."""
    return (folder / "result.yaml").is_file()


def resumable(folder: Path) -> bool:
    return any((folder / "weights" / name).is_file() for name in (LAST, PREVIOUS))


def train(
    folder: Path, words: Sequence[str], stops: Stops, log: Log, ranks: int = 1, place: Sequence[str] = ()
) -> Ended:
    """The run in `folder`, started with train.py's words or resumed. ranks: processes of it, by torchrun. place: flags
    that a resume takes as well, as --device. Errors: UserError where another process works there, or the folder cannot
    be written."""
    wait_for_others(folder, log)
    file = folder / lock.LOG
    with naming(file):
        folder.mkdir(parents=True, exist_ok=True)
        begun = os.listdir(folder)
        if resumable(folder):
            words = ["--resume", str(folder)]
        elif set(begun) - lock.LEFT:  # killed before anything was saved
            words = [*words, "--exist-ok"]
        words = [*words, *place]
        out = open(file, "ab")  # noqa: SIM115  closed below
    with out, open(file, "rb") as read:
        read.seek(0, os.SEEK_END)
        child = start(words, out.fileno(), ranks)
        stops.children.add(child)
        try:
            stops.pass_on(child)  # it may have come just now
            tail = listen(child, read.read, log.hear)
            hung = child.returncode is None
        finally:
            stops.children.discard(child)
            end(child)
    if hung and not stops.first:
        return Ended("failed", f"it said nothing for {SILENCE / 60:g} minutes and was ended, see {file}")
    return outcome(folder, child.returncode, stops, tail)


def command(words: Sequence[str], ranks: int) -> list[str]:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [sys.executable, *several, str(ROOT / "train.py"), *words]


def start(words: Sequence[str], out: int, ranks: int) -> "subprocess.Popen[bytes]":
    screen = {"COLUMNS": str(shutil.get_terminal_size().columns)}  # for the bar
    return subprocess.Popen(
        [sys.executable, "-c", PACT, str(os.getpid()), *command(words, ranks)],
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        process_group=0,
        env={**screen, **os.environ, "PYTHONUNBUFFERED": "1"},
    )


def listen(child: "subprocess.Popen[bytes]", read: Callable[[], bytes], hear: Hear) -> bytes:
    """Until the child's end, or until it hangs; the last of what it wrote."""
    tail, heard = b"", time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            child.wait(LISTEN)
        done = child.returncode is not None
        if new := read():
            hear(new)
            tail, heard = (tail + new)[-4000:], time.monotonic()
        if done or time.monotonic() - heard > SILENCE:
            return tail


def end(child: "subprocess.Popen[bytes]") -> None:
    """No child outlives this process, whatever went wrong in it."""
    for ask in (child.terminate, child.kill):
        if child.poll() is None:
            ask()
            with suppress(subprocess.TimeoutExpired):
                child.wait(PATIENCE)


def outcome(folder: Path, code: int, stops: Stops, tail: bytes) -> Ended:
    if code == 0 and ended(folder):
        return Ended("finished")
    if stops.first or code in OF_A_STOP:
        return Ended("stopped")
    said = [line for line in tail.decode(errors="replace").splitlines() if line.startswith("error: ")]
    if said:
        return Ended("failed", said[-1].removeprefix("error: ").rstrip(":"))
    if code == -signal.SIGKILL:
        return Ended("failed", "it was killed (SIGKILL); the system does that where memory runs out")
    return Ended("failed", f"exit code {code}, see {folder / lock.LOG}")


def wait_for_others(folder: Path, log: Log) -> None:
    """The run of a command that was killed saves and ends by itself, in moments."""
    deadline = time.monotonic() + PATIENCE
    said = False
    while holder := lock.holder(folder):
        if not said:
            log.say(f"{folder} is being written by {holder}: waiting for its end, {PATIENCE} s at most")
            said = True
        if time.monotonic() > deadline:
            raise UserError(f"{folder} is still being written by {holder}: stop that, or wait for its end")
        time.sleep(LISTEN)
