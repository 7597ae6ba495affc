"""Where tests find reference values and real data that are not part of the project."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("THAW_SHARED", ROOT.parent / "shared"))


def shared(relative: str) -> Path:
    """Path below the shared folder; skips the test where that folder or file is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs reference material {relative} in {SHARED.name}/ beside the checkout (or THAW_SHARED=...)")
    return path
