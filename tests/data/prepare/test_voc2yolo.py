"""Annotations to label files, through the command line."""

import contextlib
import io
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import CommandLine
from utils.data.prepare.voc2yolo import main
from utils.system.errors import UserError

VOC = """<annotation><size><width>200</width><height>100</height><depth>3</depth></size>{}</annotation>"""
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def voc(folder: Path, name: str, *objects: tuple[object, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(VOC.format("".join(OBJECT.format(*o) for o in objects)))


def test_voc_boxes_are_cut_counted_and_kept_in_their_folders(tmp_path: Path, command_line: CommandLine) -> None:
    source, out = tmp_path / "xml", tmp_path / "labels"
    voc(source / "train", "1.xml", ("person", 20, 10, 60, 50), ("dog", 0, 0, 5, 5), ("person", 180, 90, 240, 120))
    voc(source / "val", "2.xml", ("person", 210, 0, 220, 10))
    voc(source / "val", "3.xml")
    done = command_line(
        "-m", "utils", "voc2yolo", str(source), "--out", str(out), "--classes", "car", "person", "--ignore", "dog"
    )
    assert done.returncode == 0, done.stderr
    assert "3 files, 2 objects, 1 without area, 1 ignored" in done.stdout
    assert (out / "train/1.txt").read_text() == (
        "1 0.200000 0.300000 0.200000 0.400000\n1 0.950000 0.950000 0.100000 0.100000\n"
    )
    assert (out / "val/2.txt").read_text() == (out / "val/3.txt").read_text() == ""
    again = command_line(
        "-m", "utils", "voc2yolo", str(source), "--out", str(out), "--classes", "person", "--ignore", "dog"
    )
    assert again.returncode == 2 and "exists already" in again.stderr


def test_bbgt_text(tmp_path: Path, command_line: CommandLine) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/I0.txt").write_text("% bbGt version=3\nperson 64 128 32 64 0 0 0 0 0 0 0\n\npeople 0 0 9 9 0\n")
    words = ["-m", "utils", "voc2yolo", str(tmp_path / "a"), "--out", str(tmp_path / "o"), "--classes", "person"]
    assert "give --size" in command_line(*words, "--ignore", "people").stderr
    assert "I0.txt: class 'people' is neither" in command_line(*words, "--size", "640", "512").stderr
    done = command_line(*words, "--ignore", "people", "--size", "640", "512")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o/I0.txt").read_text() == "0 0.125000 0.312500 0.050000 0.125000\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.xml", "<annotation>", "x.xml is not valid XML"),
        ("x.xml", VOC.format(OBJECT.format("person", 1, 2, "wide", 4)), "<bndbox/xmax> of <object> is 'wide'"),
        ("x.xml", '<?xml version="1.0" encoding="zlib"?><annotation/>', "x.xml is not valid XML"),
        ("x.xml", '<?xml version="1.0" encoding="nosuch"?><annotation/>', "x.xml is not valid XML"),
        ("x.xml", VOC.format(OBJECT.format("person", 1, 2, "nan", 4)), "nan is no coordinate"),
        ("x.txt", "person 1 2 3 4\n", "x.txt:1: wanted `% bbGt version=3`"),
        ("x.txt", "% bbGt version=3\nperson 1 2 3\n", "x.txt:2: wanted `class x y w h ...`"),
        ("x.jpg", "", "there are no .xml or .txt annotations"),
    ],
)
def test_a_bad_annotation_is_named_and_nothing_is_written(tmp_path: Path, name: str, text: str, said: str) -> None:
    voc(tmp_path / "a", "a_good.xml" if name == "x.xml" else "good.md")
    (tmp_path / "a" / name).write_text(text)
    words = ["--out", str(tmp_path / "o"), "--classes", "person", "--size", "640", "512"]
    with pytest.raises(UserError, match=re.escape(said)):
        main([str(tmp_path / "a"), *words])
    assert not (tmp_path / "o").exists()


def run(folder: Path, *words: str) -> tuple[dict[str, str], str]:
    """The label files that are made of `folder/a`, and what was printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main([str(folder / "a"), "--out", str(folder / "o"), "--classes", "person", *words])
    return {p.name: p.read_text() for p in (folder / "o").rglob("*.txt")}, out.getvalue()


def test_pixels_from_one_and_exchanged_corners(tmp_path: Path) -> None:
    voc(tmp_path / "a", "1.xml", ("person", 1, 1, 200, 100), ("person", 120, 60, 101, 51))
    found, said = run(tmp_path)
    assert found == {"1.txt": "0 0.500000 0.500000 1.000000 1.000000\n0 0.550000 0.550000 0.100000 0.100000\n"}
    assert "counted from 1" in said and "1 with exchanged corners" in said


def test_a_box_at_zero_says_that_pixels_count_from_zero(tmp_path: Path) -> None:
    voc(tmp_path / "a", "1.xml", ("person", 0, 50, 100, 100))
    voc(tmp_path / "a", "2.xml", ("person", 100, 50, 200, 100))
    found, said = run(tmp_path)
    assert found["2.txt"] == "0 0.750000 0.750000 0.500000 0.500000\n" and "counted from 0" in said
    shutil.rmtree(tmp_path / "o")
    found, said = run(tmp_path, "--first-pixel", "1")
    assert found["2.txt"] == "0 0.747500 0.745000 0.505000 0.510000\n"


def test_difficult_objects_are_left_out_and_counted(tmp_path: Path) -> None:
    voc(tmp_path / "a", "1.xml", ("person", 1, 1, 100, 50), ("person", 101, 51, 200, 100))
    file = tmp_path / "a/1.xml"
    file.write_text(file.read_text().replace("</object>", "<difficult>1</difficult></object>", 1))
    found, said = run(tmp_path)
    assert found["1.txt"] == "0 0.750000 0.750000 0.500000 0.500000\n" and "1 difficult left out" in said
    shutil.rmtree(tmp_path / "o")
    assert run(tmp_path, "--keep-difficult")[0]["1.txt"].count("\n") == 2


def test_objects_to_be_ignored_in_bbgt(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    text = "% bbGt version=3\nperson 64 128 32 64 0 0 0 0 0 1 0\nperson 64 128 32 64 0 0 0 0 0 0 0\n"
    (tmp_path / "a/I0.txt").write_text(text)
    found, said = run(tmp_path, "--size", "640", "512")
    assert found["I0.txt"].count("\n") == 1 and "1 difficult left out" in said


@pytest.mark.parametrize("encoding", ["GB2312", "GBK", "utf-8", "utf-16", "big5", "latin-1"])
def test_any_encoding(tmp_path: Path, encoding: str) -> None:
    name = "café" if encoding == "latin-1" else "車"
    if encoding in ("GB2312", "GBK"):
        name = "车"
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + VOC.format(OBJECT.format(name, 1, 1, 200, 100))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.xml").write_bytes(text.encode(encoding))
    main([str(tmp_path / "a"), "--out", str(tmp_path / "o"), "--classes", name])
    assert (tmp_path / "o/1.txt").read_text() == "0 0.500000 0.500000 1.000000 1.000000\n"


def test_what_lies_beside_is_no_annotation(tmp_path: Path) -> None:
    """labelImg's list of classes, and what macOS leaves."""
    voc(tmp_path / "a", "1.xml", ("person", 1, 1, 200, 100))
    (tmp_path / "a/classes.txt").write_text("person\n")
    (tmp_path / "a/._1.xml").write_bytes(b"\0\5\x16\7")
    found, said = run(tmp_path)
    assert list(found) == ["1.txt"] and "1 other .txt files left out" in said


def test_sizes_are_those_of_the_pictures(tmp_path: Path) -> None:
    voc(tmp_path / "a", "1.xml", ("person", 1, 1, 200, 100))
    (tmp_path / "JPEGImages").mkdir()
    picture = tmp_path / "JPEGImages/1.png"
    cv2.imwrite(str(picture), np.zeros((100, 200, 3), np.uint8))
    assert run(tmp_path)[0]["1.txt"] == "0 0.500000 0.500000 1.000000 1.000000\n"
    shutil.rmtree(tmp_path / "o")
    cv2.imwrite(str(picture), np.zeros((200, 100, 3), np.uint8))
    with pytest.raises(UserError, match=r"says 200 x 100 pixels, and .* has 100 x 200"):
        run(tmp_path)
    file = tmp_path / "a/1.xml"
    file.write_text(file.read_text().replace(">200</width>", ">0</width>"))
    assert run(tmp_path)[0]["1.txt"] == "0 0.500000 0.250000 1.000000 0.500000\n"  # a size of 0 says nothing
    shutil.rmtree(tmp_path / "o")
    picture.unlink()
    with pytest.raises(UserError, match="does not say how large its picture is"):
        run(tmp_path)
    assert "1 pictures not found, their sizes not checked" in run(tmp_path, "--size", "200", "100")[1]


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a/1.xml")
    with pytest.raises(UserError, match="is a pipe"):
        run(tmp_path)
