"""The runs of a study, trained side by side: several by this process, more by others that were given the same command.

Each run is trained by whoever holds the lock `study.lock` in its folder, which the system frees at the holder's death.
A run that another process trains is left to it and looked at again: it is taken over where that process ends without
finishing it. So the same command, started in several shells, on several machines with one folder, or as an array of a
scheduler, shares the work, and each of these processes ends when all runs are done, with the whole table.
"""

import dataclasses
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from utils.runs import lock
from utils.runs.folder import Facts
from utils.study import child, wanted
from utils.system.errors import UserError

LOOK = 2.0  # seconds until runs that others train are looked at again
TELL = 60.0  # seconds between two lines about the runs under way


@dataclass(frozen=True)
class Job:
    """One run: train.py's flags but for those that a study gives itself."""

    arm: str
    seed: int
    folder: Path
    words: tuple[str, ...]

    @cached_property
    def run(self) -> Facts:
        """What its folder says; for when it is trained."""
        return Facts(self.folder)

    @property
    def train_words(self) -> list[str]:
        """What follows `python train.py`, without --exist-ok."""
        own = ["--seed", str(self.seed), "--project", str(self.folder.parent), "--name", self.folder.name]
        return [*self.words, *own]


def check(jobs: Sequence[Job]) -> None:
    """Before anything trains. UserError for an arm that cannot be trained, and for a folder that holds another run than
    the one asked for: other flags, data, starting weights or, where it is finished, code."""
    arms = {job.arm: job for job in jobs}
    for first in arms.values():
        try:
            plan = wanted.rehearse(first.train_words)
        except UserError as error:
            raise UserError(f"arm {first.arm}: {error}") from None
        weights = wanted.tensors_of(plan.cfg.weights)
        for job in (j for j in jobs if j.arm == first.arm and (j.folder / "run.yaml").is_file()):
            run, own = Facts(job.folder), dataclasses.replace(plan.cfg, seed=job.seed)
            found = wanted.differences(run, dataclasses.replace(plan, cfg=own), weights, code=run.ended)
            if found:
                raise UserError(
                    f"{job.folder} is there and is another run than this study asks for: {'; '.join(found)}. "
                    "Remove it, or choose another --project"
                )


@dataclass
class Queue:
    """The runs that are not done yet, for several hands of this process."""

    jobs: Sequence[Job]
    log: child.Log
    ranks: int = 1
    stops: child.Stops = field(default_factory=child.Stops)
    failed: list[Path] = field(default_factory=list)
    stopped: list[Path] = field(default_factory=list)  # by a signal to the study, or to the run alone

    def __post_init__(self) -> None:
        self.waiting = list(self.jobs)
        self.training: dict[Path, str] = {}  # run under way here: where
        self.others: set[Path] = set()  # those that were last seen with another process
        self.guard = threading.Lock()

    def said(self, job: Job) -> str:
        return f"run {self.jobs.index(job) + 1} of {len(self.jobs)}, {job.folder.name}"

    def take(self) -> tuple[Job, lock.Lock] | None:
        """A run that nobody trains, and the right to; None where there is none now."""
        with self.guard:
            for job in list(self.waiting):
                if child.ended(job.folder):
                    self.waiting.remove(job)
                    self.log.say(
                        f"=== {self.said(job)}: finished {'elsewhere' if job.folder in self.others else 'before'}"
                    )
                    continue
                job.folder.mkdir(parents=True, exist_ok=True)
                try:
                    held = lock.Lock(job.folder, name=lock.STUDY)
                except lock.Held as error:
                    if job.folder not in self.others:
                        self.log.say(f"=== {self.said(job)}: is trained by {error.holder}")
                    self.others.add(job.folder)
                    continue
                self.waiting.remove(job)
                return job, held
        return None

    def work(self, device: str) -> None:
        """One hand: train run after run until none is left."""
        while not self.stops.first:
            if (taken := self.take()) is not None:
                with taken[1]:
                    self.train(taken[0], device)
            elif self.waiting:
                time.sleep(LOOK)
            else:
                return

    def train(self, job: Job, device: str) -> None:
        place = ["--device", device] if device else []
        where = f" on {device}" if device else ""
        self.log.say(f"=== {self.said(job)}: {'goes on' if child.resumable(job.folder) else 'starts'}{where}")
        self.training[job.folder] = where
        done = child.train(job.folder, job.train_words, self.stops, child.Log(screen=False), self.ranks, place)
        self.training.pop(job.folder)
        if done.how == "failed" and not self.stops.first:
            self.failed.append(job.folder)
            self.log.say(f"=== {self.said(job)}: FAILED ({done.why}), going on with the others", error=True)
        elif done.how == "stopped":
            self.stopped.append(job.folder)
            self.log.say(f"=== {self.said(job)}: stopped in {job.folder}; the same command goes on", error=True)
        else:
            self.log.say(f"=== {self.said(job)}: {finished(Facts(job.folder))}")

    def carry_out(self, devices: Sequence[str]) -> None:
        """A hand for each device, until every run has ended, here or elsewhere, or a signal came. Errors: what a hand
        ended with; the others save and end then."""
        with self.stops.listening(), ThreadPoolExecutor(len(devices)) as pool:
            hands = {pool.submit(self.work, device) for device in devices}
            told = time.monotonic()
            while hands:
                done, hands = wait(hands, child.LISTEN)
                if not self.stops.first and any(hand.exception() for hand in done):
                    self.stops.end_all()
                for hand in done:
                    hand.result()
                if hands and time.monotonic() - told > TELL:
                    told = time.monotonic()
                    self.tell(len(devices))

    def tell(self, hands: int) -> None:
        """A line about what goes on."""
        parts, runs = [], [Facts(job.folder) for job in self.jobs]
        for run in (run for run in runs if run.folder in self.training):
            score = f", mAP {run.rows[-1].get('mAP', '-')[:6]}" if run.rows else ""
            name = f"{run.folder.name}{self.training[run.folder]}"
            parts.append(f"{name}: {run.epochs} of {run.planned or '?'} epochs{score}")
        ended = sum(child.ended(job.folder) for job in self.jobs)
        left = time_left(runs, hands)
        self.log.say(
            f"{ended} of {len(runs)} runs finished{f', about {left} left' if left else ''}; {'; '.join(parts)}"
        )


def finished(run: Facts) -> str:
    """`finished, 30 epochs, best mAP 0.5123, 12 min`."""
    values = [value for _, value in run.series("mAP")]
    best = f", best mAP {max(values):.4f}" if values else ""
    return f"finished, {run.epochs} epochs{best}, {duration(sum(run.times()))}"


def time_left(runs: Sequence[Facts], hands: int) -> str:
    """By the median seconds of an epoch of each run, or of all where it has none yet; empty where nothing is known."""
    known = [statistics.median(run.times()) for run in runs if run.times()]
    if not known:
        return ""
    total, most = 0.0, max(run.planned for run in runs)
    for run in (run for run in runs if not run.ended):
        epoch = statistics.median(run.times()) if run.times() else statistics.median(known)
        total += epoch * max((run.planned or most) - run.epochs, 0)
    return duration(total / hands)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
