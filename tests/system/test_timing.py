"""Rounds of a measurement, and the most bytes that lived at once."""

import pytest
import torch

from utils.system.timing import Clock, interleaved, peak_bytes, ratios


def test_rounds_go_back_and_forth() -> None:
    seen: list[str] = []

    def work(name: str) -> dict[str, float]:
        seen.append(name)
        return {"whole": float(len(seen))}

    found = interleaved({n: lambda n=n: work(n) for n in "abc"}, 2, warmup=1)  # type: ignore[misc]
    assert "".join(seen) == "abccbaabc"
    assert {k: [r["whole"] for r in v] for k, v in found.items()} == {"a": [6, 7], "b": [5, 8], "c": [4, 9]}
    assert ratios([2, 9, 4], [1, 3, 4]) == {"median": 2, "min": 1, "max": 3}, "round by round"


def test_peak_counts_what_lives_at_once() -> None:
    def work() -> None:
        first = torch.zeros(1000)
        second = first + 1
        del first, second
        torch.zeros(500)

    assert peak_bytes(work, torch.device("cpu")) == pytest.approx(8000, abs=500)


def test_laps_of_one_name_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0, 1, 3, 6])
    monkeypatch.setattr(Clock, "now", lambda self: (float(t := next(ticks)), t / 2))
    clock = Clock(torch.device("cpu"))
    for name in ("load", "step", "load"):
        clock.lap(name)
    assert clock.parts == {"load": 4, "step": 2} and clock.cpu == {"load": 2, "step": 1}
