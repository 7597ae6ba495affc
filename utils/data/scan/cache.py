"""What a scan found, remembered in one file per label folder.

The file lies beside the label folder (`labels/train.thaw.cache`), or in the user's cache folder where that place is
read-only: an .npz of numbers, with names and messages as JSON, no pickles. Whether an entry still holds is for the
scan to say, by its stamps. Where nothing can be written there is no cache.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from utils.data.labels import EMPTY, Labels, Problem, Tail
from utils.images.read import Form
from utils.system.errors import UserError
from utils.system.files import write_whole

VERSION = 7  # raise it when parsing or the layout of the cache changes
Stamp = tuple[int, int]  # size in bytes, times of change in ns
ABSENT: Stamp = (-1, -1)  # a file that is not there
BROKEN = -2  # in place of a size: there is something that cannot be read; beside it the system's number of the reason


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one image: `size` native (h, w) after EXIF rotation, (0, 0) when the image is unusable."""

    stamps: tuple[Stamp, Stamp]  # image, label
    image_sha256: str  # of the image file, "" where it cannot be read
    sha256: str  # of the label file, "" without one
    size: tuple[int, int]
    form: Form  # of the picture in the file
    labels: Labels
    problems: tuple[Problem, ...]  # file names without folder: the data may have been moved since


def load(folder: Path) -> dict[str, Entry]:
    """A label folder's cache as {image name: entry}; empty when there is none or when it is not to be trusted."""
    return next(filter(None, map(_read, _places(folder))), {})


def save(folder: Path, entries: dict[str, Entry]) -> None:
    """Write a label folder's cache to the first place that can be written; if there is none, do without."""
    names = sorted(entries)
    rows = [entries[name] for name in names]
    problems = {i: e.problems for i, e in enumerate(rows) if e.problems}
    points = [p if p is not None else np.zeros((0, 2), np.float32) for e in rows for p in e.labels.polygons]
    tails = {i: e.labels.tail for i, e in enumerate(rows) if e.labels.tail}
    text = json.dumps({"version": VERSION, "names": names, "problems": problems, "tails": tails}).encode()
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "meta": np.frombuffer(text, np.uint8),
        "stamps": np.array([e.stamps for e in rows], np.int64),  # [n,2,2]
        "sha256": np.array([(e.image_sha256, e.sha256) for e in rows], "S64"),  # [n,2]
        "sizes": np.array([e.size for e in rows], np.int64),  # [n,2]
        "forms": np.array([e.form for e in rows], np.int64),  # [n,3]
        "objects": np.array([(len(e.labels), e.labels.duplicates, e.labels.certain) for e in rows], np.int64),  # [n,3]
        "boxes": np.concatenate([EMPTY.boxes, *(e.labels.boxes for e in rows)]),  # of all objects, in order
        "lines": np.concatenate([EMPTY.lines, *(e.labels.lines for e in rows)]),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *points]),  # of all polygons, in order
        "corners": np.array([len(p) for p in points], np.int64),  # of each object, 0 for a box
    }
    beside, own = _places(folder)
    with contextlib.suppress(UserError):
        return _write(beside, arrays)
    with contextlib.suppress(UserError, OSError):
        own.parent.mkdir(parents=True, exist_ok=True)
        _write(own, arrays)


def _places(folder: Path) -> list[Path]:
    """Where a folder's cache may lie: beside it, else in the user's cache folder under a name made of its full path."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "thaw")
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:24]
    return [folder.with_name(folder.name + ".thaw.cache"), own / f"{name}.thaw.cache"]


def _write(target: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    """Errors: UserError where `target` cannot be written."""
    write_whole(target, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, Entry]:
    try:
        with np.load(path, allow_pickle=False) as file:
            meta: dict[str, Any] = json.loads(file["meta"].tobytes())
            if meta["version"] != VERSION:
                return {}
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    boxes, lines, points, corners = (arrays[k] for k in ("boxes", "lines", "points", "corners"))
    ends = np.cumsum(corners)
    outlined = [0, *np.cumsum(corners > 0).tolist()]  # polygons among the first k objects
    # column by column as plain lists: a hundred thousand single elements are read much faster from them
    stamps = _columns(arrays["stamps"].reshape(-1, 4))
    forms = (Form(channels, bits, bool(alpha)) for channels, bits, alpha in _columns(arrays["forms"]))
    sizes, hashes, objects = (
        _columns(arrays["sizes"]),
        _columns(arrays["sha256"].astype(str)),
        _columns(arrays["objects"]),
    )
    entries, start = {}, 0
    for name, at, size, form, (image_sha, sha), (count, duplicates, certain) in zip(
        meta["names"], stamps, sizes, forms, hashes, objects, strict=True
    ):
        part, start = slice(start, start + count), start + count
        polygons: tuple[npt.NDArray[np.float32] | None, ...] = (None,) * count
        if outlined[part.stop] > outlined[part.start]:
            shapes = (points[end - k : end] for end, k in zip(ends[part], corners[part], strict=True))
            polygons = tuple(shape if len(shape) else None for shape in shapes)
        labels = Labels(boxes[part], polygons, lines[part], duplicates, certain=certain)
        entries[name] = Entry((at[:2], at[2:]), image_sha, sha, size, form, labels, ())
    for index, found in meta["problems"].items():
        name = meta["names"][int(index)]
        entries[name] = replace(entries[name], problems=tuple(Problem(*p) for p in found))
    for index, tail in meta["tails"].items():
        name = meta["names"][int(index)]
        entries[name] = replace(entries[name], labels=replace(entries[name].labels, tail=Tail(*tail)))
    return entries


def _columns(table: npt.NDArray[np.generic]) -> Iterable[Any]:
    """The rows of a table as tuples."""
    return zip(*(table[:, i].tolist() for i in range(table.shape[1])), strict=True)
