"""Where labels are looked for, and what becomes of a split without any."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.data.pictures import make_set
from utils.config.settings import DataSettings
from utils.data.build import describe, make_dataset
from utils.data.listing.label_files import find_labels
from utils.data.scan import scan_split
from utils.data.spec import read_data
from utils.system.errors import UserError

OPTIONS = DataSettings(img_size=64, batch_size=4)


def made(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.mark.parametrize(
    ("image", "label", "why"),
    [
        ("images/a.jpg", "labels/a.txt", ""),
        ("set/images/x/images/a.jpg", "set/images/x/labels/a.txt", ""),
        ("set/images/x/images/a.jpg", "set/labels/x/images/a.txt", "as YOLOv7 does"),
        ("Images/train/a.jpg", "Labels/train/a.txt", "`Images` of the path exchanged for `Labels`"),
        ("JPEGImages/a.jpg", "labels/a.txt", "`JPEGImages` of the path exchanged for `labels`"),
        ("images/a.jpg", "labels/a.TXT", ""),
        ("images/a.jpg", "Labels/a.txt", "`images` of the path exchanged for `Labels`"),
        ("images/train/a.jpg", "images/train/a.txt", "beside the images"),
        ("train/a.jpg", "labels/train/a.txt", "with its name"),
        ("M3FD/Vis/a.jpg", "M3FD/labels/a.txt", "beside the images' folder"),
        ("d/a.jpg", "d/labels/a.txt", "in the images' folder"),
        ("images/train/a.jpg", "labels/a.txt", "beside `images`, without folders in it"),
        ("images/a.jpg", "labels/a.jpg.txt", "named `a.png.txt` for `a.png`"),
        ("Images/train/a.jpg", "labels/a.jpg.txt", "without folders in it; named `a.png.txt` for `a.png`"),
    ],
)
def test_places_of_labels(tmp_path: Path, image: str, label: str, why: str) -> None:
    made(tmp_path / image, tmp_path / label)
    found = find_labels([str(tmp_path / image)])
    assert found.paths == [str(tmp_path / label)]
    assert why in "".join(found.said) and bool(found.said) == bool(why)


def test_labels_shared_by_both_pictures_of_a_pair(tmp_path: Path) -> None:
    kaist, llvip = tmp_path / "images/set00/V000/visible/I0.jpg", tmp_path / "visible/train/1.jpg"
    made(kaist, llvip, tmp_path / "labels/set00/V000/I0.txt", tmp_path / "labels/train/1.txt")
    found = find_labels([str(kaist), str(llvip)], "visible")
    assert found.paths == [str(tmp_path / "labels/set00/V000/I0.txt"), str(tmp_path / "labels/train/1.txt")]


def test_the_usual_place_is_asked_first_and_each_folder_for_itself(tmp_path: Path) -> None:
    made(*(tmp_path / n for n in ("images/a/1.png", "images/a/2.png", "labels/a/1.txt", "images/a/2.txt")))
    made(tmp_path / "images/b/3.png", tmp_path / "images/b/3.txt", tmp_path / "images/c/4.png")
    found = find_labels([str(tmp_path / f"images/{n}.png") for n in ("a/1", "a/2", "b/3", "c/4")])
    assert [os.path.relpath(p, tmp_path) for p in found.paths] == [
        "labels/a/1.txt", "labels/a/2.txt", "images/b/3.txt", "labels/c/4.txt"
    ]  # fmt: skip


def test_training_without_a_single_label_is_refused(tmp_path: Path) -> None:
    source = make_set(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "annotations")
    from utils.data.augment import AugmentParams

    with pytest.raises(UserError) as error:
        make_dataset(read_data(source), "train", replace(OPTIONS, on_bad_data="skip"), AugmentParams())
    said = str(error.value)
    assert "not a single object in 12 images (12 have no label file)" in said
    assert f"{tmp_path}/labels/train/00.txt\n" in said and f"{tmp_path}/Labels/train/00.txt" in said


def test_evaluating_without_a_single_label_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_set(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "annotations")
    make_dataset(read_data(source), "val", OPTIONS)
    out = capsys.readouterr().out
    assert "warning:" in out and "P, R and mAP are not measured on it" in out


def test_missing_empty_and_unreadable_labels_are_told_apart(tmp_path: Path) -> None:
    """Only a file that is not there means an image that shows nothing; a link to nothing is an error."""
    source = make_set(tmp_path)
    labels = tmp_path / "labels/train"
    (labels / "00.txt").unlink()
    (labels / "01.txt").write_text("\n")
    line = describe(scan_split(read_data(source), "train"), "train")
    assert "2 images without objects (1 with an empty label, 1 without a label file)" in line
    for number in (2, 3, 4):
        (labels / f"0{number}.txt").unlink()
    (labels / "02.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(labels / "03.txt")
    (labels / "04.txt").symlink_to("/dev/zero")
    with pytest.raises(UserError) as error:
        scan_split(read_data(source), "train")
    said = str(error.value)
    assert f"{labels}/02.txt: the label is a link to a file that does not exist" in said
    assert f"{labels}/03.txt: the label is a pipe, not a file" in said and "04.txt: the label is a device" in said
    skipped = scan_split(read_data(source), "train", on_bad_data="skip")
    assert len(skipped.files) == 9 and skipped.background == 2  # left out, not taken for images that show nothing


def test_images_that_share_a_label_are_said(tmp_path: Path) -> None:
    """a.png and a.jpg are two pictures with one label file."""
    source = make_set(tmp_path)
    assert "belong to several images" not in describe(scan_split(read_data(source), "train"), "train")
    image = sorted((tmp_path / "images/train").iterdir())[0]
    image.with_suffix(".bmp").write_bytes(image.read_bytes())
    said = describe(scan_split(read_data(source), "train"), "train")
    assert f"1 label files belong to several images of one name each, e.g. {tmp_path}/labels/train/00.txt" in said


def test_a_label_folder_that_is_none_is_not_an_absent_one(tmp_path: Path) -> None:
    source = make_set(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "moved")
    (tmp_path / "labels").write_text("a file")
    with pytest.raises(UserError, match=r"labels/train/00\.txt: the label cannot be read: Not a directory"):
        scan_split(read_data(source), "train")


def test_most_labels_missing_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_set(tmp_path)
    for number in range(7):
        (tmp_path / f"labels/train/{number:02d}.txt").unlink()
    make_dataset(read_data(source), "val", OPTIONS)
    assert "warning: val: 7 of 12 images have no label file" in capsys.readouterr().out


def test_small_boxes_are_counted_at_the_training_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from utils.data.augment import AugmentParams

    source = make_set(tmp_path)
    (tmp_path / "labels/train/00.txt").write_text("0 .5 .5 .9 .02\n0 .5 .5 .5 .5\n")  # 60 x 80: 1 px high at 64
    make_dataset(read_data(source), "train", OPTIONS, AugmentParams())
    assert "train: 1 of 13 boxes are under 2 px on a side at --img-size 64" in capsys.readouterr().out
    for file in (tmp_path / "labels/train").iterdir():
        file.write_text("0 .5 .5 .001 .001\n")
    with pytest.raises(UserError, match="12 of 12 boxes are under 2 px on a side at --img-size 64: nothing can be"):
        make_dataset(read_data(source), "train", OPTIONS, AugmentParams())


def test_labels_with_a_byte_order_mark(tmp_path: Path) -> None:
    source = make_set(tmp_path)
    for number, encoding in (("00", "utf-8-sig"), ("01", "utf-16")):
        file = tmp_path / f"labels/train/{number}.txt"
        file.write_text(file.read_text(), encoding=encoding)
    assert sum(map(len, scan_split(read_data(source), "train").labels)) == 12


def test_pairs_name_their_labels_without_the_pictures_folder(tmp_path: Path) -> None:
    source = make_set(tmp_path)
    (tmp_path / "images/train").rename(tmp_path / "Vis")
    (tmp_path / "images").rename(tmp_path / "Ir")
    (tmp_path / "labels/train").rename(tmp_path / "kept")
    (tmp_path / "labels").rmdir()
    (tmp_path / "kept").rename(tmp_path / "labels")
    content = yaml.safe_load(source.read_text()) | {"train": "Vis", "val": "Vis", "pairs": {"Vis": "Ir"}}
    source.write_text(yaml.safe_dump(content))
    scan = scan_split(read_data(source), "train", on_missing_pair="single")
    assert sum(map(len, scan.labels)) == 12 and "`Vis` of the path exchanged for `labels`" in scan.said[0]
