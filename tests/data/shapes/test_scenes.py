"""The embedded data set: byte-identical, balanced, labels that fit the pixels, made once and never over other files."""

import hashlib
import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from utils.data.scan import scan_split
from utils.data.shapes import scenes as shapes
from utils.data.shapes.scenes import Background, Scene, Thing, describe, ensure, render
from utils.data.spec import read_data
from utils.images.read import read_image
from utils.system.errors import UserError

SMALL = {"images": {"train": 12, "val": 4}, "seed": 0}
PLAIN = Background("slope", ((60, 60, 60), (60, 60, 60)), 1)


def digest(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by relative path."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_bytes_are_a_function_of_the_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ensure(tmp_path / name, SMALL | {"seed": seed})
    a, b, c = (digest(tmp_path / name) for name in "abc")
    assert a == b
    assert len(a) == 2 * 16 + 1
    assert a.keys() == c.keys()
    assert all(a[k] != c[k] for k in a)
    assert not [p for p in tmp_path.iterdir() if p.name not in "abc"]  # nothing half-made is left


def test_pictures_do_not_depend_on_how_many_are_asked_for(tmp_path: Path) -> None:
    ensure(tmp_path / "a", SMALL)
    ensure(tmp_path / "b", SMALL | {"images": {"train": 3, "val": 1}})
    a, b = digest(tmp_path / "a"), digest(tmp_path / "b")
    assert all(a[k] == b[k] for k in b if k != shapes.MARK)


def test_the_whole_set_is_as_described() -> None:
    images = shapes.SETTINGS["images"]
    assert images["train"] >= 240
    assert images["val"] >= 60
    assert len(shapes.NAMES) >= 12
    for split, fewest in (("train", 60), ("val", 10)):
        scenes = [describe(0, split, i) for i in range(images[split])]
        rendered = [render(s)[1] for s in scenes]
        labels = np.concatenate(rendered)
        counts = np.bincount(labels[:, 0].astype(int), minlength=len(shapes.NAMES))
        assert counts.min() >= fewest
        assert counts.max() / counts.min() < 2.5
        assert {len(s.things) for s in scenes} == {2, 3, 4, 5, 6}
        hidden = sum(len(s.things) for s in scenes) - len(labels)
        assert 0 < hidden < 0.1 * len(labels)
        low, high = labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2
        assert low.min() >= 0
        assert high.max() <= 1
        side = [max(row[3] * s.size[1], row[4] * s.size[0]) for s, r in zip(scenes, rendered, strict=True) for row in r]
        at_160 = np.array(side) * 160 / 256
        assert (at_160 > 12).mean() > 0.95
        assert at_160.min() < 20
        assert at_160.max() > 55


def thing(label: str, centre: tuple[float, float], size: float) -> Thing:
    return Thing(shapes.NAMES.index(label), centre, size, 1.0, 0.0, (250, 20, 20), 0.5)


def test_labels_are_the_visible_extent_of_what_is_visible_enough() -> None:
    far, near = thing("square", (100, 100), 80), thing("diamond", (160, 100), 60)
    _, labels = render(Scene((200, 250), PLAIN, (far, near)))
    half = 40 * np.sqrt(0.5)
    expected = [[100 - half, 100 - half, 100 + half, 100 + half], [130, 70, 190, 130]]
    boxes = np.concatenate([labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2], 1)
    assert np.abs(boxes * [250, 200, 250, 200] - expected).max() <= 1
    assert labels[:, 0].tolist() == [4, 6]
    # covered: over the square's right half a bigger one; 50 % stay, then 30 %
    for shift, seen in ((36.8, 2), (25.5, 1)):
        scene = Scene((200, 250), PLAIN, (far, thing("square", (100 + shift, 100), 80 * 1.3)))
        labels = render(scene)[1]
        assert len(labels) == seen, shift
    left = render(Scene((200, 250), PLAIN, (far, thing("square", (160, 100), 104))))[1][0]
    assert abs((left[1] + left[3] / 2) * 250 - (160 - 52 * np.sqrt(0.5))) <= 1  # the box ends where the cover begins
    # outside the picture
    assert len(render(Scene((200, 250), PLAIN, (thing("circle", (3, 100), 60),)))[1]) == 1
    assert len(render(Scene((200, 250), PLAIN, (thing("circle", (-6, 100), 60),)))[1]) == 0


@pytest.mark.parametrize("name", shapes.NAMES)
def test_outlines_fill_the_area_and_circle_that_they_state(name: str) -> None:
    one = thing(name, (64, 64), 100)
    cover = shapes.mask(one, (128, 128))
    assert abs(cover.sum() - shapes._area(one)) < 0.03 * shapes._area(one)
    assert max(np.hypot(*contour.T).max() for contour in shapes.outline(name)) < 1.05


def test_temperature_does_not_change_the_visible_picture() -> None:
    scene = describe(0, "train", 5)
    warm = replace(scene, things=tuple(replace(t, temperature=1 - t.temperature) for t in scene.things))
    assert warm != scene
    assert (render(warm)[0] == render(scene)[0]).all()
    temperatures = [t.temperature for i in range(20) for t in describe(0, "train", i).things]
    assert 0 <= min(temperatures) < 0.2 < 0.8 < max(temperatures) <= 1


def test_made_once_and_anew_when_the_generator_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "s"
    ensure(folder, SMALL)
    (folder / "labels/train/0000.txt").write_text("touched")
    ensure(folder, SMALL)
    assert (folder / "labels/train/0000.txt").read_text() == "touched"  # it was there: nothing is done
    with monkeypatch.context() as patched:
        patched.setattr(shapes, "write", None)
        ensure(folder, SMALL)  # nor is anything rendered to be thrown away
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    ensure(folder, SMALL)
    assert (folder / "labels/train/0000.txt").read_text() != "touched"
    ensure(folder, SMALL | {"images": {"train": 2, "val": 1}})
    assert len(list((folder / "images/train").iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_other_files_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(UserError, match="mine exists and holds other files"):
        ensure(tmp_path / "mine", SMALL)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write the shapes data set"):
        ensure(tmp_path / "file/below", SMALL)


def test_two_programs_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=ensure, args=(tmp_path / "s", SMALL)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    ensure(tmp_path / "t", SMALL)
    assert digest(tmp_path / "s") == digest(tmp_path / "t")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "t"]


def test_a_data_yaml_makes_it_on_first_use(tmp_path: Path) -> None:
    source = tmp_path / "s.yaml"
    names = ", ".join(shapes.NAMES)
    text = "path: made\ntrain: images/train\nval: images/val\ngenerator: shapes\nimages: {train: 12, val: 4}\n"
    source.write_text(f"{text}names: [{names}]\n")
    spec = read_data(source)
    assert (len(spec.train), len(spec.val)) == (12, 4)
    assert sum(map(len, scan_split(spec, "train", progress=False).labels)) > 24
    source.write_text(text.replace("12", "many") + f"names: [{names}]\n")
    with pytest.raises(UserError, match="images: expected"):
        read_data(source)


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shapes, "SETTINGS", SMALL)
    shapes.main(["--out", str(tmp_path / "o"), "--seed", "3"])
    assert "12 training images" in capsys.readouterr().out
    ensure(tmp_path / "p", SMALL | {"seed": 3})
    assert digest(tmp_path / "o") == digest(tmp_path / "p")


@pytest.mark.parametrize(("channels", "bits"), [(1, 16), (3, 16), (5, 16), (5, 8), (8, 16)])
def test_other_channels_and_depths(tmp_path: Path, channels: int, bits: int) -> None:
    """The same scenes and labels; the 8-bit RGB picture is what the 16-bit one rounds to."""
    ensure(tmp_path / "s", SMALL | {"channels": channels, "bits": bits})
    ensure(tmp_path / "t", SMALL)
    suffix = "png" if channels in (1, 3) else "tiff"
    image = read_image(tmp_path / f"s/images/train/0003.{suffix}", channels=channels)
    plain = read_image(tmp_path / "t/images/train/0003.png")
    assert image is not None and plain is not None
    assert image.dtype == (np.uint16 if bits == 16 else np.uint8) and image.shape == (*plain.shape[:2], channels)
    seen = image / 257 if bits == 16 else image.astype(float)
    assert len(np.unique(image)) > (1000 if bits == 16 else 50)
    if channels == 1:
        assert np.abs(seen[..., 0] - plain.mean(2)).max() < 1
    else:
        assert np.abs(seen[..., :3] - plain).max() < (0.51 if bits == 16 else 0.01)
    label = (tmp_path / "s/labels/train/0003.txt").read_text()
    assert label == (tmp_path / "t/labels/train/0003.txt").read_text()


def test_bits_of_another_number(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bits: expected 8 or 16, found 12"):
        ensure(tmp_path / "s", SMALL | {"bits": 12})


@pytest.mark.parametrize("images", [{1: 2}, {"../out": 2}, {"train": True}, {"train": 0}, ["train"]])
def test_splits_that_are_none_are_refused(images: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images: expected"):
        ensure(tmp_path / "a", SMALL | {"images": images})
    assert not list(tmp_path.iterdir())
