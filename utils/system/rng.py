"""Random draws as a function of (seed, purpose, epoch, index): the same for any worker count and after any resume."""

import zlib

import numpy as np


def rng(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """An independent generator for one draw site. `purpose` names the site, so that two sites never share numbers."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(purpose.encode()), epoch, index]))
