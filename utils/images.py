"""Pictures from files: decoded whole, or a JPEG at a half, a quarter or an eighth of its size where that suffices.

A JPEG stores blocks of 8x8 frequencies; leaving out the high ones gives the smaller picture at once, free of the
aliasing that sampling a large picture has, and without its full-size pixels ever being made. Pixels differ a little
from full decoding with a resize, so only training reads so; evaluation decodes everything. Images uint8 RGB [H,W,3];
sizes are (height, width).
"""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from utils.letterbox import Image

SLACK = 0.3  # pixels of the picture that is wanted
FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def reduction(native: tuple[int, int], wanted: tuple[int, int]) -> int:
    """By how much (1, 2, 4 or 8) a JPEG of size `native` can be decoded smaller when a picture of `wanted` is made of
    it: no smaller than that on either side, and with its far edges off by at most SLACK, because a side that the
    factor does not divide is reduced as if it were a little longer. A function of sizes alone: a run has the same
    pixels with and without a cache."""

    def suffices(factor: int) -> bool:
        return all(
            few >= want and (few * factor - side) * want / side <= SLACK
            for side, few, want in zip(native, reduced(native, factor), wanted, strict=True)
        )

    return next(filter(suffices, (8, 4, 2)), 1)


def reduced(native: tuple[int, int], factor: int) -> tuple[int, int]:
    """Size of a JPEG of size `native` decoded smaller by `factor`."""
    return -(-native[0] // factor), -(-native[1] // factor)


def read_image(path: Path, factor: int = 1) -> Image | None:
    """RGB, EXIF rotation applied; None when it cannot be read or decoded. A JPEG comes `reduced` by `factor`, any
    other format whole."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        return None
    return decode(data, factor)


def decode(data: npt.NDArray[np.uint8], factor: int = 1) -> Image | None:
    """As `read_image`, from the bytes of a file."""
    if not data.size:
        return None
    image = cv2.imdecode(data, FLAGS[factor if is_jpeg(data) else 1])
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def is_jpeg(data: npt.NDArray[np.uint8]) -> bool:
    return data[:3].tobytes() == b"\xff\xd8\xff"


def image_size(data: npt.NDArray[np.uint8]) -> tuple[int, int] | None:
    """(h, w) of the picture in a file's bytes, EXIF rotation applied; None when it cannot be decoded to its end.

    A JPEG is decoded at an eighth of its size: this reads all of its data, as nothing less finds a file that was cut
    off, in half the time."""
    if (stored := jpeg_size(data.tobytes())) is not None:
        small = cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8)
        if small is None:
            return None
        fitting = {size for size in (stored, stored[::-1]) if reduced(size, 8) == small.shape}
        if len(fitting) == 1:  # else upright and turned look alike at this size
            return fitting.pop()
    image = decode(data)
    return None if image is None else (image.shape[0], image.shape[1])


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(h, w) as a JPEG's frame header gives it, before EXIF rotation; None for anything else (ITU-T T.81, B.2.2)."""
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        # a marker may be preceded by any number of fill bytes 0xFF
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return None
