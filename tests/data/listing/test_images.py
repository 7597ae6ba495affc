"""The images of a split: exported layouts, lists of all kinds, and what is counted once or named."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.pictures import make_set
from utils.data.scan import scan_split
from utils.data.spec import DataSpec, read_data
from utils.system.errors import UserError


def data(where: Path, /, **content: Any) -> Path:
    where.parent.mkdir(parents=True, exist_ok=True)
    base = {"train": "images/train", "val": "images/train", "names": ["a", "b", "c"]}
    where.write_text(yaml.safe_dump({k: v for k, v in (base | content).items() if v is not None}))
    return where


def objects(spec: DataSpec) -> int:
    return sum(map(len, scan_split(spec, "train", progress=False).labels))


def test_roboflow_as_unzipped(tmp_path: Path) -> None:
    """`../train/images` beside the YAML, `valid:` for val."""
    make_set(tmp_path / "set")
    (tmp_path / "export/train").mkdir(parents=True)
    (tmp_path / "set/images/train").rename(tmp_path / "export/train/images")
    (tmp_path / "set/labels/train").rename(tmp_path / "export/train/labels")
    entries = {"train": "../train/images", "val": None, "valid": "../train/images", "test": "../test/images"}
    spec = read_data(data(tmp_path / "export/data.yaml", **entries))
    assert (len(spec.train), len(spec.val), len(spec.test)) == (12, 12, 0) and objects(spec) == 12
    with pytest.raises(UserError, match="valid and val both say val, and not the same"):
        read_data(data(tmp_path / "export/data.yaml", valid="../train/images"))


@pytest.mark.parametrize("place", ["yamls/mine", "yamls/datasets/mine", "datasets/mine", "cwd/datasets/mine"])
def test_ultralytics_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    make_set(tmp_path / place)
    (tmp_path / "cwd").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "cwd")
    assert objects(read_data(data(tmp_path / "yamls/d.yaml", path="mine"))) == 12


def test_an_error_lists_the_places_and_quotes_the_download(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_data(data(tmp_path / "d.yaml", path="coco8", download="https://example.org/coco8.zip"))
    said = str(error.value)
    assert f"{tmp_path}/coco8\n" in said and f"{tmp_path}/../datasets/coco8\n" in said
    assert "`download:` says:\n  https://example.org/coco8.zip" in said
    make_set(tmp_path / "set")
    with pytest.raises(UserError) as error:
        read_data(data(tmp_path / "d.yaml", path="set", train="../none", download="x: y"))
    assert f"{tmp_path}/set/none" in str(error.value) and "x: y" in str(error.value)


def test_ch_is_channels_and_key_points_are_refused(tmp_path: Path) -> None:
    make_set(tmp_path)
    assert read_data(data(tmp_path / "d.yaml", ch=1)).channels == 1
    with pytest.raises(UserError, match="kpt_shape: labels with key points are not read"):
        read_data(data(tmp_path / "d.yaml", kpt_shape=[17, 3]))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_editors_write_them(tmp_path: Path, encoding: str) -> None:
    """Byte order marks, comments, Windows' line ends and backslashes."""
    make_set(tmp_path)
    text = "images/train/00.png\r\n# a remark\r\n\r\n.\\images\\train\\01.png\r\nimages\\train\\02.png\r\n"
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    spec = read_data(data(tmp_path / "d.yaml", train="list.txt"))
    assert [p.name for p in spec.train] == ["00.png", "01.png", "02.png"] and objects(spec) == 3


def test_a_list_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    make_set(tmp_path)
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(UserError, match="is a pipe"):
        read_data(data(tmp_path / "d.yaml", train="list.txt"))


def test_an_image_given_twice_counts_once(tmp_path: Path) -> None:
    make_set(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "images/train")
    (tmp_path / "list.txt").write_text("images/train/03.png\n./images/train/03.png\n")
    entries = ["images", "images/train", "again", "list.txt"]
    spec = read_data(data(tmp_path / "d.yaml", train=entries))
    assert len(spec.train) == 12
    assert spec.listed["train"].said == ("26 images are given more than once; each counts once",)


def test_links_to_nothing_and_pipes_are_named(tmp_path: Path) -> None:
    make_set(tmp_path)
    (tmp_path / "images/train/night").symlink_to(tmp_path / "not mounted")
    os.mkfifo(tmp_path / "images/train/pipe.png")
    spec = read_data(data(tmp_path / "d.yaml"))
    with pytest.raises(UserError) as error:
        scan_split(spec, "train", progress=False)
    said = str(error.value)
    assert "train/night: the image is a link to a file that does not exist" in said and "is a pipe" in said
    assert len(scan_split(spec, "train", on_bad_data="skip", progress=False).files) == 12


def test_hidden_folders_are_no_data(tmp_path: Path) -> None:
    make_set(tmp_path)
    for folder in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / "images/train" / folder).mkdir()
        (tmp_path / "images/train" / folder / "x.png").write_bytes((tmp_path / "images/train/00.png").read_bytes())
    (tmp_path / "images/train/x.gif").touch()
    spec = read_data(data(tmp_path / "d.yaml"))
    assert len(spec.train) == 12
    left = "1 pictures of kinds that are not read (1 .gif), 2 hidden files or folders"
    assert spec.listed["train"].said == (f"{tmp_path}/images/train: left out: {left}",)
