"""Reads and checks every image and label of a split once, and remembers the result in a checked cache.

A cache file lies beside the label folder (`labels/train.thaw.cache`), or in the user's cache folder where that place is
read-only: an .npz of numbers and JSON, no pickles. An entry counts only while path, size and modification time of image
and label are as they were; so a changed, new or deleted file is noticed and only that one is read again. Where nothing
can be written, the scan works without a cache.
"""

import contextlib
import hashlib
import json
import os
import threading
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from utils.errors import UserError
from utils.images import decode
from utils.labels import EMPTY, Labels, Problem, checked, parse
from utils.spec import DataSpec, label_path

VERSION = 2  # raise it when parsing or the layout of the cache changes
Stamp = tuple[int, int]  # size in bytes, modification time in ns; (-1, -1) for a file that is not there


@dataclass(frozen=True)
class Entry:
    """What is known of one image: `size` native (h, w) after EXIF rotation, (0, 0) when the image is unusable."""

    stamps: tuple[Stamp, Stamp]  # image, label
    image_sha256: str  # of the image file, "" where it cannot be read
    sha256: str  # of the label file, "" without one
    size: tuple[int, int]
    labels: Labels
    problems: tuple[Problem, ...]  # file names without folder: the data may have been moved since


@dataclass(frozen=True)
class Scan:
    """One split, ready for a data set: parallel lists over the usable images, and what was found on the way."""

    files: list[Path]
    labels: list[Labels]
    sizes: npt.NDArray[np.int64]  # [n,2] native (h, w)
    problems: list[Problem]
    duplicates: int
    background: int  # images without an object
    sha256: str  # over names and contents of all images and labels
    contents: list[tuple[Path, str, str]]  # of every image listed: its file, SHA-256 of image and label


def scan_split(
    spec: DataSpec, split: str, *, on_bad_data: str = "error", single_cls: bool = False, progress: bool = True
) -> Scan:
    """Check a split. on_bad_data "error": any unusable image or line is a UserError naming file and line; "skip": such
    lines and images are left out, counted and listed in `problems`. single_cls: every class becomes 0."""
    if on_bad_data not in ("error", "skip"):
        raise ValueError(f"on_bad_data: expected 'error' or 'skip', got {on_bad_data!r}")
    images = spec.images(split)
    entries = _entries(images, f"checking {split}", progress)
    problems: list[Problem] = []
    files, labels, sizes, digest = [], [], [], hashlib.sha256()
    for path, entry in zip(images, entries, strict=True):
        kept, foreign = checked(entry.labels, spec.nc, str(label_path(path)))
        problems += [p._replace(file=str(path if p.file == path.name else label_path(path))) for p in entry.problems]
        problems += foreign
        digest.update(f"{path.name} {entry.image_sha256} {entry.sha256}\n".encode())
        if entry.size != (0, 0):
            files.append(path)
            labels.append(_one_class(kept) if single_cls else kept)
            sizes.append(entry.size)
    if problems and on_bad_data == "error":
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"{spec.source}: {split}: {len(problems)} unusable images or label lines"
            " (mend them, or leave them out with --on-bad-data skip):\n  " + "\n  ".join(map(str, problems[:10])) + more
        )
    if not files:
        raise UserError(f"{spec.source}: {split}: none of the {len(images)} images can be used:\n  {problems[0]}")
    return Scan(
        files,
        labels,
        np.array(sizes, np.int64).reshape(-1, 2),
        problems,
        sum(x.duplicates for x in labels),
        sum(not len(x) for x in labels),
        digest.hexdigest(),
        [(path, e.image_sha256, e.sha256) for path, e in zip(images, entries, strict=True)],
    )


def fingerprint(spec: DataSpec, scans: Sequence[Scan] = ()) -> str:
    """SHA-256 of what a run was trained on: class names, image names, contents of all images and label files.

    scans: of the training and the validation split, where they are at hand."""
    splits = scans or [scan_split(spec, split, on_bad_data="skip", progress=False) for split in ("train", "val")]
    digest = hashlib.sha256("\0".join(spec.names).encode())
    for scan in splits:
        digest.update(scan.sha256.encode())
    return digest.hexdigest()


def _one_class(labels: Labels) -> Labels:
    boxes = labels.boxes.copy()
    boxes[:, 0] = 0
    return replace(labels, boxes=boxes)


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _entries(images: Sequence[Path], what: str, progress: bool) -> list[Entry]:
    """An entry per image, from the caches where they still hold, else read; caches are brought up to date."""
    stamps = [(_stamp(path), _stamp(label_path(path))) for path in images]
    folders = {label_path(path).parent: path.parent for path in images}
    caches = {folder: _load(folder) for folder in folders}
    found: dict[int, Entry] = {}
    for i, path in enumerate(images):
        entry = caches[label_path(path).parent].get(path.name)
        if entry is not None and entry.stamps == stamps[i]:
            found[i] = entry
    missing = [i for i in range(len(images)) if i not in found]
    if missing:
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            fresh: Iterable[Entry] = pool.map(lambda i: _read(images[i], stamps[i]), missing)
            bar = tqdm(fresh, what, len(missing), unit="image", disable=not progress, dynamic_ncols=True)
            found.update(zip(missing, bar, strict=True))
    changed: dict[Path, dict[str, Entry]] = {}
    for i in missing:
        changed.setdefault(label_path(images[i]).parent, {})[images[i].name] = found[i]
    for folder, mine in changed.items():  # other images of the folder stay known, gone ones do not
        old = {name: entry for name, entry in caches[folder].items() if (folders[folder] / name).exists()}
        _save(folder, old | mine)
    return [found[i] for i in range(len(images))]


def _read(image: Path, stamps: tuple[Stamp, Stamp]) -> Entry:
    """Read and check one image and its label from disk. A missing label is an image without objects."""
    problems: list[Problem] = []
    size, image_sha = (0, 0), ""
    if stamps[0][0] < 0:
        problems.append(Problem(image.name, 0, "the image does not exist"))
    else:
        try:
            data = np.fromfile(image, np.uint8)
        except OSError as error:
            data = np.zeros(0, np.uint8)
            problems.append(Problem(image.name, 0, f"cannot be read: {error.strerror}"))
        else:
            image_sha = hashlib.sha256(data.data).hexdigest()  # in memory now; quick beside decoding
            pixels = decode(data)  # all of it: nothing less finds a file that was cut off
            if pixels is None:
                problems.append(Problem(image.name, 0, "the image is corrupt or cut off (it cannot be decoded)"))
            else:
                size = (pixels.shape[0], pixels.shape[1])
    labels, sha = EMPTY, ""
    if stamps[1][0] >= 0:
        name = label_path(image)
        try:
            content = name.read_bytes()
            labels, bad = parse(content.decode("utf-8"), name.name)
            sha = hashlib.sha256(content).hexdigest()
            problems += bad
        except UnicodeDecodeError:
            problems.append(Problem(name.name, 0, "the label is no text"))
        except OSError as error:
            problems.append(Problem(name.name, 0, f"cannot be read: {error.strerror}"))
    return Entry(stamps, image_sha, sha, size, labels, tuple(problems))


def _cache_files(folder: Path) -> list[Path]:
    """Where a folder's cache may lie: beside it, else in the user's cache folder under a name made of its full path."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "thaw")
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]
    return [folder.with_name(folder.name + ".thaw.cache"), own / f"{name}.thaw.cache"]


def _save(folder: Path, entries: dict[str, Entry]) -> None:
    """Write a folder's cache to the first place that can be written; if there is none, do without."""
    names = sorted(entries)
    rows = [entries[name] for name in names]
    points = [p if p is not None else np.zeros((0, 2), np.float32) for e in rows for p in e.labels.polygons]
    meta = [
        [n, *e.stamps, e.image_sha256, e.sha256, e.size, len(e.labels), e.labels.duplicates, e.problems]
        for n, e in zip(names, rows, strict=True)
    ]
    text = json.dumps({"version": VERSION, "images": meta}).encode()
    arrays = {
        "meta": np.frombuffer(text, np.uint8),
        "boxes": np.concatenate([EMPTY.boxes, *(e.labels.boxes for e in rows)]),
        "lines": np.concatenate([EMPTY.lines, *(e.labels.lines for e in rows)]),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *points]),
        "counts": np.array([len(p) for p in points], np.int64),
    }
    beside, own = _cache_files(folder)
    with contextlib.suppress(OSError):
        return _write(beside, arrays)
    with contextlib.suppress(OSError):
        own.parent.mkdir(parents=True, exist_ok=True)
        _write(own, arrays)


def _write(target: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write an .npz by way of a temporary file, so that no reader sees half of it."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _load(folder: Path) -> dict[str, Entry]:
    """A folder's cache as {image name: entry}; empty when there is none or when it is not to be trusted."""
    return next(filter(None, map(_read_cache, _cache_files(folder))), {})


def _read_cache(path: Path) -> dict[str, Entry]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            content: dict[str, Any] = json.loads(arrays["meta"].tobytes())
            if content["version"] != VERSION:
                return {}
            boxes, lines = arrays["boxes"], arrays["lines"]
            polygons = np.split(arrays["points"], np.cumsum(arrays["counts"]))[:-1]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    entries, start = {}, 0
    for name, image, label, image_sha, sha, size, count, duplicates, problems in content["images"]:
        part = slice(start, start + count)
        shapes = tuple(p if len(p) else None for p in polygons[part])
        labels = (
            Labels(boxes[part], shapes, lines[part], duplicates) if count else replace(EMPTY, duplicates=duplicates)
        )
        stamps = ((image[0], image[1]), (label[0], label[1]))
        entries[name] = Entry(stamps, image_sha, sha, (size[0], size[1]), labels, tuple(Problem(*p) for p in problems))
        start += count
    return entries
