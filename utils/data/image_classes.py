"""Classes of whole images, beside the boxes: where a data set keeps them, and what composed pictures have.

The data YAML declares them, in the order of the one-hot line, and at most one source; without one it is the last line
of the label file (utils/data/labels.py: `class_line`):

    cls_names: [PSAX, PLAX, A4C]
    cls_csv: views.csv            # columns image,class: a path or its end (`train/a.png`, `a.png`), a name or an index
    cls_folder: labels_cls        # `.../images/x/y.png` has its name or index in `.../labels_cls/x/y.txt`

An image without an entry is unknown (-1): it takes no part in the loss or the figures of the image class, and is
counted. Policy for training: a picture made from several images (mosaic, mixup, paste-in, --quad) is unknown too. To
keep the class where all of them agree would favour the frequent classes (of four images p**3 of those of a class with
share p would be kept), so that training would see other shares than the data have.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from utils.data.labels import UNKNOWN, Problem
from utils.data.listing.class_names import class_names
from utils.system.errors import UserError

KEYS = ("cls_names", "cls_csv", "cls_folder")
WITHOUT_NAMES = (
    "if it is the one-hot line of an image class, name the classes in its order as cls_names in the data YAML"
)
Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassSource:
    """The classes of whole images and where they are kept. Without names there are none."""

    names: tuple[str, ...] = ()
    csv: Path | None = None
    folder: str = ""

    @property
    def line_names(self) -> tuple[str, ...]:
        """Classes that the last line of a label file stands for."""
        return () if self.csv or self.folder else self.names

    @property
    def where(self) -> str:
        if self.csv:
            return f"cls_csv: {self.csv}"
        return f"cls_folder: {self.folder}" if self.folder else "the last line of its label file"

    @property
    def no_line(self) -> str:
        """What would be right where a label file holds a one-hot line that is not expected."""
        return f"the image classes are kept elsewhere ({self.where})" if self.names else WITHOUT_NAMES


def read_source(yaml: Path, content: Mapping[str, object], root: Path) -> ClassSource:
    """The keys of a data YAML, checked. Errors: UserError with file and key."""
    names, table, folder = (content.get(key) for key in KEYS)
    if names is None:
        if lonely := [key for key in KEYS[1:] if content.get(key) is not None]:
            raise UserError(f"{yaml}: {lonely[0]} needs cls_names, the image classes in the order of their indices")
        return ClassSource()
    if not isinstance(names, list) or len(names) < 2:
        raise UserError(f"{yaml}: cls_names: expected a list of at least two names, found {names!r}")
    texts = class_names(yaml, "cls_names", names)
    if wrong := [n for i, n in enumerate(texts) if (_is_index(n) and n != str(i)) or n != n.strip() or not n]:
        raise UserError(f"{yaml}: cls_names: {wrong[0]!r} is no name (empty, or to be mistaken for another's index)")
    if table is not None and folder is not None:
        raise UserError(f"{yaml}: cls_csv and cls_folder are both given; keep the image classes in one place")
    if folder is not None and (not isinstance(folder, str) or Path(folder).name != folder or folder == "images"):
        raise UserError(f"{yaml}: cls_folder: expected the name of a folder beside `images`, found {folder!r}")
    if folder == "labels":
        raise UserError(f"{yaml}: cls_folder: `labels` holds the boxes; a one-hot last line there needs no cls_folder")
    if table is None:
        return ClassSource(texts, None, folder or "")
    if not isinstance(table, str):
        raise UserError(f"{yaml}: cls_csv: expected a path, found {table!r}")
    places = [base / os.path.expanduser(table) for base in (root, yaml.parent, Path())]
    if not (found := next((p for p in places if p.is_file()), None)):
        raise UserError(f"{yaml}: cls_csv: {places[0]} does not exist")
    return ClassSource(texts, found)


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def class_of(text: str, names: Sequence[str]) -> int:
    """A name or an index as written in a file -> index. ValueError says what is wrong with it."""
    if text in names:
        return list(names).index(text)
    if _is_index(text) and int(text) < len(names):
        return int(text)
    raise ValueError(f"unknown image class {text!r}; expected one of {', '.join(names)}, or 0..{len(names) - 1}")


def in_folder(image: str, source: ClassSource) -> tuple[int, list[Problem]]:
    """The class in the image's own file; no file or an empty one: UNKNOWN."""
    before, found, after = (os.sep + image).rpartition(f"{os.sep}images{os.sep}")
    if not found:
        raise UserError(f"cls_folder: {source.folder}: {image} lies in no folder `images`")
    file = os.path.splitext(f"{before}{os.sep}{source.folder}{os.sep}{after}"[1:])[0] + ".txt"
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        return UNKNOWN, []
    except UnicodeDecodeError:
        return UNKNOWN, [Problem(file, 0, "is no text")]
    except OSError as error:
        return UNKNOWN, [Problem(file, 0, f"cannot be read: {error.strerror}")]
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        return UNKNOWN, []
    if len(lines) > 1:
        return UNKNOWN, [Problem(file, lines[1][0], "a second line; expected one name or index of an image class")]
    try:
        return class_of(lines[0][1], source.names), []
    except ValueError as error:
        return UNKNOWN, [Problem(file, lines[0][0], str(error))]


@dataclass(frozen=True)
class Table:
    """What a CSV says of the images of a data set, by normalised path."""

    classes: dict[Path, int]
    problems: dict[Path | None, list[Problem]]  # by image; None: of no image
    others: int  # rows of existing files that no split uses


def read_table(source: ClassSource, images: Sequence[Path], root: Path) -> Table:
    """Read the CSV of image classes. An image's path or the end of it must fit one of `images`, those of all splits.
    An image with an unusable row is unknown. Errors: UserError for a file that is no such table."""
    assert source.csv is not None
    by_name: dict[str, list[Path]] = {}
    for path in dict.fromkeys(Path(os.path.normpath(p)) for p in images):
        by_name.setdefault(path.name, []).append(path)
    classes: dict[Path, int] = {}
    problems: dict[Path | None, list[Problem]] = {}
    lines: dict[Path, int] = {}
    others = 0
    for number, name, text in _rows(source.csv):
        parts = Path(name).parts
        fitting = [p for p in by_name.get(parts[-1] if parts else "", ()) if p.parts[-len(parts) :] == parts]
        if not fitting and name and any(os.path.isfile(base / name) for base in (root, source.csv.parent)):
            others += 1  # of a larger collection
            continue
        try:
            if not fitting:
                raise ValueError(f"{name!r} is no image of train, val or test, nor an existing file")
            if len(fitting) > 1:
                raise ValueError(f"{name!r} fits {len(fitting)} images; write more of its path")
            if fitting[0] in lines:
                raise ValueError(f"{name!r} has its class in line {lines[fitting[0]]} already")
            lines[fitting[0]] = number
            if text:
                classes[fitting[0]] = class_of(text, source.names)
        except ValueError as error:
            concerned: list[Path | None] = [*fitting] or [None]
            for image in concerned:
                problems.setdefault(image, []).append(Problem(str(source.csv), number, str(error)))
    return Table({path: kind for path, kind in classes.items() if path not in problems}, problems, others)


def _rows(file: Path) -> list[tuple[int, str, str]]:
    """Line, image and class of each row of a CSV with these two columns (and any others)."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            fields = [f.strip() for f in reader.fieldnames or ()]
            reader.fieldnames = fields
            if missing := [c for c in ("image", "class") if c not in fields]:
                raise UserError(f"{file}:1: no column {missing[0]!r}; expected a header `image,class`, found {fields}")
            return [(reader.line_num, (row["image"] or "").strip(), (row["class"] or "").strip()) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: cannot be read as CSV: {error}") from None


def summary(classes: Classes, names: Sequence[str]) -> str:
    """How many images have which class, and what knowing nothing would score."""
    counts = np.bincount(classes[classes >= 0], minlength=len(names))
    each = ", ".join(f"{name} {count}" for name, count in zip(names, counts.tolist(), strict=True))
    known = int(counts.sum())
    levels = f"; chance {1 / len(names):.3f}, majority {counts.max() / known:.3f}" if known else ""
    return f"image classes of {known} images ({each}), {len(classes) - known} unknown{levels}"
