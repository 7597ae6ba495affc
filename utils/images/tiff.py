"""TIFF pictures of 1 to 8 channels in 8 or 16 bits: what their directories say, and their samples (TIFF 6.0, 1992;
BigTIFF).

OpenCV's decoder takes 1, 3 and 4 channels. What lies in strips and tiles are compressed rows of numbers, whatever a
number means. So the file is handed to it under another description, a directory that is appended here: of one channel
and width W*C where the channels of a pixel lie together, of one page for each channel where they lie apart. Several
pages of one channel each are channels, too.
"""

import struct
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from utils.images.pixels import CHANNELS, Image

SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STRIPS, TURNED, SAMPLES, ROWS, STRIP_BYTES, PLANAR = 273, 274, 277, 278, 279, 284
PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILES, TILE_BYTES, EXTRA, FORMAT = 317, 322, 323, 324, 325, 338, 339
USED = frozenset((
    SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, TURNED, SAMPLES, ROWS, STRIP_BYTES, PLANAR,
    PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILES, TILE_BYTES, EXTRA, FORMAT,
))  # fmt: skip
TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the values that are used
KINDS = {2: "signed whole numbers", 3: "floating point numbers"}  # sample formats
JPEG = (6, 7)  # compressions that know what a channel is
BLACK_IS_ZERO, RGB, PALETTE, SEPARATED = 1, 2, 3, 5
Bytes = npt.NDArray[np.uint8]
Tags = dict[int, tuple[int, ...]]


BROKEN = "is corrupt or cut off (it cannot be decoded)"


class ImageError(ValueError):
    """A picture that is not read: what is wrong with it, in words that go on after `the image`."""


class Layout(NamedTuple):
    """What the directories say of the picture."""

    size: tuple[int, int]  # (h, w) as stored
    channels: int
    bits: int
    alpha: bool  # the last channel is declared to be one
    plain: bool  # up to 8 bits, grey or colour of some kind: OpenCV makes red, green and blue of it
    pages: list[Tags]  # one; or one for each channel
    order: str  # of bytes, as in `struct`


def is_tiff(data: Bytes) -> bool:
    return data[:4].tobytes() in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def layout(data: Bytes) -> Layout:
    """Errors: ImageError where the file is cut off, or its samples are of a kind that is not read."""
    order, pages = directories(data.tobytes())
    first = pages[0]
    samples, bits, kind = first.get(SAMPLES, (1,))[0], first.get(BITS, (1,)), first.get(FORMAT, (1,))
    if any(k in KINDS for k in kind):
        raise ImageError(f"holds {KINDS[next(k for k in kind if k in KINDS)]}; whole numbers from 0 on are read")
    if len(set(bits)) > 1 or bits[0] not in (1, 2, 4, 8, 16):
        raise ImageError(f"has {' and '.join(map(str, sorted(set(bits))))} bits per channel; 8 and 16 are read")
    same = [p for p in pages if all(p.get(t) == first.get(t) for t in (WIDTH, LENGTH, BITS, SAMPLES))]
    stacked = samples == 1 and len(pages) > 1
    if stacked and len(same) != len(pages):
        raise ImageError("has pages of different sizes; pages are read as channels and must be alike")
    channels = len(pages) if stacked else samples
    used = pages if stacked else [first]
    check_ends(used, len(data))
    extra = first.get(EXTRA, ())
    alpha = bool(extra) and extra[-1] in (1, 2)
    light = first.get(PHOTOMETRIC, (BLACK_IS_ZERO,))[0]
    coloured = samples - alpha == 3 and light not in (0, BLACK_IS_ZERO)
    plain = bits[0] <= 8 and not stacked and (samples == 1 or coloured)
    if bits[0] == 16 or not plain or alpha:
        for page in used:
            check_readable(page)
    elif light == PALETTE:
        channels = 3
    return Layout((first[LENGTH][0], first[WIDTH][0]), channels, max(bits[0], 8), alpha, plain, used, order)


def check_readable(tags: Tags) -> None:
    """ImageError where more than OpenCV can be told would have to be known of the numbers."""
    if (light := tags.get(PHOTOMETRIC, (BLACK_IS_ZERO,))[0]) not in (BLACK_IS_ZERO, RGB, SEPARATED):
        raise ImageError(f"has photometric interpretation {light}; 1 (black is zero) and 2 (RGB) are read")
    if tags.get(COMPRESSION, (1,))[0] in JPEG:
        raise ImageError("is compressed as JPEG; in 16 bits or with several channels other methods are read")
    if tags.get(TURNED, (1,))[0] != 1:
        raise ImageError(f"has orientation {tags[TURNED][0]}; save it upright")
    if tags.get(PREDICTOR, (1,))[0] not in (1, 2):
        raise ImageError(f"has predictor {tags[PREDICTOR][0]}; 1 and 2 are read")


def check_ends(pages: list[Tags], length: int) -> None:
    """ImageError where strips or tiles lie outside of the file."""
    for tags in pages:
        starts = tags.get(STRIPS) or tags.get(TILES, ())
        counts = tags.get(STRIP_BYTES) or tags.get(TILE_BYTES) or (0,) * len(starts)
        known = starts and len(starts) == len(counts) and {WIDTH, LENGTH} <= tags.keys()
        if not known or max(map(sum, zip(starts, counts, strict=True))) > length:
            raise ImageError(BROKEN)


def directories(data: bytes) -> tuple[str, list[Tags]]:
    """(byte order, the tags that are used of each page; no reduced copies and masks)."""
    order, big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    word, count, entry, step = ("Q", "Q", "HHQ", 20) if big else ("I", "H", "HHI", 12)
    pages: list[Tags] = []
    seen: set[int] = set()
    try:
        at = struct.unpack_from(order + word, data, 8 if big else 4)[0]
        while at and at not in seen and len(seen) <= 4 * CHANNELS:
            seen.add(at)
            entries = struct.unpack_from(order + count, data, at)[0]
            first = at + struct.calcsize(order + count)
            tags: Tags = {}
            for spot in range(first, first + step * entries, step):
                tag, kind, number = struct.unpack_from(order + entry, data, spot)
                if tag in USED and kind in TYPES:
                    form = f"{order}{number}{TYPES[kind]}"
                    inside = spot + step - struct.calcsize(order + word)
                    fits = struct.calcsize(form) <= struct.calcsize(order + word)
                    tags[tag] = struct.unpack_from(
                        form, data, inside if fits else struct.unpack_from(order + word, data, inside)[0]
                    )
            if not tags.get(SUBFILE, (0,))[0] & 5:
                pages.append(tags)
            at = struct.unpack_from(order + word, data, first + step * entries)[0]
    except (struct.error, MemoryError):
        raise ImageError(BROKEN) from None
    if not pages:
        raise ImageError(BROKEN)
    return order, pages


def decode_tiff(data: Bytes, found: Layout) -> Image | None:
    """All channels as stored, [H,W,C]; None where the samples cannot be decoded."""
    (height, width), channels, tags = found.size, found.channels, found.pages[0]
    planes = [singled(page, found.bits) for page in found.pages]
    together = len(planes) == 1 and channels > 1 and tags.get(PLANAR, (1,))[0] == 1
    if together:
        planes[0][WIDTH] = (width * channels,)
        planes[0].pop(PREDICTOR, None)
        if TILE_WIDTH in tags:
            planes[0][TILE_WIDTH] = (tags[TILE_WIDTH][0] * channels,)
    elif len(planes) < channels:
        planes = apart(planes[0], channels)
    try:
        file = np.frombuffer(described(data.tobytes(), planes, found.order), np.uint8)
        good, mats = cv2.imdecodemulti(file, cv2.IMREAD_UNCHANGED)
    except (struct.error, cv2.error):  # a size that no picture has, or a place beyond 4 GiB
        return None
    want = (height, width * channels if together else width)
    if not good or [m.shape for m in mats] != [want] * len(planes):
        return None
    image: Image = np.asarray(np.stack(mats, 2), np.uint16 if found.bits == 16 else np.uint8)
    if not together:
        return image
    image = image.reshape(height, width, channels)
    if tags.get(PREDICTOR, (1,))[0] == 2:  # differences to the pixel on the left, from the start of each strip or tile
        step = tags.get(TILE_WIDTH, (width,))[0]
        for x in range(0, width, step):
            part = image[:, x : x + step]
            np.add.accumulate(part, 1, image.dtype, out=part)
    return image


def singled(tags: Tags, bits: int) -> Tags:
    """The tags of a page of one channel with the same strips or tiles."""
    kept = {t: v for t, v in tags.items() if t not in (SUBFILE, EXTRA, PLANAR, TURNED)}
    return kept | {SAMPLES: (1,), BITS: (bits,), FORMAT: (1,), PHOTOMETRIC: (BLACK_IS_ZERO,)}


def apart(tags: Tags, channels: int) -> list[Tags]:
    """A page for each channel, where the strips or tiles of one follow those of another."""
    lists = [t for t in (STRIPS, STRIP_BYTES, TILES, TILE_BYTES) if t in tags]
    each = len(tags[lists[0]]) // channels
    return [tags | {t: tags[t][c * each : (c + 1) * each] for t in lists} for c in range(channels)]


def described(data: bytes, pages: list[Tags], order: str) -> bytes:
    """The bytes of a file with directories for these pages, in place of its own."""
    start = len(data) + len(data) % 2
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    out = bytearray(head + data[8:] + b"\0" * (start - len(data)))
    for i, tags in enumerate(pages):
        after = len(out) + 2 + 12 * len(tags) + 4
        entries, beyond = b"", b""
        for tag in sorted(tags):
            values = struct.pack(f"{order}{len(tags[tag])}I", *tags[tag])
            spot = values if len(values) == 4 else struct.pack(order + "I", after + len(beyond))
            beyond += values if len(values) > 4 else b""
            entries += struct.pack(order + "HHI", tag, 4, len(tags[tag])) + spot
        following = after + len(beyond) if i + 1 < len(pages) else 0
        out += struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", following) + beyond
    return bytes(out)


def encode_tiff(image: npt.NDArray[Any]) -> bytes:
    """uint8 or uint16 [H,W,C] -> a TIFF without compression, the channels of a pixel side by side."""
    height, width, channels = image.shape
    samples = np.ascontiguousarray(image, image.dtype.newbyteorder("<")).tobytes()
    tags: Tags = {
        WIDTH: (width,), LENGTH: (height,), BITS: (8 * image.itemsize,) * channels, COMPRESSION: (1,),
        PHOTOMETRIC: (BLACK_IS_ZERO,), STRIPS: (8,), SAMPLES: (channels,), ROWS: (height,),
        STRIP_BYTES: (len(samples),), PLANAR: (1,), FORMAT: (1,) * channels,
    }  # fmt: skip
    if channels > 1:
        tags[EXTRA] = (0,) * (channels - 1)
    return described(b"II*\0\0\0\0\0" + samples, [tags], "<")
