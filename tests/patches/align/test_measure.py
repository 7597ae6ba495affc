"""Alignment measures against cases whose answer is known."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from patches.align.measure import measure_alignment, plot_map

PAINTED = True


def units(n: int, d: int, seed: int) -> npt.NDArray[np.float64]:
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_equal_embeddings_are_aligned_and_cannot_be_told_apart() -> None:
    a = units(200, 16, 0)
    found = measure_alignment(a, a)
    assert (found.retrieval_a, found.retrieval_b) == (1, 1)
    assert found.gap == pytest.approx(1, abs=0.02)
    assert found.probe == pytest.approx(0.5, abs=1e-9)  # one of each pair is right, whatever the classifier says


def test_strangers_are_at_chance() -> None:
    found = measure_alignment(units(400, 32, 0), units(400, 32, 1))
    assert found.chance == 1 / 400
    assert max(found.retrieval_a, found.retrieval_b) < 0.02
    assert found.gap == pytest.approx(0, abs=0.03)
    assert found.probe == pytest.approx(0.5, abs=0.07)


def test_a_constant_offset_between_the_views_is_seen_by_the_probe_alone() -> None:
    a = units(200, 16, 0)
    b = a.copy()
    b[:, 0] += 3
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    found = measure_alignment(a, b)
    assert found.probe > 0.95


def test_retrieval_by_hand_counts_ties_as_misses() -> None:
    a = np.eye(3)
    b = np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    found = measure_alignment(a, b)
    # a0 is as near to b0 as to b1: a tie, a miss; a1 finds nothing; b1's nearest is a0
    assert (found.retrieval_a, found.retrieval_b) == pytest.approx((1 / 3, 2 / 3))
    assert found.gap == pytest.approx(2 / 3 - 1 / 6)


def test_too_few_pairs_are_not_measured() -> None:
    assert np.isnan(measure_alignment(units(1, 4, 0), units(1, 4, 1)).gap)
    assert np.isnan(measure_alignment(units(3, 4, 0), units(3, 4, 1)).probe)


def test_the_map_repeats(tmp_path: Path) -> None:
    a, b = units(20, 8, 0), units(20, 8, 1)
    for name in ("one.png", "two.png"):
        plot_map(a, b, ("visible", "infrared"), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
