"""Annotations to label files, through the command line."""

from pathlib import Path

import pytest

from tests.conftest import CommandLine

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
        "-m",
        "utils",
        "voc2yolo",
        str(source),
        "--out",
        str(out),
        "--classes",
        "car",
        "person",
        "--ignore",
        "dog",
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
    words = [
        "-m",
        "utils",
        "voc2yolo",
        str(tmp_path / "a"),
        "--out",
        str(tmp_path / "o"),
        "--classes",
        "person",
    ]
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
        ("x.xml", VOC.replace("200", "0").format(""), "0 x 100 pixels"),
        ("x.xml", VOC.format(OBJECT.format("person", 1, 2, "nan", 4)), "nan is no coordinate"),
        ("x.txt", "person 1 2 3 4\n", "x.txt:1: wanted `% bbGt version=3`"),
        ("x.txt", "% bbGt version=3\nperson 1 2 3\n", "x.txt:2: wanted `class x y w h ...`"),
        ("x.jpg", "", "there are no .xml or .txt annotations"),
    ],
)
def test_a_bad_annotation_is_named_and_nothing_is_written(
    tmp_path: Path, command_line: CommandLine, name: str, text: str, said: str
) -> None:
    voc(tmp_path / "a", "a_good.xml" if name != "x.jpg" else "good.md")
    (tmp_path / "a" / name).write_text(text)
    words = ["--out", str(tmp_path / "o"), "--classes", "person", "--size", "640", "512"]
    done = command_line("-m", "utils", "voc2yolo", str(tmp_path / "a"), *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "o").exists()
