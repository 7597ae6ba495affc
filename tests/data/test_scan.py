"""Checking a split: bad images and labels, the cache and its invalidation, the fingerprint."""

import hashlib
import os
import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.data.pictures import make_set, marked
from utils.config.settings import DataSettings
from utils.data import scan
from utils.data.augment import Objects
from utils.data.build import make_dataset
from utils.data.listing.label_files import label_path
from utils.data.scan import fingerprint, scan_split
from utils.data.spec import DataSpec, read_data
from utils.system.errors import UserError


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    return read_data(make_set(tmp_path))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were read from disk, in the order of reading."""
    seen: list[str] = []
    original = scan._read

    def spy(image: str, label: str, stamps: tuple[scan.Stamp, scan.Stamp]) -> scan.Entry:
        seen.append(Path(image).name)
        return original(image, label, stamps)

    monkeypatch.setattr(scan, "_read", spy)
    return seen


def same(a: scan.Scan, b: scan.Scan) -> bool:
    return (
        a.files == b.files
        and (a.sizes == b.sizes).all()
        and all(
            (x.boxes == y.boxes).all() and len(x.polygons) == len(y.polygons)
            for x, y in zip(a.labels, b.labels, strict=True)
        )
        and a.sha256 == b.sha256
    )


def test_second_scan_reads_nothing_and_finds_the_same(spec: DataSpec, reads: list[str]) -> None:
    label = spec.root / "labels/train/05.txt"
    label.write_text("1 .1 .1 .9 .1 .9 .7\n1 .5 .5 .25 .25\n1 .5 .5 .25 .25\n")
    first = scan_split(spec, "train")
    assert len(reads) == 12
    reads.clear()
    second = scan_split(spec, "val")  # the same folder
    assert reads == []
    assert same(first, second)
    polygon = second.labels[5].polygons[0]
    assert polygon is not None
    assert np.allclose(polygon, [[0.1, 0.1], [0.9, 0.1], [0.9, 0.7]])
    assert second.labels[5].polygons[1] is None
    assert second.duplicates == first.duplicates == 1
    assert first.sizes[0].tolist() == [60, 80]


def test_only_what_changed_is_read_again(spec: DataSpec, reads: list[str]) -> None:
    scan_split(spec, "train")
    labels = spec.root / "labels/train"
    reads.clear()

    (labels / "03.txt").write_text("2 .5 .5 .3 .3\n0 .2 .2 .1 .1\n")  # another size
    result = scan_split(spec, "train")
    assert reads == ["03.png"]
    assert result.labels[3].boxes[:, 0].tolist() == [2, 0]
    reads.clear()

    old = (labels / "04.txt").stat()
    (labels / "04.txt").write_text((labels / "04.txt").read_text().replace("1 ", "2 ", 1))  # the same size, later
    os.utime(labels / "04.txt", ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    assert scan_split(spec, "train").labels[4].boxes[0, 0] == 2
    assert reads == ["04.png"]
    reads.clear()

    (labels / "06.txt").unlink()
    result = scan_split(spec, "train")
    assert reads == ["06.png"]
    assert (len(result.labels[6]), result.background) == (0, 1)
    reads.clear()

    cv2.imwrite(str(spec.root / "images/train/99.png"), marked((30, 50), (5, 5, 20, 20)))
    (spec.root / "images/train/00.png").unlink()
    result = scan_split(read_data(spec.source), "train")
    assert reads == ["99.png"]
    assert [p.name for p in result.files][:1] == ["01.png"]
    assert result.sizes[-1].tolist() == [30, 50]


def test_a_label_of_equal_size_whose_time_was_set_back_is_read_again(spec: DataSpec, reads: list[str]) -> None:
    """As unpacking an archive, or copying with times, leaves it."""
    labels = spec.root / "labels/train"
    label = next(p for p in sorted(labels.iterdir()) if p.read_text().startswith("0 "))
    scan_split(spec, "train", on_bad_data="skip")
    old = label.stat()
    label.write_text("1" + label.read_text()[1:])
    os.utime(label, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert label.stat().st_size == old.st_size
    reads.clear()
    scan_split(spec, "train", on_bad_data="skip")
    assert [Path(r).stem for r in reads] == [label.stem]


def test_a_broken_cache_is_not_trusted(spec: DataSpec, reads: list[str]) -> None:
    first = scan_split(spec, "train")
    cache = spec.root / "labels/train.thaw.cache"
    for content in (b"", b"PK\x03\x04 nonsense", cache.read_bytes()[:-400]):
        cache.write_bytes(content)
        reads.clear()
        assert same(scan_split(spec, "train"), first)
        assert len(reads) == 12


def test_an_unwritable_place_is_replaced_by_the_users_cache_folder(
    spec: DataSpec, reads: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    (spec.root / "labels/train.thaw.cache/in the way").mkdir(parents=True)
    first = scan_split(spec, "train")
    assert same(scan_split(spec, "train"), first)
    assert len(reads) == 12
    assert sorted(p.name for p in (spec.root / "labels").iterdir()) == ["train", "train.thaw.cache"]
    assert len(list((home / "thaw").iterdir())) == 1
    # no place at all: without a cache
    (home / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    assert same(scan_split(spec, "train"), first)
    assert same(scan_split(spec, "train"), first)
    assert len(reads) == 36


def spoil(spec: DataSpec, kind: str) -> str:
    """Make one thing of the set bad -> the words by which it must be named."""
    image, label = spec.root / "images/train/02.png", spec.root / "labels/train/02.txt"
    if kind == "text":
        image.write_text("no image at all")
    elif kind == "empty":
        image.write_bytes(b"")
    elif kind == "cut":
        image.write_bytes(image.read_bytes()[:-30])
    elif kind == "class":
        label.write_text("0 .5 .5 .1 .1\n7 .5 .5 .1 .1\n")
        return f"{label}:2: class 7 but there are 3 classes (0..2)"
    elif kind == "coordinate":
        label.write_text("0 .5 .5 .1 1.1\n")
        return f"{label}:1: coordinate 1.1 is outside 0..1"
    elif kind == "binary":
        label.write_bytes(b"\xff\xfe\x00")
        return f"{label}: the label is no text"
    return f"{image}: the image is corrupt"


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "class", "coordinate", "binary"])
def test_bad_data_stops_or_is_skipped_and_listed(
    spec: DataSpec, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = spoil(spec, kind)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(UserError) as error:
            scan_split(spec, "train", on_bad_data="error")
        assert words in str(error.value)
        assert "--on-bad-data skip" in str(error.value)
    dataset = make_dataset(spec, "train", DataSettings(img_size=64, batch_size=4, on_bad_data="skip"))
    assert len(dataset) == (12 if kind == "class" else 11)  # only `class` leaves an object
    out = capsys.readouterr().out
    assert "1 unusable" in out
    assert words in out
    # the message has the path as the data set is named now, though the cache was written under another
    monkeypatch.chdir(spec.root)
    with pytest.raises(UserError) as error:
        scan_split(read_data("data.yaml"), "train")
    assert f"  {words.removeprefix(str(spec.root) + '/')}" in str(error.value)


def test_truncated_jpeg_and_missing_listed_image(tmp_path: Path) -> None:
    source = make_set(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    whole = tmp_path / "images/train/00.jpg"
    cv2.imwrite(str(whole), noise)
    (tmp_path / "images/train/00.png").unlink()
    assert len(scan_split(read_data(source), "train").files) == 12
    whole.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"00\.jpg: the image is corrupt or cut off"):
        scan_split(read_data(source), "train")
    (tmp_path / "list.txt").write_text("images/train/01.png\nimages/train/zz.png\n")
    source.write_text(source.read_text().replace("train: images/train", "train: list.txt"))
    with pytest.raises(UserError, match=r"zz\.png: the image does not exist"):
        scan_split(read_data(source), "train")
    assert len(scan_split(read_data(source), "train", on_bad_data="skip").files) == 1


def test_sizes_follow_the_exif_rotation(tmp_path: Path) -> None:
    source = make_set(tmp_path)
    ok, coded = cv2.imencode(".jpg", marked((40, 90), (0, 0, 30, 20)))
    assert ok
    tiff = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 6, 0)  # orientation 6: a quarter turn
    exif = b"Exif\0\0" + tiff
    (tmp_path / "images/train/00.png").unlink()
    data = coded.tobytes()
    (tmp_path / "images/train/00.jpg").write_bytes(
        data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    )
    assert scan_split(read_data(source), "train").sizes[0].tolist() == [90, 40]


def test_single_cls_and_nothing_usable(spec: DataSpec) -> None:
    result = scan_split(spec, "train", single_cls=True)
    assert {float(c) for x in result.labels for c in x.boxes[:, 0]} == {0.0}
    for image in (spec.root / "images/train").iterdir():
        image.write_text("x")
    with pytest.raises(UserError, match="none of the 12 images can be used"):
        scan_split(spec, "train", on_bad_data="skip")


def test_fingerprint_follows_contents(spec: DataSpec) -> None:
    first = fingerprint(spec)
    assert fingerprint(spec) == first
    label = spec.root / "labels/train/01.txt"
    text = label.read_text()
    label.write_text("0 .5 .5 .5 .5\n")
    assert fingerprint(spec) != first
    label.write_text(text)
    os.utime(label)
    assert fingerprint(spec) == first  # the contents count, not the dates
    image = spec.root / "images/train/01.png"
    content = image.read_bytes()
    image.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # the same size, one bit of the last checksum
    assert fingerprint(spec) != first
    image.write_bytes(content)
    assert fingerprint(spec) == first


def test_contents_of_every_listed_file(spec: DataSpec) -> None:
    """From the files and, the second time, from the cache."""
    (spec.root / "labels/train/02.txt").unlink()
    for _ in range(2):
        for path, image, label, kind in scan_split(spec, "train").contents:
            text = label_path(path)
            assert image == hashlib.sha256(path.read_bytes()).hexdigest()
            assert label == (hashlib.sha256(text.read_bytes()).hexdigest() if text.exists() else "")
            assert kind == ""


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than this machine has cores
def test_any_number_of_processes_finds_the_same(
    spec: DataSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, texts = spec.root / "images/train", spec.root / "labels/train"
    (texts / "02.txt").write_text("0 .5 .5 .1 .1\n7 .5 .5 .1 .1\n0 .5 .5 .1 1.1\n")
    (texts / "03.txt").write_bytes(b"\xff\xfe\x00")
    (images / "05.png").write_bytes((images / "05.png").read_bytes()[:-30])
    (images / "08.png").write_bytes(b"")
    (texts / "11.txt").write_text("x\n")
    (spec.root / "labels/train/07.txt").write_text("1 .1 .1 .9 .1 .9 .7\n1 .5 .5 .25 .25\n1 .5 .5 .25 .25\n")
    pids, original = tmp_path / "pids", scan._read

    def spy(*job: object) -> scan.Entry:
        with pids.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return original(*job)  # type: ignore[arg-type]

    monkeypatch.setattr(scan, "_read", spy)
    monkeypatch.setattr(scan, "CHUNK", 2)
    results, random = [], torch.get_rng_state()
    for processes in (1, 2, 5):
        monkeypatch.setattr(scan, "PROCESSES", processes)
        (spec.root / "labels/train.thaw.cache").unlink(missing_ok=True)
        pids.unlink(missing_ok=True)
        results.append(scan_split(spec, "train", on_bad_data="skip"))
        workers = set(map(int, pids.read_text().split()))
        assert (workers == {os.getpid()}) if processes == 1 else (len(workers) > 1 and os.getpid() not in workers)
    results.append(scan_split(spec, "train", on_bad_data="skip"))  # from the cache
    assert torch.equal(random, torch.get_rng_state())
    first = results[0]
    named = [(Path(p.file).name, p.line) for p in first.problems]
    assert named == [("02.txt", 3), ("02.txt", 2), ("03.txt", 0), ("05.png", 0), ("08.png", 0), ("11.txt", 1)]
    assert [p.stem for p in first.files] == [
        "00",
        "01",
        "02",
        "04",
        "06",
        "07",
        "09",
        "10",
    ]  # in 03, 11 nothing is left
    assert first.sizes[:4].tolist() == [[60, 80], [80, 60], [64, 64], [60, 80]]
    for other in results[1:]:
        assert same(first, other)
        assert (first.problems, first.contents) == (other.problems, other.contents)
        assert [x.duplicates for x in first.labels] == [x.duplicates for x in other.labels]
        assert all((x.lines == y.lines).all() for x, y in zip(first.labels, other.labels, strict=True))


def test_objects_of_many_images_are_those_of_each(spec: DataSpec) -> None:
    (spec.root / "labels/train/05.txt").write_text("1 .1 .1 .9 .1 .9 .7\n1 .5 .5 .25 .25\n")
    (spec.root / "labels/train/06.txt").write_text("")
    labels = scan_split(spec, "train").labels
    many = Objects.of_all(labels)
    assert len(many) == len(labels)
    for one, objects in zip(map(Objects.of, labels), many, strict=True):
        for name in ("classes", "points", "starts", "outlined"):
            a, b = getattr(one, name), getattr(objects, name)
            assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
    assert not Objects.of_all([])


def test_long_lines_are_polygons_where_enough_of_them_can_be_nothing_else(spec: DataSpec) -> None:
    """A data set of boxes with key points is refused, one of polygons is read, and what is declared holds."""
    labels = spec.root / "labels/train"
    for i in range(4):
        (labels / f"{i:02d}.txt").write_text("0 .5 .5 .25 .25 .45 .45 .55 .45 .5 .55\n")
    with pytest.raises(UserError, match=r"00\.txt:1: 11 values: a box with more behind it"):
        scan_split(spec, "train")
    assert len(scan_split(spec, "train", on_bad_data="skip").files) == 8
    assert scan_split(replace(spec, outlines="polygons"), "train").labels[0].polygons[0] is not None
    (labels / "04.txt").write_text("0 .8 .8 .82 .8 .81 .83\n1 .8 .2 .9 .2 .9 .3\n")
    assert len(scan_split(spec, "train").labels[0]) == 1  # two of six are certain
    with pytest.raises(UserError, match="says `labels: boxes`"):
        scan_split(replace(spec, outlines="boxes"), "train")
