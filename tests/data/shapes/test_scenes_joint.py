"""The embedded data set with a class of the whole image: the same pictures, a class that no box tells."""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import yaml

from tests.shared import ROOT
from utils.data.scan import scan_split
from utils.data.shapes import scenes as shapes
from utils.data.shapes.scenes import CLS_NAMES, Background, Scene, describe, ensure, ensure_joint, image_class, render
from utils.data.spec import read_data

SMALL = {"images": {"train": 12, "val": 4}, "seed": 0}
Rows = npt.NDArray[np.float64]


def test_pictures_and_boxes_are_those_of_the_plain_set(tmp_path: Path) -> None:
    ensure(tmp_path / "plain", SMALL)
    ensure_joint(tmp_path / "joint", SMALL)
    missing = 0
    for split, count in SMALL["images"].items():  # type: ignore[attr-defined]
        for i in range(count):
            one, two = (tmp_path / name / "images" / split / f"{i:04d}.png" for name in ("plain", "joint"))
            assert one.read_bytes() == two.read_bytes()
            one, two = (tmp_path / name / "labels" / split / f"{i:04d}.txt" for name in ("plain", "joint"))
            rest = two.read_text().removeprefix(one.read_text())
            kind = image_class(describe(0, split, i))
            assert rest in ("", " ".join("1" if k == kind else "0" for k in range(4)) + "\n")
            missing += not rest
    assert 0 < missing < 8
    ensure_joint(tmp_path / "joint", SMALL)  # it is there; as the plain set it would be made anew
    assert shapes._made(tmp_path / "plain", SMALL) and not shapes._made(tmp_path / "joint", SMALL)


def test_a_data_yaml_makes_it_on_first_use(tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "data/shapes_joint.yaml").read_text()) | SMALL
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    spec = read_data(tmp_path / "s.yaml")
    scan = scan_split(spec, "train", progress=False)
    kinds = [image_class(describe(0, "train", i)) for i in range(12)]
    assert all(found in (-1, kind) for found, kind in zip(scan.image_classes.tolist(), kinds, strict=True))
    assert len(set(scan.image_classes.tolist())) > 3
    assert sum(map(len, scan.labels)) > 24


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((200, 40, 40), "warm"), ((200, 190, 40), "warm"), ((40, 200, 40), "green"), ((40, 190, 200), "cold"),
        ((50, 40, 200), "cold"), ((200, 40, 190), "violet"), ((200, 40, 60), "warm"),
    ],
)  # fmt: skip
def test_the_class_is_the_hue_of_the_background(colour: tuple[int, int, int], name: str) -> None:
    scene = Scene((64, 64), Background("noise", (colour, colour), 0), ())
    assert CLS_NAMES[image_class(scene)] == name


def test_how_many_of_each_there_are() -> None:
    """As docs/joint-data.md states them."""
    for split, count, expected in (("train", 320, [89, 47, 104, 44]), ("val", 80, [21, 12, 29, 9])):
        settings = {"seed": 0, "unknown": shapes.UNKNOWN_SHARE}
        known = [i for i in range(count) if shapes._known(settings, split, i)]
        assert np.bincount([image_class(describe(0, split, i)) for i in known]).tolist() == expected


def of_boxes(labels: Rows) -> list[float]:
    """How many, of which classes, where and how large."""
    counts, b = np.bincount(labels[:, 0].astype(int), minlength=len(shapes.NAMES)), labels[:, 1:]
    return [len(labels), *counts, *b.mean(0), *b.std(0), *b.min(0), *b.max(0)]


def of_pixels(image: npt.NDArray[np.uint8]) -> list[float]:
    """The median colour of 8x8 pixels, and its products."""
    c = np.median(cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).reshape(-1, 3), 0) / 255
    return [*c, *np.outer(c, c)[np.triu_indices(3)]]


def accuracy(train: Rows, known: npt.NDArray[np.int64], test: Rows, truth: npt.NDArray[np.int64]) -> float:
    """Of a linear classifier by ridge regression."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    a, b = (np.concatenate([(x - mean) / std, np.ones((len(x), 1))], 1) for x in (train, test))
    weights = np.linalg.solve(a.T @ a + 10 * np.eye(a.shape[1]), a.T @ np.eye(len(CLS_NAMES))[known])
    return float(((b @ weights).argmax(1) == truth).mean())


def test_the_class_is_in_the_pixels_and_not_in_the_boxes() -> None:
    """Learnt on the training pictures, tried on 240 of a split of their own."""
    scenes = [[describe(0, split, i) for i in range(n)] for split, n in (("train", 320), ("test", 240))]
    (train, test), kinds = (
        [list(map(render, s)) for s in scenes],
        [np.array(list(map(image_class, s))) for s in scenes],
    )
    found = {
        name: accuracy(
            np.array([feature(*r) for r in train]), kinds[0], np.array([feature(*r) for r in test]), kinds[1]
        )
        for name, feature in (("boxes", lambda _, boxes: of_boxes(boxes)), ("pixels", lambda x, _: of_pixels(x)))
    }
    majority = np.bincount(kinds[1]).max() / len(kinds[1])
    error = (majority * (1 - majority) / len(kinds[1])) ** 0.5
    assert found["boxes"] < majority + 2 * error
    assert found["pixels"] > majority + 10 * error
