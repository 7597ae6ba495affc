"""When a run stops, and when it saves within an epoch.

Signals (utils/system/processes/program.py) and trouble from which trained work can still be saved (a loader's worker
that died, an output that cannot be written) ask; the run answers after its next optimizer step, or between two batches
of an evaluation, and saves.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from utils.system import dist
from utils.system.processes.program import handling, hearing


class Interrupt:
    """What a run is asked: by signals, by trouble, and by its own clock."""

    def __init__(self, save_steps: int = 0, save_minutes: float = 0.0) -> None:
        self.save_steps, self.save_minutes = save_steps, save_minutes
        self.asked = False  # of this process, at any moment
        self.trouble = ""  # what asked, where it was no signal
        self.stopping = False  # of all ranks together, as of the last vote
        self.saved_at = time.monotonic()

    def save_due(self, step: int) -> bool:
        """After optimizer steps and at an epoch's end: whether a checkpoint is wanted, beside those of each epoch. When
        it is written changes nothing else. All ranks agree on it, and on `stopping`, though one alone was asked."""
        by_step = self.save_steps > 0 and step % self.save_steps == 0
        by_time = self.save_minutes > 0 and self.unsaved() >= 60 * self.save_minutes
        return self.vote(by_step or by_time) > 0

    def vote(self, wish: bool = False) -> int:
        """1 where any rank has the wish; 2, and `stopping`, where one of them was asked to stop."""
        highest = dist.highest(2 if self.asked else int(wish))
        self.stopping = highest == 2
        return highest

    def unsaved(self) -> float:
        """Seconds since the last checkpoint, or since the start."""
        return time.monotonic() - self.saved_at

    def saved(self) -> None:
        self.saved_at = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals, and what is said of trouble, for the time of the training; the handlers from before come
        back afterwards."""

        def note(number: int) -> None:
            if not self.asked:
                self.asked = True
                said = f"\n{signal.Signals(number).name}: finishing the step, then saving; a second one ends at once"
                # by a thread: the handler may have interrupted somebody who is printing
                threading.Thread(target=print, args=(said,), kwargs={"flush": True}).start()

        def note_trouble(trouble: str) -> None:
            if not self.asked:
                self.asked, self.trouble = True, trouble

        with handling(note), hearing(note_trouble):
            yield


class Stopped(Exception):
    """Training was asked to stop and has saved everything."""
