"""Classes of whole images: three sources, what is malformed, what is unknown, and which pictures lose theirs."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.data.pictures import make_set
from utils.config.settings import DataSettings
from utils.data.augment import AugmentParams, AugmentPlan
from utils.data.build import make_dataset
from utils.data.dataset import DetectionDataset, Sample, masked_share
from utils.data.image_classes import KEYS, summary
from utils.data.labels import UNKNOWN, class_line, parse
from utils.data.loader import make_loader, to_device
from utils.data.scan import fingerprint, scan_split
from utils.data.spec import read_data
from utils.system.errors import UserError

VIEWS = ["PSAX", "PLAX", "A4C"]
BOX = "0 .5 .5 .1 .1\n"
OPTIONS: dict[str, Any] = {
    "img_size": 64, "stride": 32, "batch_size": 4, "rect": False, "pad": 0.0, "cache_images": False,
    "single_cls": False, "on_bad_data": "error", "seed": 0,
}  # fmt: skip


def classes(count: int) -> list[str]:
    return [f"view {i}" for i in range(count)]


def make(root: Path, lines: dict[int, str] | None = None, **content: Any) -> Path:
    """A set of 12 pictures; lines: what to append to single label files; content: further keys of its YAML."""
    source = make_set(root)
    for number, line in (lines or {}).items():
        with (root / f"labels/train/{number:02d}.txt").open("a") as file:
            file.write(f"\n{line}\n\n")
    source.write_text(yaml.safe_dump(yaml.safe_load(source.read_text()) | content))
    return source


ONE_HOT = {i: ("1 0 0", "0 1 0", "0 0 1")[i % 3] for i in range(9)}
EXPECTED = [0, 1, 2, 0, 1, 2, 0, 1, 2, -1, -1, -1]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 9, 12])
def test_every_one_hot_line_is_the_class_and_never_an_object(count: int) -> None:
    """5 values could be a box, 7, 9, ... a polygon, were their width and height not 0."""
    for k in range(count):
        line = " ".join("1" if i == k else "0" for i in range(count))
        labels, problems = parse(f"{BOX}\n1 .1 .2 .3 .2 .3 .8 .1 .8\n{line}\n \n", "a.txt")
        objects, kind, wrong = class_line(labels, classes(count), "a.txt")
        assert (kind, problems, wrong) == (k, [], [])
        assert objects.boxes[:, 0].tolist() == [0, 1]
        assert objects.polygons[0] is None and objects.polygons[1] is not None
        # without objects, and not declared
        assert class_line(parse(line, "a.txt")[0], classes(count), "a.txt")[1] == k
        _, kind, (problem,) = class_line(labels, (), "a.txt", "name cls_names")
        assert (kind, problem.line, "name cls_names" in problem.message) == (UNKNOWN, 4, True)


@pytest.mark.parametrize(
    ("line", "count", "words"),
    [
        ("0 1 1", 3, "2 ones in the one-hot line of 3"),
        ("0 0 0", 3, "0 ones in the one-hot line of 3 image classes; expected exactly one (unknown: leave"),
        ("0 1", 3, "2 values; expected 5"),
        ("0 1 0 0", 3, "a one-hot line has 3 whole numbers, one of them 1: view 0 view 1 view 2"),
        ("0 0 1 0 0", 3, "a one-hot line has 3 whole numbers"),
        ("0.0 1.0 0.0", 3, "a one-hot line has 3 whole numbers"),
        ("0 1.0 0", 3, "a one-hot line has 3 whole numbers"),
        ("0 0 0 1 1", 5, "2 ones in the one-hot line of 5 image classes; expected exactly one (an object: write"),
        ("0 0 0 1 0 1 1 0 1", 9, "4 ones in the one-hot line of 9"),
        ("0 0 1.0 0 0", 5, "a one-hot line has 5 whole numbers"),
    ],
)
def test_malformed_one_hot_lines_are_named(line: str, count: int, words: str) -> None:
    objects, kind, (problem,) = class_line(parse(f"{BOX}{line}\n", "a.txt")[0], classes(count), "a.txt")
    assert (kind, len(objects), str(problem).startswith("a.txt:2: ")) == (UNKNOWN, 1, True)
    assert words in problem.message


@pytest.mark.parametrize(
    ("line", "count"),
    [("0 0 0 1 1", 3), ("0 0 0 1 0 1 1 0 1", 5), ("0 0 0 1.0 1", 5), ("2 0 0 1 1", 5), ("0 0 0 1 1", 0)],
)
def test_objects_of_whole_numbers_stay_objects(line: str, count: int) -> None:
    labels, problems = parse(f"{BOX}{line}\n", "a.txt")
    objects, kind, wrong = class_line(labels, classes(count), "a.txt")
    assert (problems, wrong, kind, len(objects), objects.lines.tolist()) == ([], [], UNKNOWN, 2, [1, 2])


def test_a_one_hot_line_that_is_not_the_last_is_an_unusable_object() -> None:
    labels, problems = parse(f"0 1 0\n{BOX}", "a.txt")
    assert [p.line for p in problems] == [1]
    assert class_line(labels, VIEWS, "a.txt")[1] == UNKNOWN
    assert [p.line for p in parse(f"0 1 0\n{BOX}0 0 1\n", "a.txt")[1]] == [1]


def test_from_label_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path, ONE_HOT, cls_names=VIEWS)
    spec = read_data(source)
    assert spec.cls_names == tuple(VIEWS)
    for _ in range(2):  # the second time from the cache
        scan = scan_split(spec, "train")
        assert scan.image_classes.tolist() == EXPECTED
        assert [len(x) for x in scan.labels] == [1] * 12
    make_dataset(spec, "train", DataSettings(**OPTIONS))
    words = "train: image classes of 9 images (PSAX 3, PLAX 3, A4C 3), 3 unknown; chance 0.333, majority 0.333"
    assert words in capsys.readouterr().out
    # the cache does not depend on cls_names: without them each such line is an error that says what is missing
    source.write_text(source.read_text().replace("cls_names", "my_notes"))
    with pytest.raises(UserError, match=r"00\.txt:3: 3 values; expected 5 .*as cls_names in the data YAML"):
        scan_split(read_data(source), "train")


def test_malformed_lines_stop_or_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = read_data(make(tmp_path, ONE_HOT | {4: "1 1 0"}, cls_names=VIEWS))
    words = f"{tmp_path}/labels/train/04.txt:3: 2 ones in the one-hot line of 3 image classes"
    for _ in range(2):
        with pytest.raises(UserError) as error:
            scan_split(spec, "train")
        assert words in str(error.value)
    dataset = make_dataset(spec, "train", DataSettings(**OPTIONS | {"on_bad_data": "skip"}))
    assert dataset.image_classes.tolist() == [*EXPECTED[:4], -1, *EXPECTED[5:]]
    assert len(dataset.labels[4]) == 1  # its box is as good as before
    out = capsys.readouterr().out
    assert "1 unusable images or label lines left out" in out and words in out and "4 unknown" in out


def test_from_files_of_their_own(tmp_path: Path) -> None:
    source = make(tmp_path, cls_names=VIEWS, cls_folder="views")
    folder = tmp_path / "views/train"
    folder.mkdir(parents=True)
    for i, text in enumerate(("PSAX", "1\n", "\n A4C \n", "0", "", "\n\n")):
        (folder / f"{i:02d}.txt").write_text(text)
    assert scan_split(read_data(source), "train").image_classes.tolist() == [0, 1, 2, 0] + [-1] * 8
    for text, line, words in (
        ("PSAX\n\nPLAX", 3, "a second line"),
        ("\npsax", 2, "unknown image class 'psax'; expected one of PSAX, PLAX, A4C, or 0..2"),
        ("3", 1, "unknown image class '3'"),
        ("-1", 1, "unknown image class '-1'"),
        ("1.0", 1, "unknown image class '1.0'"),
    ):
        (folder / "05.txt").write_text(text)
        with pytest.raises(UserError) as error:
            scan_split(read_data(source), "train")
        assert f"{folder}/05.txt:{line}: {words}" in str(error.value)
        found = scan_split(read_data(source), "train", on_bad_data="skip")
        assert (found.image_classes[5], len(found.files), len(found.problems)) == (-1, 12, 1)
    (folder / "05.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"05\.txt: is no text"):
        scan_split(read_data(source), "train")


def with_table(root: Path, text: str, **content: Any) -> Path:
    source = make(root, cls_names=VIEWS, cls_csv="views.csv", **content)
    (root / "views.csv").write_text(text, encoding="utf-8-sig")
    return source


def test_from_a_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "patient, class,image\n7,PSAX,00.png\n7,1,train/01.png\n8,A4C,images/train/02.png\n8,,03.png\n"
    source = with_table(tmp_path, rows + f"8,0,{tmp_path}/images/train/04.png\n9,0,images/other/05.png\n")
    (tmp_path / "images/other").mkdir()
    (tmp_path / "images/other/05.png").touch()  # of a larger collection: no split uses it
    assert scan_split(read_data(source), "train").image_classes.tolist() == [0, 1, 2, -1, 0] + [-1] * 7
    make_dataset(read_data(source), "train", DataSettings(**OPTIONS))
    assert "also names 1 images of no split" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("01.png,psax", "unknown image class 'psax'"),
        ("01.png,3", "unknown image class '3'"),
        ("00.png,PSAX", "'00.png' has its class in line 2 already"),
        ("train/00.png,PLAX", "'train/00.png' has its class in line 2 already"),
        ("77.png,PSAX", "'77.png' is no image of train, val or test, nor an existing file"),
        (",PSAX", "'' is no image"),
        ("1.png,PSAX", "'1.png' is no image"),  # whole names only
        ("03.png,PSAX", "'03.png' fits 2 images; write more of its path"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, row: str, words: str) -> None:
    source = with_table(tmp_path, f"image,class\n00.png,PSAX\n02.png,A4C\n{row}\n", test="images/more")
    (tmp_path / "images/more").mkdir()
    (tmp_path / "images/more/03.png").write_bytes((tmp_path / "images/train/03.png").read_bytes())
    with pytest.raises(UserError) as error:
        scan_split(read_data(source), "train")
    assert f"{tmp_path}/views.csv:4: {words}" in str(error.value)
    found = scan_split(read_data(source), "train", on_bad_data="skip")
    assert len(found.problems) == 1
    known = {0: 0, 2: 2} if "already" not in words else {2: 2}  # given twice: neither is taken
    assert found.image_classes.tolist() == [known.get(i, -1) for i in range(12)]


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no column 'image'"), ("image;class\n", "no column 'image'"), ("image,kind\n", "no column 'class'")],
)
def test_a_csv_without_its_columns(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        scan_split(read_data(with_table(tmp_path, text)), "train", on_bad_data="skip")


def test_a_one_hot_line_where_the_classes_are_kept_elsewhere(tmp_path: Path) -> None:
    make(tmp_path, {3: "0 1 0"})
    source = tmp_path / "data.yaml"
    (tmp_path / "views.csv").write_text("image,class\n00.png,PSAX\n")
    content = yaml.safe_load(source.read_text()) | {"cls_names": VIEWS, "cls_csv": "views.csv"}
    source.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"03\.txt:3: .*the image classes are kept elsewhere \(cls_csv: .*views\.csv"):
        scan_split(read_data(source), "train")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cls_names": "PSAX"}, "cls_names: expected a list of at least two names, found 'PSAX'"),
        ({"cls_names": ["PSAX"]}, "at least two names"),
        ({"cls_names": ["a", "b", "a"]}, "cls_names: a given more than once"),
        ({"cls_names": ["a", 0]}, "'0' is no name"),
        ({"cls_names": ["a", " b"]}, "' b' is no name"),
        ({"cls_csv": "views.csv"}, "cls_csv needs cls_names"),
        ({"cls_folder": "views"}, "cls_folder needs cls_names"),
        ({"cls_names": VIEWS, "cls_csv": "v.csv", "cls_folder": "v"}, "keep the image classes in one place"),
        ({"cls_names": VIEWS, "cls_csv": "none.csv"}, r"cls_csv: .*none\.csv does not exist"),
        ({"cls_names": VIEWS, "cls_csv": 3}, "cls_csv: expected a path, found 3"),
        ({"cls_names": VIEWS, "cls_folder": "a/b"}, "cls_folder: expected the name of a folder"),
        ({"cls_names": VIEWS, "cls_folder": "labels"}, "needs no cls_folder"),
        ({"cls_name": VIEWS}, "unknown key 'cls_name'; did you mean 'cls_names'"),
    ],
)
def test_keys_of_the_yaml(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_data(make(tmp_path, **content))


def test_no_known_class_at_all(tmp_path: Path) -> None:
    spec = read_data(make(tmp_path, cls_names=VIEWS))
    with pytest.raises(UserError, match="no image of train has a class in the last line of its label file"):
        scan_split(spec, "train")
    assert set(scan_split(spec, "val").image_classes.tolist()) == {-1}
    assert summary(np.array([-1, -1]), VIEWS).endswith("(PSAX 0, PLAX 0, A4C 0), 2 unknown")


def test_the_fingerprint_follows_the_image_classes(tmp_path: Path) -> None:
    source = with_table(tmp_path, "image,class\n00.png,PSAX\n01.png,PLAX\n")
    first = fingerprint(read_data(source))
    table = tmp_path / "views.csv"
    table.write_text("class,image\n1,train/01.png\n0,train/00.png\n")  # says the same
    assert fingerprint(read_data(source)) == first
    table.write_text("image,class\n00.png,PSAX\n01.png,A4C\n")
    assert fingerprint(read_data(source)) != first
    table.write_text("image,class\n00.png,0\n01.png,1\n")
    content = yaml.safe_load(source.read_text())
    assert fingerprint(read_data(source)) == first
    source.write_text(yaml.safe_dump(content | {"cls_names": ["PSAX", "PLAX", "other"]}))
    assert fingerprint(read_data(source)) != first
    plain = {k: v for k, v in content.items() if k not in KEYS}
    source.write_text(yaml.safe_dump(plain))
    assert fingerprint(read_data(source)) != first


def dataset_of(source: Path, augment: AugmentParams | None, **more: Any) -> DetectionDataset:
    return make_dataset(read_data(source), "train", DataSettings(**OPTIONS | more), augment)


@pytest.mark.parametrize(("rect", "cache", "workers"), [(False, False, 0), (True, True, 0), (True, False, 1)])
def test_batches_carry_the_class_of_their_images(tmp_path: Path, rect: bool, cache: bool, workers: int) -> None:
    source = make(tmp_path, ONE_HOT, cls_names=VIEWS)
    seen = {}
    for params in (None, AugmentParams(fliplr=0.5, copy_paste=1.0, mosaic=float(rect))):  # mosaic is off with rect
        dataset = dataset_of(source, params, rect=rect, cache_images=cache, single_cls=True)
        loader = make_loader(dataset, batch_size=4, workers=workers, shuffle=True, seed=0)
        for batch in loader:
            assert batch["image_class"].dtype == torch.int64 and batch["image_class"].shape == (4,)
            assert to_device(batch, "meta")["image_class"].device.type == "meta"
            seen |= {Path(p).name: k for p, k in zip(batch["path"], batch["image_class"].tolist(), strict=True)}
        assert seen == {f"{i:02d}.png": k for i, k in enumerate(EXPECTED)}
        seen.clear()


def test_without_names_batches_are_as_ever(tmp_path: Path) -> None:
    named, plain = make(tmp_path / "a", ONE_HOT, cls_names=VIEWS), make(tmp_path / "b")
    params = AugmentParams(hsv_h=0.1, hsv_s=0.5, hsv_v=0.4, scale=0.5, fliplr=0.5, mosaic=0.5, mixup=0.5, paste_in=0.5)
    for quad in (False, True):
        one, two = (
            make_loader(dataset_of(s, params, quad=quad), batch_size=4, workers=0, shuffle=True, seed=0, quad=quad)
            for s in (named, plain)
        )
        for a, b in zip(one, two, strict=True):
            assert a.keys() - b.keys() == {"image_class"}
            assert all(torch.equal(a[k], b[k]) for k in ("image", "target", "shape", "gain_pad"))


def test_composed_pictures_have_no_class(tmp_path: Path) -> None:
    """Mosaic (with or without mixup) and paste-in, each by its own draw; never by what the classes are."""
    source = make(tmp_path, dict.fromkeys(range(12), "0 1 0"), cls_names=VIEWS)
    for mosaic, paste_in in itertools.product((0.0, 0.4, 1.0), (0.0, 0.5, 1.0)):
        params = AugmentParams(mosaic=mosaic, mixup=0.5, paste_in=paste_in)
        dataset = dataset_of(source, params)
        kinds = [int(dataset[Sample(epoch, i)]["image_class"]) for epoch in range(25) for i in range(12)]
        assert set(kinds) <= {-1, 1}
        share, expected = kinds.count(-1) / len(kinds), masked_share(params)
        assert abs(share - expected) <= 4 * (expected * (1 - expected) / len(kinds)) ** 0.5  # exact at 0 and 1
    with_rect = dataset_of(source, AugmentParams(mosaic=1.0), rect=True)
    assert all(int(with_rect[Sample(0, i)]["image_class"]) == 1 for i in range(12))
    assert masked_share(AugmentParams(mosaic=1.0), rect=True) == masked_share(None) == 0


def test_a_picture_with_a_class_shows_its_image_alone(tmp_path: Path) -> None:
    source = make(tmp_path, dict.fromkeys(range(12), "0 1 0"), cls_names=VIEWS)
    dataset, alone = dataset_of(source, AugmentParams(mosaic=0.5, paste_in=0.3)), dataset_of(source, AugmentParams())
    kept = [s for s in (Sample(e, i) for e in range(3) for i in range(12)) if dataset[s]["image_class"] == 1]
    assert 5 < len(kept) < 25
    assert all(torch.equal(dataset[s]["image"], alone[s]["image"]) for s in kept)


def test_four_in_one_have_no_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path, dict.fromkeys(range(12), "0 1 0"), cls_names=VIEWS)
    dataset = dataset_of(source, AugmentParams(), quad=True)
    assert "without image class: about 50% of the pictures" in capsys.readouterr().out
    loader = make_loader(dataset, batch_size=4, workers=0, shuffle=True, seed=0, quad=True)
    found = set()
    for epoch in range(6):
        loader.order.set_epoch(epoch)
        for batch in loader:
            first = dataset[Sample(epoch, [p.name for p in dataset.files].index(Path(batch["path"][0]).name))]
            assert batch["image_class"].tolist() == [-1 if first["quad"] else 1]
            found.add(first["quad"])
    assert found == {True, False}


def test_the_masking_is_announced_by_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path, ONE_HOT, cls_names=VIEWS)
    plan = AugmentPlan(AugmentParams(mosaic=1.0, paste_in=0.2), ((4, {"mosaic": 0.5}),), closes=9)
    for augment, words in (
        (AugmentParams(mosaic=0.5), "about 50% of the pictures"),
        (AugmentParams(), "every picture is of one image"),
        (plan, "about 100%, 60% from epoch 4 on, 20% from epoch 9 on of the pictures"),
    ):
        make_dataset(read_data(source), "train", DataSettings(**OPTIONS), augment)
        assert words in capsys.readouterr().out
    make_dataset(read_data(source), "val", DataSettings(**OPTIONS))
    make_dataset(read_data(make(tmp_path / "plain")), "train", DataSettings(**OPTIONS), plan)
    assert "picture" not in capsys.readouterr().out
