"""Labels in YOLO's text form, parsed and checked.

One object per line, coordinates as fractions of the image (0..1):
    class cx cy w h                     a box
    class x1 y1 x2 y2 ... xk yk         a polygon, k >= 3; its box is min/max, the polygon is kept
The last line may be the one-hot line of the image's class instead, see `class_line`. A box with more behind it (key
points, flags, its own outline) may look like a polygon: `certain` and `unclear` are about that.

`parse` knows only the text. What depends on the data set is settled later: the one-hot line by `class_line`, the number
of classes by `checked`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
UNKNOWN = -1  # the class of an image that has none
EDGE = 0.01  # of the picture, by which a box may leave it
TINY = np.finfo(np.float32).tiny
SLACK = 1e-6  # a coordinate may leave 0..1 by this much: rounding in the writer, clipped here


class Problem(NamedTuple):
    """One unusable line (line 0: the file as a whole)."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class Tail(NamedTuple):
    """A last line of zeros and ones alone: a one-hot line, or an object (which is then among the objects as well)."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Labels:
    """Objects of one image. boxes float32 [n,5]: class, cx, cy, w, h in 0..1; polygons[i]: [k,2] in 0..1 or None."""

    boxes: Floats
    polygons: tuple[Floats | None, ...]
    lines: npt.NDArray[np.int32]  # [n], line number of each object in the file
    duplicates: int = 0
    tail: Tail | None = None
    certain: int = 0  # lines of more than five values that can be nothing but polygons

    def __len__(self) -> int:
        return len(self.boxes)


EMPTY = Labels(np.zeros((0, 5), np.float32), (), np.zeros(0, np.int32))


def parse(text: str, name: str) -> tuple[Labels, list[Problem]]:
    """Label text -> (objects, unusable lines). `name` is the file, for messages. Repeated objects are dropped and
    counted."""
    rows: list[list[float]] = []
    polygons: list[Floats | None] = []
    lines: list[int] = []
    problems: list[Problem] = []
    seen: set[tuple[float, ...]] = set()
    duplicates = sure = 0
    split = [(number, tokens) for number, line in enumerate(text.splitlines(), 1) if (tokens := line.split())]
    tail = Tail(split[-1][0], " ".join(split[-1][1])) if split and all(map(_is_binary, split[-1][1])) else None
    for number, tokens in split:
        try:
            row, polygon = _object(tokens)
        except ValueError as error:
            if tail is None or number != tail.line:
                problems.append(Problem(name, number, str(error)))
            continue
        if tuple(row) in seen:
            duplicates += 1
            continue
        seen.add(tuple(row))
        sure += polygon is not None and certain([float(token) for token in tokens[1:]])
        rows.append(row)
        polygons.append(polygon)
        lines.append(number)
    if not rows:
        return replace(EMPTY, tail=tail) if tail else EMPTY, problems
    boxes = np.array(rows, np.float32)
    return Labels(boxes, tuple(polygons), np.array(lines, np.int32), duplicates, tail, sure), problems


def class_line(labels: Labels, names: Sequence[str], name: str, why: str = "") -> tuple[Labels, int, list[Problem]]:
    """Take the one-hot line out of parsed labels -> (objects, index into `names` or UNKNOWN, unusable lines).

    The rule: the last line that is not blank is the one-hot line if it has as many tokens as there are names and each
    is 0 or 1; exactly one must be 1. Such a line is never an object: one coordinate at most is above 0, so that width
    or height is 0. With several ones it could be (5 names: `0 0 0 1 1`); it is an error and not guessed, and an object
    is told from it by a decimal point (`0 0 0 1.0 1.0`). names: the data set's classes, in the order of the line; empty
    where lines hold none, and `why` then says what would be right.
    """
    if labels.tail is None:
        return labels, UNKNOWN, []
    number, text = labels.tail
    tokens, message = text.split(), ""
    whole = all(token in ("0", "1") for token in tokens)
    if names and len(tokens) == len(names) and whole:
        keep = labels.lines != number
        polygons = tuple(p for p, kept in zip(labels.polygons, keep, strict=True) if kept)
        labels = replace(labels, boxes=labels.boxes[keep], polygons=polygons, lines=labels.lines[keep], tail=None)
        if tokens.count("1") == 1:
            return labels, tokens.index("1"), []
        message = (
            f"{tokens.count('1')} ones in the one-hot line of {len(names)} image classes; expected exactly one"
            + (" (unknown: leave the line out)" if "1" not in tokens else " (an object: write a coordinate as 1.0)")
        )
    else:
        try:
            _object(tokens)
        except ValueError as error:
            expected = f"a one-hot line has {len(names)} whole numbers, one of them 1: {' '.join(names)}"
            message = f"{error}; " + (expected if names else why)
    return replace(labels, tail=None), UNKNOWN, [Problem(name, number, message)] if message else []


def _object(tokens: list[str]) -> tuple[list[float], Floats | None]:
    """One line -> ([class, cx, cy, w, h], polygon or None). ValueError says what is wrong with it."""
    try:
        values = [float(token) for token in tokens]
    except ValueError:
        bad = next(t for t in tokens if not _is_number(t))
        form = "a line is `class cx cy w h`, numbers with spaces between, the class by its number in `names`"
        raise ValueError(f"{bad!r} is not a number; {form}") from None
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{tokens[[math.isfinite(v) for v in values].index(False)]!r} is not a finite number")
    label, coordinates = values[0], values[1:]
    if label != int(label) or label < 0:
        raise ValueError(f"class {tokens[0]} is not a whole number of at least 0")
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ValueError(
            f"{len(values)} values; expected 5 (class cx cy w h) or a polygon (class x1 y1 ... xk yk, k at least 3)"
        )
    for token, value in zip(tokens[1:], coordinates, strict=True):
        if not -SLACK <= value <= 1 + SLACK:
            raise ValueError(f"coordinate {token} is outside 0..1 (coordinates are fractions of the image)")
    if len(values) == 5:
        cx, cy, w, h = (min(max(v, 0.0), 1.0) for v in coordinates)
        polygon = None
    else:
        if is_extent(coordinates[:4], coordinates[4:]):
            raise ValueError("a box and its own outline on one line; keep one of them")
        polygon = np.array(coordinates, np.float32).reshape(-1, 2).clip(0, 1)
        (x0, y0), (x1, y1) = polygon.min(0).tolist(), polygon.max(0).tolist()
        cx, cy, w, h = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
    if min(np.float32(w), np.float32(h)) < TINY:
        raise ValueError(f"the box has width {w:g} and height {h:g}; both must be above 0")
    return [label, cx, cy, w, h], polygon


def certain(values: Sequence[float]) -> bool:
    """Whether the values behind a class can be nothing but the points of a polygon: the first four are no box in the
    picture, or what follows is neither points about that box, with or without a visibility, nor further objects."""
    (cx, cy, w, h), more = values[:4], values[4:]
    if min(w, h) <= 0 or min(cx - w / 2, cy - h / 2) < -EDGE or max(cx + w / 2, cy + h / 2) > 1 + EDGE:
        return True
    if len(more) < 4:
        return False

    def about(points: Sequence[tuple[float, float]]) -> bool:
        return all(abs(x - cx) <= w and abs(y - cy) <= h for x, y in points)

    if about(list(zip(more[::2], more[1::2], strict=True))):
        return False
    triples = list(zip(more[::3], more[1::3], more[2::3], strict=False))
    seen = [(x, y) for x, y, v in triples if v or x or y]
    if len(more) % 3 == 0 and all(v in (0, 1) for _, _, v in triples) and about(seen):
        return False
    return bool(len(more) % 5 or any(value != int(value) for value in more[::5]))


def is_extent(box: Sequence[float], values: Sequence[float]) -> bool:
    """Whether a box (cx, cy, w, h) is that of the points x, y, x, y, ..."""
    if len(values) < 6 or min(box[2:]) <= 0:
        return False
    x, y = values[::2], values[1::2]
    extent = ((min(x) + max(x)) / 2, (min(y) + max(y)) / 2, max(x) - min(x), max(y) - min(y))
    return all(abs(a - b) <= max(0.01 * min(box[2:]), 1e-5) for a, b in zip(box, extent, strict=True))


def unclear(labels: Labels, name: str, declared: str) -> tuple[Labels, list[Problem]]:
    """Drop all polygons, each returned as a problem with its line. declared: what the data YAML says of them."""
    plain = np.array([p is None for p in labels.polygons], bool)
    if plain.all():
        return labels, []
    values = {int(line): 1 + 2 * len(p) for line, p in zip(labels.lines, labels.polygons, strict=True) if p is not None}
    said = (
        "values, and the data YAML says `labels: boxes`: five are expected"
        if declared
        else "values: a box with more behind it (key points, flags, several objects on one line), or a polygon? "
        "If it is one, say `labels: polygons` in the data YAML"
    )
    problems = [Problem(name, line, f"{count} {said}") for line, count in values.items()]
    kept = tuple(p for p in labels.polygons if p is None)
    return replace(labels, boxes=labels.boxes[plain], polygons=kept, lines=labels.lines[plain]), problems


def _is_binary(token: str) -> bool:
    return token in ("0", "1") or (token[-1] in "01." and _is_number(token) and float(token) in (0, 1))


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True


def checked(labels: Labels, nc: int, name: str) -> tuple[Labels, list[Problem]]:
    """Drop objects whose class is not below `nc`; each is returned as a problem with its line."""
    good = labels.boxes[:, 0] < nc
    if good.all():
        return labels, []
    problems = [
        Problem(name, int(line), f"class {int(label)} but there are {nc} classes (0..{nc - 1})")
        for line, label in zip(labels.lines[~good], labels.boxes[~good, 0], strict=True)
    ]
    polygons = tuple(p for p, keep in zip(labels.polygons, good, strict=True) if keep)
    return replace(labels, boxes=labels.boxes[good], polygons=polygons, lines=labels.lines[good]), problems
