"""The walk below a folder: links, circles, hidden things, and what cannot be opened."""

import os
from pathlib import Path

from utils.images.walk import unusable, walk


def made(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def test_links_are_followed_once_and_circles_end(tmp_path: Path) -> None:
    top = tmp_path / "top"
    made(top / "b/1.png", tmp_path / "store/2.PNG", top / "b/notes.txt")
    (top / "a").symlink_to(top / "b")  # the real folder's path stays
    (top / "night").symlink_to(tmp_path / "store")
    (tmp_path / "store/back").symlink_to(top)
    (top / "b/same.png").symlink_to(top / "b/1.png")
    found = walk(top, {".png"})
    assert [Path(p).relative_to(top).as_posix() for p in found.paths] == ["b/1.png", "b/same.png", "night/2.PNG"]
    assert (found.again, found.broken, found.other[".txt"]) == (2, {}, 1)
    assert "2 folders that links lead to a second time" in found.left_out


def test_what_is_hidden_or_of_another_kind_is_counted(tmp_path: Path) -> None:
    made(
        *(
            tmp_path / n
            for n in ("a.png", "._a.png", ".ipynb_checkpoints/a.png", "__MACOSX/a.png", ".DS_Store", "x.gif")
        )
    )
    made(tmp_path / "y.jp2", tmp_path / "a.txt")
    found = walk(tmp_path, {".png"})
    assert [os.path.basename(p) for p in found.paths] == ["a.png"]
    assert found.left_out == "2 pictures of kinds that are not read (1 .gif, 1 .jp2), 3 hidden files or folders"


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "more").symlink_to(tmp_path / "not mounted")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    found = walk(tmp_path, {".png"})
    assert not found.paths
    assert {Path(p).name: why for p, why in found.broken.items()} == {
        "gone.png": "is a link to a file that does not exist",
        "more": "is a link to a file that does not exist",
        "circle.png": "is a circle of links",
        "pipe.png": "is a pipe, not a file",
        "device.png": "is a device, not a file",
    }
    assert unusable(tmp_path) == "is a folder, not a file"
    assert unusable(tmp_path / "none") == "does not exist"
    assert unusable(Path("a\0b")) == "is no name of a file"
