"""Data YAML files: what they may say, and what the message is when they are wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.data.pictures import make_set
from tests.shared import ROOT
from utils.data.listing.label_files import label_path
from utils.data.shapes import scenes as shapes
from utils.data.spec import DataSpec, read_data
from utils.system.errors import UserError


def write(where: Path, /, **content: Any) -> Path:
    where.write_text(
        yaml.safe_dump({"train": "images/train", "val": "images/train", "names": ["a", "b", "c"]} | content)
    )
    return where


def test_folders_names_and_paths(tmp_path: Path) -> None:
    spec = read_data(make_set(tmp_path / "set"))
    assert isinstance(spec, DataSpec)
    assert [p.name for p in spec.train] == [f"{i:02d}.png" for i in range(12)]
    assert (spec.nc, spec.names, spec.test) == (3, ("class 0", "class 1", "class 2"), ())
    # names as a map in any order; `path` relative to the YAML's own folder
    (tmp_path / "yaml").mkdir()
    other = write(tmp_path / "yaml/d.yaml", path="../set", names={2: "z", 0: "x", 1: "y"})
    assert read_data(other).names == ("x", "y", "z")
    assert [p.resolve() for p in read_data(other).val] == [p.resolve() for p in spec.train]


def test_lists_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/a.txt").write_text("../images/train/03.png\n\n../images/train/01.png\n")  # to the list's folder
    (tmp_path / "lists/b.txt").write_text("./images/train/02.png\n")  # to the root
    spec = read_data(write(tmp_path / "l.yaml", train=["lists/a.txt", "lists/b.txt"], val="images/train"))
    assert [p.name for p in spec.train] == ["03.png", "01.png", "02.png"]
    assert all(p.is_file() and label_path(p).is_file() for p in spec.train)
    (tmp_path / "elsewhere").mkdir()
    both = {"train": str(tmp_path / "lists/b.txt"), "val": "images/train"}
    monkeypatch.chdir(tmp_path)  # to the working folder
    assert [p.is_file() for p in read_data(write(tmp_path / "elsewhere/c.yaml", **both)).train] == [True]


def test_label_path_exchanges_the_last_images_folder() -> None:
    assert label_path(Path("/images/set/images/train/a.b.jpg")) == Path("/images/set/labels/train/a.b.txt")
    assert label_path(Path("plain/a.jpg")) == Path("plain/a.txt")
    assert label_path(Path("images/a.jpg")) == Path("labels/a.txt")
    assert label_path(Path("images/images/a")) == Path("images/labels/a.txt")
    assert label_path(Path("/myimages/a.jpg")) == Path("/myimages/a.txt")
    assert label_path(Path("images")) == Path("images.txt")


def test_images_of_a_folder_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    """Folder by folder, so that `a b/` comes after all of `a/`; hidden files, other files and folders are left out."""
    names = ["a b/1.png", "a/2.JPG", "a/1.png", "a.b/1.png", "a/c/1.png", "z.png", "A.png"]
    for name in [*names, "a/.hidden.png", "a/notes.txt", "folder.png/inside.png"]:
        (tmp_path / "images/train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images/train" / name).touch()
    (tmp_path / "images/train/gone.png").symlink_to(tmp_path / "nowhere.png")
    images = read_data(write(tmp_path / "d.yaml")).train
    seen = [*names, "folder.png/inside.png", "gone.png"]  # a link to nothing is for the scan to name
    assert list(images) == sorted(tmp_path / "images/train" / n for n in seen)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"nc": 2}, ["nc is 2", "3 classes"]),
        ({"nc": "three"}, ["nc", "whole number", "'three'"]),
        ({"names": {0: "a", 2: "b"}}, ["names", "0..1"]),
        ({"names": ["a", "a", "b"]}, ["names", "a given more than once"]),
        ({"names": None}, ["'names' is missing"]),
        ({"train": None}, ["'train' is missing"]),
        ({"val": ""}, ["'val' is missing"]),
        ({"train": "images/none"}, ["train", "images/none does not exist"]),
        ({"train": "empty"}, ["train", "empty", "it is empty"]),
        ({"train": "odd"}, ["train", "holds no image", ".gif"]),
        ({"train": "data.yaml"}, ["train", "neither a folder, a .txt list"]),
        ({"train": "bad.txt"}, ["bad.txt:2", "'x.gif'", "no image suffix", "one image per line"]),
        ({"train": 7}, ["train", "expected a path", "7"]),
        ({"path": "nowhere"}, ["path", "nowhere", "does not exist"]),
        ({"nams": ["a"]}, ["unknown key 'nams'", "'names'"]),
        ({"generator": "cubes"}, ["generator", "'cubes'", "shapes"]),
    ],
)
def test_errors_say_what_and_where(tmp_path: Path, content: dict[str, Any], words: list[str]) -> None:
    make_set(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/x.gif").touch()
    (tmp_path / "bad.txt").write_text("images/train/00.png\nx.gif\n")
    with pytest.raises(UserError) as error:
        read_data(write(tmp_path / "w.yaml", **content))
    assert all(word in str(error.value) for word in [*words, str(tmp_path)]), str(error.value)


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*none\.yaml"):
        read_data(tmp_path / "none.yaml")
    (tmp_path / "m.yaml").write_text("names: [a, b\n")
    with pytest.raises(UserError, match=r"m\.yaml is not valid YAML"):
        read_data(tmp_path / "m.yaml")
    (tmp_path / "l.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"l\.yaml must hold `key: value` lines"):
        read_data(tmp_path / "l.yaml")


def test_an_absent_test_split_matters_only_to_who_asks(tmp_path: Path) -> None:
    make_set(tmp_path)
    spec = read_data(write(tmp_path / "t.yaml", test="images/none"))
    assert len(spec.images("train")) == 12
    with pytest.raises(UserError, match=r"test: .*images/none does not exist"):
        spec.images("test")
    with pytest.raises(UserError, match="key 'test' is missing"):
        read_data(write(tmp_path / "t.yaml")).images("test")


@pytest.mark.parametrize("name", ["coco", "coco320", "coco128", "shapes", "shapes_1b4h", "shapes_joint"])
def test_the_yamls_that_come_along(name: str) -> None:
    content = yaml.safe_load((ROOT / f"data/{name}.yaml").read_text())
    assert content["nc"] == len(content["names"]) == len(set(content["names"]))
    if name.startswith("shapes"):
        assert tuple(content["names"]) == shapes.NAMES
        assert {key: content[key] for key in ("images", "seed")} == shapes.SETTINGS
        assert tuple(content.get("cls_names", shapes.CLS_NAMES)) == shapes.CLS_NAMES
    else:
        assert content["nc"] == 80
        assert [content["names"][i] for i in (0, 11, 35, 79)] == ["person", "stop sign", "baseball glove", "toothbrush"]
    if "heads" in content:
        heads = content["head_assignments"]
        assert sorted(c for head in heads.values() for c in head["classes"]) == list(range(content["nc"]))
        assert len(heads) == content["heads"] == 4
