"""Evaluation of a detector on labelled images; train.py calls it after each epoch, test.py by itself.

    batch -> model -> decode -> nms -> native pixels -> pairs with the objects -> AP, P, R, F1, confusion matrix

Works in inference mode, in the autocast type where one is given; of a batch nothing but its detections (at most
`max_det` rows of six numbers per image) outlives it. Heads stay separate: no tensor over heads x all classes is made.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from models.graph import Detector
from models.loss import Criterion
from utils.config.settings import EvalSettings
from utils.data.loader import to_device
from utils.evaluation.ap import Curves, average_precision, fitness
from utils.evaluation.boxes import to_native, xywhn_to_xyxy
from utils.evaluation.matching import NMS_OFFSET, RULES, coco_counted, confusion_matrix, find_pairs, tp_table
from utils.evaluation.nms import nms
from utils.evaluation.predict import predictions
from utils.seams import Batch, Patches
from utils.system import dist
from utils.system.errors import UserError

Sink = Callable[[Batch, list[Tensor]], None]
Floats = NDArray[np.float64]

MEANS = ("P", "R", "F1", "mAP50", "mAP")  # columns of the means over the classes
RULE_TEXT = {
    "coco": "COCO matching, 101 points",
    "v5": "YOLOv5 matching, 101 points",
    "v7": "YOLOv7 matching, 101 points",
}


@dataclass(frozen=True)
class HeadResult:
    """Means over a head's classes that have objects (nan where none has), and its number of objects."""

    map50: float
    map: float
    n_gt: int


@dataclass(frozen=True)
class Result:
    """What an evaluation found. Arrays over classes have one entry per class, nan for one without objects."""

    match: str  # coco | v7 | v5, see utils.matching
    v5_metric: bool
    names: list[str]
    mp: float  # P, R and F1: mean over classes at the one confidence where the mean F1 peaks; all means nan: no objects
    mr: float
    f1: float
    map50: float
    map: float  # mean over IoU 0.50, 0.55, ..., 0.95
    ap50: Floats  # [nc]
    ap: Floats  # [nc]
    p: Floats  # [nc]
    r: Floats  # [nc]
    f1_per_class: Floats  # [nc]
    n_gt: NDArray[np.int64]  # [nc]
    best_conf: float
    curves: Curves
    confusion: NDArray[np.int64]  # [nc+1,nc+1] predicted x true, last = background
    per_head: dict[str, HeadResult]
    losses: dict[str, float]  # mean of each term over the images; empty without a criterion
    seconds: dict[str, float]  # inference, nms, matching: all images together
    images: int
    paths: list[str] = field(repr=False)
    detections: list[Tensor] = field(repr=False)  # per image [n,6] x1,y1,x2,y2 native pixels, confidence, class
    figures: dict[str, float] = field(default_factory=dict)  # metrics of the patches
    observed: dict[str, Tensor] = field(default_factory=dict, repr=False)  # [images,...] what they were made of

    @property
    def measured(self) -> bool:
        """Whether there were objects to measure on."""
        return bool(self.n_gt.sum())

    @property
    def fitness(self) -> float:
        return fitness(self.map50, self.map)

    @property
    def row(self) -> dict[str, float]:
        """{column of results.csv: value}, see `columns`."""
        heads = list(self.per_head.values()) if len(self.per_head) > 1 else []
        of_heads = [*(head.map50 for head in heads), *(head.map for head in heads)]
        means = (self.mp, self.mr, self.f1, self.map50, self.map)
        names = self.columns(self.losses, self.per_head, self.figures)
        return dict(zip(names, [*means, *self.losses.values(), *of_heads, *self.figures.values()], strict=True))

    @staticmethod
    def columns(terms: Iterable[str], heads: Collection[str], figures: Iterable[str]) -> list[str]:
        """Names of what an evaluation gives: means, loss terms, mAP per head where there are several, what patches
        measure."""
        of_heads = [f"{kind}/{head}" for kind in ("mAP50", "mAP") for head in heads if len(heads) > 1]
        return [*MEANS, *(f"val_{term}" for term in terms), *of_heads, *figures]

    @property
    def said(self) -> str:
        """What patches measured, in words; empty where they measured nothing."""
        return "  ".join(f"{name} {value:.4g}" for name, value in self.figures.items())

    @property
    def rule(self) -> str:
        """By which rule the numbers were made; to stand beside every mAP that is shown or stored."""
        return RULE_TEXT[self.match] + (", recall to 1" if self.match == "v7" and self.v5_metric else "")


def evaluate(
    model: Detector,
    loader: Iterable[Batch],
    device: torch.device,
    settings: EvalSettings,
    *,
    criterion: Criterion | None = None,
    patches: Patches | None = None,
    first_batch_sink: Sink | None = None,
    others: Sequence[Detector] = (),
    augment: bool = False,
) -> Result:
    """Evaluate `model`, which is already on `device`; its training flags are as before afterwards.

    criterion: also compute the loss terms, on the raw outputs. patches: their observations and figures as well.
    others, augment: more models, on the device and in eval mode, and smaller views, see utils/evaluation/predict.py.
    first_batch_sink: called once with the first batch as loaded and its detections in input pixels, on the CPU.
    Errors: UserError for an unknown rule and for a loader without images.
    """
    match, single_cls = settings.match, settings.single_cls
    if match not in RULES:
        raise UserError(f"--match {match}: unknown rule; choose one of {', '.join(RULES)}")
    single_class_conf = settings.single_class_conf or ("product" if match == "v5" else "obj")
    nc = 1 if single_cls else model.nc
    autocast = torch.autocast(device.type, dtype=settings.autocast, enabled=settings.autocast is not None)
    seconds = dict.fromkeys(("inference", "nms", "matching"), 0.0)
    found = _Found(nc, match)
    with torch.inference_mode(), eval_mode(model):
        for batch in tqdm(loader, desc="evaluate", disable=not (settings.progress and dist.main())):
            with _timed(seconds, "inference", device):
                moved = to_device(batch, device)
                with autocast:
                    out = model(moved["image"])
                    det = out["det"]
                    losses = criterion(det, moved["target"], moved["most"]) if criterion is not None else {}
                    observed = patches.merge("observe", moved, out, model) if patches else {}
                    more = others or augment
                    parts = predictions((model, *others), moved["image"], det, augment) if more else []
                parts = parts or model.decode(det)
            with _timed(seconds, "nms", device):
                dets = nms(
                    parts, settings.conf_thres, settings.iou_thres, multi_label=True, agnostic=single_cls,
                    max_det=settings.max_det, single_class_conf=single_class_conf, offset=NMS_OFFSET[match],
                )  # fmt: skip
                del out, det, parts
                dets = list(torch.split(torch.cat(dets).cpu(), [len(d) for d in dets]))
                for det in dets if single_cls else ():
                    det[:, 5] = 0  # before anybody sees them: their names are those of one class
            with _timed(seconds, "matching", device):
                if first_batch_sink is not None and dist.main() and not found.batches:
                    first_batch_sink(batch, dets)
                found.add(batch, dets, losses, observed, single_cls)
    found.gather()
    if not found.batches:
        raise UserError("there are no images to evaluate on")
    started = time.perf_counter()
    groups = {"all": [0]} if single_cls else dict(zip(model.group_names, model.groups, strict=True))
    result = found.result(list(settings.names), settings.v5_metric, groups, found.mean_losses(), seconds)
    seconds["matching"] += time.perf_counter() - started
    if patches:
        observed = found.observed()
        result = replace(result, observed=observed, figures=patches.merge("figures", observed))
    return result


class _Seen(NamedTuple):
    """What is kept of a batch."""

    paths: list[str]
    dets: list[Tensor]  # per image [n,6] corners in native pixels, confidence, class
    gts: list[Tensor]  # per image [m,5] class, corners in native pixels
    losses: dict[str, Tensor]  # each term times the number of images
    observed: dict[str, Tensor]  # [B,...] what patches kept


class _Found:
    """The batches seen so far; all that is wanted is made of them in `result`."""

    def __init__(self, nc: int, match: str) -> None:
        self.nc, self.match = nc, match
        self.batches: list[_Seen] = []

    def add(
        self, batch: Batch, dets: list[Tensor], losses: dict[str, Tensor], observed: dict[str, Tensor], single_cls: bool
    ) -> None:
        """One batch as loaded; dets: per image [n,6] in input pixels."""
        height, width = batch["image"].shape[2:]
        target: Tensor = batch["target"].cpu()
        native, gts = [], []
        for i, det in enumerate(dets):
            gain_pad, shape = batch["gain_pad"][i].tolist(), (int(batch["shape"][i][0]), int(batch["shape"][i][1]))
            rows = target[target[:, 0] == i]
            gt = torch.cat([rows[:, 1:2], to_native(xywhn_to_xyxy(rows[:, 2:6], width, height), gain_pad, shape)], 1)
            det = torch.cat([to_native(det[:, :4], gain_pad, shape), det[:, 4:]], 1)
            if single_cls:
                det[:, 5], gt[:, 0] = 0, 0
            native.append(det)
            gts.append(gt)
        sums = {name: value.detach().float() * len(dets) for name, value in losses.items()}
        kept = {name: value.detach().cpu() for name, value in observed.items()}
        self.batches.append(_Seen(batch["path"], native, gts, sums, kept))

    def gather(self) -> None:
        """The batches of all ranks, to whom they were dealt in turn, in the order of a single process."""
        if dist.world() > 1:
            on_cpu = [b._replace(losses={k: v.cpu() for k, v in b.losses.items()}) for b in self.batches]
            self.batches = [b for turn in zip_longest(*dist.gather(on_cpu)) for b in turn if b is not None]

    def observed(self) -> dict[str, Tensor]:
        """What patches kept, [images,...] each, in the order of the images."""
        return {k: torch.cat([b.observed[k] for b in self.batches]) for k in self.batches[0].observed}

    def mean_losses(self) -> dict[str, float]:
        """Mean of each term over the images."""
        images, first = sum(len(b.paths) for b in self.batches), self.batches[0].losses
        return {k: float(sum((b.losses[k] for b in self.batches[1:]), first[k])) / images for k in first}

    def result(
        self,
        names: list[str],
        v5_metric: bool,
        groups: dict[str, list[int]],
        losses: dict[str, float],
        seconds: dict[str, float],
    ) -> Result:
        paths = [path for b in self.batches for path in b.paths]
        per_image = [det for b in self.batches for det in b.dets]
        objects = [gt for b in self.batches for gt in b.gts]
        dets, gts = torch.cat(per_image), torch.cat(objects)
        image, gt_image = (np.repeat(np.arange(len(x)), [len(rows) for rows in x]) for x in (per_image, objects))
        confusion = confusion_matrix(dets, image, gts, gt_image, self.nc, self.match)
        tp = tp_table(find_pairs(dets, image, gts, gt_image, self.match), len(dets), self.match)
        conf, cls, gt_cls = dets[:, 4].numpy(), dets[:, 5].long().numpy(), gts[:, 0].long().numpy()
        if self.match == "coco":
            counted = coco_counted(image, cls)
            tp, conf, cls = tp[counted], conf[counted], cls[counted]
        found = average_precision(tp, conf, cls, gt_cls, self.match, v5_metric)
        n_gt = np.bincount(gt_cls, minlength=self.nc)

        def spread(values: Floats) -> Floats:
            out = np.full(self.nc, np.nan)
            out[found.classes] = values
            return out

        ap50, ap = spread(found.ap[:, 0]), spread(found.ap.mean(1))
        heads = {k: HeadResult(_mean(ap50[ids]), _mean(ap[ids]), int(n_gt[ids].sum())) for k, ids in groups.items()}
        return Result(
            match=self.match, v5_metric=v5_metric, names=list(names)[: self.nc],
            mp=_mean(found.p), mr=_mean(found.r), f1=_mean(found.f1), map50=_mean(ap50), map=_mean(ap),
            ap50=ap50, ap=ap, p=spread(found.p), r=spread(found.r), f1_per_class=spread(found.f1), n_gt=n_gt,
            best_conf=found.curves.best / (found.curves.f1.shape[1] - 1), curves=found.curves, confusion=confusion,
            per_head=heads, losses=losses, seconds=seconds, images=len(paths), paths=paths, detections=per_image,
        )  # fmt: skip


def _mean(values: Floats) -> float:
    """Mean over the classes that have objects; nan where none has: nothing was measured."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """model.eval() for a while; afterwards every module has its own flag again (frozen norms stay in eval)."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def _timed(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Adds the time of the block; waits for the device, so that each part is charged with its own work."""
    started = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[name] += time.perf_counter() - started
