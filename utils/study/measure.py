"""best.pt of a run, evaluated on the run's own validation set, with what a comparison wants beside the mAP."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from utils import seams
from utils.config.options import restored
from utils.config.train import Config
from utils.data.build import evaluation
from utils.data.spec import read_data
from utils.evaluation import coco
from utils.evaluation.evaluate import Result, evaluate
from utils.system.device import select_device
from utils.system.errors import UserError
from utils.train.loss_step import compute_type
from utils.weights.checkpoint import check_pixels, lasting, load_detector


@dataclass(frozen=True)
class Measured:
    """An evaluation, by object size and class, and the objects themselves for pictures."""

    result: Result
    by_size: dict[str, float]  # COCO's AP of small (area up to 32^2 native pixels), medium (96^2), large; -1 = none
    truth: dict[str, npt.NDArray[np.float64]]  # image file -> [n,5] x0,y0,x1,y1 native pixels, class

    @property
    def per_class(self) -> dict[str, tuple[float, ...]]:
        """AP@0.5, AP@0.5:0.95, F1, P and R of the classes that have objects."""
        r = self.result
        each = zip(r.ap50, r.ap, r.f1_per_class, r.p, r.r, strict=True)
        return {name: tuple(map(float, own)) for name, own, n in zip(r.names, each, r.n_gt, strict=True) if n}


def measure(folder: Path, settings: Mapping[str, object], device: str, split: str = "val") -> Measured:
    """best.pt on a split of the run's data set.

    Errors: UserError where best.pt or the data set is not there, or another version made the run."""
    cfg = replace(restored(Config, settings["config"], f"{folder / 'run.yaml'}: config"), cache_images=False)
    weights = folder / "weights/best.pt"
    if not weights.is_file():
        raise UserError(f"there is no {weights}")
    where = select_device(device or cfg.device)
    model, meta = load_detector(weights)
    patches = seams.revive(lasting(meta))
    spec = read_data(cfg.data)
    check_pixels(spec, meta, weights)
    loader = evaluation(spec, split, patches, cfg.validation_data(int(model.stride.max())))
    judging = cfg.judging(meta["names"], compute_type(cfg, where), model.head.nms_iou())
    result = evaluate(model.to(where), loader, where, judging, patches=patches)
    dataset = loader.dataset
    truth = {
        str(path): native_boxes(labels, size.tolist())
        for path, labels, size in zip(dataset.files, dataset.labels, dataset.sizes, strict=True)
    }
    sizes = {str(path): size.tolist() for path, size in zip(dataset.files, dataset.sizes, strict=True)}
    return Measured(result, by_size(result, truth, sizes), truth)


def native_boxes(labels: seams.Annotations, size: Sequence[int]) -> npt.NDArray[np.float64]:
    """Labels of an image of size (h, w) -> [n,5] x0,y0,x1,y1 native pixels, class."""
    box = labels.boxes.astype(np.float64)
    scale = np.array([size[1], size[0]])
    low, high = (box[:, 1:3] - box[:, 3:5] / 2) * scale, (box[:, 1:3] + box[:, 3:5] / 2) * scale
    return np.concatenate([low, high, box[:, :1]], 1)


def by_size(
    result: Result, truth: Mapping[str, npt.NDArray[np.float64]], sizes: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """COCO's AP for small, medium and large objects; images and classes get their numbers here."""
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": sizes[p][1], "height": sizes[p][0]}
        for i, p in enumerate(result.paths)
    ]
    objects = [(i, row) for i, p in enumerate(result.paths) for row in truth[p].tolist()]
    annotations = [
        {"id": n + 1, "image_id": i, "category_id": int(c), "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0,
         "area": (x1 - x0) * (y1 - y0)}
        for n, (i, (x0, y0, x1, y1, c)) in enumerate(objects)
    ]  # fmt: skip
    categories = [{"id": c, "name": name} for c, name in enumerate(result.names)]
    ids = coco.Ids(list(range(len(result.names))), {str(i): [(f"{i}.jpg", i)] for i in range(len(images))}, "")
    entries = coco.to_entries([f"{i}.jpg" for i in range(len(images))], result.detections, ids)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "truth.json"
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        found = coco.figures(file, entries, list(range(len(images))))
    return {"small": found["APs"], "medium": found["APm"], "large": found["APl"]}
