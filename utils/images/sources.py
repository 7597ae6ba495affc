"""Pictures from wherever --source points: images, folders, globs, videos, a camera."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.images.pixels import Image
from utils.images.read import SUFFIXES, fault, read_image
from utils.images.walk import walk
from utils.system.errors import UserError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".mpg", ".mpeg", ".webm", ".wmv")


class Frame(NamedTuple):
    """One picture to look at [H,W,C], RGB if C is 3, and where it came from."""

    image: Image
    source: str
    number: int | None  # of a video's frame, from 0; None = a single image
    fps: float


def find_files(source: str, say: bool = False) -> list[Path]:
    """Images and videos that `source` names; none, or a file of another kind, is an error. say: what was left out."""
    path, kept = Path(source), {*SUFFIXES, *VIDEOS}
    if path.is_dir():  # as the folders of a data set: links are followed, hidden files are left out
        below = walk(path, kept)
        found = [Path(p) for p in sorted([*below.paths, *below.broken], key=lambda p: p.split(os.sep))]
        if say and below.left_out:
            print(f"--source {source}: left out: {below.left_out}")
    else:
        found = [Path(p) for p in sorted(glob.glob(source, recursive=True))]
    known = [p for p in found if p.suffix.lower() in kept]
    if not known:
        kinds = f"images ({' '.join(sorted(SUFFIXES))}) or videos ({' '.join(VIDEOS)})"
        raise UserError(
            f"--source {source}: {'no file there' if not found else 'nothing but other files'}; wanted {kinds}"
        )
    return known


def frames(source: str, channels: int = 3) -> Iterator[Frame]:
    """Every picture of the source, one by one, in so many channels."""
    files = [] if source.isdigit() else find_files(source, say=True)
    moving = source.isdigit() or any(p.suffix.lower() in VIDEOS for p in files)
    if moving and channels != 3:
        raise UserError(f"--source {source}: videos have 3 channels, the model reads {channels}")
    if source.isdigit():
        yield from video_frames(int(source), f"camera{source}")
        return
    for path in files:
        if path.suffix.lower() in VIDEOS:
            yield from video_frames(str(path), str(path))
            continue
        image = read_image(path, channels=channels)
        if image is None:
            raise UserError(f"--source {path}: the image {fault(path, channels)}")
        yield Frame(image, str(path), None, 0.0)


def video_frames(device: str | int, name: str) -> Iterator[Frame]:
    capture = cv2.VideoCapture(device)
    if not capture.isOpened():
        raise UserError(f"--source {device}: not a readable video")
    fps = capture.get(cv2.CAP_PROP_FPS) or 30.0
    number = 0
    while True:
        good, image = capture.read()
        if not good:
            break
        yield Frame(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), name, number, fps)
        number += 1
    capture.release()
