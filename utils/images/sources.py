"""Pictures from wherever --source points: images, folders, globs, videos, streams, cameras, and lists of these.

Nothing is waited for without a limit: a pipe or a device is no picture, and a stream or camera that gives no frame for
WAIT seconds is an error that names it.
"""

import glob
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from utils.images.pixels import Image
from utils.images.read import SUFFIXES, examine, picture, read_bytes
from utils.images.tiff import ImageError, Scale, is_tiff
from utils.images.walk import walk
from utils.system.errors import UserError

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".mpg", ".mpeg", ".webm", ".wmv")
STREAMS = ("rtsp://", "rtmp://", "http://", "https://", "tcp://", "udp://")
T = TypeVar("T")
WAIT = 10.0  # seconds for a stream or a camera to open or to give its next frame
Bad = Callable[[str, str], None]  # source, what is wrong with it


class Frame(NamedTuple):
    """One picture to look at [H,W,C], RGB if C is 3, and where it came from."""

    image: Image
    source: str
    number: int | None  # of a video's or stream's frame, from 1; None = a single image
    fps: float


def is_stream(source: str) -> bool:
    """A camera's number or a stream's address."""
    return source.isdigit() or source.lower().startswith(STREAMS)


def moves(source: str) -> bool:
    """A video, stream or camera: pictures in a row."""
    return is_stream(source) or Path(source).suffix.lower() in VIDEOS


def find_sources(source: str, say: bool = False) -> list[str]:
    """Images, videos and streams that --source names; none, or a file of another kind, is an error.

    say: print what of a folder was left out.
    """
    if not source.strip():  # of a variable that is not set; as a path it would be the working folder
        raise UserError("--source is empty; give a picture, a folder, a video, a stream, or . for the working folder")
    path, kept = Path(source), {*SUFFIXES, *VIDEOS}
    if is_stream(source):
        return [source]
    if path.suffix.lower() == ".txt" and os.path.exists(path):
        return _listed(path, say)
    if path.is_dir():
        below = walk(path, kept)
        found = [Path(p) for p in sorted([*below.paths, *below.broken], key=lambda p: p.split(os.sep))]
        if say and below.left_out:
            print(f"--source {source}: left out: {below.left_out}")
    elif os.path.lexists(path):  # as it is spelt, brackets and all
        found = [path]
    else:
        found = [Path(p) for p in sorted(glob.glob(source, recursive=True)) if not os.path.isdir(p)]
    known = [str(p) for p in found if p.suffix.lower() in kept]
    if not known:
        kinds = f"images ({' '.join(sorted(SUFFIXES))}) or videos ({' '.join(VIDEOS)})"
        raise UserError(
            f"--source {source}: {'no file there' if not found else 'nothing but other files'}; wanted {kinds}"
        )
    return known


def _listed(path: Path, say: bool) -> list[str]:
    """What a .txt list names, one source per line: relative to the list, else to the working folder."""
    try:
        lines = read_bytes(path).tobytes().decode("utf-8-sig").splitlines()
    except (ImageError, UnicodeDecodeError) as error:
        raise UserError(f"--source {path}: {str(error)[:100]}; a list has one source per line") from None
    found: list[str] = []
    for line in map(str.strip, lines):
        if not line or line[0] == "#":
            continue
        beside = path.parent / line
        if Path(line).suffix.lower() == ".txt":
            raise UserError(f"--source {path}: {line} is a list as well; a list names pictures, videos and streams")
        found += find_sources(line if is_stream(line) or not beside.exists() else str(beside), say)
    if not found:
        raise UserError(f"--source {path}: the list is empty; one source per line is expected")
    return list(dict.fromkeys(found))


def frames(source: str, channels: int = 3, scale: Scale | None = None, bad: Bad | None = None) -> Iterator[Frame]:
    """Every picture of the source, one by one, in so many channels; streams side by side, in turn.

    bad: told of what cannot be read, which is then left out; without it that is an error. Errors: UserError.
    """
    found = find_sources(source, say=True)
    if channels != 3 and (moving := [s for s in found if moves(s)]):
        raise UserError(f"--source {moving[0]}: videos have 3 channels, the model reads {channels}")

    def refuse(where: str, reason: str) -> None:
        if bad is None:
            raise UserError(f"--source {where}: {reason}")
        bad(where, reason)

    for one in found:
        if is_stream(one):
            continue
        if moves(one):
            yield from video_frames(one, refuse)
            continue
        try:
            data = read_bytes(Path(one))
            if is_tiff(data):
                examine(data)  # finds damage that quick decoding passes over
            image = picture(data, 1, channels, scale)
        except ImageError as error:
            refuse(one, f"the image {error}")
            continue
        yield Frame(image, one, None, 0.0)
    yield from _in_turn([video_frames(one, refuse) for one in found if is_stream(one)])


def _in_turn(streams: list[Iterator[Frame]]) -> Iterator[Frame]:
    """A frame of each, until all have ended."""
    while streams:
        for stream in list(streams):
            frame = next(stream, None)
            if frame is None:
                streams.remove(stream)
            else:
                yield frame


def video_frames(source: str, refuse: Bad) -> Iterator[Frame]:
    """The frames of a video, a stream or a camera. refuse: told where there are none."""
    live = is_stream(source)
    if not live and not os.path.isfile(source):
        refuse(source, "is no file (a pipe, a device or a broken link)")
        return
    try:
        capture = within(WAIT, lambda: cv2.VideoCapture(int(source) if source.isdigit() else source), "open")
        if not capture.isOpened():
            refuse(source, "no stream or camera answers there" if live else "not a readable video")
            return
        fps = capture.get(cv2.CAP_PROP_FPS) or 30.0
        number = 0
        while True:
            good, image = within(WAIT, capture.read, "give its next frame") if live else capture.read()
            if not good:
                break
            number += 1
            yield Frame(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), source, number, fps)
        capture.release()
    except TimeoutError as error:
        refuse(source, str(error))
        return
    if not number:
        refuse(source, "not one frame can be read of it")


def within(seconds: float, work: Callable[[], T], what: str) -> T:
    """What `work` returns. TimeoutError where it takes longer: it is then left to itself, in a thread that ends with
    the process."""
    got: list[T] = []
    thread = threading.Thread(target=lambda: got.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    if not got:
        raise TimeoutError(f"took more than {seconds:.0f} seconds to {what}")
    return got[0]
