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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.evaluation.evaluate import Floats, Result
from utils.system.errors import UserError

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

    categories: list[int]  # per class
    images: dict[str, int] | None  # file stem -> id, as an annotation file has it
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
        return self.images[stem]


def read_ids(names: Sequence[str], anno_json: str | Path = "") -> Ids:
    """Ids for classes `names`. UserError for an annotation file that is missing, no COCO file, or lacks a class."""
    if anno_json:
        content = _read(Path(anno_json))
        known = {c["name"]: int(c["id"]) for c in content["categories"]}
        missing = [n for n in names if n not in known]
        if missing:
            raise UserError(f"--anno-json {anno_json}: no category for {missing}; its categories are {sorted(known)}")
        images = {Path(i["file_name"]).stem: int(i["id"]) for i in content["images"]}
        return Ids([known[n] for n in names], images, f"{anno_json}, by name")
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
    category: NDArray[np.int64]  # [N] ids
    box: Floats  # [N,4] x, y, w, h native pixels, 3 decimals
    score: Floats  # [N] 5 decimals

    def rows(self) -> list[dict[str, Any]]:
        """As the file lists them."""
        columns = zip(*(c.tolist() for c in (self.image, self.category, self.box, self.score)), strict=True)
        return [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in columns]


def to_entries(paths: Sequence[str], detections: Sequence[Tensor], ids: Ids) -> Entries:
    """Detections, per image [n,6] x1,y1,x2,y2 native pixels, confidence, class -> entries of a result file.

    UserError where two images would have one id.
    """
    called: dict[int | str, str] = {}
    for path in paths:
        image = ids.image(path)
        if called.setdefault(image, path) != path:
            raise UserError(
                f"{path} and {called[image]} would both be image {image!r} in the JSON; give unique file names"
            )
    det = torch.cat([torch.zeros(0, 6), *detections]).double().numpy()
    image_ids = np.array(list(called), object)
    return Entries(
        np.repeat(image_ids, [len(d) for d in detections]),
        np.array(ids.categories, np.int64)[det[:, 5].astype(np.int64)],
        np.concatenate([det[:, :2], det[:, 2:4] - det[:, :2]], 1).round(3),
        det[:, 4].round(5),
    )


def figures(anno_json: str | Path, entries: Entries, image_ids: Sequence[int]) -> dict[str, float]:
    """COCO's twelve figures (FIGURES) of the entries on the images `image_ids` of an annotation file.

    -1 stands for a figure that has no objects to be measured on, as in pycocotools.
    """
    try:
        backend = importlib.import_module("hotcoco")
    except ImportError:
        raise UserError("COCO's figures need the package hotcoco: pip install hotcoco (see requirements.txt)") from None
    truth = backend.COCO(str(anno_json))
    table = np.column_stack([entries.image.astype(np.float64), entries.box, entries.score, entries.category])  # [N,7]
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
    found = figures(anno_json, entries, [int(ids.image(p)) for p in result.paths])
    print(f"COCO's figures on {len(result.paths)} images, by hotcoco (s, m, l: objects up to 32^2, 96^2 and above)")
    print("  ".join(f"{name} {found[name]:.4f}" for name in FIGURES))
    return found
