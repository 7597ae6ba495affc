"""Do the anchors fit the boxes? If not, new ones by k-means on box sizes, as YOLOv5/YOLOv7 do before training from
scratch.

Best possible recall = share of boxes whose side ratio to some anchor is below anchor_t; below 0.98 new anchors are
tried, and kept if better.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from models.graph import Detector
from utils.config.train import Config
from utils.seams import Annotations, Dataset
from utils.system.errors import UserError
from utils.system.notes import note
from utils.system.rng import rng

ENOUGH = 0.98
Floats = npt.NDArray[np.float64]


def box_sizes(labels: Sequence[Annotations], native: npt.NDArray[np.int64], img_size: int) -> Floats:
    """Width and height of every box [N,2] in pixels of the network input. native [n,2]: image sizes (h, w)."""
    sizes = [
        label.boxes[:, 3:5] * (hw[::-1] * (img_size / hw.max()))
        for label, hw in zip(labels, native, strict=True)
        if len(label)
    ]
    return np.concatenate(sizes).astype(np.float64) if sizes else np.zeros((0, 2))


def possible_recall(sizes: Floats, anchors: Floats, anchor_t: float) -> float:
    """sizes [N,2], anchors [K,2], both w,h in pixels -> share of boxes that some anchor can take."""
    ratio = sizes[:, None] / anchors[None]
    return float((np.maximum(ratio, 1 / ratio).max(2).min(1) < anchor_t).mean())


def cluster(sizes: Floats, count: int, seed: int) -> Floats:
    """`count` anchors [count,2] in pixels by k-means on whitened sizes, smallest area first."""
    from scipy.cluster.vq import kmeans2  # imported on first use: it takes a quarter of the start beside torch's

    spread = sizes.std(0)
    scale = np.where(spread > 1e-6 * sizes.mean(0), spread, 1)  # a side that all boxes share tells nothing
    centres, _ = kmeans2(sizes / scale, count, minit="++", rng=rng(seed, "anchors"), iter=50)
    anchors: Floats = centres * scale
    return anchors[np.argsort(anchors.prod(1))]


def per_level(spec: Mapping[str, object], asked: float) -> dict[str, object]:
    """The model YAML with so many anchors per level, rounded, as a hyp file's `anchors` asks for (0: as it is): sizes
    for another number than it lists are found by autoanchor."""
    count, listed = round(asked), spec.get("anchors")
    if not count:
        return dict(spec)
    if not listed:
        raise UserError(f"anchors {asked:g} asked for (--anchors, or in --hyp): this model has none")
    has = len(listed[0]) // 2 if isinstance(listed, list) and listed and isinstance(listed[0], list) else listed
    if has == count:
        print(note("anchors", f"anchors: {asked:g} asked for, and the model has {count} per level: those are judged"))
        return dict(spec)
    print(note("anchors", f"anchors: {asked:g} asked for: {count} per level instead of {has}, found by the boxes"))
    return {**spec, "anchors": count}


def wanted(model: Detector, off: bool, loaded: bool) -> bool:
    """Whether anchors are to be fitted: from scratch, and where the model YAML gives only their number. off:
    --noautoanchor. loaded: the model has weights of a file."""
    priors = model.head.priors()
    if priors is None:
        return False
    unknown = bool(priors.isnan().any())
    if unknown and off:
        raise UserError(
            "--noautoanchor: the model YAML gives only the number of anchors; list them, or let them be found"
        )
    return unknown or not (off or loaded)


def meet_data(model: Detector, cfg: Config, dataset: Dataset, img_size: int) -> None:
    """Anchors fitted to the training data; says what was done."""
    print(fit_anchors(model, box_sizes(dataset.labels, dataset.sizes, img_size), cfg.anchor_t, cfg.seed))


@torch.no_grad()
def fit_anchors(model: Detector, sizes: Floats, anchor_t: float, seed: int) -> str:
    """Checks the model's anchors against box sizes [N,2] (w,h in pixels at training size), replaces them where that
    helps; says what it did."""
    all_boxes = len(sizes)
    sizes = sizes[(sizes >= 2).all(1)]
    priors, stride = model.head.priors(), model.stride.view(-1, 1, 1)
    if priors is None:
        return "this model has no anchors to fit"
    own = (priors * stride).view(-1, 2).numpy().astype(np.float64)
    unknown = bool(np.isnan(own).any())
    different = len(np.unique(np.rint(sizes), axis=0))
    if unknown and (len(sizes) < 4 * len(own) or different < len(own)):
        raise UserError(
            f"the model YAML gives only the number of anchors; {len(sizes)} boxes of {different} sizes are too few to "
            f"find {len(own)} by: list them under `anchors`"
        )
    if len(sizes) < 4 * len(own):
        small = f" ({all_boxes - len(sizes)} more have a side below 2 px)" if all_boxes > len(sizes) else ""
        return f"anchors kept: {len(sizes)} boxes{small} are too few to judge {len(own)} anchors by"
    before = possible_recall(sizes, own, anchor_t)
    if before >= ENOUGH:
        return f"anchors fit: best possible recall {before:.4f}"
    if different < len(own):
        said = f"best possible recall {before:.4f}, but the boxes have {different} different sizes in pixels"
        return note("anchors kept", f"anchors kept: {said}, too few for {len(own)} anchors: set them in the model YAML")
    new = cluster(sizes, len(own), seed)
    after = possible_recall(sizes, new, anchor_t)
    if after <= before and not unknown:
        return f"anchors kept: best possible recall {before:.4f}, k-means reaches {after:.4f}"
    model.head.fit_to_boxes(torch.tensor(new, dtype=torch.float32).view(priors.shape) / stride)
    text = " ".join(f"{w:.0f},{h:.0f}" for w, h in new)
    if unknown:
        return note("anchors found", f"anchors found: best possible recall {after:.4f}; {text}")
    gain = f"best possible recall {before:.4f} -> {after:.4f}"
    return note("anchors replaced", f"anchors replaced: {gain}; now {text} (keep the YAML's with --noautoanchor)")
