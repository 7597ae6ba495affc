"""When to stop, and when to save within an epoch: SIGINT and SIGTERM ask, the training loop answers after its next
optimizer step."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import cv2

from utils.system import dist


class Interrupt:
    """`asked` turns true at the first SIGINT or SIGTERM; a second SIGINT ends the process at once."""

    def __init__(self, save_steps: int = 0, save_minutes: float = 0.0) -> None:
        self.save_steps, self.save_minutes = save_steps, save_minutes
        self.asked = False  # of this process, at any moment
        self.stopping = False  # of all ranks together, as of the last `save_due`
        self.saved_at = time.monotonic()

    def save_due(self, step: int) -> bool:
        """After optimizer steps and at an epoch's end: whether a checkpoint is wanted, beside those of each epoch. When
        it is written changes nothing else. All ranks agree on it, and on `stopping`, though one alone was asked."""
        by_step = self.save_steps > 0 and step % self.save_steps == 0
        by_time = self.save_minutes > 0 and time.monotonic() - self.saved_at >= 60 * self.save_minutes
        vote = dist.highest(2 if self.asked else int(by_step or by_time))
        self.stopping = vote == 2
        return vote > 0

    def saved(self) -> None:
        self.saved_at = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the two signals for the time of a run; the handlers from before come back afterwards."""

        def note(number: int, _: FrameType | None) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            if self.asked:  # torchrun passes on what the terminal has already sent to every process
                return
            self.asked = True
            print(f"\n{signal.Signals(number).name}: finishing the step, then saving", flush=True)

        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)


class Stopped(Exception):
    """Training was asked to stop and has saved everything."""


def start_worker(_: int) -> None:
    """Workers are the parallelism; threads of OpenCV inside them would only compete. Signals to the
    process group (Ctrl-C, a job's end) are the main process's: it finishes its step with the workers alive."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
