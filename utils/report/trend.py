"""Does a figure rise or fall over the epochs? By a slope that single epochs cannot pull."""

import math
from dataclasses import dataclass

import numpy as np

from utils.runs.folder import Series

FEWEST = 5  # epochs for a trend
FLAT = 0.01  # change over the window, as a share of the mean size, below which nothing rises or falls


@dataclass(frozen=True)
class Trend:
    """Theil-Sen slope (median of the slopes of all pairs) over the last third of the epochs, at least FEWEST."""

    slope: float  # per epoch
    change: float  # slope times the window's length, as a share of the mean of |values|
    steady: float  # (rising pairs - falling pairs) / pairs, Kendall's tau
    first: int  # epoch that the window begins at

    @property
    def word(self) -> str:
        return "flat" if abs(self.change) < FLAT else "rises" if self.slope > 0 else "falls"


def trend(series: Series) -> Trend | None:
    """None where there are too few epochs."""
    if len(series) < FEWEST:
        return None
    window = np.array(series[-max(FEWEST, math.ceil(len(series) / 3)) :])
    i, j = np.triu_indices(len(window), 1)
    steps = window[j] - window[i]
    slope = float(np.median(steps[:, 1] / steps[:, 0]))
    size = float(np.abs(window[:, 1]).mean())
    change = slope * (window[-1, 0] - window[0, 0]) / size if size else 0.0
    return Trend(slope, float(change), float(np.sign(steps[:, 1]).mean()), int(window[0, 0]))
