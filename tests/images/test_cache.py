"""Pictures kept in memory."""

from pathlib import Path

import pytest

from tests.images.test_pixels import SIZE, make_set, noise, open_set
from utils.images import cache
from utils.system.errors import UserError


def test_the_cache_needs_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_set(tmp_path, [noise(5), noise(5)], channels=5)
    need = 2 * SIZE * SIZE * 5 * 2
    dataset = open_set(source, None, cache_images=True)
    assert dataset._cache is not None and len(dataset._cache.block) == need
    monkeypatch.setattr(cache, "free_memory", lambda: int(need / cache.MEMORY_LEFT) - 1)
    with pytest.raises(UserError, match="--cache-images needs"):
        open_set(source, None, cache_images=True)
    monkeypatch.setattr(cache, "free_memory", lambda: int(need / cache.MEMORY_LEFT) + 1)
    open_set(source, None, cache_images=True)
