"""Augmentation: boxes go where the pixels go. White squares are drawn, moved, found and compared with their boxes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.data.pictures import make_set, marked, pixel_boxes, white_boxes
from utils.config.settings import DataSettings
from utils.data import augment
from utils.data.augment import AugmentParams, Objects
from utils.data.dataset import DetectionDataset, Sample
from utils.data.labels import Labels, parse
from utils.data.scan import scan_split
from utils.data.spec import read_data
from utils.system.rng import rng

GEOMETRY = {"translate": 0.1, "scale": 0.4, "fliplr": 0.5, "flipud": 0.5}


def objects_of(text: str, size: tuple[int, int]) -> Objects:
    labels, problems = parse(text, "test")
    assert not problems
    return Objects.of(labels).moved((size[1], size[0]), (0, 0))


def agree(target: np.ndarray, image: np.ndarray, slack: float) -> int:
    """Each white region of 6 px and more must have a box and the other way round -> how many pairs were compared.

    A region cut by a tile's or picture's edge may be too small for a box (see `worth_keeping`)."""
    size = (image.shape[1], image.shape[2])
    boxes, found = pixel_boxes(target, size), white_boxes(image)
    for box in boxes:
        if (box[2:] - box[:2]).min() >= 4:
            assert np.abs(found - box).max(1).min(initial=np.inf) <= slack, (box, found)
    for region in found:
        if (region[2:] - region[:2]).min() >= 10:
            assert np.abs(boxes - region).max(1).min(initial=np.inf) <= slack, (region, boxes)
    return len(boxes)


def open_set(tmp_path: Path, params: AugmentParams | None, *, scale: int = 1, **options: object) -> DetectionDataset:
    source = make_set(tmp_path, scale=scale)
    scan = scan_split(read_data(source), "train", progress=False)
    return DetectionDataset(scan, DataSettings(img_size=96, batch_size=4, **options), params)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "rect", "share"),
    [
        (AugmentParams(**GEOMETRY), False, 1),
        (AugmentParams(**GEOMETRY), True, 1),
        (AugmentParams(**GEOMETRY, mosaic=1.0), False, 1),
        (AugmentParams(**GEOMETRY, mosaic=1.0), False, 9),
        (None, False, 1),
        (None, True, 1),
    ],
)
def test_boxes_follow_the_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: AugmentParams | None, rect: bool, share: int
) -> None:
    monkeypatch.setattr("utils.data.dataset.MOSAIC_9", 1.0 if share == 9 else 0.0)
    dataset = open_set(tmp_path, params, rect=rect, pad=0.5 if rect else 0.0)
    compared, flips = 0, set()
    for epoch in range(4 if params else 1):
        for index in range(len(dataset)):
            item = dataset[Sample(epoch, index)]
            target, image = item["target"].numpy(), item["image"].numpy()
            assert target[:, 1:].min(initial=0) >= 0
            assert (target[:, 1:3] + target[:, 3:] / 2).max(initial=0) <= 1 + 1e-6
            compared += agree(target, image, 1.0)
            if len(target):
                flips.add(float(target[0, 1]) > 0.5)
    assert compared >= (40 if params else 12)
    assert flips == {True, False}


@pytest.mark.parametrize("seed", range(20))
def test_warp_moves_rotated_sheared_and_tilted_boxes(seed: int) -> None:
    """A square's outline under any warp: the extent of its four corners is the extent of its pixels."""
    params = AugmentParams(degrees=40, translate=0.1, scale=0.3, shear=10, perspective=0.001 * (seed % 2))
    image = marked((120, 160), (50, 40, 110, 90))
    objects = objects_of(f"1 {80 / 160} {65 / 120} {60 / 160} {50 / 120}", (120, 160))
    matrix = augment.warp_matrix(rng(seed, "test"), params, (120, 160), (140, 180))
    moved, after = augment.warp(image, objects, matrix, (140, 180))
    assert moved.shape == (140, 180, 3)
    found = white_boxes(moved.transpose(2, 0, 1))
    assert len(found) == len(after) == 1
    assert np.abs(found - after.boxes()).max() <= 1.0
    assert abs(matrix - np.eye(3)).max() > 0.01


def test_points_beyond_the_horizon_are_dropped() -> None:
    matrix = np.array([[1, 0, 0], [0, 1, 0], [-0.01, 0, 1.0]])  # depth 0 at x = 100
    objects = objects_of("0 .1 .5 .1 .5\n1 .8 .05 .3 .1", (160, 160))
    _, after = augment.warp(np.zeros((160, 160, 3), np.uint8), objects, matrix, (160, 1600))
    assert after.classes.tolist() == [0]


def test_worth_keeping_by_hand() -> None:
    before = np.array([[0, 0, 10, 10], [-95, 0, 5, 10], [-60, 0, 40, 10], [0, 0, 2, 10], [0, 0, 90, 4]], np.float32)
    after = before.clip(0)  # left: all; 5 of 100; 40 of 100; 2 px wide; sides 22.5 to 1
    assert augment.worth_keeping(before, after).tolist() == [True, False, True, False, False]


def test_objects_join_select_and_measure() -> None:
    a = objects_of("0 .5 .5 .2 .4\n2 .1 .1 .9 .1 .5 .9", (100, 200))
    b = objects_of("1 .25 .25 .1 .1", (100, 200))
    both = augment.joined([a, b])
    expected = [[80, 30, 120, 70], [20, 10, 180, 90], [40, 20, 60, 30]]
    assert np.allclose(both.boxes(), expected, atol=1e-4)
    assert both.outlined.tolist() == [False, True, False]
    part = both.select(np.array([False, True, True]))
    assert np.allclose(part.boxes(), expected[1:], atol=1e-4)
    assert np.allclose(part.polygon(0), [[20, 10], [180, 10], [100, 90]], atol=1e-4)
    nothing = both.select(np.zeros(3, bool))
    assert nothing.boxes().shape == (0, 4)
    assert augment.joined([nothing, both]).classes.tolist() == [0, 2, 1]


def test_mosaic_tiles_never_overlap_and_stay_whole() -> None:
    for count in (4, 9):
        seen = np.zeros((128, 128), int)
        for seed in range(30):
            draw = np.random.default_rng(seed)
            sizes = [tuple(s) for s in draw.integers(20, 65, (count, 2)).tolist()]
            canvas = np.zeros((128, 128, 3), np.uint8)
            for (h, w), (x, y) in zip(sizes, augment.mosaic_offsets(draw, sizes, 64), strict=True):
                tile = np.zeros_like(canvas)
                augment.paste(tile, np.ones((h, w, 3), np.uint8), x, y)
                canvas += tile
                assert tile.sum() == 3 * max(min(x + w, 128) - max(x, 0), 0) * max(min(y + h, 128) - max(y, 0), 0)
            assert canvas.max() == 1
            seen += canvas[..., 0]
        assert (seen[32:96, 32:96] > 0).all()


def test_mixup_holds_the_boxes_of_both(tmp_path: Path) -> None:
    plain = open_set(tmp_path / "a", AugmentParams(mosaic=1.0))
    mixed = open_set(tmp_path / "b", AugmentParams(mosaic=1.0, mixup=1.0))
    more = 0
    for index in range(12):
        a, b = plain[Sample(0, index)], mixed[Sample(0, index)]
        n = len(a["target"])
        assert torch.equal(a["target"], b["target"][:n])  # the first picture is the same
        more += len(b["target"]) - n
        x, y, w, h = (a["target"][0, 1:] * 96).round().int().tolist() if n else (0, 0, 0, 0)
        if min(w, h) > 4:
            assert 40 < int(b["image"][:, y, x].min()) <= 255  # a white square is still seen, weakly
    assert more > 20


def test_copy_paste_mirrors_outlined_objects_only() -> None:
    size = (100, 200)
    text = "1 .1 .2 .3 .2 .3 .6 .1 .6\n2 .6 .8 .1 .1\n"
    image = marked(size, (20, 20, 60, 60))
    objects = augment.copy_paste(np.random.default_rng(0), image, objects_of(text, size), 1.0)
    assert np.allclose(objects.boxes()[2:], [[140, 20, 180, 60]], atol=1e-4)
    assert objects.classes.tolist() == [1, 2, 1]
    assert np.abs(white_boxes(image.transpose(2, 0, 1)) - [[20, 20, 60, 60], [140, 20, 180, 60]]).max() <= 1
    blocked = objects_of(text + "0 .75 .4 .1 .2\n", size)  # an object stands where the copy would go
    image = marked(size, (20, 20, 60, 60))
    assert len(augment.copy_paste(np.random.default_rng(0), image, blocked, 1.0)) == 3
    assert len(white_boxes(image.transpose(2, 0, 1))) == 1
    assert len(augment.copy_paste(np.random.default_rng(0), image, blocked, 0.0)) == 3


@pytest.mark.parametrize("text", ["1 .25 .4 .3 .4", "1 .1 .2 .4 .2 .4 .6 .1 .6"])
def test_paste_in_adds_what_its_boxes_say(text: str) -> None:
    size = (100, 100)
    source = (marked(size, (10, 20, 40, 60)), objects_of(text, size))
    added = 0
    for seed in range(30):
        image = np.zeros((90, 120, 3), np.uint8)
        own = objects_of("0 .5 .5 .5 .5", (90, 120))
        objects = augment.paste_in(np.random.default_rng(seed), image, own, [source, source])
        assert objects.classes.tolist() == [0] + [1] * (len(objects) - 1)
        for box in objects.boxes()[1:]:
            assert augment.covered(own.boxes(), box).max() <= 0.3
        if len(objects) == 2:
            found = white_boxes(image.transpose(2, 0, 1))
            assert np.abs(found - objects.boxes()[1:]).max() <= 1.0
        added += len(objects) - 1
    assert 15 < added < 60


def test_hsv_against_a_pixel_by_hand() -> None:
    image = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    out = augment.hsv(np.random.default_rng(1), image, AugmentParams(hsv_v=0.5))
    factor = 1 + np.random.default_rng(1).uniform(-1, 1, 3)[2] * 0.5
    assert np.abs(out[0, 0] - np.array([200, 100, 50]) * factor).max() <= 3
    assert abs(factor - 1) > 0.05
    assert augment.hsv(np.random.default_rng(1), image, AugmentParams()) is image
    turned = cv2.cvtColor(augment.hsv(np.random.default_rng(2), image, AugmentParams(hsv_h=0.5)), cv2.COLOR_RGB2HSV)
    hue = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[0, 0, 0] * (1 + np.random.default_rng(2).uniform(-1, 1, 3)[0] * 0.5)
    assert abs(int(turned[0, 0, 0]) - hue) <= 1


def test_flips_by_hand() -> None:
    boxes = np.array([[2, 1, 5, 4]], np.float32)
    image = np.arange(10 * 20 * 3, dtype=np.int64).astype(np.uint8).reshape(10, 20, 3)
    for down, sideways, expected in [(1, 0, [2, 6, 5, 9]), (0, 1, [15, 1, 18, 4]), (1, 1, [15, 6, 18, 9])]:
        params = AugmentParams(flipud=down, fliplr=sideways)
        turned, moved = augment.flip(np.random.default_rng(0), image, boxes, params)
        assert moved.tolist() == [expected]
        assert (turned == image[:: -1 if down else 1, :: -1 if sideways else 1]).all()


def test_colour_does_not_disturb_geometry(tmp_path: Path) -> None:
    """A second picture of the same scene can share the geometry: it has a random stream of its own."""
    plain = open_set(tmp_path / "a", AugmentParams(**GEOMETRY, mosaic=0.5, paste_in=0.5))
    vivid = open_set(tmp_path / "b", AugmentParams(**GEOMETRY, mosaic=0.5, paste_in=0.5, hsv_v=0.4, hsv_s=0.5))
    differ = 0
    for index in range(12):
        a, b = plain[Sample(3, index)], vivid[Sample(3, index)]
        assert torch.equal(a["target"], b["target"])
        differ += not torch.equal(a["image"], b["image"])
    assert differ > 6


def test_parameters_from_a_configuration() -> None:
    class Config:
        pass

    config = Config()
    for i, name in enumerate(AugmentParams.__dataclass_fields__):
        setattr(config, name, i)
    params = AugmentParams.of(config)
    assert (params.hsv_h, params.degrees, params.paste_in) == (0.0, 3.0, 13.0)
    assert isinstance(params.degrees, float)


def test_labels_without_objects_give_empty_arrays() -> None:
    empty = Objects.of(Labels(np.zeros((0, 5), np.float32), (), np.zeros(0, np.int32)))
    assert (len(empty), empty.boxes().shape, empty.points.shape) == (0, (0, 4), (0, 2))
    assert len(empty.clipped(10, 10)) == 0
