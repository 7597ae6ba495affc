"""TIFF: every number of channels, depth, order and packing that is read, against pictures written here by the book."""

import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest

from utils.images import tiff
from utils.images.read import decode, examine, form
from utils.images.tiff import ImageError, encode_tiff

H, W = 21, 35


def picture(channels: int, dtype: Any = np.uint16) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, np.iinfo(dtype).max + 1, (H, W, channels)).astype(dtype)


def as_data(file: bytes) -> np.ndarray:
    return np.frombuffer(file, np.uint8)


def written(
    image: np.ndarray, *, order: str = "<", planar: bool = False, tile: int = 0, predictor: bool = False,
    packed: bool = True, more: dict[int, tuple[int, ...]] | None = None, big: bool = False,
) -> bytes:  # fmt: skip
    """A TIFF in strips of 8 rows or in square tiles, optionally planar, deflated, with differences, in either order."""
    planes = [image[..., c : c + 1] for c in range(image.shape[2])] if planar else [image]
    rows, columns = (tile, tile) if tile else (8, W)
    out, starts, counts = bytearray(16), [], []
    for plane in planes:
        for y in range(0, H, rows):
            for x in range(0, W, columns):
                block = plane[y : y + rows, x : x + columns]
                if tile:
                    block = np.pad(block, ((0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0)))
                if predictor:
                    block = np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1]))
                part = block.astype(block.dtype.newbyteorder(order)).tobytes()
                part = zlib.compress(part) if packed else part
                starts.append(len(out))
                counts.append(len(part))
                out += part + b"\0" * (len(part) % 2)
    channels = image.shape[2]
    tags = {
        tiff.WIDTH: (W,), tiff.LENGTH: (H,), tiff.BITS: (8 * image.itemsize,) * channels,
        tiff.COMPRESSION: (8 if packed else 1,), tiff.PHOTOMETRIC: (1,), tiff.SAMPLES: (channels,),
        tiff.PLANAR: (2 if planar else 1,), tiff.FORMAT: (1,) * channels,
    }  # fmt: skip
    tags |= {tiff.PREDICTOR: (2,)} if predictor else {}
    blocks = (tiff.TILES, tiff.TILE_BYTES) if tile else (tiff.STRIPS, tiff.STRIP_BYTES)
    tags |= dict(zip(blocks, (tuple(starts), tuple(counts)), strict=True))
    tags |= {tiff.TILE_WIDTH: (tile,), tiff.TILE_LENGTH: (tile,)} if tile else {tiff.ROWS: (8,)}
    tags |= more or {}
    return big_file(bytes(out), tags, order) if big else tiff.described(bytes(out), [tags], order)


def big_file(data: bytes, tags: dict[int, tuple[int, ...]], order: str) -> bytes:
    """The same as BigTIFF: offsets of 64 bits, values as LONG8."""
    head = (b"II+\0" if order == "<" else b"MM\0+") + struct.pack(order + "HHQ", 8, 0, len(data))
    after, entries, beyond = len(data) + 8 + 20 * len(tags) + 8, b"", b""
    for tag in sorted(tags):
        values = struct.pack(f"{order}{len(tags[tag])}Q", *tags[tag])
        spot = values if len(values) == 8 else struct.pack(order + "Q", after + len(beyond))
        beyond += values if len(values) > 8 else b""
        entries += struct.pack(order + "HHQ", tag, 16, len(tags[tag])) + spot
    return head + data[16:] + struct.pack(order + "Q", len(tags)) + entries + bytes(8) + beyond


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", range(1, 9))
def test_every_number_of_channels(channels: int, dtype: Any) -> None:
    image = picture(channels, dtype)
    files = [encode_tiff(image), written(image), written(image, predictor=True), written(image, planar=True)]
    files += [written(image, planar=True, predictor=True), written(image, tile=16), written(image, order=">")]
    files += [written(image, order=">", predictor=True, tile=16), written(image, planar=True, tile=16, predictor=True)]
    files += [written(image, big=True), written(image, order=">", big=True, packed=False)]
    for i, file in enumerate(files):
        size, found = examine(as_data(file))
        assert (size, found) == ((H, W), (channels, 8 * image.itemsize, False)), i
        again = decode(as_data(file), channels=channels)
        assert again is not None and again.dtype == dtype and np.array_equal(again, image), i
        assert channels in (1, 3) or decode(as_data(file)) is None


@pytest.mark.parametrize("packing", [1, 5, 8, 32773], ids=["none", "LZW", "deflate", "PackBits"])
def test_packings_as_opencv_writes_them(packing: int) -> None:
    """Colour in the order of the file; the rows of seven channels side by side, packed as one channel, described as
    seven."""
    image = picture(3)
    file = cv2.imencode(".tiff", image[..., ::-1], [cv2.IMWRITE_TIFF_COMPRESSION, packing])[1]
    again = decode(file)
    assert again is not None and again.dtype == np.uint16 and np.array_equal(again, image)
    image = picture(7)
    options = [cv2.IMWRITE_TIFF_COMPRESSION, packing, cv2.IMWRITE_TIFF_PREDICTOR, 1]
    one = cv2.imencode(".tiff", image.reshape(H, -1), options)[1].tobytes()
    order, (tags,) = tiff.directories(one)
    tags |= {tiff.WIDTH: (W,), tiff.SAMPLES: (7,), tiff.BITS: (16,) * 7, tiff.FORMAT: (1,) * 7}
    again = decode(as_data(tiff.described(one, [tags], order)), channels=7)
    assert again is not None and np.array_equal(again, image)


def test_pages_are_channels() -> None:
    image = picture(5)
    pages = [np.ascontiguousarray(image[..., c]) for c in range(5)]
    file = cv2.imencodemulti(".tiff", pages)[1]
    assert form(file) == (5, 16, False)
    again = decode(file, channels=5)
    assert again is not None and np.array_equal(again, image)
    pages[3] = pages[3][:-1]
    with pytest.raises(ImageError, match="pages of different sizes"):
        form(cv2.imencodemulti(".tiff", pages)[1])


def test_alpha_is_what_the_file_declares() -> None:
    image = picture(4)
    rgba, four = {tiff.PHOTOMETRIC: (2,), tiff.EXTRA: (2,)}, {tiff.PHOTOMETRIC: (2,), tiff.EXTRA: (0,)}
    again = decode(as_data(written(image, more=rgba)))
    assert again is not None and np.array_equal(again, image[..., :3])
    assert decode(as_data(written(image, more=four))) is None
    for more in (rgba, four):
        whole = decode(as_data(written(image, more=more)), channels=4)
        assert whole is not None and np.array_equal(whole, image)
    grey = picture(2)
    again = decode(as_data(written(grey, more={tiff.EXTRA: (1,)})))
    assert again is not None and np.array_equal(again, np.repeat(grey[..., :1], 3, 2))


BAD = {
    "float": ({tiff.FORMAT: (3,) * 5}, "floating point"),
    "signed": ({tiff.FORMAT: (2,) * 5}, "signed whole numbers"),
    "32 bits": ({tiff.BITS: (32,) * 5}, "32 bits per channel; 8 and 16 are read"),
    "two depths": ({tiff.BITS: (8, 16, 16, 16, 16)}, "8 and 16 bits per channel"),
    "white is zero": ({tiff.PHOTOMETRIC: (0,)}, "photometric interpretation 0"),
    "JPEG": ({tiff.COMPRESSION: (7,)}, "compressed as JPEG"),
    "turned": ({tiff.TURNED: (6,)}, "orientation 6"),
    "predictor": ({tiff.PREDICTOR: (3,)}, "predictor 3"),
    "beyond the end": ({tiff.STRIP_BYTES: (10**6,) * 3}, "corrupt or cut off"),
    "strips of nothing": ({tiff.STRIP_BYTES: (0,) * 3}, "corrupt or cut off"),
    "no picture that large": ({tiff.WIDTH: (2**31,), tiff.LENGTH: (2**31,)}, "corrupt or cut off"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_read_is_said(case: str) -> None:
    more, message = BAD[case]
    with pytest.raises(ImageError, match=message):
        examine(as_data(written(picture(5), more=more)))


def test_nine_channels() -> None:
    with pytest.raises(ImageError, match="has 9 channels; 1 to 8 are read"):
        examine(as_data(written(picture(9))))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_cut_off_file(channels: int) -> None:
    """However much is missing: of the samples, the directory or the header. Here the samples lie behind."""
    image = picture(channels)
    whole = written(image, packed=False)
    order, (tags,) = tiff.directories(whole)
    moved = tags | {tiff.STRIPS: tuple(at + 4000 for at in tags[tiff.STRIPS])}
    start = struct.unpack("<I", whole[4:8])[0]
    file = tiff.described(bytes(16), [moved], order).ljust(4000, b"\0") + whole[:start]
    again = decode(as_data(file), channels=channels)
    assert again is not None and np.array_equal(again, image)
    for cut in (file[:-1], file[:-100], file[:4100], file[:60], file[:10], whole[:-1], whole[:-20]):
        with pytest.raises(ImageError, match="corrupt or cut off"):
            examine(as_data(cut))
        assert decode(as_data(cut), channels=channels) is None
