"""--source: which pictures it names."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.images.sources import find_sources, frames
from utils.system.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in/deep").mkdir(parents=True)
    for name, blue in (("b.png", 200), ("a.PNG", 100), ("deep/c.png", 50)):
        image = np.zeros((4, 6, 3), np.uint8)
        image[..., 0] = blue  # OpenCV's first channel
        cv2.imwrite(str(tmp_path / "in" / name), image)
    (tmp_path / "in/notes.md").write_text("x")
    return tmp_path / "in"


def test_folders_are_walked_as_those_of_a_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders behind links are searched, hidden files and folders are not."""
    (folder.parent / "store").mkdir()
    (folder / "b.png").rename(folder.parent / "store/night.png")
    (folder / "linked").symlink_to(folder.parent / "store")
    (folder / "._a.png").write_bytes(b"of macOS")
    (folder / "x.gif").touch()
    assert [Path(frame.source).name for frame in frames(str(folder))] == ["a.PNG", "c.png", "night.png"]
    said = "left out: 1 pictures of kinds that are not read (1 .gif), 1 hidden files or folders"
    assert capsys.readouterr().out.count(said) == 1


def test_folders_globs_and_files(folder: Path) -> None:
    def names(source: Path | str) -> list[str]:
        return [Path(p).name for p in find_sources(str(source))]

    assert names(folder) == ["a.PNG", "b.png", "c.png"]
    assert names(folder / "*.png") == ["b.png"] and names(folder / "deep/c.png") == ["c.png"]
    with pytest.raises(UserError, match=r"--source .*nothing\*: no file there; wanted images"):
        find_sources(str(folder / "nothing*"))
    with pytest.raises(UserError, match="nothing but other files"):
        find_sources(str(folder / "notes.md"))


def test_pictures_are_rgb_and_name_their_file(folder: Path) -> None:
    found = list(frames(str(folder)))
    assert [Path(f.source).name for f in found] == ["a.PNG", "b.png", "c.png"]
    assert [f.image[0, 0].tolist() for f in found] == [[0, 0, 100], [0, 0, 200], [0, 0, 50]]
    assert all(f.number is None and f.image.shape == (4, 6, 3) for f in found)


def test_a_damaged_picture_and_a_film_of_other_channels_are_named(folder: Path) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:40])
    with pytest.raises(UserError, match=r"--source .*b\.png: the image"):
        list(frames(str(folder)))
    (folder / "film.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="videos have 3 channels, the model reads 1"):
        list(frames(str(folder), channels=1))
    with pytest.raises(UserError, match="not a readable video"):
        list(frames(str(folder / "film.mp4")))


def test_an_empty_source_is_not_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert find_sources(".")
    for empty in ("", " "):
        with pytest.raises(UserError, match="--source is empty"):
            find_sources(empty)
