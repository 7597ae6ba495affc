"""COCO annotation files as the labels of a split, read as they are.

    train: annotations/instances_train.json                              # images are found by the end of their path
    val: {annotations: annotations/instances_val.json, images: val2017}  # or below the folder that is named

Categories are told by their names in the data YAML, so gaps in their ids, text ids and another order do no harm. Of an
annotation `bbox` counts (x, y, w, h in pixels, cut at the picture's edge); without one the extent of its outline or
mask. Crowds are left out, as every program of this family does. An image without annotations shows nothing.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.labels import Problem
from utils.images.read import SUFFIXES
from utils.images.walk import walk
from utils.system.errors import UserError, brief, parsing
from utils.system.files import read_text

SHOWN = 5  # names in a message


@dataclass(frozen=True, slots=True)
class Annotated:
    """The objects of one image."""

    file: Path  # the JSON
    text: str  # as a label file would have them
    size: tuple[int, int] | None  # (h, w) that the JSON says


@dataclass(frozen=True)
class Coco:
    """One annotation file."""

    objects: dict[Path, Annotated]  # by image, in the order of the JSON
    said: list[str]
    problems: list[Problem]


def read_coco(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists of an annotation file. Errors: UserError naming the file and what it lacks."""
    with parsing(f"{file} is no JSON"):
        content = json.loads(read_text(file))
    needs: dict[str, tuple[str, ...]] = {"images": ("id", "file_name"), "annotations": (), "categories": ("id", "name")}
    for key, fields in needs.items():
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(r, dict) and all(n in r for n in fields) for r in rows):
            entries = f"entries with {' and '.join(fields)}" if fields else "COCO annotations"
            raise UserError(f"{file}: `{key}` must be a list of {entries}; this is no COCO annotation file of boxes")
    boxes = [row["bbox"] for row in content["annotations"] if isinstance(row, dict) and row.get("bbox")]
    numbers = [v for box in boxes if isinstance(box, list) for v in box if isinstance(v, (int, float))]
    if numbers and max(numbers) <= 1:
        raise UserError(f"{file}: no `bbox` has a number above 1: these are shares of the picture; COCO's are pixels")
    return content  # type: ignore[no-any-return]


def names_of(file: Path) -> tuple[str, ...]:
    """Category names in the order of their ids."""
    rows = read_coco(file)["categories"]
    numbers = all(isinstance(r["id"], int) for r in rows)
    return tuple(str(r["name"]) for r in (sorted(rows, key=lambda r: r["id"]) if numbers else rows))


def read_annotations(file: Path, names: Sequence[str], root: Path, folder: Path | None) -> Coco:
    """The images of an annotation file with their objects. names: the classes in their order; folder: of the images,
    None where they lie beside the file or anywhere below `root`. Errors: UserError."""
    content = read_coco(file)
    rows: dict[str, dict[str, Any]] = {}
    for row in content["images"]:
        if rows.setdefault(str(row["id"]), row) is not row:
            raise UserError(f"{file}: two images have the id {brief(row['id'])}")
    numbers, foreign = classes_by_id(file, content["categories"], names)
    paths = find_images(file, [str(row["file_name"]) for row in rows.values()], root, folder)
    lines: dict[str, list[str]] = {key: [] for key in rows}
    problems: list[Problem] = []
    count, other = Counter[str](), Counter[str]()
    used: set[int] = set()
    for at, annotation in enumerate(content["annotations"]):
        called = f"annotation {brief(annotation.get('id', at))}"
        key, category = str(annotation.get("image_id")), str(annotation.get("category_id"))
        if key not in rows:
            problems.append(Problem(str(file), 0, f"{called} is of image {key[:80]}, which is not among `images`"))
        elif annotation.get("iscrowd"):
            count["crowds"] += 1
        elif category in foreign:
            other[foreign[category]] += 1
        elif category not in numbers:
            problems.append(Problem(str(file), 0, f"{called} has category {category[:80]}, which is not declared"))
        else:
            used.add(numbers[category])
            try:
                box = cut(box_of(annotation, rows[key]), size_of(rows[key]))
            except ValueError as error:
                problems.append(Problem(str(file), 0, f"{called} of image {rows[key]['file_name']}: {error}"))
                continue
            if box is None:
                count["boxes without area"] += 1
            else:
                lines[key].append(" ".join([str(numbers[category]), *map(repr, box)]))
    missing = [n for i, n in enumerate(names) if i not in numbers.values()]
    if missing and other:
        raise UserError(
            f"{file} has no category {', '.join(map(repr, missing[:SHOWN]))}, but objects of "
            f"{', '.join(map(repr, list(other)[:SHOWN]))}: the names in the data YAML must be spelt as they are there"
        )
    said = [f"{file}: left out: " + ", ".join(f"{n} {what}" for what, n in count.items())] if count else []
    if other:
        kinds = ", ".join(f"{name} {n}" for name, n in other.most_common(SHOWN))
        said.append(f"{file}: left out: {sum(other.values())} objects of classes that are not in names ({kinds})")
    objects: dict[Path, Annotated] = {}
    for (key, row), path in zip(rows.items(), paths, strict=True):
        if path in objects:
            raise UserError(f"{file}: two images are {path}; each must be listed once")
        objects[path] = Annotated(file, "\n".join(lines[key]), size_of(row))
    if not objects:
        raise UserError(f"{file}: `images` is empty")
    return Coco(objects, said, problems)


def classes_by_id(
    file: Path, categories: Sequence[Mapping[str, object]], names: Sequence[str]
) -> tuple[dict[str, int], dict[str, str]]:
    """{category id: class} of the categories that are in `names`, {category id: name} of the others."""
    numbers: dict[str, int] = {}
    foreign: dict[str, str] = {}
    index = {name: i for i, name in enumerate(names)}
    for row in categories:
        key, name = str(row["id"]), str(row["name"])
        if key in numbers or key in foreign:
            raise UserError(f"{file}: two categories have the id {brief(row['id'])}")
        if name not in index:
            foreign[key] = name
        elif index[name] in numbers.values():
            raise UserError(f"{file}: two categories are called {name!r}")
        else:
            numbers[key] = index[name]
    return numbers, foreign


def find_images(file: Path, names: Sequence[str], root: Path, folder: Path | None) -> list[Path]:
    """The files of images by their names in the JSON: below `folder`; else beside the JSON, below the root, or wherever
    below it the end of a path fits. Errors: UserError for a name that fits several files."""
    names = [name.replace("\\", "/") for name in names]
    bases = [folder] if folder else [file.parent, root, root / "images"]
    for base in bases:
        if names and all(os.path.isfile(base / name) for name in (names[0], names[-1])):
            return [base / name for name in names]  # one that is missing is named by the scan
    by_name: dict[str, list[Path]] = {}
    for path in walk(folder or root, SUFFIXES).paths:
        by_name.setdefault(os.path.basename(path), []).append(Path(path))
    return [by_tail(file, name, by_name.get(name.rpartition("/")[2], []), bases[0]) for name in names]


def by_tail(file: Path, name: str, found: Sequence[Path], base: Path) -> Path:
    """Of files of one name the one whose path agrees with `name` for longest, from its end."""
    parts = [part for part in name.split("/") if part not in ("", ".")]

    def agreeing(path: Path) -> int:
        pairs = zip(reversed(path.parts), reversed(parts), strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(parts), len(path.parts)))

    if not found:
        return base / name
    best = max(map(agreeing, found))
    fitting = [path for path in found if agreeing(path) == best]
    if len(fitting) > 1:
        raise UserError(
            f"{file}: image {name!r} may be {fitting[0]} or {fitting[1]}; name the folder of its images in the data "
            f"YAML: {{annotations: {file.name}, images: FOLDER}}"
        )
    return fitting[0]


def size_of(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """(h, w) of an image as the JSON says; None where it does not."""
    height, width = row.get("height"), row.get("width")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in (height, width)):
        return None
    return int(height), int(width)  # type: ignore[arg-type]


def box_of(annotation: Mapping[str, object], row: Mapping[str, object]) -> tuple[float, float, float, float]:
    """x, y, w, h in pixels. ValueError says what is wrong."""
    box, outline = annotation.get("bbox"), annotation.get("segmentation")
    if not box:
        if isinstance(outline, list) and outline and all(isinstance(part, list) for part in outline):
            points = np.array([float(v) for part in outline for v in part], float)
            if len(points) < 6 or len(points) % 2:
                raise ValueError("an outline must have at least three points x, y")
            low, high = points.reshape(-1, 2).min(0), points.reshape(-1, 2).max(0)
            box = [*low, *(high - low)]
        elif isinstance(outline, dict) and size_of(row):
            box = box_of_mask(outline)
        else:
            raise ValueError("neither bbox nor segmentation")
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError(f"bbox: expected [x, y, width, height], found {brief(box)}")
    try:
        x, y, w, h = map(float, box)
    except (TypeError, ValueError):
        raise ValueError(f"bbox: expected four numbers, found {brief(box)}") from None
    if not all(map(math.isfinite, (x, y, w, h))) or w < 0 or h < 0:
        raise ValueError(f"bbox: {brief(box)} is no box")
    return x, y, w, h


def box_of_mask(mask: Mapping[str, Any]) -> list[float]:
    """Extent of a run-length coded mask, x, y, w, h."""
    from hotcoco import mask as masks  # imported on first use, as its other figures are

    try:
        coded: Any = dict(mask)
        if isinstance(mask["counts"], list):
            coded = masks.frPyObjects(coded, *mask["size"])
        return [float(v) for v in np.asarray(masks.toBbox(coded)).reshape(-1)[:4]]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"the mask cannot be read: {error}") from None


def cut(
    box: tuple[float, float, float, float], size: tuple[int, int] | None
) -> tuple[float, float, float, float] | None:
    """Centre, width and height as fractions of the picture, cut at its edge; None where no area is left."""
    if size is None:
        raise ValueError("the image has no width and height in the JSON")
    (x, y, w, h), (height, width) = box, size
    x0, x1 = (min(max(v / width, 0.0), 1.0) for v in (x, x + w))
    y0, y1 = (min(max(v / height, 0.0), 1.0) for v in (y, y + h))
    if x1 <= x0 or y1 <= y0:
        return None
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
