"""TIFF pictures of 1 to 8 channels in 8 or 16 bits, or of floating point numbers whose scale is declared.

tifffile reads the directories and puts strips and tiles together, imagecodecs unpacks them (docs/dependencies.md says
why these). Here stands what is taken for a picture, and what is refused by name before anything is unpacked: a kind of
number, compression or colour that is not read, parts that are absent, more pixels than fit. Nothing is filled in:
where a strip or tile is absent or does not unpack to its size, there is no picture.
"""

import io
import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from utils.images.pixels import CHANNELS, Image
from utils.system.errors import UserError, parsing

Bytes = npt.NDArray[np.uint8]
Scale = tuple[float, float]  # the values that are black and full, of files in floating point numbers

COMPRESSIONS = {
    1: "none", 2: "CCITT RLE", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 6: "old JPEG", 7: "JPEG",
    8: "deflate", 32773: "PackBits", 32946: "deflate", 34887: "LERC", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
COLOURS = {0: "white is zero", 1: "black is zero", 2: "RGB", 3: "palette", 5: "separated", 6: "YCbCr in JPEG"}
WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE, YCBCR = 0, 1, 3, 6
MADE_RGB = (6, 7, 50001)  # compressions whose decoder turns YCbCr into RGB
UNCHECKED = {5: "lzw_decode", 32773: "packbits_decode"}  # stop at the wanted size, whatever is left over
USED = {254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347}
SIGNED, FLOAT = 2, 3  # sample formats
REAL = 32  # stands for the bits of floating point numbers
BROKEN = "is corrupt or cut off (it cannot be decoded)"
LARGEST = 1 << 30  # bytes of a decoded picture


class ImageError(UserError):
    """A picture that is not read: what is wrong with it, in words that go on after `the image`."""


@contextmanager
def decoding(reason: str) -> Iterator[None]:
    """Whatever a library raises on foreign bytes becomes an ImageError with this reason and what the library says."""
    try:
        with parsing(reason):
            yield
    except ImageError:
        raise
    except UserError as error:
        raise ImageError(str(error)) from None


class Layout(NamedTuple):
    """What the directories say of the picture."""

    channels: int
    bits: int  # 8 or 16, as it is given out; REAL for floating point numbers, which come as 16
    alpha: bool  # the last channel is declared to be one
    pages: list[Any]  # tifffile.TiffPage: one; or one for each channel


def is_tiff(data: Bytes) -> bool:
    return data[:4].tobytes() in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_size(height: int, width: int, sample_bytes: int) -> None:
    """ImageError for a picture of [height, width, sample_bytes] bytes that is larger than LARGEST, or has no pixels;
    called before anything of it is decoded."""
    if min(height, width, sample_bytes) < 1:
        raise ImageError(BROKEN)
    if height * width * sample_bytes > LARGEST:
        raise ImageError(f"says it has {width}x{height} pixels; decoded, {LARGEST >> 30} GiB is the most that is read")


def layout(data: Bytes) -> Layout:
    """Errors: ImageError where the file is cut off, or of a kind that is not read."""
    with decoding(BROKEN):
        import tifffile  # imported on first use: few data sets are of TIFFs

        logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it finds wrong is raised here, by file
        opened = tifffile.TiffFile(io.BytesIO(data))  # type: ignore[arg-type]  # any buffer will do
        found = islice(opened.pages, 4 * CHANNELS + 1)
        pages: list[Any] = [page for page in found if not int(getattr(page, "subfiletype", 0)) & 5]  # no copies, masks
        return _judged(pages)


def _judged(pages: list[Any]) -> Layout:
    first = pages[0]
    stacked = first.samplesperpixel == 1 and len(pages) > 1
    if stacked and len({(p.imagewidth, p.imagelength, p.bitspersample, p.samplesperpixel) for p in pages}) > 1:
        raise ImageError("has pages of different sizes; pages are read as channels and must be alike")
    channels = len(pages) if stacked else int(first.samplesperpixel)
    used = pages if stacked else [first]
    bits, kind = set(_all(first.tags.get(258), 1)), set(_all(first.tags.get(339), 1))
    real = kind == {FLOAT} and bits <= {16, 32, 64}
    if SIGNED in kind:
        raise ImageError("holds signed whole numbers; whole numbers from 0 on are read")
    if FLOAT in kind and not real:
        raise ImageError("mixes floating point and other numbers; one kind is read")
    if not real and (len(bits) > 1 or not bits <= {1, 2, 4, 8, 16}):
        raise ImageError(f"has {' and '.join(map(str, sorted(bits)))} bits per channel; 8 and 16 are read")
    if channels > CHANNELS:
        raise ImageError(f"has {channels} channels; 1 to {CHANNELS} are read")
    for page in used:
        _check(page, channels)
    extra = first.extrasamples
    if first.photometric == PALETTE:
        channels = 3
    alpha = bool(extra) and int(extra[-1]) in (1, 2)
    return Layout(channels, REAL if real else max(8, *bits), alpha, used)


def _all(tag: Any, default: int) -> tuple[int, ...]:
    """The values of a tag."""
    value = default if tag is None else tag.value
    return tuple(map(int, value)) if isinstance(value, tuple) else (int(value),)


def _check(page: Any, channels: int) -> None:
    """ImageError for a page that is not read, by its directory alone."""
    check_size(int(page.imagelength), int(page.imagewidth), channels * max(int(page.bitspersample) // 8, 1))
    _check_directory(page)
    packing, light = int(page.compression), int(page.photometric)
    if packing not in COMPRESSIONS:
        name = getattr(page.compression, "name", "unknown")
        read = ", ".join(dict.fromkeys(COMPRESSIONS.values()))
        raise ImageError(f"is compressed by a method that is not read: {name} ({packing}); read are: {read}")
    if light not in COLOURS or (light == YCBCR and packing not in MADE_RGB):
        name = getattr(page.photometric, "name", "unknown")
        raise ImageError(f"has photometric interpretation {light} ({name}); read are: {', '.join(COLOURS.values())}")
    if int(page.predictor) not in (1, 2, 3):
        raise ImageError(f"has predictor {int(page.predictor)}; 1, 2 and 3 are read")
    tile = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else (1, 1)
    if max(tile) > 1:
        check_size(*tile, channels * max(int(page.bitspersample) // 8, 1))
    parts, starts, counts = int(np.prod(page.chunked)), page.dataoffsets, page.databytecounts
    kind = "tiles" if page.is_tiled else "strips"
    if (known := min(len(starts), len(counts))) < parts:
        raise ImageError(f"lists {known} of its {parts} {kind}; it is corrupt or cut off")
    absent = sum(not (at and size) for at, size in zip(starts[:parts], counts[:parts], strict=True))
    if absent:
        raise ImageError(f"is sparse: {absent} of its {parts} {kind} are absent; write it whole")
    if max(at + size for at, size in zip(starts[:parts], counts[:parts], strict=True)) > page.parent.filehandle.size:
        raise ImageError(BROKEN)


def _check_directory(page: Any) -> None:
    """ImageError where an entry that says what the numbers are lies beyond the file: tifffile goes on without it."""
    form, handle = page.parent.tiff, page.parent.filehandle
    handle.seek(page.offset)
    count = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))[0]
    entries = handle.read(count * form.tagsize)
    codes = {struct.unpack_from(form.byteorder + "H", entries, i * form.tagsize)[0] for i in range(count)}
    if lost := codes & USED - set(page.tags.keys()):
        raise ImageError(f"is corrupt or cut off: entries {sorted(lost)} of its directory cannot be read")


def decode_tiff(found: Layout, scale: Scale | None = None, thorough: bool = False) -> Image:
    """All channels [H,W,C] upright: as stored, a palette looked up, fewer than 8 bits stretched to 8.

    scale: the values (lo, hi) that become 0 and 65535 of floating point numbers, which are clipped to them. thorough:
    also find what unpacks to more than its size, at the price of unpacking twice. Errors: ImageError.
    """
    packing = COMPRESSIONS[int(found.pages[0].compression)]
    with decoding(f"is corrupt: its data ({packing}) cannot be decoded"):
        planes = [_plane(page, thorough) for page in found.pages]
    image = np.concatenate(planes, 2) if len(planes) > 1 else planes[0]
    if found.bits == REAL:
        image = _scaled(image, scale or (0.0, 1.0))
    return np.ascontiguousarray(_upright(image, int(_all(found.pages[0].tags.get(274), 1)[0])))


def _plane(page: Any, thorough: bool) -> npt.NDArray[np.generic]:
    """The samples of one page [H,W,C]."""
    if thorough and (name := UNCHECKED.get(int(page.compression))):
        _check_lengths(page, name)
    image: npt.NDArray[np.generic] = page.asarray(maxworkers=1)
    if int(page.planarconfig) == 2 and image.ndim == 3:
        image = image.transpose(1, 2, 0)
    image = image.reshape(int(page.imagelength), int(page.imagewidth), -1)
    bits, light = int(page.bitspersample), int(page.photometric)
    if light == PALETTE:
        return _looked_up(image[..., 0], page.colormap)
    if bits < 8:
        image = image.astype(np.uint8) * (255 // (2**bits - 1))
    elif image.dtype.kind != "f":
        image = image.astype(f"u{bits // 8}", copy=False)
    return np.invert(image) if light == WHITE_IS_ZERO and image.dtype.kind == "u" else image


def _check_lengths(page: Any, name: str) -> None:
    """ImageError where a strip or tile unpacks to another size than it must have."""
    import imagecodecs

    handle, decode = page.parent.filehandle, getattr(imagecodecs, name)
    rows, columns = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else (int(page.rowsperstrip), 0)
    samples = 1 if int(page.planarconfig) == 2 else int(page.samplesperpixel)
    stride = -(-(columns or int(page.imagewidth)) * samples * int(page.bitspersample) // 8)
    strips = -(-int(page.imagelength) // rows)
    for i, (at, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
        last = int(page.imagelength) - rows * (strips - 1)
        wanted = stride * (rows if page.is_tiled or i % strips < strips - 1 else last)
        handle.seek(at)
        got = len(decode(handle.read(size), out=wanted + 64))
        if got != wanted:
            raise ImageError(f"is corrupt: part {i + 1} of its data unpacks to {got} bytes in place of {wanted}")


def _looked_up(index: npt.NDArray[np.generic], table: npt.NDArray[np.generic]) -> Image:
    """Index [H,W] into a palette [3,n] of 16 bits, or of 8 where a writer took it so -> RGB [H,W,3] uint8."""
    wide = table.astype(np.uint32)
    colours = (wide >> 8 if wide.max() >= 256 else wide).astype(np.uint8)
    return np.asarray(colours.T[index], np.uint8)


def _scaled(image: npt.NDArray[np.generic], scale: Scale) -> Image:
    low, high = scale
    if not np.isfinite(image).all():
        raise ImageError("holds values that are no numbers (NaN or infinity): no colour can be given to them")
    share = ((image.astype(np.float64) - low) / (high - low)).clip(0, 1)
    return np.asarray(np.rint(share * 65535), np.uint16)


def _upright(image: npt.NDArray[np.generic], orientation: int) -> npt.NDArray[np.generic]:
    """As the tag Orientation (1 to 8) says that the rows and columns lie."""
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1] if orientation in (2, 3) else image[::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1] if orientation in (3, 4) else image[:, ::-1]
    return image.transpose(1, 0, 2) if orientation in (5, 6, 7, 8) else image


def encode_tiff(image: npt.NDArray[np.generic]) -> bytes:
    """uint8 or uint16 [H,W,C] -> a TIFF without compression, the channels of a pixel side by side."""
    import tifffile

    out = io.BytesIO()
    tifffile.imwrite(
        out, image if image.shape[2] > 1 else image[..., 0], photometric="minisblack", planarconfig="contig",
        metadata=None, software=False,
    )  # fmt: skip
    return out.getvalue()
