"""Training on classes of whole images: what a patch needs whose branch `image_class` is an ImageHead (models.classify).

Term `image_class` = gain * mean over the images of known class of their weighted cross-entropy. The mean is over the
known images of the micro-batch, of all ranks together: each rank adds its own sum over the number that all know, so
two ranks have the gradient of one. Gathered micro-batches count by their images, as for the other terms.

Figures (columns image_..., see models.classify.Figures) come from the answers on the evaluated images alone; best.pt is
chosen by --best-by, the detection fitness unless it says otherwise.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import Tensor

from models.graph import Detector
from patches.image_class.head import UNKNOWN, Figures, ImageHead, balanced_weights, confusion, figures, image_loss
from utils.data.spec import DataSpec
from utils.runs import plots
from utils.seams import (
    Batch,
    Dataset,
    Groups,
    Measure,
    Measured,
    Observed,
    Output,
    Patch,
    Progress,
    Source,
    State,
    Terms,
)
from utils.system import dist
from utils.system.errors import UserError
from utils.system.notes import note
from utils.system.rng import rng

NAME: Final = "image_class"  # of the branch, its output, its term and the batch's key
PREFIX = f"branches.{NAME}."
F = TypeVar("F")


class Settings(NamedTuple):
    """What the flags of either patch say."""

    flag: str  # that switches the patch on
    gain: float
    weights: tuple[str, ...]  # none | balanced | a number per class
    names: tuple[str, ...]  # of the classes as recorded; empty in a new run, whose data says them


class ImageClasses(Patch[F]):
    """Everything but the branch itself."""

    terms = (NAME,)
    metrics = tuple(f"image_{name}" for name in Figures._fields)
    judged = MappingProxyType({"image_acc": False, "image_bacc": False, "image_f1": False, "image_ce": True})
    counted: Tensor  # int64 [2] known images trained on in this epoch, and steps in which none was known
    weights: Tensor | None  # [C]

    def __init__(self, flags: F, settings: Settings) -> None:
        super().__init__(flags)
        self.settings, self.names, self.seed = settings, settings.names, 0
        self.place: dict[str, Any] = {}  # entries of the record that say what the head reads; known with the branch
        self.register_buffer("counted", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("weights", given_weights(settings), persistent=False)

    def record(self) -> dict[str, Any]:
        return {**super().record(), **self.place, "cls_names": list(self.names)}

    def on_data_read(self, spec: DataSpec) -> None:
        """The classes are those of the data; a checkpoint's must be the same in the same order."""
        found = tuple(spec.cls_names)
        if not (found or self.names):
            raise UserError(f"--{self.settings.flag}: the data YAML names no image classes (cls_names: [A, B, ...])")
        if found and self.names and found != self.names:
            raise UserError(
                f"cls_names of the data are {' '.join(found)}, those of the checkpoint {' '.join(self.names)}: "
                "names and order must be the same"
            )
        self.names = found or self.names
        if self.weights is not None and len(self.weights) != len(self.names):
            raise UserError(f"{len(self.weights)} class weights for {len(self.names)} classes: {' '.join(self.names)}")

    def load_weights(self, state: State, model: Detector, source: Source) -> State:
        """A checkpoint without image classes: the head starts fresh. One with others, or read elsewhere: an error."""
        own = {k: v for k, v in model.state_dict().items() if k.startswith(PREFIX)}
        if not any(k.startswith(PREFIX) for k in source.state):
            said = f"image classes: {source.path} has none; the head starts fresh ({len(own)} tensors)"
            print(note("heads start fresh", said, count=len(own)))
            return {**state, **own}
        theirs: Mapping[str, Any] = next((r for r in records(source) if "cls_names" in r), {})
        mine = self.record()
        for key in ("cls_names", *self.place):
            if theirs.get(key) != mine[key]:
                raise UserError(
                    f"{source.path} has image classes with {key} {brief(theirs.get(key))}, this run has "
                    f"{brief(mine[key])} (to begin anew: first drop them with --transfer-weights and "
                    f"without --{self.settings.flag})"
                )
        return state

    def wrap_dataset(self, dataset: Dataset, split: str) -> Dataset:
        """Changes nothing of it."""
        if split != "train":
            return dataset
        self.seed = dataset.seed
        if self.settings.weights == ("balanced",):
            classes = torch.from_numpy(dataset.image_classes)
            self.weights = balanced_weights(torch.bincount(classes[classes >= 0], minlength=len(self.names)))
        if self.weights is not None:
            pairs = zip(self.names, self.weights.tolist(), strict=True)
            print(f"image classes: weights {', '.join(f'{name} {weight:.4g}' for name, weight in pairs)}")
        return dataset

    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        alone = not any(p.requires_grad for p in model.model.parameters())
        print(
            "image classes: best.pt is the epoch of the best detection, unless --best-by says otherwise"
            + ("; that is the first, as nothing of the detector trains: take last.pt" if alone else "")
        )

    def on_epoch_start(self, model: Detector, groups: Groups, at: Progress) -> None:
        head = model.branches[NAME]
        assert isinstance(head, ImageHead)
        head.dropout.draw, head.dropout.step = partial(draw, self.seed), at.step

    def loss_terms(self, batch: Batch, out: Output, model: Detector) -> Terms:
        logits, target, share = out[NAME], batch[NAME], float(batch["share"])
        target = target if share else torch.full_like(target, UNKNOWN)  # a repeated image, for a rank without its own
        known = dist.total((target >= 0).sum())
        self.counted += torch.stack((known, (known == 0).long()))
        own = image_loss(logits, target, self.weights, known)
        return {NAME: self.settings.gain * own / (share or 1.0)}

    def on_epoch_end(self, model: Detector, at: Progress, row: Mapping[str, float]) -> dict[str, float]:
        known, without = self.counted.tolist()
        self.counted.zero_()
        return {"image_trained": known, "image_blank_steps": without}

    def observe(self, batch: Batch, out: Output, model: Detector) -> Observed:
        unknown = torch.full((len(out[NAME]),), UNKNOWN)
        return {"image_logits": out[NAME].float(), NAME: batch.get(NAME, unknown)}

    def figures(self, observed: Observed) -> dict[str, float]:
        found = figures(observed["image_logits"], observed[NAME])
        return dict(zip(self.metrics, found, strict=True))

    def after_evaluation(self, result: Measured, measure: Measure, folder: Path) -> None:
        if not dist.main():
            return
        table = confusion(result.observed["image_logits"], result.observed[NAME])
        acc = self.figures(result.observed)["image_acc"]
        title = f"image classes, {int(table.sum())} images, accuracy {acc:.3f}; columns normalised"
        plots.plot_matrix(table.numpy(), self.names, folder / "image_confusion.png", title)


def brief(value: object) -> str:
    if isinstance(value, dict):
        return "another one"
    return " ".join(value) if isinstance(value, list) else "missing" if value is None else str(value)


def records(source: Source) -> Sequence[Mapping[str, Any]]:
    """What the patches of a checkpoint recorded."""
    return list((source.meta.get("patches") or {}).values())


def given_weights(settings: Settings) -> Tensor | None:
    """The class weights that stand on the command line; None for `none`, and for `balanced`, which needs the data."""
    if settings.weights in (("none",), ("balanced",)):
        return None
    try:
        values = [float(word) for word in settings.weights]
    except ValueError:
        values = [-1.0]
    if not all(0 <= v < float("inf") for v in values):
        raise UserError(
            f"class weights {' '.join(settings.weights)}: expected none, balanced, or a number of at least 0 per class"
        )
    return torch.tensor(values)


def draw(seed: int, step: int, shape: tuple[int, int]) -> Tensor:
    """Uniform numbers in 0..1 for the dropout of a training step; every rank has its own."""
    return torch.from_numpy(rng(seed, "image_class dropout", step, dist.rank()).random(shape))
