"""Draws are a function of seed, purpose, epoch and index."""

import numpy as np

from utils.system.rng import rng


def test_each_part_of_the_key_gives_other_numbers_and_the_same_key_the_same() -> None:
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    draws = [rng(*key).integers(0, 2**63, 4).tolist() for key in keys]
    assert len({tuple(d) for d in draws}) == len(keys)
    assert draws == [rng(*key).integers(0, 2**63, 4).tolist() for key in keys]


def test_the_numbers_are_those_of_earlier_versions() -> None:
    """Runs are repeated by later versions: the stream belongs to what is promised."""
    want = np.random.Generator(np.random.PCG64([7, 0xE8B7BE43, 2, 3])).random(3)  # CRC-32 of "a"
    assert rng(7, "a", 2, 3).random(3).tolist() == want.tolist()
