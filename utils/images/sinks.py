"""Where drawn pictures go: files, videos, and a window where there is a display. Pictures here are [H,W,3] BGR.

OpenCV says little when it fails: whether a picture was written is in a result, of a video it shows only in the file.
"""

import subprocess
import sys
from pathlib import Path

import cv2

from utils.images.pixels import Image
from utils.images.sources import WAIT
from utils.system.errors import UserError, parsing


def write_picture(path: Path, image: Image) -> None:
    """Errors: UserError where the file is not written whole."""
    good = False
    with parsing(f"{path} cannot be written"):
        good = cv2.imwrite(str(path), image)
    if not good:
        raise UserError(f"{path} cannot be written (a full disk, or no right to); --nosave does without")


class Film:
    """A video that is written frame by frame."""

    def __init__(self, path: Path, fps: float, first: Image) -> None:
        """first: a picture of its size. Errors: UserError where it cannot be written."""
        self.path, self.frames = path, 0
        self.writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (first.shape[1], first.shape[0]))
        if not self.writer.isOpened():
            raise UserError(f"{path} cannot be written; --nosave does without")

    def add(self, image: Image) -> None:
        self.writer.write(image)
        self.frames += 1

    def close(self) -> None:
        self.writer.release()

    def check(self) -> None:
        """UserError where the closed file lacks frames."""
        there = max(int(cv2.VideoCapture(str(self.path)).get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        if there != self.frames:
            raise UserError(
                f"{self.path} was not written whole: {there} of {self.frames} frames are there (a full disk?); "
                "--nosave does without"
            )


def show(image: Image, title: str) -> bool:
    """A picture [H,W,3], BGR, in a window of that title; whether there is one."""
    try:
        with parsing("--view-img"):
            cv2.imshow(title, image)
            cv2.waitKey(1)
    except UserError as error:
        print(f"{error}; the drawn pictures lie in the run folder")
        return False
    return True


def has_display() -> bool:
    """Whether a window can be opened; tried in a process of its own, as a library that finds no display may end it."""
    trial = [sys.executable, "-c", "import cv2; cv2.namedWindow('thaw')"]
    try:
        opened = subprocess.run(trial, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=WAIT).returncode
    except (OSError, subprocess.TimeoutExpired):
        opened = 1
    if opened:
        print("--view-img: no window can be opened here (no display); the drawn pictures lie in the run folder")
    return not opened
