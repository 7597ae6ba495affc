"""The one reader of a run folder: what its files say, read when it is asked for, damage named, nothing made up.

Whoever wants to know the best epoch, the terms, the heads, the totals of a run asks here. Epochs count from 0, as in
the files. A figure over the epochs is a `Series`: [(epoch, value), ...] of the epochs that have a finite one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from utils.config.options import show
from utils.config.train import PLACES
from utils.evaluation.evaluate import MEANS
from utils.runs import fingerprint, lock
from utils.runs.choice import Choice, recorded
from utils.runs.record import Row, check_head, read_table
from utils.seams import Source, State
from utils.system import notes
from utils.system.errors import UserError, parsing
from utils.system.yaml_file import read_yaml
from utils.weights.checkpoint import read_checkpoint, read_source

Series = list[tuple[int, float]]
T = TypeVar("T")
SECTIONS = ("config", "patches", "data", "start", "environment", "files", "parameters", "tensors", "replay")
NUMBERS = {"epochs": int, "seed": int, "batch_size": int, "lr0": float}  # settings that are calculated with


START, START_CLASSES = "start.csv", "start_per_class.csv"  # what a stage's weights reached before its first epoch


@dataclass(frozen=True)
class Checkpoint:
    """A file in weights/; error: why it cannot be read."""

    path: Path
    size: int  # bytes
    meta: Mapping[str, Any]
    state: State  # of best.pt and last.pt, else empty
    model: State  # of last.pt: the weights that train, beside their average
    patches: State
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything that the files of one run say. Empty: not there, or damaged, which `gaps` then names."""

    folder: Path
    gaps: list[str] = field(default_factory=list)  # what could not be read, of what was asked for so far

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """run.yaml"""
        if not (self.folder / "run.yaml").is_file():
            self.gaps.append(f"{self.folder / 'run.yaml'} is missing")
        return self.yaml("run.yaml")

    @cached_property
    def result(self) -> Mapping[str, Any]:
        """result.yaml, which a run has that came to its end"""
        return self.yaml("result.yaml")

    @cached_property
    def rows(self) -> list[Row]:
        """results.csv"""
        return self.table("results.csv")

    @cached_property
    def timing(self) -> list[Row]:
        return self.table("timing.csv")

    @cached_property
    def guard(self) -> list[Row]:
        return self.table("guard.csv")

    @cached_property
    def classes(self) -> list[Row]:
        return self.table("per_class.csv", "class")

    @cached_property
    def start_row(self) -> Row:
        """start.csv"""
        return next(iter(self.table(START)), {})

    @cached_property
    def start_classes(self) -> list[Row]:
        return self.table(START_CLASSES, "class")

    @cached_property
    def notes(self) -> list[Row] | None:
        """None: this run kept none."""
        kept: list[Row] = []
        read = self.headed(notes.NAME, notes.COLUMNS, lambda: notes.read_notes(self.folder), kept)
        return read if (self.folder / notes.NAME).exists() else None

    @cached_property
    def listing(self) -> fingerprint.Listing:
        """data.csv"""
        file, head = self.folder / "data.csv", fingerprint.COLUMNS[:3]
        return self.headed(file.name, head, lambda: fingerprint.read_listing(file), {})

    @cached_property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        found = tuple(read_weights(p) for p in sorted((self.folder / "weights").glob("*.pt")))
        self.gaps.extend(c.error for c in found if c.error)
        return found

    @cached_property
    def holder(self) -> str:
        """Who writes there now."""
        return lock.holder(self.folder)

    @property
    def damage(self) -> list[str]:
        """What of the whole folder cannot be read."""
        for part in ("settings", "rows", "timing", "guard", "classes", "notes", "result", "listing", "checkpoints"):
            getattr(self, part)
        _ = self.start_row, self.start_classes
        return self.gaps

    def tried(self, name: str, read: Callable[[], T], otherwise: T) -> T:
        """What `read` makes of a file; `otherwise` where that is not there, or damaged, which is named."""
        file = self.folder / name
        try:
            with parsing(f"{file} cannot be read"):
                if file.exists():
                    return read()
        except UserError as error:
            self.gaps.append(str(error))
        return otherwise

    def yaml(self, name: str) -> Mapping[str, Any]:
        nothing: dict[str, Any] = {}
        found = self.tried(name, lambda: read_yaml(self.folder / name), nothing)
        for section in SECTIONS:
            if not isinstance(found.get(section) or {}, dict):
                self.gaps.append(f"{self.folder / name}: {section}: expected `key: value` lines")
                found = {k: v for k, v in found.items() if k != section}
        config = dict(found.get("config") or {})
        for key, kind in NUMBERS.items():
            if key in config and not (isinstance(config[key], (int, kind)) and not isinstance(config[key], bool)):
                self.gaps.append(f"{self.folder / name}: config: {key}: expected a number, got {config[key]!r:.60}")
                del config[key]
        patches = {k: v for k, v in (found.get("patches") or {}).items() if isinstance(v, dict)}
        if len(patches) != len(found.get("patches") or {}):
            self.gaps.append(f"{self.folder / name}: patches: expected settings for each")
        return {**found, **{k: v for k, v in (("config", config), ("patches", patches)) if k in found}}

    def table(self, name: str, key: str = "epoch") -> list[Row]:
        none: list[Row] = []
        return self.tried(name, lambda: read_table(self.folder / name, key, self.gaps), none)

    def headed(self, name: str, head: Sequence[str], read: Callable[[], T], otherwise: T) -> T:
        """A CSV file that must begin with this head."""
        return self.tried(name, lambda: read() if check_head(self.folder / name, head) else otherwise, otherwise)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def config(self) -> Mapping[str, Any]:
        return self.settings.get("config") or {}

    @property
    def patches(self) -> Mapping[str, Mapping[str, Any]]:
        return self.settings.get("patches") or {}

    @property
    def start(self) -> Mapping[str, Any]:
        """The checkpoint it began with, see fingerprint.of_start."""
        return self.settings.get("start") or {}

    @property
    def before(self) -> "Facts | None":
        """The run whose checkpoint it started from, where that still stands."""
        folder = Path(str(self.start.get("run") or ""))
        return Facts(folder) if folder.name and is_run(folder) else None

    @cached_property
    def origin(self) -> Source | str:
        """The checkpoint the run started from, if it still is that; else why not."""
        path = self.start.get("weights") or self.config.get("weights")
        if not path:
            return "the run started from scratch" if self.settings else "run.yaml does not say from what it started"
        try:
            source = read_source(str(path))
        except UserError as error:
            return f"the start is gone ({error})"
        if self.start.get("tensors") not in (None, fingerprint.of_tensors(source.state)):
            return f"{path} has other tensors now than when the run started from it"
        return source

    @property
    def frozen(self) -> str:
        """What the run's flags say about what does not learn."""
        flags = self.patches.get("freeze", {})
        first = flags.get("trainable_first", -1)
        words = f"all but the first {first}" if first != -1 else show(flags.get("freeze", ["0"]))
        return f"{words}, --unfreeze" if "unfreeze" in self.patches else words

    @property
    def data(self) -> str:
        """Fingerprint of the data; empty where the run does not say it."""
        return str((self.settings.get("data") or {}).get("fingerprint") or "")

    @property
    def conditions(self) -> dict[str, str]:
        """Data, image size and matching rule of its mAP."""
        match = self.scored[-1].get("match") if self.scored else self.config.get("match")
        return conditions(self.config, self.settings.get("data") or {}, match)

    @property
    def rule(self) -> str:
        """By which rule mAP was made; empty where nothing says it."""
        return self.conditions["matching rule"]

    def apart_from(self, start: Mapping[str, Any]) -> str:
        """Why the mAP that the checkpoint with the description `start` states is not compared with this run's; empty
        where it is."""
        if start.get("map50") is None:
            return "the start states none"
        return apart(
            conditions(start.get("config") or {}, start.get("data") or {}, start.get("match")), self.conditions
        )

    @cached_property
    def began(self) -> dict[str, float]:
        """As measured before its first epoch; else what its start states, where that can be compared."""
        measured = {k: float(v) for k, v in self.start_row.items() if v and k not in ("epoch", "step", "match")}
        if "mAP50" in measured:
            return measured
        meta = self.origin.meta if isinstance(self.origin, Source) else {}
        known = {} if self.apart_from(meta) else {"mAP50": meta["map50"], "mAP": meta.get("map")}
        return {column: float(value) for column, value in known.items() if isinstance(value, (int, float))}

    @property
    def likeness(self) -> str:
        """The same for runs that differ in nothing but the seed: settings, patches, data, the run they came from."""
        config = {k: v for k, v in self.config.items() if k not in PLACES | {"seed"}}
        origin = self.before.likeness if self.before else self.start.get("tensors")
        return repr((config, self.patches, self.data, origin))

    @property
    def epochs(self) -> int:
        return len(self.rows)

    @property
    def planned(self) -> int:
        return int(self.config.get("epochs", 0))

    @cached_property
    def columns(self) -> list[str]:
        return list(self.rows[0]) if self.rows else []

    @cached_property
    def terms(self) -> list[str]:
        """Loss terms: the columns of results.csv beside the rates and before P."""
        names = [c for c in self.columns if c not in ("epoch", "step") and not c.startswith("lr_")]
        return names[: names.index("P")] if "P" in names else []

    @cached_property
    def kinds(self) -> dict[str, list[str]]:
        """{`box`: [`box/head_0`, ...], ...}: the terms that validation measures as well, by their kind."""
        found: dict[str, list[str]] = {}
        for term in self.terms:
            if f"val_{term}" in self.columns:
                found.setdefault(term.split("/")[0], []).append(term)
        return found

    @cached_property
    def rates(self) -> list[str]:
        return [c for c in self.columns if c.startswith("lr_")]

    @cached_property
    def extras(self) -> list[str]:
        """Columns that the base does not know: what patches measured."""
        base = {*MEANS, "match", "epoch", "step", *self.terms}
        known = ("lr_", "val_", "mAP50/", "mAP/")
        return [c for c in self.columns if c not in base and not c.startswith(known)]

    def series(self, column: str) -> Series:
        pairs = [(int(r["epoch"]), float(r[column])) for r in self.rows if r.get(column)]
        return [(e, v) for e, v in pairs if math.isfinite(v)]

    def total(self, prefix: str = "", kind: str = "") -> Series:
        """Sum of the loss terms, of all kinds or of one (prefix val_: of validation), over the epochs that have all of
        them: the same terms in training and validation."""
        names = self.kinds.get(kind, []) if kind else [term for own in self.kinds.values() for term in own]
        each = [dict(self.series(prefix + name)) for name in names]
        shared = sorted(set.intersection(*map(set, each))) if each else []
        return [(e, sum(one[e] for one in each)) for e in shared]

    @cached_property
    def choice(self) -> Choice:
        return recorded(self.settings.get("best_by"))

    @cached_property
    def scored(self) -> list[Row]:
        """Rows of the epochs that were evaluated."""
        return [r for r in self.rows if r.get("mAP") and r.get("mAP50")]

    @cached_property
    def best(self) -> Row:
        """The epoch of highest score; empty where none was evaluated."""
        return max((r for r in self.scored if self.choice.known(r)), key=self.choice.score, default={})

    @property
    def heads(self) -> list[str]:
        return [c.removeprefix("mAP50/") for c in self.columns if c.startswith("mAP50/")]

    def of_heads(self, column: str = "mAP50") -> dict[str, float]:
        """{head: mAP at the best epoch}; empty for a single head."""
        found = {k.partition("/")[2]: float(v) for k, v in self.best.items() if k.startswith(f"{column}/") and v}
        return {head: value for head, value in found.items() if math.isfinite(value)}

    def times(self, column: str = "seconds") -> list[float]:
        """A column of timing.csv."""
        return [float(r[column]) for r in self.timing if r.get(column)]

    @property
    def names(self) -> list[str]:
        return list(map(str, (self.settings.get("data") or {}).get("names") or ()))

    def checkpoint(self, name: str) -> Checkpoint | None:
        """A readable one of this name."""
        return next((c for c in self.checkpoints if c.path.name == name and not c.error), None)

    @property
    def ended(self) -> bool:
        """Whether it came to its end, be it an early one."""
        return (self.folder / "result.yaml").is_file()

    @property
    def finished(self) -> bool:
        return bool(self.result) and not self.holder

    @property
    def status(self) -> str:
        """From the lock, result.yaml and the rows of results.csv."""
        done = f"{self.epochs} of {self.planned or 'an unknown number of'} epochs"
        if self.holder:
            return f"running: the folder is being written by {self.holder}; {done} so far"
        if self.result:
            early = self.result.get("ended")
            return f"ended early after {done}: {early}" if early else f"finished: {done}"
        last = self.checkpoint("last.pt")
        if not self.rows and last is None:
            return "unfinished: killed in its first epoch, before anything was saved"
        if last is None:
            return f"unfinished: {done}, and no last.pt to go on from"
        why = "stopped or killed" if self.epochs < self.planned else "no result.yaml, so its end was not reached,"
        return f"unfinished: {why} after {done}; last.pt is of step {last.meta.get('step', '?')}"


def conditions(config: Mapping[str, object], data: Mapping[str, object], match: object) -> dict[str, str]:
    """What two values of mAP must share to be compared; empty where it is not stated."""
    size = config.get("img_size") or ""
    rule = f"{match}{', recall to 1' if config.get('v5_metric') else ''}" if match else ""
    return {
        "data": str(data.get("fingerprint") or "")[:12],
        "image size": str(size[-1] if isinstance(size, (list, tuple)) else size),
        "matching rule": rule,
    }


def apart(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Why two figures are not compared; empty where nothing speaks against it."""
    return ", ".join(
        f"other {what}: {before[what] or 'not stated'} before, {now[what] or 'not stated'} now"
        for what in now
        if before[what] != now[what]
    )


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("run.yaml", "results.csv"))


def read_facts(folder: Path) -> Facts:
    """UserError where there is no run.yaml and no results.csv: that is no run folder."""
    if not is_run(folder):
        raise UserError(f"{folder} is no run folder: it has neither run.yaml nor results.csv")
    return Facts(folder)


def read_weights(path: Path) -> Checkpoint:
    size = path.stat().st_size
    try:
        content = read_checkpoint(path)
    except UserError as error:
        return Checkpoint(path, size, {}, {}, {}, {}, str(error))
    keep = path.name in ("best.pt", "last.pt")
    ema, model, patches = (content.get(part, {}) if keep else {} for part in ("ema", "model", "patches"))
    return Checkpoint(path, size, content["meta"], ema, model, patches)
