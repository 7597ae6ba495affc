"""--modality visible|infrared|both: what detection reads of the pairs that the data YAML names (`pairs:`).
Seams: on_data_read, branches, load_weights, wrap_dataset, after_evaluation.

infrared   the partner takes the place of the visible picture, grey repeated to the model's channels; the same boxes
both       two stems (patches/modality/stems.py): the rows as they are read the visible picture, a copy of rows 0..N the
           infrared one, and is added to row N (--join-node N) through a 1x1 convolution that starts as zeros. From a
           checkpoint of one modality both stems start from its rows: at first the new model detects what the old one
           did.

The second stem is the branch `infrared`: it learns whatever --freeze names, and --unfreeze 3:branches.infrared opens it
later. A partner that is missing (--on-missing-pair single) is grey.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models.graph import Detector
from patches.modality.missing import MODALITIES, report
from patches.modality.stems import SecondStem, early_row, join_rows
from utils.config.options import check_ranges, opt
from utils.data.spec import DataSpec
from utils.images.pixels import CHANNELS
from utils.seams import Dataset, Measure, Measured, Patch, Records, Source, State
from utils.system.errors import UserError
from utils.train.modules import spans

NAME = "infrared"
PREFIX = f"branches.{NAME}."
MISSING = (*MODALITIES, "each")


@dataclass(frozen=True, kw_only=True)
class Flags:
    modality: str = opt(
        "visible", "what detection reads of the data YAML's pairs", "pairs", choices=("visible", "infrared", "both")
    )
    join_node: int = opt(
        -1,
        "with --modality both: module at which the infrared picture joins (-1: the last possible one at stride 4)",
        "pairs",
        low=-1,
    )
    pair_words: tuple[str, ...] = opt((), "how partners are found, as stored in checkpoints", "pairs", hidden=True)
    missing: str = opt("", "the picture that is taken away in test.py", "pairs", choices=("", *MISSING), hidden=True)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.join_node != -1 and self.modality != "both":
            raise UserError(f"--join-node goes with --modality both, not {self.modality}")


@dataclass(frozen=True, kw_only=True)
class TestFlags:
    """Flags of test.py."""

    modality: str = opt(
        "", "read this picture of a pair (default: as trained)", "pairs", choices=("visible", "infrared")
    )
    missing: str = opt(
        "",
        "of a model of two pictures: detect without this one; each: a table of all three",
        "pairs",
        choices=("visible", "infrared", "each"),
    )


def under_test(flags: TestFlags, records: Records, model: Detector, weights: str) -> Records:
    """The patches' records of a checkpoint as test.py is told to read its pictures."""
    if flags.missing and not model.stem:
        raise UserError(f"--missing {flags.missing}: {weights} reads one picture")
    if flags.modality and model.stem:
        raise UserError(f"--modality {flags.modality}: {weights} reads both; see --missing")
    if flags.modality:
        return {"modality": {"modality": flags.modality}}
    if flags.missing:
        return {**records, "modality": {**records["modality"], "missing": flags.missing}}
    return records


class Modality(Patch[Flags]):
    def __init__(self, flags: Flags) -> None:
        super().__init__(flags)
        self.join, self.words, self.each = flags.join_node, flags.pair_words, flags.missing == "each"

    def record(self) -> dict[str, Any]:
        values = {**super().record(), "join_node": self.join, "pair_words": self.words}
        return {k: v for k, v in values.items() if k != "missing"}

    def on_data_read(self, spec: DataSpec) -> None:
        if self.flags.modality == "visible":
            return
        if spec.pairs is None:
            raise UserError(
                f"--modality {self.flags.modality}: {spec.source} names no infrared partners; add the key `pairs`, "
                "e.g. `pairs: llvip`"
            )
        self.words = spec.pairs.replace if spec.pairs.file is None else ()

    def branches(self, model: Detector) -> Mapping[str, tuple[int, nn.Module]]:
        if self.flags.modality != "both":
            return {}
        if 2 * model.in_channels > CHANNELS:
            raise UserError(f"--modality both: twice {model.in_channels} channels; {CHANNELS} are read at most")
        self.join = self.join if self.join >= 0 else self.default_row(model)
        if self.join not in join_rows(model):
            raise UserError(
                f"--join-node {self.join}: a row behind it would read rows before it, which know the visible picture "
                f"alone, or it lies outside the backbone; possible: {spans(join_rows(model))}"
            )
        return {NAME: (self.join, SecondStem(model, self.join))}

    def default_row(self, model: Detector) -> int:
        row = early_row(model)
        if row is None:
            raise UserError(f"--modality both: say --join-node N; possible: {spans(join_rows(model)) or 'none'}")
        return row

    def load_weights(self, state: State, model: Detector, source: Source) -> State:
        """A checkpoint without this second stem: it starts from the first one."""
        stem = dict(model.branches.items()).get(NAME)
        if not isinstance(stem, SecondStem):
            return state
        own = {PREFIX + k: v for k, v in stem.state_dict().items()}
        if all(k in source.state and source.state[k].shape == v.shape for k, v in own.items()):
            return state
        needed = [k.removeprefix(f"{PREFIX}rows.") for k in own if ".rows." in k]
        if absent := [k for k in needed if k not in state]:
            raise UserError(f"{source.path} has no {absent[0]}, from which the infrared stem would start")
        print(
            f"modality: the infrared stem starts from rows 0-{self.join} of {source.path} and contributes nothing yet"
        )
        return {**state, **{PREFIX + k: v for k, v in stem.starting(state).items()}}

    def wrap_dataset(self, dataset: Dataset, split: str) -> Dataset:
        if self.flags.modality == "visible":
            return dataset
        return dataset.with_partners(self.flags.modality, grey=self.flags.missing if not self.each else "")

    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        if self.flags.modality != "both":
            print(f"modality: detection reads the {self.flags.modality} pictures")
            return
        self.each = True
        print(
            f"modality: two stems: rows 0-{self.join} read the visible picture, branches.{NAME} the infrared one; "
            f"joined at row {self.join} ({model.kinds[self.join]})"
        )

    def after_evaluation(self, result: Measured, measure: Measure, folder: Path) -> None:
        if self.each:
            report(result, measure, folder / "modality.csv")


patch = Modality
