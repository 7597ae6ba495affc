"""The places where a patch may touch training, and the types of what passes there: pictures, batches, the data set.
Nothing else in the base knows that patches exist.

Build time, once each, in this order:   on_data_read -> layers -> branches -> load_weights -> on_model_built
                                        -> wrap_dataset -> param_groups -> on_start -> before_training
Run time, every epoch or every batch:   on_epoch_start -> [loss_terms -> loss_weights -> on_step_end] -> on_epoch_end
Evaluation, in train.py and test.py:    [observe] -> figures -> after_evaluation; test.py calls on_data_read as well
"""

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NotRequired, Protocol, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.class_names import Columns
from models.graph import Build, Detector
from utils.config.help import patch_table, record_name
from utils.config.options import restored
from utils.system.errors import UserError, parsing

if TYPE_CHECKING:
    from utils.data.spec import DataSpec

Output = dict[str, Any]  # "det": raw output of the head, "feat": {N: [B,C,H,W]} of the tapped modules, + one per branch
Terms = dict[str, Tensor]  # named scalar losses
Groups = list[dict[str, Any]]  # optimizer groups, each with its name and lr_scale
State = dict[str, Tensor]
Records = Mapping[str, Mapping[str, Any]]  # {patch: its record}
Observed = Mapping[str, Tensor]  # [images,...] each: what patches kept of every evaluated image, on the CPU


class Extras(TypedDict, total=False):
    """What a data set has of each picture beside its boxes, where it has it; collated [B,...]. A patch that adds
    entries of its own declares a subclass of Batch and casts to it."""

    image_class: Tensor  # int64 [], -1 = unknown
    infrared: Tensor  # uint8 or uint16 [1 or 3,H,W] of the same geometry
    paired: Tensor  # bool [], whether every image of the picture has its partner
    number: Tensor  # int64 [] of the image in the data set


class Item(Extras):
    """One picture with its boxes."""

    image: Tensor  # uint8 or uint16 [C,H,W], RGB where C is 3
    target: Tensor  # float32 [n,5] class, cx, cy, w, h in 0..1 of the picture
    gain_pad: Tensor  # float32 [4] gain x, gain y, pad x, pad y: input = native * gain + pad in pixels; 0: augmented
    path: str
    shape: Tensor  # int64 [2] native (h, w)
    quad: NotRequired[bool]  # whether four pictures are to become one


class Collated(Extras):
    """Items together."""

    image: Tensor  # [B,C,H,W] as in the items; on its device float 0..1
    target: Tensor  # float32 [N,6] number in the batch, class, cx, cy, w, h in 0..1
    gain_pad: Tensor  # float32 [B,4]
    path: list[str]
    shape: Tensor  # int64 [B,2]
    most: NotRequired[int]  # boxes of the picture that has most; known where the batch is on its device


class Batch(Collated):
    """As a loader gives it."""

    images: int  # samples that it counts for
    share: float  # their part of the global batch, over all ranks


BatchChange = Callable[[Batch], Batch]


class Sample(NamedTuple):
    """What a data set is indexed by. The epoch travels along, so that workers need not be told of it."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class Annotations(Protocol):
    """The objects of one image (utils.data.labels.Labels)."""

    @property
    def boxes(self) -> npt.NDArray[np.float32]:
        """[n,5] class, cx, cy, w, h in 0..1."""

    def __len__(self) -> int: ...


class Dataset(Protocol):
    """What training, evaluation and patches ask of a data set (utils.data.dataset.DetectionDataset)."""

    def __len__(self) -> int: ...
    def __getitem__(self, sample: Sample, /) -> Item: ...
    @property
    def files(self) -> Sequence[Path]: ...
    @property
    def labels(self) -> Sequence[Annotations]: ...
    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """[n,2] native (h, w)."""

    @property
    def image_classes(self) -> npt.NDArray[np.int64]:
        """[n], -1 = unknown."""

    @property
    def partners(self) -> object | None:
        """None: the data have no second picture of each scene."""

    @property
    def reads(self) -> str:
        """Which picture of a pair detection reads."""

    @property
    def seed(self) -> int: ...
    @property
    def img_size(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def rect(self) -> bool:
        """Whether the pictures of a batch have a shape of their own, so that they belong together."""

    @property
    def quad(self) -> bool: ...
    def with_partners(self, reads: str = "visible", grey: str = "") -> "Dataset": ...
    def changing(self, changes: Sequence[tuple[int, Mapping[str, float]]]) -> "Dataset":
        """The same pictures with other augmentation, each from an epoch on."""


class Measured(Protocol):
    """What a patch may ask of an evaluation (utils.evaluation.evaluate.Result)."""

    @property
    def map50(self) -> float: ...
    @property
    def map(self) -> float: ...
    @property
    def match(self) -> str: ...
    @property
    def rule(self) -> str:
        """By which rule the figures were made, in words."""

    @property
    def row(self) -> dict[str, float]:
        """The figures by the names of their columns."""

    @property
    def observed(self) -> dict[str, Tensor]: ...


class Measure(Protocol):
    """Evaluates on the same images by the same rule, without loss terms; on every rank. detector: another than the one
    at hand. change: of every batch as loaded."""

    def __call__(self, detector: Detector | None = None, change: BatchChange | None = None) -> Measured: ...


class Rates(Protocol):
    """The run's rates (utils.train.optim.Schedule)."""

    @property
    def batches(self) -> int:
        """Steps per epoch."""

    @property
    def epochs(self) -> int: ...
    @property
    def warmup(self) -> int:
        """Steps."""

    def rate(self, step: int, group: Mapping[str, object]) -> float: ...


@dataclass(frozen=True)
class Progress:
    """Where training is; read-only."""

    epoch: int
    epochs: int
    step: int


@dataclass(frozen=True)
class Source:
    """The checkpoint a new stage starts from."""

    path: str
    state: State  # its tensors, `model.N....`
    meta: Mapping[str, Any]
    columns: Columns = ()  # of each class of the data its number there, by name; (): not known


F = TypeVar("F")
T = TypeVar("T")


class Patch(nn.Module, Generic[F]):
    """A feature added from outside. Override only the seams you need; the defaults change nothing.

    It is a Module: its parameters are optimised and its state_dict is checkpointed under its file's name.
    A patch file defines `Flags`, a frozen dataclass of its options, and `patch`, its class.
    """

    terms: tuple[str, ...] = ()  # names this patch adds to the loss
    metrics: tuple[str, ...] = ()  # names of its `figures`: columns of results.csv
    judged: Mapping[str, bool] = MappingProxyType({})  # {of these what best.pt may be chosen by: lower is better}
    needs_weights = False  # whether it acts on --weights and is of no use without
    takes_part = False  # whether it makes do with what fits of --weights: other classes are said, not refused

    def __init__(self, flags: F) -> None:
        super().__init__()
        self.flags = flags

    def record(self) -> dict[str, Any]:
        """Plain values from which Flags(**record) makes the same patch without the files it once read."""
        return dataclasses.asdict(self.flags)  # type: ignore[call-overload,no-any-return]

    def on_data_read(self, spec: "DataSpec") -> None:
        """What the data YAML says, before there is a model."""

    def layers(self) -> Mapping[str, Build]:
        return {}

    def branches(self, model: Detector) -> Mapping[str, tuple[int, nn.Module]]:
        """{name: (row it reads, -1 = the image; module)}, see Detector.add_branch."""
        return {}

    def load_weights(self, state: State, model: Detector, source: Source) -> State:
        return state

    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        """The model has its weights; anchors may yet be fitted to the data, which are looked at afterwards."""

    def param_groups(self, groups: Groups, model: Detector) -> Groups:
        """A group is plain data: params, weight_decay, name, lr_scale; it may say when it `opens` (epoch), its `ramp`
        (epochs), and `phases`, decay cycles that begin in mid-run (utils.train.optim)."""
        return groups

    def on_start(self, model: Detector, groups: Groups, rates: Rates) -> None:
        """Everything is built, placed and, in a resumed run, restored; nothing is written yet."""

    def before_training(self, start: Measured | None, measure: Measure) -> None:
        """Before the first step, not of a resumed run. start: what the weights it begins with reach on the validation
        set; None: from scratch, or not measured. measure: on the same images."""

    def wrap_dataset(self, dataset: Dataset, split: str) -> Dataset:
        return dataset

    def on_epoch_start(self, model: Detector, groups: Groups, at: Progress) -> None: ...

    def loss_terms(self, batch: Batch, out: Output, model: Detector) -> Terms:
        return {}

    def loss_weights(self, terms: Terms, batch: Batch, model: Detector) -> Mapping[str, float | Tensor]:
        return {}

    def on_step_end(self, model: Detector, average: Detector, at: Progress) -> None:
        """After an optimizer step and the update of the average."""

    def on_epoch_end(self, model: Detector, at: Progress, row: Mapping[str, float]) -> dict[str, float]:
        """row: mean loss terms and, where the epoch was evaluated, its metrics. Returns further columns."""
        return {}

    def observe(self, batch: Batch, out: Output, model: Detector) -> Observed:
        """What `figures` needs of each image of an evaluated batch, {name: [B,...]}."""
        return {}

    def figures(self, observed: Observed) -> dict[str, float]:
        """Metrics over all evaluated images, named as in `metrics`."""
        return {}

    def after_evaluation(self, result: Measured, measure: Measure, folder: Path) -> None:
        """Further figures and pictures of the final evaluation, on every rank. measure: of the same detector. folder:
        of the run, with its other files."""


class Patches(nn.ModuleDict):
    """The active patches, in the order of patches.TABLE. Each method combines one seam over all of them."""

    def fold(self, seam: str, value: T, *args: object) -> T:
        for patch in self.values():
            value = getattr(patch, seam)(value, *args)
        return value

    def each(self, seam: str, *args: object) -> None:
        for patch in self.values():
            getattr(patch, seam)(*args)

    def merge(self, seam: str, *args: object) -> dict[str, Any]:
        """Union of what the patches return; two patches giving one key is an error, not a silent win."""
        merged: dict[str, Any] = {}
        for name, patch in self.items():
            new = getattr(patch, seam)(*args)
            if clash := merged.keys() & new.keys():
                raise UserError(f"patches/{name}.py: {seam} redefines {sorted(clash)}")
            merged |= new
        return merged

    def names(self, base: tuple[str, ...]) -> tuple[str, ...]:
        """All loss-term names, base first; known before training, so that logs and weights have fixed columns."""
        names = base + tuple(t for p in self.values() if isinstance(p, Patch) for t in p.terms)
        if len(set(names)) != len(names):
            raise UserError(f"a loss term is declared twice: {names}")
        return names

    def metric_names(self) -> list[str]:
        """The columns that `figures` fill."""
        return [m for p in self.values() if isinstance(p, Patch) for m in p.metrics]

    def judged(self) -> dict[str, bool]:
        """{figure that best.pt may be chosen by: whether a lower one is better}."""
        return {k: v for p in self.values() if isinstance(p, Patch) for k, v in p.judged.items()}

    def defaults(self) -> dict[str, object]:
        """{PATCH.FLAG: its default}."""
        own = [
            (name, p.flags) for name, p in self.items() if isinstance(p, Patch) and dataclasses.is_dataclass(p.flags)
        ]
        return {f"{name}.{f.name}": f.default for name, flags in own for f in dataclasses.fields(flags)}

    def records(self) -> dict[str, dict[str, Any]]:
        """{patch: plain values}, for run.yaml and the checkpoint."""
        return {name: patch.record() for name, patch in self.items() if isinstance(patch, Patch)}


def kinds(names: Iterable[str]) -> dict[str, ModuleType]:
    """The modules of these patch files, in TABLE order."""
    wanted = set(names)
    known = {record_name(place): place for place in patch_table().values()}
    if missing := wanted - known.keys():
        raise UserError(f"this run needs the patches {sorted(missing)}, which are not in patches/")
    return {name: importlib.import_module(f"patches.{place}") for name, place in known.items() if name in wanted}


def switched_on(flags: Mapping[str, Mapping[str, object]]) -> Patches:
    """The patches of a command line, {name: the flags it gives}. Their random numbers do not shift the base's."""
    with torch.random.fork_rng(devices=[]):
        return Patches({name: kind.patch(kind.Flags(**flags[name])) for name, kind in kinds(flags).items()})


def revive(records: Records) -> Patches:
    """The patches of a checkpoint, built from what it recorded about them."""
    made = {}
    for name, module in kinds(records).items():
        flags = restored(module.Flags, records[name], f"the record of patches/{name}")
        with parsing(f"the record of patches/{name} is damaged"):
            made[name] = module.patch(flags)
    return Patches(made)


def weighted_sum(terms: Terms, weights: Mapping[str, float | Tensor]) -> Tensor:
    """Sum of the terms, each times its weight (1 unless given)."""
    if unknown := weights.keys() - terms.keys():
        raise UserError(f"weights for unknown loss terms {sorted(unknown)}")
    return torch.stack([term * weights.get(name, 1.0) for name, term in terms.items()]).sum()
