"""How well two views of the same things are aligned, judged in embedding space.

Row i of `a` and row i of `b` (unit vectors [N,D]) are partners, e.g. the visible and the infrared picture of one scene:
  retrieval   share of rows whose nearest row of the other view is their partner, each way; chance is 1/N
  gap         mean cosine of partners minus mean cosine of all other pairs; 0 = partners are no closer than strangers
  probe       accuracy of a linear classifier that tells the two views apart, cross-validated over pairs; 0.5 = aligned
The map is a picture (the first two principal components), no score.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from utils.runs.plots import new_figure
from utils.system.rng import rng

Floats = npt.NDArray[np.float64]
RIDGE = 1e-3  # of the mean squared length, so that few pairs in many dimensions have one solution


@dataclass(frozen=True)
class Alignment:
    """Measures of N pairs."""

    retrieval_a: float  # from a to b
    retrieval_b: float
    chance: float
    gap: float
    probe: float  # nan for fewer than 4 pairs
    pairs: int


def measure_alignment(a: Floats, b: Floats, folds: int = 5, seed: int = 0) -> Alignment:
    """Unit vectors [N,D] of both views, N >= 2. Ties in retrieval count as misses. seed: deals the pairs to folds."""
    n = len(a)
    if n < 2:
        unknown = float("nan")
        return Alignment(unknown, unknown, unknown, unknown, unknown, n)
    cosine = a @ b.T
    own = np.diag(cosine)
    others = np.where(np.eye(n, dtype=bool), -np.inf, cosine)
    strangers = (cosine.sum() - own.sum()) / (n * (n - 1))
    return Alignment(
        float((own > others.max(1)).mean()), float((own > others.max(0)).mean()), 1 / n,
        float(own.mean() - strangers), probe_accuracy(a, b, min(folds, n // 2), seed), n,
    )  # fmt: skip


def probe_accuracy(a: Floats, b: Floats, folds: int, seed: int) -> float:
    """Cross-validated accuracy of ridge regression on +-1, both members of a pair in the same fold."""
    n, d = a.shape
    if folds < 2:
        return float("nan")
    fold = np.empty(n, dtype=np.int64)
    fold[rng(seed, "probe").permutation(n)] = np.arange(n) % folds
    right = 0
    for k in range(folds):
        train, test = fold != k, fold == k
        x = np.concatenate([a[train], b[train]])
        mean = x.mean(0)
        x = x - mean
        y = np.repeat([1.0, -1.0], train.sum())
        gram = x.T @ x
        weight = np.linalg.solve(gram + RIDGE * max(np.trace(gram), 1e-12) / d * np.eye(d), x.T @ y)
        right += int(((a[test] - mean) @ weight > 0).sum() + ((b[test] - mean) @ weight < 0).sum())
    return float(right / (2 * n))


def plot_map(a: Floats, b: Floats, names: tuple[str, str], file: Path) -> None:
    """Both views in the plane of their first two principal components, partners joined by a line."""
    x = np.concatenate([a, b])
    x = x - x.mean(0)
    _, size, axes = np.linalg.svd(x, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2, np.abs(axes[:2]).argmax(1)].diagonal())[:, None]  # a sign that repeats
    p, share = x @ axes.T, size[:2] ** 2 / max(float((size**2).sum()), 1e-12)
    p, share = np.pad(p, ((0, 0), (0, 2 - p.shape[1]))), np.pad(share, (0, 2 - len(share)))
    n = len(a)
    figure, (ax,) = new_figure(7, 6)
    ax.plot(*np.stack([p[:n], p[n:]], 1).T, color="0.8", linewidth=0.6, zorder=1)
    for part, name, mark in ((p[:n], names[0], "o"), (p[n:], names[1], "^")):
        ax.scatter(part[:, 0], part[:, 1], s=18, marker=mark, label=name, zorder=2)
    ax.set_xlabel(f"first principal component ({share[0]:.0%} of the variance)")
    ax.set_ylabel(f"second ({share[1]:.0%})")
    ax.set_title(f"{n} pairs; lines join partners (a picture, no score)")
    ax.legend()
    figure.savefig(file, dpi=120)
