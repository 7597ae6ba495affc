"""The embedded pairs: one scene in both pictures, the dark only in one, a control without any relation."""

import csv
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from utils.data.shapes import pairs as shapes_pairs
from utils.data.shapes.scenes import describe, mask, render

SETTINGS = {"images": {"train": 40, "val": 10}, "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pairs") / "set"
    shapes_pairs.ensure(made, SETTINGS)
    return made


def read(file: Path) -> npt.NDArray[np.float64]:
    found = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return np.asarray(found, np.float64)


def test_the_light_changes_the_visible_picture_alone(folder: Path) -> None:
    days = 0
    for i in range(10):
        plain = np.asarray(render(describe(0, "val", i))[0][..., ::-1], np.float64)
        seen, dark = (read(folder / f"images/visible/{split}/{i:04d}.png") for split in ("val", "dark"))
        assert (
            read(folder / f"images/infrared/val/{i:04d}.png") == read(folder / f"images/infrared/dark/{i:04d}.png")
        ).all()
        label = f"labels/visible/{{}}/{i:04d}.txt"
        assert (folder / label.format("val")).read_text() == (folder / label.format("dark")).read_text()
        assert dark.mean() < 0.16 * plain.mean()
        assert (seen == plain).all() or (seen == dark).all()
        days += bool((seen == plain).all())
    assert 2 <= days <= 8


def test_objects_stand_out_by_their_temperature(folder: Path) -> None:
    for i in range(10):
        scene, picture = describe(0, "val", i), read(folder / f"images/infrared/val/{i:04d}.png")
        assert picture.shape == scene.size
        nearest, cover = scene.things[-1], mask(scene.things[-1], scene.size)
        ground = picture[np.max([mask(t, scene.size) for t in scene.things], 0) == 0]
        inside = picture[cv2.erode(cover, np.ones((5, 5))) == 1]
        assert len(inside) and abs(inside.mean() - ground.mean()) > 15
        assert (inside.mean() > ground.mean()) == (nearest.temperature > 0.25)


def test_shuffled_partners_are_those_of_other_scenes_of_the_same_size(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "shuffled.csv").read_text().splitlines()))
    assert len(rows) == len({r["visible"] for r in rows}) == len({r["infrared"] for r in rows}) == 60
    own = [r for r in rows if Path(r["visible"]).name == Path(r["infrared"]).name]
    assert len(own) <= 2, "only an image that is alone in its size and split keeps its own"
    assert all(read(folder / r["visible"]).shape[:2] == read(folder / r["infrared"]).shape for r in rows[:20])
