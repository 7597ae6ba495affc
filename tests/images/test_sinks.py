"""Where drawn pictures go. What a full disk makes of them is in tests/commands/test_detect.py."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.images import sinks
from utils.system.errors import UserError


def test_a_film_that_lacks_frames_is_named(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    film = sinks.Film(tmp_path / "a.mp4", 10, image)
    for _ in range(3):
        film.add(image)
    film.close()
    film.check()
    film.frames += 1
    with pytest.raises(UserError, match=r"a\.mp4 was not written whole: 3 of 4 frames"):
        film.check()


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone/a\.png cannot be written"):
        sinks.write_picture(tmp_path / "gone/a.png", np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("display", ["", ":99"])
def test_a_display_that_is_not_there_is_said(
    display: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that does not answer, too, of which a window library ends its process."""
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not sinks.has_display()
    assert capsys.readouterr().out.startswith("--view-img: no window can be opened here")


def test_a_window_that_fails_later_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(title: str, image: object) -> None:
        raise cv2.error("the display has gone")

    monkeypatch.setattr(cv2, "imshow", fail)
    assert not sinks.show(np.zeros((8, 8, 3), np.uint8), "p.png")
    assert "the display has gone" in capsys.readouterr().out
