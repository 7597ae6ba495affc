"""The reference values as the tests use them: the folder or a skip, and comparisons with a stated tolerance."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.conformance.reference import Absent, Reference
from tests.shared import SHARED, shared


def golden() -> Reference:
    """The reference folder; skips the test where it is absent."""
    return Reference(shared("golden"))


def keys(relative: str, *path: str) -> list[str]:
    """Names of the cases in a JSON file, for parametrisation; none where it is absent (pytest then skips the test)."""
    try:
        found: Any = Reference(SHARED / "golden").json(relative)
    except Absent:
        return []
    for step in path:
        found = found[step]
    return list(found)


def need(relative: str) -> None:
    """Skip unless this reference file is there."""
    shared(f"golden/{relative}")


def close(got: Any, want: Any, rtol: float = 1e-4, atol: float = 0.0, what: str = "") -> None:
    """Every element within rtol of the wanted one; a wanted 0 must be met to atol."""
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=rtol, atol=atol, err_msg=what)


def near(got: Sequence[float], want: Sequence[float], rtol: float = 1e-4) -> bool:
    """Scalars within rtol, zeros exact."""
    return len(got) == len(want) and all(a == pytest.approx(b, rel=rtol, abs=0) for a, b in zip(got, want, strict=True))
