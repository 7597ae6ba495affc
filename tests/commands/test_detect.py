"""detect.py on what people point it at: folders, bad pictures, lists, videos, pipes; and several weights."""

import os
import resource
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect
from tests.toy import trained
from utils.images import sources
from utils.images.sources import find_sources, frames
from utils.system.errors import UserError


@pytest.fixture(scope="module")
def best(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    trained(small_shapes, runs, "r", "--notest")
    return runs / "r/weights/last.pt"


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8))
    return path


def ran(best: Path, source: object, project: Path, *flags: str, name: str = "d") -> Path:
    words = ["--weights", str(best), "--source", str(source), "--project", str(project), "--name", name]
    detect.main([*words, "--device", "cpu", "--save-txt", *flags])
    return project / name


def test_a_label_file_belongs_to_the_picture_of_its_name(best: Path, tmp_path: Path) -> None:
    """With nothing found in the first of two pictures of one name."""
    cv2.imwrite(str(picture(tmp_path / "s/a/f.png")), np.zeros((64, 64, 3), np.uint8))
    picture(tmp_path / "s/b/f.png", 1)
    sure = str(0.0001)
    both = ran(best, tmp_path / "s", tmp_path, "--conf", sure, "--save-conf")
    alone = ran(best, tmp_path / "s/b/f.png", tmp_path, "--conf", sure, "--save-conf", name="alone")
    assert (both / "f.png").exists() and (both / "f_2.png").exists()
    assert (both / "labels/f_2.txt").read_text() == (alone / "labels/f.txt").read_text() != ""
    assert "f_2," in (both / "names.csv").read_text() and "b/f.png" in (both / "names.csv").read_text()


def test_an_earlier_run_leaves_nothing(best: Path, tmp_path: Path) -> None:
    picture(tmp_path / "s/p.png")
    folder = ran(best, tmp_path / "s", tmp_path, "--conf", "0.0001")
    assert (folder / "labels/p.txt").exists()
    ran(best, tmp_path / "s", tmp_path, "--conf", "0.99", "--exist-ok", "--nosave")
    assert not list((folder / "labels").iterdir()) and not (folder / "p.png").exists()


def test_a_bad_picture_does_not_end_a_folder(best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "s/a.png")
    (tmp_path / "s/b.png").write_bytes(b"no picture")
    os.mkfifo(tmp_path / "s/c.png")
    picture(tmp_path / "s/d.png")
    folder = ran(best, tmp_path / "s", tmp_path)
    printed = capsys.readouterr()
    assert "2 images, 2 left out" in printed.out and (folder / "d.png").exists()
    assert "b.png: the image is corrupt" in printed.err and "c.png: the image is no file" in printed.err
    with pytest.raises(UserError, match=r"b\.png: the image is corrupt"):
        ran(best, tmp_path / "s", tmp_path, "--on-bad-data", "error", name="e")
    with pytest.raises(UserError, match=r"b\.png: the image is corrupt.*not one picture"):
        ran(best, tmp_path / "s/b.png", tmp_path, name="f")


def test_odd_shapes_and_odd_names(best: Path, tmp_path: Path) -> None:
    for i, size in enumerate([(5000, 2), (1, 3000), (3000, 1)]):
        picture(tmp_path / f"s [1]/{i}[x].png", size=size)
    folder = ran(best, tmp_path / "s [1]", tmp_path, "--img", "128")
    assert len(list(folder.glob("*.png"))) == 3
    assert find_sources(str(tmp_path / "s [1]/0[x].png")) == [str(tmp_path / "s [1]/0[x].png")]


def test_folders_are_followed_and_hidden_files_left(tmp_path: Path) -> None:
    picture(tmp_path / "store/b.png")
    picture(tmp_path / "s/a.png")
    for hidden in ("s/._a.png", "s/.ipynb_checkpoints/a-checkpoint.png", "s/__MACOSX/a.png"):
        picture(tmp_path / hidden)
    (tmp_path / "s/night").symlink_to(tmp_path / "store")
    (tmp_path / "store/loop").symlink_to(tmp_path / "s")
    assert [Path(p).name for p in find_sources(str(tmp_path / "s"))] == ["a.png", "b.png"]


def test_a_list_names_sources(tmp_path: Path) -> None:
    picture(tmp_path / "s/a.png")
    (tmp_path / "list.txt").write_text("\ufeff# cameras\ns/a.png\nrtsp://nowhere/1\n0\n", encoding="utf-8")
    assert find_sources(str(tmp_path / "list.txt")) == [str(tmp_path / "s/a.png"), "rtsp://nowhere/1", "0"]
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(UserError, match="the list is empty"):
        find_sources(str(tmp_path / "list.txt"))


class Silent:
    """A camera that opens and then gives two frames and no third."""

    def __init__(self, *_: object) -> None:
        self.left = 2

    def isOpened(self) -> bool:
        return True

    def get(self, _: int) -> float:
        return 25.0

    def read(self) -> tuple[bool, np.ndarray]:
        if not self.left:
            time.sleep(3)
        self.left -= 1
        return True, np.zeros((8, 8, 3), np.uint8)


def test_a_stream_is_not_waited_for_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.cv2, "VideoCapture", Silent)
    monkeypatch.setattr(sources, "WAIT", 0.3)
    lost: list[str] = []
    found = list(frames("rtsp://host/one", bad=lambda where, why: lost.append(f"{where}: {why}")))
    assert [f.number for f in found] == [1, 2]
    assert lost == ["rtsp://host/one: took more than 0 seconds to give its next frame"]


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Address of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:  # closed at the end of the test
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in kept:
            connection.close()


@pytest.mark.parametrize("scheme", ["http", "rtsp", "tcp"])
def test_a_stream_that_never_answers_is_one_named_error(
    scheme: str, silent_server: str, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "WAIT", 0.5)
    address = f"{scheme}://{silent_server}/x"
    with pytest.raises(UserError, match=f"--source {address}: took more than 0 seconds to open"):
        detect.main(["--weights", str(best), "--source", address, "--project", str(tmp_path), "--device", "cpu"])


def test_a_stream_that_hangs_does_not_end_a_list(
    silent_server: str, best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "WAIT", 0.5)
    picture(tmp_path / "p.png", 3)
    (tmp_path / "list.txt").write_text(f"http://{silent_server}/x\np.png\n")
    ran(best, tmp_path / "list.txt", tmp_path)
    said = capsys.readouterr()
    assert "1 images, 1 left out" in said.out and f"left out: http://{silent_server}/x: took more" in said.err


def test_a_camera_that_is_not_there_is_named(best: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--source 99: no stream or camera answers there"):
        detect.main(["--weights", str(best), "--source", "99", "--project", str(tmp_path), "--device", "cpu"])


def film(path: Path, frames: int, size: int = 64) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (size, size))
    for i in range(frames):
        writer.write(np.random.default_rng(i).integers(0, 256, (size, size, 3)).astype(np.uint8))
    writer.release()


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file may grow above 60,000 bytes, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_picture_that_is_not_written_whole_is_named(
    best: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), noise)
    request.getfixturevalue("little_room")
    with pytest.raises(UserError, match=r"noise\.png cannot be written"):
        ran(best, tmp_path / "noise.png", tmp_path)


def test_a_video_that_is_not_written_whole_is_named(best: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    film(tmp_path / "film.avi", 30, 256)
    request.getfixturevalue("little_room")
    with pytest.raises(UserError, match=r"film\.mp4 was not written whole: \d+ of 30 frames"):
        ran(best, tmp_path / "film.avi", tmp_path)


def test_without_a_display_pictures_are_written(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A display that does not answer, too, of which a window library ends its process."""
    picture(tmp_path / "p.png", 3)
    for display in ("", ":99"):
        monkeypatch.setenv("DISPLAY", display)
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
        folder = ran(best, tmp_path / "p.png", tmp_path, "--view-img", name=f"view{display[1:]}")
        assert "--view-img: no window can be opened here" in capsys.readouterr().out
        assert (folder / "p.png").is_file()


def test_frames_of_videos_count_from_one(best: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    film(tmp_path / "s/b.avi", 3)
    shutil.copy(tmp_path / "s/b.avi", tmp_path / "s/b.MP4")
    folder = ran(best, tmp_path / "s", tmp_path, "--conf", "0.0001")
    labels = {p.name for p in (folder / "labels").iterdir()}
    assert labels == {f"{stem}_{i}.txt" for stem in ("b", "b_2") for i in (1, 2, 3)}
    assert {p.name for p in folder.glob("*.mp4")} == {"b.mp4", "b_2.mp4"}


def test_several_weights_and_views(best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model beside itself finds the same; views of other sizes add to it. Without a display there is a note."""
    picture(tmp_path / "s/p.png", 3)
    one = ran(best, tmp_path / "s", tmp_path, "--conf", "0.001", "--save-conf", name="one")
    assert "--img-size 64, as in training" in capsys.readouterr().out
    words = ["--weights", str(best), str(best), "--source", str(tmp_path / "s"), "--project", str(tmp_path)]
    detect.main(
        [*words, "--name", "two", "--device", "cpu", "--save-txt", "--save-conf", "--conf", "0.001", "--view-img"]
    )
    assert "--view-img: " in capsys.readouterr().out or os.environ.get("DISPLAY")
    text = (one / "labels/p.txt").read_text()
    assert text and (tmp_path / "two/labels/p.txt").read_text() == text
    more = ran(best, tmp_path / "s", tmp_path, "--conf", "0.001", "--save-conf", "--augment", name="more")
    assert (more / "labels/p.txt").read_text() != text
