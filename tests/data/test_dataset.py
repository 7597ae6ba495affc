"""Reading pictures: the reduced size of JPEGs in training, whole ones in evaluation, the cache that workers share, and
mosaic tiles that are left out because nothing of them is seen."""

import struct
from multiprocessing import Queue
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from utils.config.settings import DataSettings
from utils.data import augment
from utils.data.augment import AugmentParams
from utils.data.dataset import DetectionDataset, Sample
from utils.data.scan import scan_split
from utils.data.spec import read_data
from utils.images.cache import ImageCache
from utils.images.read import decode, image_size, jpeg_frame, read_image, reduced, reduction
from utils.system.errors import UserError

MOSAIC = AugmentParams(mosaic=1.0, translate=0.2, scale=0.9, degrees=20, shear=5, mixup=0.3, fliplr=0.5, hsv_v=0.4)
SIZES = ((240, 320), (256, 192), (128, 128), (97, 400), (60, 80))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A data set of JPEGs, smooth noise in colour, one object each -> its YAML file."""
    draw = np.random.default_rng(5)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for i in range(15):
        h, w = SIZES[i % len(SIZES)]
        noise = draw.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"images/train/{i:02d}.jpg"), cv2.resize(noise, (w, h)))
        (tmp_path / f"labels/train/{i:02d}.txt").write_text(f"{i % 2} .5 .5 .4 .3\n")
    content = {"path": ".", "train": "images/train", "val": "images/train", "names": ["a", "b"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "data.yaml"


def open_set(source: Path, params: AugmentParams | None, size: int = 64, cache: bool = False) -> DetectionDataset:
    scan = scan_split(read_data(source), "train", progress=False)
    return DetectionDataset(scan, DataSettings(img_size=size, batch_size=4, cache_images=cache), params)


def test_reduction_by_hand() -> None:
    table = {
        ((480, 640), (480, 640)): 1, ((480, 640), (240, 321)): 1, ((480, 640), (241, 320)): 1,
        ((480, 640), (240, 320)): 2, ((480, 640), (120, 160)): 4, ((480, 640), (60, 80)): 8,
        ((427, 640), (214, 320)): 1,  # by 2 as 214, for 428: half a pixel too many
        ((427, 640), (107, 160)): 4,  # by 4 as 107, for 428: a quarter of a pixel
        ((425, 640), (107, 160)): 2,  # by 4 as 107, for 428: three quarters; by 2 as 213, for 426: one quarter
        ((427, 640), (43, 64)): 4,  # by 8 as 54, for 432: half a pixel
        ((428, 640), (107, 160)): 4, ((60, 80), (120, 160)): 1, ((4000, 6000), (43, 64)): 8,
    }  # fmt: skip
    assert {case: reduction(*case) for case in table} == table


def test_a_reduced_picture_is_large_enough_and_in_place() -> None:
    """Over many sizes: the largest factor that neither loses pixels nor moves an edge by over 0.3 of one."""
    draw = np.random.default_rng(0)
    kinds = set()
    for _ in range(1000):
        h, w = native = tuple(draw.integers(1, 3000, 2).tolist())
        size = int(draw.integers(1, 1300))
        wanted = (-(-h * size // max(h, w)), -(-w * size // max(h, w)))
        good = [1]
        for factor in (2, 4, 8):
            rows, columns = reduced(native, factor)
            edges = (rows * factor / h - 1) * wanted[0], (columns * factor / w - 1) * wanted[1]
            if rows >= wanted[0] and columns >= wanted[1] and max(edges) <= 0.3:
                good.append(factor)
        assert reduction(native, wanted) == max(good), (native, wanted)
        kinds.add(max(good))
    assert kinds == {1, 2, 4, 8}


@pytest.mark.parametrize("size", [(64, 64), (95, 64), (40, 128)])
@pytest.mark.parametrize("quarter", [False, True])
def test_decoded_sizes(tmp_path: Path, size: tuple[int, int], quarter: bool) -> None:
    """The size of a reduced picture is known before it is decoded, and only JPEGs are reduced."""
    picture = cv2.resize(np.random.default_rng(1).integers(0, 256, (3, 3, 3)).astype(np.uint8), size[::-1])
    coded = cv2.imencode(".jpg", picture)[1].tobytes()
    if quarter:
        coded, size = turned(coded, 6), size[::-1]
    (tmp_path / "a.jpg").write_bytes(coded)
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    whole = read_image(tmp_path / "a.jpg")
    for factor in (1, 2, 4, 8):
        image, png = read_image(tmp_path / "a.jpg", factor), read_image(tmp_path / "a.png", factor)
        assert image is not None and png is not None and whole is not None
        assert image.shape[:2] == reduced(size, factor)
        assert (png == picture[..., ::-1]).all()
        again = cv2.resize(whole, image.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(again.astype(int) - image).mean() < 8  # the same picture, the same way up, the same colours


def turned(coded: bytes, orientation: int) -> bytes:
    """A JPEG with this EXIF orientation (6: a quarter turn)."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIIII", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    return coded[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + coded[2:]


@pytest.mark.parametrize("size", [(64, 64), (95, 64), (60, 61), (7, 3), (250, 31)])
def test_sizes_are_those_of_whole_pictures(size: tuple[int, int]) -> None:
    """However the size was found: from the header, or where that leaves open which side is up, by decoding."""
    picture = cv2.resize(np.random.default_rng(1).integers(0, 256, (3, 3, 3)).astype(np.uint8), size[::-1])
    coded = cv2.imencode(".jpg", picture)[1].tobytes()
    progressive = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    grey = cv2.imencode(".jpg", picture[..., 0])[1].tobytes()
    filled = coded[:2] + b"\xff\xff" + coded[2:]
    tables = coded.index(b"\xff\xc4")  # Huffman tables, whose marker lies among those of frames
    early = coded[:2] + coded[tables : tables + 2 + int.from_bytes(coded[tables + 2 : tables + 4])] + coded[2:]
    for file in (coded, progressive, grey, filled, early, *(turned(coded, way) for way in range(1, 9))):
        data = np.frombuffer(file, np.uint8)
        whole = decode(data)
        assert whole is not None and image_size(data) == whole.shape[:2]
        assert jpeg_frame(file) == (*size, 1 if file is grey else 3)
        for cut in (len(file) - 2, len(file) * 3 // 4):
            assert (image_size(data[:cut]) is None) == (decode(data[:cut]) is None)
    assert image_size(np.frombuffer(turned(coded, 6), np.uint8)) == size[::-1]
    assert image_size(np.frombuffer(coded[: len(coded) * 3 // 4], np.uint8)) is None
    png = cv2.imencode(".png", picture)[1].tobytes()
    assert image_size(np.frombuffer(png, np.uint8)) == size
    assert jpeg_frame(png) is None and jpeg_frame(b"") is None and jpeg_frame(coded[:9]) is None


def test_training_reads_reduced_and_evaluation_whole(source: Path) -> None:
    train, test = open_set(source, AugmentParams()), open_set(source, None)
    factors = []
    for i, file in enumerate(train.files):
        native = cv2.imread(str(file))
        h, w = native.shape[:2]
        size = (-(-64 * h // max(h, w)), -(-64 * w // max(h, w)))
        factors.append(reduction((h, w), size))
        flag = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}[factors[-1]]
        small = cv2.resize(cv2.imread(str(file), flag), size[::-1], interpolation=cv2.INTER_LINEAR)
        assert (train.load(i) == small[..., ::-1]).all()
        exact = cv2.resize(native, size[::-1], interpolation=cv2.INTER_AREA)
        assert (test.load(i) == exact[..., ::-1]).all()
    assert set(factors) == {1, 2, 4}


@pytest.mark.parametrize("params", [None, MOSAIC])
def test_the_cache_holds_what_would_be_decoded(source: Path, params: AugmentParams | None) -> None:
    plain, cached = open_set(source, params), open_set(source, params, cache=True)
    reference = [plain[Sample(1, i)] for i in range(len(plain))]
    for file in plain.files:
        file.unlink()
    for i, item in enumerate(reference):
        again = cached[Sample(1, i)]
        assert torch.equal(item["image"], again["image"]) and torch.equal(item["target"], again["target"])
    with pytest.raises(ValueError, match="read-only"):
        cached.load(0)[0, 0, 0] = 1


def worker(dataset: DetectionDataset, turns: "Queue[int]", results: "Queue[int]") -> None:
    """In another process: a pixel of picture 0, each time when told to look."""
    while turns.get():
        results.put(int(dataset.load(0)[0, 0, 0]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_the_cache(source: Path, method: str) -> None:
    """What the main process writes into the block after the worker started, the worker sees: no copy was made."""
    dataset = open_set(source, MOSAIC, cache=True)
    cache = dataset._cache
    assert isinstance(cache, ImageCache)
    context = torch.multiprocessing.get_context(method)
    turns, results = context.Queue(), context.Queue()
    process = context.Process(target=worker, args=(dataset, turns, results), daemon=True)
    process.start()
    for value in (17, 203):
        cache.block[0] = value
        turns.put(1)
        assert results.get(timeout=120) == value
    turns.put(0)
    process.join(timeout=30)
    assert process.exitcode == 0


@pytest.mark.parametrize("params", [MOSAIC, AugmentParams(mosaic=1.0), AugmentParams(mosaic=1.0, perspective=0.001)])
def test_tiles_out_of_sight_change_nothing(
    source: Path, params: AugmentParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_set(source, params)
    loads: list[int] = []
    original = DetectionDataset.load

    def counted(self: DetectionDataset, index: int) -> np.ndarray:
        loads.append(index)
        return original(self, index)

    monkeypatch.setattr(DetectionDataset, "load", counted)
    items = [dataset[Sample(epoch, i)] for epoch in range(4) for i in range(len(dataset))]
    fewer = len(loads)
    loads.clear()
    monkeypatch.setattr(augment, "visible", lambda matrix, source, target: (-(10**6), -(10**6), 10**6, 10**6))
    for i, item in enumerate(items):
        again = dataset[Sample(i // len(dataset), i % len(dataset))]
        assert torch.equal(item["image"], again["image"]) and torch.equal(item["target"], again["target"])
    assert fewer < len(loads) if not params.perspective else fewer <= len(loads)


def test_visible_by_hand() -> None:
    double = np.diag([2.0, 2.0, 1.0])  # 100 px wide, twice as large, seen through 40x60: 20x30 pixels and the margin
    assert augment.visible(double, (100, 100), (40, 60)) == (0, 0, 32, 22)
    shift = np.array([[1.0, 0, -50], [0, 1, -30], [0, 0, 1]])
    assert augment.visible(shift, (200, 300), (40, 60)) == (48, 28, 112, 72)
    assert augment.visible(np.array([[1.0, 0, 500], [0, 1, 0], [0, 0, 1]]), (200, 300), (40, 60))[::2] == (0, 0)


def test_another_image_in_its_place_is_noticed(source: Path) -> None:
    dataset = open_set(source, MOSAIC)
    other = cv2.imread(str(dataset.files[1]))
    cv2.imwrite(str(dataset.files[0]), other)
    with pytest.raises(UserError, match="has changed or vanished"):
        dataset.load(0)
