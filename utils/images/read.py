"""Pictures from files: decoded whole, or a JPEG at a half, a quarter or an eighth of its size where that suffices.

A JPEG stores blocks of 8x8 frequencies; leaving out the high ones gives the smaller picture at once, free of the
aliasing that sampling a large picture has, and without its full-size pixels ever being made. Pixels differ a little
from full decoding with a resize, so only training reads so; evaluation decodes everything.

Images [H,W,C] in the depth of their file, uint8 or uint16, colour as RGB; sizes are (height, width). Asked for three
channels, any kind of colour or grey picture is turned into RGB (grey repeated, alpha left out); asked for another
number, a file must hold that many. docs/images.md has the rules.
"""

import os
import stat
import struct
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from utils.images.pixels import Image
from utils.images.tiff import BROKEN, REAL, ImageError, Scale, check_size, decode_tiff, decoding, is_tiff, layout

SLACK = 0.3  # pixels of the picture that is wanted
FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
GREY_FLAGS = {
    1: cv2.IMREAD_GRAYSCALE,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; a palette holds colours
Bytes = npt.NDArray[np.uint8]


class Form(NamedTuple):
    """Of what a file's picture is made."""

    channels: int  # alpha included
    bits: int  # 8 or 16; REAL for floating point numbers of any length
    alpha: bool  # the last channel is one

    @property
    def real(self) -> bool:
        """Floating point numbers."""
        return self.bits == REAL

    def gives(self, channels: int) -> bool:
        """Whether a picture of so many channels can be made of it."""
        return self.channels == channels or (channels == 3 and self.channels - self.alpha in (1, 3))

    @property
    def said(self) -> str:
        """`1 channel`, `5 channels`, `2 channels, one of them alpha`."""
        count = f"{self.channels} channel{'s' * (self.channels != 1)}"
        return f"{count}, one of them alpha" if self.alpha else count


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


def read_image(path: Path, factor: int = 1, channels: int = 3, scale: Scale | None = None) -> Image | None:
    """EXIF rotation applied to grey and RGB; None when it cannot be read or decoded, or has not so many channels. A
    JPEG comes `reduced` by `factor`, any other format whole. scale: see decode_tiff."""
    try:
        return picture(read_bytes(path), factor, channels, scale)
    except ImageError:
        return None


def read_any(path: Path) -> Image | None:
    """As RGB where it gives that, else with the channels that the file has; None as `read_image`."""
    try:
        data = read_bytes(path)
        found = form(data)
        return picture(data, 1, 3 if found.gives(3) else found.channels)
    except ImageError:
        return None


def read_bytes(path: Path) -> Bytes:
    """Of a file; anything else under its name (a FIFO, a device, a folder) is not waited for. Errors: ImageError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError("is no file (a folder, a pipe or a device)")
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}") from None


def fault(path: Path, channels: int, scale: Scale | None = None) -> str:
    """Why `read_image` gives nothing, in words that go on after `the image`."""
    try:
        data = read_bytes(path)
        examine(data)
        picture(data, 1, channels, scale)
    except ImageError as error:
        return str(error)
    return BROKEN


def decode(data: Bytes, factor: int = 1, channels: int = 3, scale: Scale | None = None) -> Image | None:
    """As `read_image`, from the bytes of a file."""
    try:
        return picture(data, factor, channels, scale)
    except ImageError:
        return None


def picture(
    data: Bytes, factor: int = 1, channels: int = 3, scale: Scale | None = None, thorough: bool = False
) -> Image:
    """As `decode`; thorough: see decode_tiff. Errors: ImageError, which says why there is no picture."""
    if is_tiff(data):
        tiff = layout(data)
        found = Form(tiff.channels, tiff.bits, tiff.alpha)
        check_form(found, channels, scale)
        return _of_channels(decode_tiff(tiff, scale, thorough), found, channels)
    check_declared(data)
    jpeg, deep = is_jpeg(data), 0
    if not jpeg or channels != 3:  # any JPEG gives colour, whatever its header says
        found = form(data)
        check_form(found, channels, scale)
        deep = cv2.IMREAD_ANYDEPTH if found.bits > 8 else 0
    if channels in (2, 4):  # PNG: grey or colour, and alpha
        every = _imdecode(data, cv2.IMREAD_UNCHANGED)
        return _as_read(every[..., [0, 3] if channels == 2 else [2, 1, 0, 3]])
    flags = FLAGS if channels == 3 else GREY_FLAGS
    image = _imdecode(data, flags[factor if jpeg else 1] | deep)
    return _as_read(cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if channels == 3 else image[..., None])


def check_form(found: Form, channels: int, scale: Scale | None) -> None:
    """ImageError where a file has not the channels that are wanted, or other numbers than are declared."""
    if found.real != (scale is not None):
        raise ImageError(scale_fault(found))
    if not found.gives(channels):
        raise ImageError(f"has {found.said}; {channels} are wanted")


def scale_fault(found: Form) -> str:
    """What is wrong where floating point numbers come without `scale`, or others with it."""
    if found.real:
        return "holds floating point numbers; say in the data YAML which are black and white, e.g. scale: [0, 1]"
    return f"holds whole numbers of {found.bits} bits, and the data YAML has a `scale`, which is for floating point"


def check_declared(data: Bytes) -> None:
    """ImageError where a header speaks of more pixels than are read; a few bytes can do so."""
    head = data[:32].tobytes()
    if head[:8] == PNG and len(head) > 25:
        width, height = struct.unpack(">II", head[16:24])
        channels = PNG_CHANNELS.get(head[25], 4) * (2 if head[24] == 16 else 1)
        check_size(height, width, max(channels, 3))
    elif head[:2] == b"BM" and len(head) > 26:
        old = struct.unpack("<I", head[14:18])[0] == 12
        width, height = struct.unpack("<HH", head[18:22]) if old else struct.unpack("<ii", head[18:26])
        check_size(abs(height), abs(width), 3)
    elif (frame := jpeg_frame(data.tobytes())) is not None:
        check_size(frame[0], frame[1], 3)


def _imdecode(data: Bytes, flags: int) -> npt.NDArray[Any]:
    """Errors: ImageError where OpenCV makes nothing of the bytes, or raises."""
    with decoding(BROKEN):
        image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise ImageError(BROKEN)
    return image


def _as_read(image: npt.NDArray[np.generic]) -> Image:
    return np.ascontiguousarray(image, np.uint16 if image.dtype == np.uint16 else np.uint8)


def _of_channels(image: Image, found: Form, channels: int) -> Image:
    """All channels, or RGB without alpha, grey repeated."""
    if image.shape[2] == channels:
        return image
    image = image[..., : image.shape[2] - found.alpha]
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], channels)))


def form(data: Bytes) -> Form:
    """What the header says. Errors: ImageError for what is never read."""
    if is_tiff(data):
        found = layout(data)
        return Form(found.channels, found.bits, found.alpha)
    if data[:8].tobytes() == PNG and len(data) > 25:
        kind = int(data[25])
        return Form(PNG_CHANNELS.get(kind, 3), 16 if data[24] == 16 else 8, kind in (4, 6))
    if is_jpeg(data) and (frame := jpeg_frame(data.tobytes())) is not None and frame[2] == 1:
        return Form(1, 8, False)
    return Form(3, 8, False)


def examine(data: Bytes) -> tuple[tuple[int, int], Form]:
    """(h, w), EXIF rotation applied, and form of the picture in a file's bytes, which can be decoded to its end.
    Errors: ImageError.

    A JPEG is decoded at an eighth of its size: this reads all of its data, as nothing less finds a file that was cut
    off, in half the time."""
    if is_tiff(data):
        tiff = layout(data)
        image = decode_tiff(tiff, thorough=True)
        return (image.shape[0], image.shape[1]), Form(tiff.channels, tiff.bits, tiff.alpha)
    check_declared(data)
    found = form(data)
    if (frame := jpeg_frame(data.tobytes())) is not None:
        stored, small = frame[:2], _imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8)
        fitting = {size for size in (stored, stored[::-1]) if reduced(size, 8) == small.shape}
        if len(fitting) == 1:  # else upright and turned look alike at this size
            return fitting.pop(), found
    image = picture(data, 1, 3 if found.gives(3) else found.channels)
    return (image.shape[0], image.shape[1]), found


def image_size(data: Bytes) -> tuple[int, int] | None:
    """The size that `examine` finds; None for what is not read."""
    try:
        return examine(data)[0]
    except ImageError:
        return None


def is_jpeg(data: Bytes) -> bool:
    return data[:3].tobytes() == b"\xff\xd8\xff"


def jpeg_frame(data: bytes) -> tuple[int, int, int] | None:
    """(h, w, components) as a JPEG's frame header gives them, before EXIF rotation; None for anything else (ITU-T T.81,
    B.2.2)."""
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9]), data[at + 9]
        # a marker may be preceded by any number of fill bytes 0xFF
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
