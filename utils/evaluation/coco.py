"""COCO's files: detections as a result JSON, and COCO's twelve figures of it against an annotation JSON.

A result file lists {"image_id", "category_id", "bbox": x, y, w, h in native pixels, "score"}, with 3 and 5 decimals.
Ids are those of the annotation file where there is one: images by file name, classes by name. Without it an image's id
is its file name without suffix, as a number where it is one; a class's id is COCO's (1..90) where all class names are
COCO's, else its number in the data YAML. The figures come from hotcoco, which agrees with pycocotools to the last digit
and takes seconds where that takes minutes; it is imported on first use.
"""

import contextlib
import importlib
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.class_names import find
from utils.evaluation.evaluate import Floats, Result
from utils.system.errors import UserError, parsing

NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # ids of 1..90 that no published class has
COCO_IDS = dict(zip(NAMES, (i for i in range(1, 91) if i not in UNUSED), strict=True))
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Ids:
    """How images and classes are called in a result file."""

    categories: list[int | str]  # per class
    images: dict[str, list[tuple[str, int | str]]] | None  # file stem -> names and ids in an annotation file
    source: str  # where the category ids come from, in words

    def image(self, path: str) -> int | str:
        """Id of an image file. UserError where an annotation file was given that does not have it."""
        stem = Path(path).stem
        if self.images is None:
            return int(stem) if stem.isdecimal() else stem
        if stem not in self.images:
            raise UserError(
                f"--anno-json has no image named {Path(path).name}; give the annotations of the evaluated set"
            )
        found = self.images[stem]
        if len(found) > 1:  # by the longest tail of the path that both have
            parts = Path(path).parts[::-1]
            same = [common(parts, Path(name).parts[::-1]) for name, _ in found]
            found = [row for row, n in zip(found, same, strict=True) if n == max(same)]
        if len(found) > 1:
            raise UserError(
                f"--anno-json has several images that could be {path}: {', '.join(n for n, _ in found[:3])}"
            )
        return found[0][1]


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths share from their start on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def read_ids(names: Sequence[str], anno_json: str | Path = "") -> Ids:
    """Ids for classes `names`. UserError for an annotation file that is missing, no COCO file, or lacks a class."""
    if anno_json:
        content = _read(Path(anno_json))
        known = [str(c["name"]) for c in content["categories"]]
        columns = find(names, known)
        if missing := [n for n, c in zip(names, columns, strict=True) if c is None]:
            raise UserError(f"--anno-json {anno_json}: no category for {missing}; its categories are {sorted(known)}")
        images: dict[str, list[tuple[str, int | str]]] = {}
        for row in content["images"]:
            images.setdefault(Path(row["file_name"]).stem, []).append((str(row["file_name"]), row["id"]))
        ids = [content["categories"][c]["id"] for c in columns if c is not None]
        return Ids(ids, images, f"{anno_json}, by name")
    if all(n in COCO_IDS for n in names):
        return Ids([COCO_IDS[n] for n in names], None, "COCO's, by name")
    return Ids(list(range(len(names))), None, "class numbers of the data YAML, from 0")


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """A COCO annotation file, checked to have what is used of it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--anno-json {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--anno-json {path} is no JSON: {error}") from None
    for key, needs in (("images", ("id", "file_name")), ("annotations", ()), ("categories", ("id", "name"))):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(r, dict) and all(n in r for n in needs) for r in rows):
            raise UserError(f"--anno-json {path}: `{key}` must be a list of entries with {needs or 'COCO annotations'}")
    return content  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Entries:
    """The N entries of a result file, by columns: 490,000 of them take a tenth of the time that so many dicts do."""

    image: NDArray[np.object_]  # [N] ids, numbers or text
    category: NDArray[np.object_]  # [N] ids, numbers or text
    box: Floats  # [N,4] x, y, w, h native pixels, 3 decimals
    score: Floats  # [N] 5 decimals

    def rows(self) -> list[dict[str, Any]]:
        """As the file lists them."""
        columns = zip(*(c.tolist() for c in (self.image, self.category, self.box, self.score)), strict=True)
        return [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in columns]


def check_images(paths: Sequence[str], ids: Ids) -> dict[int | str, str]:
    """{id: path} of the images. UserError where one has no id or two would have the same."""
    called: dict[int | str, str] = {}
    for path in paths:
        image = ids.image(path)
        if called.setdefault(image, path) != path:
            raise UserError(
                f"{path} and {called[image]} would both be image {image!r} in the JSON; give unique file names"
            )
    return called


def to_entries(paths: Sequence[str], detections: Sequence[Tensor], ids: Ids) -> Entries:
    """Detections, per image [n,6] x1,y1,x2,y2 native pixels, confidence, class -> entries of a result file.

    UserError where two images would have one id.
    """
    called = check_images(paths, ids)
    det = torch.cat([torch.zeros(0, 6), *detections]).double().numpy()
    image_ids = np.array(list(called), object)
    return Entries(
        np.repeat(image_ids, [len(d) for d in detections]),
        np.array(ids.categories, object)[det[:, 5].astype(np.int64)],
        np.concatenate([det[:, :2], det[:, 2:4] - det[:, :2]], 1).round(3),
        det[:, 4].round(5),
    )


def numbered(anno_json: str | Path, out: Path) -> tuple[dict[object, int], dict[object, int]]:
    """The annotation file with numbers for its ids, written to `out`; the numbers of images and of categories."""
    content = _read(Path(anno_json))
    images, categories = ({row["id"]: i for i, row in enumerate(content[key], 1)} for key in ("images", "categories"))
    with parsing(f"--anno-json {anno_json}"):
        for key, numbers in (("images", images), ("categories", categories)):
            content[key] = [{**row, "id": numbers[row["id"]]} for row in content[key]]
        content["annotations"] = [
            {**row, "id": i, "image_id": images[row["image_id"]], "category_id": categories[row["category_id"]]}
            for i, row in enumerate(content["annotations"], 1)
        ]
    out.write_text(json.dumps(content))
    return images, categories


def figures(anno_json: str | Path, entries: Entries, image_ids: Sequence[int | str]) -> dict[str, float]:
    """COCO's twelve figures (FIGURES) of the entries on the images `image_ids` of an annotation file.

    -1 stands for a figure that has no objects to be measured on, as in pycocotools.
    """
    try:
        backend = importlib.import_module("hotcoco")
    except ImportError:
        raise UserError("COCO's figures need the package hotcoco: pip install hotcoco (see requirements.txt)") from None
    if any(isinstance(i, str) for i in (*image_ids, *entries.category)):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "numbered.json"
            images, categories = numbered(anno_json, copy)
            image, category = (
                [of[i] for i in ids] for of, ids in ((images, entries.image), (categories, entries.category))
            )
            rows = replace(entries, image=np.array(image, object), category=np.array(category, object))
            return figures(copy, rows, [images[i] for i in image_ids])
    truth = backend.COCO(str(anno_json))
    table = np.column_stack(
        [entries.image.astype(np.float64), entries.box, entries.score, entries.category.astype(np.float64)]
    )  # [N,7]
    run = backend.COCOeval(truth, truth.load_res(table), "bbox")
    run.params.img_ids = sorted(image_ids)
    run.evaluate()
    run.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):  # the figures are made by the method that prints them
        run.summarize()
    return dict(zip(FIGURES, (float(v) for v in run.stats), strict=True))


def report(result: Result, names: Sequence[str], out: Path, anno_json: str | Path = "") -> dict[str, float] | None:
    """Write the result JSON; with an annotation file also print and return the twelve figures."""
    ids = read_ids(names, anno_json)
    entries = to_entries(result.paths, result.detections, ids)
    out.write_text(json.dumps(entries.rows()))
    print(f"{len(entries.score)} detections in {out}; category ids: {ids.source}")
    if not anno_json:
        return None
    found = figures(anno_json, entries, [ids.image(p) for p in result.paths])
    print(f"COCO's figures on {len(result.paths)} images, by hotcoco (s, m, l: objects up to 32^2, 96^2 and above)")
    print("  ".join(f"{name} {found[name]:.4f}" for name in FIGURES))
    return found
