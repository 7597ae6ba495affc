"""Time and memory of a piece of work: laps that wait for the device, interleaved rounds, peak bytes.

Machines drift: another program starts, a clock throttles. So variants take turns, each round in the other direction,
and are compared within a round: a ratio is the median over rounds of (variant / base in that round).
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

Parts = dict[str, float]  # seconds per named part
Spread = dict[str, float]  # median, min, max


class Clock:
    """Charges the time since the last lap to a named part: `parts` by the clock on the wall, `cpu` by the processor
    time that this process used, which other programs on the machine disturb far less."""

    def __init__(self, device: torch.device, wait: bool = True) -> None:
        """wait: finish the device's work first, so that a part is charged with its own; costs the overlap of host and
        device."""
        self.device, self.wait = device, wait
        self.parts: Parts = {}
        self.cpu: Parts = {}
        self.last = self.now()

    def now(self) -> tuple[float, float]:
        if self.wait and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = self.now()
        for parts, at, last in zip((self.parts, self.cpu), now, self.last, strict=True):
            parts[name] = parts.get(name, 0.0) + at - last
        self.last = now


def interleaved(variants: Mapping[str, Callable[[], Parts]], rounds: int, warmup: int = 1) -> dict[str, list[Parts]]:
    """Every variant once per round, back and forth. -> per variant the parts of each round, warm-up rounds left out."""
    found: dict[str, list[Parts]] = {name: [] for name in variants}
    for r in range(-warmup, rounds):
        for name in list(variants)[:: 1 if r % 2 else -1]:
            parts = variants[name]()
            if r >= 0:
                found[name].append(parts)
    return found


def spread(values: Sequence[float]) -> Spread:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """values / base, round by round."""
    return spread([v / b for v, b in zip(values, base, strict=True)])


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors that lived at once during `work`, beyond those that were there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    here = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.device_type().name == "CPU":
            here += event.nbytes()
            most = max(most, here)
    return most
