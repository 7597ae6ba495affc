"""TIFF: every number of channels, depth, order and packing that is read, against pictures written here by the book."""

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from utils.images.read import decode, examine, form
from utils.images.tiff import ImageError, encode_tiff

H, W = 21, 35
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIPS, TURNED, SAMPLES = 256, 257, 258, 259, 262, 273, 274, 277
ROWS, STRIP_BYTES, PLANAR, PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILES, TILE_BYTES = (
    278,
    279,
    284,
    317,
    322,
    323,
    324,
    325,
)
EXTRA, FORMAT = 338, 339


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
        WIDTH: (W,), LENGTH: (H,), BITS: (8 * image.itemsize,) * channels,
        COMPRESSION: (8 if packed else 1,), PHOTOMETRIC: (1,), SAMPLES: (channels,),
        PLANAR: (2 if planar else 1,), FORMAT: (1,) * channels,
    }  # fmt: skip
    tags |= {PREDICTOR: (2,)} if predictor else {}
    blocks = (TILES, TILE_BYTES) if tile else (STRIPS, STRIP_BYTES)
    tags |= dict(zip(blocks, (tuple(starts), tuple(counts)), strict=True))
    tags |= {TILE_WIDTH: (tile,), TILE_LENGTH: (tile,)} if tile else {ROWS: (8,)}
    tags |= more or {}
    return big_file(bytes(out), tags, order) if big else described(bytes(out), [tags], order)


def described(data: bytes, pages: list[dict[int, tuple[int, ...]]], order: str) -> bytes:
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
    with tifffile.TiffFile(io.BytesIO(one)) as read:
        page = read.pages[0]
        tags = {
            WIDTH: (W,), LENGTH: (H,), BITS: (16,) * 7, COMPRESSION: (packing,), PHOTOMETRIC: (1,), SAMPLES: (7,),
            ROWS: (page.rowsperstrip,), STRIPS: page.dataoffsets, STRIP_BYTES: page.databytecounts, PLANAR: (1,),
        }  # fmt: skip
    again = decode(as_data(described(one, [tags], "<")), channels=7)
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
    rgba, four = {PHOTOMETRIC: (2,), EXTRA: (2,)}, {PHOTOMETRIC: (2,), EXTRA: (0,)}
    again = decode(as_data(written(image, more=rgba)))
    assert again is not None and np.array_equal(again, image[..., :3])
    assert decode(as_data(written(image, more=four))) is None
    for more in (rgba, four):
        whole = decode(as_data(written(image, more=more)), channels=4)
        assert whole is not None and np.array_equal(whole, image)
    grey = picture(2)
    again = decode(as_data(written(grey, more={EXTRA: (1,)})))
    assert again is not None and np.array_equal(again, np.repeat(grey[..., :1], 3, 2))


BAD = {
    "signed": ({FORMAT: (2,) * 5}, "signed whole numbers"),
    "32 bits": ({BITS: (32,) * 5}, "32 bits per channel; 8 and 16 are read"),
    "two depths": ({BITS: (8, 16, 16, 16, 16)}, "8 and 16 bits per channel"),
    "CIELAB": ({PHOTOMETRIC: (8,)}, r"photometric interpretation 8 \(CIELAB\)"),
    "YCbCr": ({PHOTOMETRIC: (6,)}, "photometric interpretation 6"),
    "JPEG 2000": ({COMPRESSION: (34712,)}, r"compressed by a method that is not read: JPEG2000 \(34712\)"),
    "unknown compression": ({COMPRESSION: (777,)}, r"compressed by a method that is not read: unknown \(777\)"),
    "predictor": ({PREDICTOR: (34892,)}, "predictor 34892"),
    "beyond the end": ({STRIP_BYTES: (10**6,) * 3}, "corrupt or cut off"),
    "strips of nothing": ({STRIP_BYTES: (0,) * 3}, "is sparse: 3 of its 3 strips are absent"),
    "one strip absent": ({STRIPS: (0, 16, 16)}, "is sparse: 1 of its 3 strips are absent"),
    "too few strips": ({STRIPS: (16,), STRIP_BYTES: (9,)}, "lists 1 of its 3 strips"),
    "no picture that large": ({WIDTH: (2**30,), LENGTH: (2**30,)}, "says it has 1073741824x1073741824 pixels"),
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
    start = struct.unpack("<I", whole[4:8])[0]
    samples = whole[16:start]
    tags = {
        WIDTH: (W,), LENGTH: (H,), BITS: (16,) * channels, COMPRESSION: (1,), PHOTOMETRIC: (1,), ROWS: (H,),
        STRIPS: (4000,), STRIP_BYTES: (H * W * channels * 2,), SAMPLES: (channels,), PLANAR: (1,),
    }  # fmt: skip
    file = described(bytes(16), [tags], "<").ljust(4000, b"\0") + samples[: H * W * channels * 2]
    again = decode(as_data(file), channels=channels)
    assert again is not None and np.array_equal(again, image)
    for cut in (file[:-1], file[:-100], file[:4100], file[:60], file[:10], whole[:-1], whole[:-20]):
        with pytest.raises(ImageError, match=r"corrupt or cut off|lists"):
            examine(as_data(cut))
        assert decode(as_data(cut), channels=channels) is None


def saved(image: np.ndarray, **how: Any) -> bytearray:
    """As tifffile writes it."""
    out = io.BytesIO()
    tifffile.imwrite(out, image, **how)
    return bytearray(out.getvalue())


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_alpha_in_bytes_is_left_out_and_never_multiplied(kind: str) -> None:
    """Also the four bands that GDAL writes, whose fourth it calls alpha."""
    image = picture(4, np.uint8)
    file = as_data(bytes(saved(image, photometric="rgb", extrasamples=[kind])))
    assert np.array_equal(decode(file), image[..., :3])
    assert np.array_equal(decode(file, channels=4), image)


@pytest.mark.parametrize("method", ["zlib", "lzma", "zstd", "lzw", "lerc"])
def test_more_packings_and_what_is_damaged_in_them(method: str) -> None:
    """Nothing that a decoder cannot make sense of becomes pixels. Of LZW, which has no checksum, most is found; data of
    Zstandard without one are not looked through."""
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8), (9, 9), 3)
    for tile in (None, (16, 16), (32, 16)):
        assert np.array_equal(
            decode(as_data(bytes(saved(image, photometric="rgb", compression=method, tile=tile)))), image
        )
    whole = saved(image, photometric="rgb", compression=method, rowsperstrip=16)
    with tifffile.TiffFile(io.BytesIO(bytes(whole))) as read:
        starts, counts = read.pages[0].dataoffsets, read.pages[0].databytecounts
    refused, draw = 0, np.random.default_rng(1)
    for _ in range(30):
        damaged, part = bytearray(whole), draw.integers(len(starts))
        at = starts[part] + draw.integers(counts[part] - 4)
        damaged[at : at + 4] = bytes(draw.integers(0, 256, 4).tolist())
        try:
            examine(as_data(bytes(damaged)))
        except ImageError as error:
            assert "is corrupt" in str(error)
            refused += 1
    assert refused >= {"zstd": 0, "lzw": 20}.get(method, 30)


@pytest.mark.parametrize("tile", [(16, 16), (16, 32), (32, 16)])
def test_small_tiles_without_compression(tile: tuple[int, int]) -> None:
    image = picture(3, np.uint8)
    assert np.array_equal(decode(as_data(bytes(saved(image, photometric="rgb", tile=tile)))), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_come_upright(orientation: int) -> None:
    """As OpenCV turns 8 bits in colour."""
    image = picture(3, np.uint8)
    file = as_data(written(image, more={PHOTOMETRIC: (2,), TURNED: (orientation,)}))
    want = cv2.cvtColor(cv2.imdecode(file, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.array_equal(decode(file), want)
    assert examine(file)[0] == want.shape[:2]
    wide = as_data(written(image.astype(np.uint16), more={PHOTOMETRIC: (2,), TURNED: (orientation,)}))
    assert np.array_equal(decode(wide), want)


def test_floating_point_needs_its_scale() -> None:
    image = np.linspace(-0.5, 1.5, H * W * 3, dtype=np.float32).reshape(H, W, 3)
    file = as_data(bytes(saved(image, photometric="rgb", compression="zlib", predictor=True)))
    assert examine(file)[1] == (3, 32, False)
    assert decode(file) is None
    found = decode(file, scale=(0.0, 1.0))
    assert found is not None and found.dtype == np.uint16
    assert np.array_equal(found, np.rint(image.astype(np.float64).clip(0, 1) * 65535))
    assert decode(as_data(written(picture(3), more={PHOTOMETRIC: (2,)})), scale=(0.0, 1.0)) is None
    image[0, 0, 0] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        examine(as_data(bytes(saved(image, photometric="rgb"))))


HEADERS = {
    "PNG": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 60000, 8, 2, 0, 0, 0) + bytes(20),
    "PNG of one bit": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIB", 13, b"IHDR", 30000, 30000, 1) + bytes(20),
    "BMP": b"BM" + struct.pack("<IIIIiiHH", 100, 0, 54, 40, 100000, -100000, 1, 24) + bytes(60),
    "JPEG": b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, 65500, 65500, 3) + bytes(60),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_speaks_of_too_much_is_not_followed(case: str) -> None:
    with pytest.raises(ImageError, match=r"says it has \d+x\d+ pixels"):
        examine(as_data(HEADERS[case]))
    assert decode(as_data(HEADERS[case])) is None


def test_no_damage_raises_anything_else() -> None:
    draw = np.random.default_rng(0)
    whole = [
        bytes(saved(picture(3), photometric="rgb", compression=c, tile=t))
        for c, t in [("zlib", None), (None, (16, 16))]
    ]
    for i in range(300):
        file = bytearray(whole[i % 2])
        for at in draw.integers(0, 300, 4):
            file[at if i % 3 else -at - 1] = draw.integers(256)
        decode(as_data(bytes(file)))
