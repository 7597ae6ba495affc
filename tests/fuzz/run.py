"""Tries of all kinds, one after the other; each can be had again by its name and number.

python -m tests.fuzz                       2,000 tries, split over the kinds
python -m tests.fuzz label 17              kind `label`, try 17 alone, with all that it says
"""

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.fuzz import trial
from tests.fuzz.targets import TARGETS, Stock


def one(stock: Stock, kind: str, number: int) -> trial.Verdict:
    """Try `number` of a kind, in a folder of its own that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}_{number}_", dir=stock.folder))
    try:
        work = TARGETS[kind](stock, folder, Random(f"{kind} {number}"))
        return trial.attempt(work, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tries(kinds: list[str], count: int, first: int = 0) -> Iterator[tuple[str, int]]:
    """`count` tries, taking turns among the kinds."""
    for i in range(count):
        yield kinds[i % len(kinds)], first + i // len(kinds)


def campaign(stock: Stock, kinds: list[str], count: int, first: int = 0) -> list[str]:
    """The faults found, by kind and number."""
    faults, refused, done = [], Counter[str](), Counter[str]()
    slowest = (0.0, "")
    begun = time.monotonic()
    for kind, number in tries(kinds, count, first):
        verdict = one(stock, kind, number)
        done[kind] += 1
        refused[kind] += bool(verdict.said)
        slowest = max(slowest, (verdict.seconds, f"{kind} {number}"))
        if verdict.fault:
            faults.append(f"{kind} {number}: {verdict.fault}")
            print(f"{faults[-1]}\n", flush=True)
    print(f"{sum(done.values())} tries in {time.monotonic() - begun:.0f} s, {len(faults)} faults; refused: "
          + ", ".join(f"{kind} {refused[kind]} of {done[kind]}" for kind in done)
          + f"; slowest: {slowest[1]}, {slowest[0]:.1f} s")  # fmt: skip
    return faults


def again(stock: Stock, kind: str, number: int) -> int:
    """One try, its files left where they are."""
    folder = Path(tempfile.mkdtemp(prefix=f"thaw_{kind}_{number}_"))
    verdict = trial.attempt(TARGETS[kind](stock, folder, Random(f"{kind} {number}")), folder)
    print(f"files: {folder}\nsaid: {verdict.said or '-'}\nfault: {verdict.fault or 'none'}\n{verdict.seconds:.1f} s")
    return int(bool(verdict.fault))


def chosen(words: list[str]) -> list[str]:
    if wrong := [word for word in words if word not in TARGETS]:
        sys.exit(f"no kind {wrong[0]}; there are: {', '.join(TARGETS)}")
    return words or list(TARGETS)
