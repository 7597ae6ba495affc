"""Slopes by hand: steady ones, a spike that pulls nothing, what is flat."""

import pytest

from utils.report.trend import Trend, trend


def test_trend() -> None:
    line = [(e, 3.0 - 0.25 * e) for e in range(1, 10)]
    assert trend(line) == Trend(-0.25, pytest.approx(-1.0 / 1.25), -1.0, 5)
    spiked = [*line[:-1], (9, 100.0)]
    found = trend(spiked)
    assert found and found.slope == pytest.approx(-0.25) and found.word == "falls" and found.steady < 0
    assert trend(line[:4]) is None
    flat = trend([(e, 1 + 0.001 * e) for e in range(1, 10)])
    assert flat and flat.word == "flat" and flat.slope == pytest.approx(0.001)
    long = trend([(e, float(e > 20)) for e in range(1, 31)])
    assert long and long.first == 21 and long.slope == 0
