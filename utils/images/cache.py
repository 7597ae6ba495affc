"""The images of a data set in RAM, as they are loaded for it, in one block that all worker processes share.

The block is shared memory: a worker, forked or spawned, maps the pages that the main process filled instead of copying
them. So N workers need the memory once, and no image is decoded twice.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from utils.images.pixels import Image, Pixels
from utils.system.errors import UserError

MEMORY_LEFT = 0.9  # the cache may take this share of the free memory


class ImageCache:
    """Image i, [*sizes[i], C], at `cache[i]`: a read-only view of the block, not a copy."""

    def __init__(
        self, sizes: npt.NDArray[np.int64], pixels: Pixels, load: Callable[[int], Image], described: str
    ) -> None:
        """sizes [n,2] (h, w); load: gives image i. Errors: UserError where the memory does not suffice."""
        self.sizes, self.pixels = sizes, pixels
        each = pixels.channels * pixels.dtype.itemsize
        self.starts = np.concatenate([[0], np.cumsum(each * sizes.prod(1))])  # [n+1], bytes
        need, free = int(self.starts[-1]), free_memory()
        if free is not None and need > MEMORY_LEFT * free:
            raise UserError(
                f"--cache-images needs {need / 2**30:.2f} GiB for {described} but only {free / 2**30:.2f} GiB of"
                " (shared) memory is free; leave the flag out, or use a smaller --img-size"
            )
        self.block: torch.Tensor = torch.empty(need, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        flat = self.block.numpy()

        def fill(index: int) -> None:
            flat[self.starts[index] : self.starts[index + 1]] = load(index).reshape(-1).view(np.uint8)

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            what = f"caching images ({need / 2**20:.0f} MiB)"
            list(tqdm(pool.map(fill, range(len(sizes))), what, len(sizes), unit="image", dynamic_ncols=True))

    def __getitem__(self, index: int) -> Image:
        height, width = self.sizes[index]
        part = self.block[self.starts[index] : self.starts[index + 1]]
        image: Image = part.numpy().view(self.pixels.dtype).reshape(height, width, self.pixels.channels)
        image.flags.writeable = False
        return image


def free_memory() -> int | None:
    """Bytes that a shared block may take: free memory, and on Linux what /dev/shm has left. None: not known here."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        return min(available, shutil.disk_usage("/dev/shm").free)
    except (OSError, StopIteration):
        return None
