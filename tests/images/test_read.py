"""Picture files of every form, and those that are none."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.images.test_pixels import make_set, noise, open_set
from utils.data.dataset import Sample
from utils.data.scan import scan_split
from utils.data.spec import read_data
from utils.images.read import decode, examine, form
from utils.images.tiff import ImageError, encode_tiff
from utils.system.errors import UserError


def png(depth: int, kind: int, samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> np.ndarray:
    """A PNG of this bit depth and colour type, further chunks before the samples [H,W,n]."""
    rows = samples.astype(">u2" if depth == 16 else np.uint8)
    h, w = samples.shape[:2]
    parts = [(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return np.frombuffer(b"\x89PNG\r\n\x1a\n" + b"".join(body), np.uint8)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", [0, 2, 4, 6])
def test_png_of_every_kind(depth: int, kind: int) -> None:
    """Grey, colour, and both with alpha: as stored in their own number of channels, as RGB in three, else nothing."""
    count = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    samples = (noise(count, (9, 7)) >> (16 - depth)).astype(np.uint16 if depth == 16 else np.uint8)
    data = png(depth, kind, samples)
    assert examine(data) == ((9, 7), (count, depth, kind in (4, 6)))
    for channels in range(1, 9):
        image = decode(data, channels=channels)
        if channels == count:
            want: np.ndarray | None = samples
        elif channels == 3:
            want = samples[..., :3] if count == 4 else np.repeat(samples[..., :1], 3, 2)
        else:
            want = None
        assert (image is None) == (want is None)
        assert image is None or (image.dtype == samples.dtype and np.array_equal(image, want))


def test_palettes_and_grey_jpegs() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 3)).astype(np.uint8)
    index = np.random.default_rng(1).integers(0, 4, (9, 7, 1))
    data = png(8, 3, index, (b"PLTE", colours.tobytes()))
    assert form(data) == (3, 8, False)
    image = decode(data)
    assert image is not None and np.array_equal(image, colours[index[..., 0]]) and decode(data, channels=1) is None
    grey = cv2.imencode(".jpg", cv2.resize(colours[..., :1], (64, 48)))[1]
    one, three = decode(grey, channels=1), decode(grey)
    assert form(grey) == (1, 8, False) and one is not None and three is not None
    assert np.array_equal(np.repeat(one, 3, 2), three)
    small = decode(grey, 4, channels=1)
    assert small is not None and small.shape == (12, 16, 1)
    assert decode(cv2.imencode(".jpg", image)[1], channels=1) is None


def test_a_cut_off_png() -> None:
    for kind, count in ((0, 1), (2, 3), (6, 4)):
        data = png(16, kind, noise(count))
        for cut in (data[: len(data) // 2], data[:30], data[:10], data[:0]):
            with pytest.raises(ImageError, match="corrupt or cut off"):
                examine(cut)
            assert decode(cut, channels=count) is None


def test_files_with_other_channels_are_named(tmp_path: Path) -> None:
    source = make_set(tmp_path, [noise(5), noise(5), noise(1), noise(3)], channels=5)
    with pytest.raises(UserError) as error:
        scan_split(read_data(source), "train", progress=False)
    for line in ("02.png: the image has 1 channel;", "03.png: the image has 3 channels;", "data.yaml says channels: 5"):
        assert line in str(error.value)
    scan = scan_split(read_data(source), "train", on_bad_data="skip", progress=False)
    assert len(scan.files) == 2 and len(scan.problems) == 2 and scan.pixels == (5, 16, False)
    dataset = open_set(make_set(tmp_path / "b", [noise(5)], channels=5), None)
    dataset.files[0].write_bytes(encode_tiff(noise(4)))
    with pytest.raises(UserError, match="has changed or vanished"):
        dataset[Sample(0, 0)]
