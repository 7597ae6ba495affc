"""A run folder as its files tell it, for utils.report: read once, damage named, nothing made up.

Epochs are numbered from 1 on here, as on the pictures; the files count from 0.
A figure is `Series`: [(epoch, value), ...] of the epochs that have a finite one.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from utils.evaluation.ap import fitness
from utils.runs import fingerprint, lock
from utils.runs.record import whole_lines
from utils.seams import Source, State
from utils.system import notes
from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml
from utils.weights.checkpoint import read_checkpoint, read_source

Series = list[tuple[int, float]]
Row = dict[str, str]
Verdict = list[str] | str  # of a rule: what it found, or why that could not be measured
T = TypeVar("T")
FEWEST = 5  # epochs for a trend
FLAT = 0.01  # change over the window, as a share of the mean size, below which nothing rises or falls


@dataclass(frozen=True)
class Trend:
    """Theil-Sen slope (median of the slopes of all pairs) over the last third of the epochs, at least FEWEST."""

    slope: float  # per epoch
    change: float  # slope times the window's length, as a share of the mean of |values|
    steady: float  # (rising pairs - falling pairs) / pairs, Kendall's tau
    first: int  # epoch that the window begins at

    @property
    def word(self) -> str:
        return "flat" if abs(self.change) < FLAT else "rises" if self.slope > 0 else "falls"


def trend(series: Series) -> Trend | None:
    """None where there are too few epochs."""
    if len(series) < FEWEST:
        return None
    window = np.array(series[-max(FEWEST, math.ceil(len(series) / 3)) :])
    i, j = np.triu_indices(len(window), 1)
    steps = window[j] - window[i]
    slope = float(np.median(steps[:, 1] / steps[:, 0]))
    size = float(np.abs(window[:, 1]).mean())
    change = slope * (window[-1, 0] - window[0, 0]) / size if size else 0.0
    return Trend(slope, float(change), float(np.sign(steps[:, 1]).mean()), int(window[0, 0]))


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
    """Everything that the files of one run say. Empty: not there."""

    folder: Path
    settings: Mapping[str, Any]  # run.yaml
    rows: list[Row]  # results.csv
    timing: list[Row]
    guard: list[Row]
    classes: list[Row]  # per_class.csv
    notes: list[Row] | None  # None: this run kept none
    result: Mapping[str, Any]  # result.yaml
    listing: fingerprint.Listing  # data.csv
    checkpoints: tuple[Checkpoint, ...]
    damage: tuple[str, ...]
    holder: str  # who writes there now

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

    @cached_property
    def origin(self) -> Source | str:
        """The checkpoint the run started from, if it still is that; else why not."""
        path = self.start.get("weights") or self.config.get("weights")
        if not path:
            return "the run started from scratch" if self.settings else "run.yaml does not say from what it started"
        try:
            source = read_source(path)
        except UserError as error:
            return f"the start is gone ({error})"
        if self.start.get("tensors") not in (None, fingerprint.of_tensors(source.state)):
            return f"{path} has other tensors now than when the run started from it"
        return source

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
        """Loss terms: the columns of results.csv after the rates and before P."""
        names = [c for c in self.columns if c not in ("epoch", "step") and not c.startswith("lr_")]
        return names[: names.index("P")] if "P" in names else []

    @cached_property
    def extras(self) -> list[str]:
        """Columns that the base does not know: what patches measured."""
        base = {"P", "R", "F1", "mAP50", "mAP", "match", "epoch", "step", *self.terms}
        known = ("lr_", "val_", "mAP50/", "mAP/")
        return [c for c in self.columns if c not in base and not c.startswith(known)]

    def series(self, column: str) -> Series:
        pairs = [(int(r["epoch"]) + 1, float(r[column])) for r in self.rows if r.get(column)]
        return [(e, v) for e, v in pairs if math.isfinite(v)]

    def total(self, prefix: str = "") -> Series:
        """Sum of the box, obj and cls terms (prefix val_: of validation), the same ones in training and validation."""
        kinds = ("box", "obj", "cls")
        each = [dict(self.series(prefix + t)) for t in self.terms if t.split("/")[0] in kinds]
        shared = sorted(set.intersection(*map(set, each))) if each else []
        return [(e, sum(one[e] for one in each)) for e in shared]

    @cached_property
    def scored(self) -> list[Row]:
        return [r for r in self.rows if r.get("mAP")]

    @cached_property
    def best(self) -> Row:
        """The epoch of highest fitness; empty where none was evaluated."""
        return max(self.scored, key=lambda r: fitness(float(r["mAP50"]), float(r["mAP"])), default={})

    @property
    def heads(self) -> list[str]:
        return [c.removeprefix("mAP50/") for c in self.columns if c.startswith("mAP50/")]

    @property
    def names(self) -> list[str]:
        return list(map(str, (self.settings.get("data") or {}).get("names") or ()))

    def checkpoint(self, name: str) -> Checkpoint | None:
        """A readable one of this name."""
        return next((c for c in self.checkpoints if c.path.name == name and not c.error), None)

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


def read_facts(folder: Path) -> Facts:
    """UserError where there is no run.yaml and no results.csv: that is no run folder."""
    if not any((folder / name).is_file() for name in ("run.yaml", "results.csv")):
        raise UserError(f"{folder} is no run folder: it has neither run.yaml nor results.csv")
    damage: list[str] = []

    def tried(file: Path, read: Callable[[], T], otherwise: T) -> T:
        if not file.exists():
            return otherwise
        try:
            return read()
        except UserError as error:
            damage.append(str(error))
        except (OSError, ValueError, KeyError, csv.Error) as error:
            damage.append(f"{file} cannot be read: {error}")
        return otherwise

    def rows(name: str, key: str = "epoch") -> list[Row]:
        return tried(folder / name, lambda: read_table(folder / name, key, damage), [])

    def settings(name: str) -> Mapping[str, Any]:
        nothing: dict[str, Any] = {}
        found = tried(folder / name, lambda: read_yaml(folder / name, name), nothing)
        for section in ("config", "patches", "data", "start", "environment", "files", "parameters", "tensors"):
            if section in found and not isinstance(found[section], (dict, type(None))):
                damage.append(f"{folder / name}: {section}: expected `key: value` lines")
                found = {k: v for k, v in found.items() if k != section}
        return found

    if not (folder / "run.yaml").is_file():
        damage.append(f"{folder / 'run.yaml'} is missing")

    def headed(name: str, head: Sequence[str], read: Callable[[], T], otherwise: T) -> T:
        return tried(folder / name, lambda: read() if check_head(folder / name, head) else otherwise, otherwise)

    none: list[Row] = []
    kept = headed(notes.NAME, notes.COLUMNS, lambda: notes.read_notes(folder), none)
    facts = Facts(
        folder, settings("run.yaml"), rows("results.csv"), rows("timing.csv"), rows("guard.csv"),
        rows("per_class.csv", "class"), kept if (folder / notes.NAME).exists() else None, settings("result.yaml"),
        headed("data.csv", fingerprint.COLUMNS[:3], lambda: fingerprint.read_listing(folder / "data.csv"), {}),
        tuple(read_weights(p) for p in sorted((folder / "weights").glob("*.pt"))), (), lock.holder(folder),
    )  # fmt: skip
    damage += [c.error for c in facts.checkpoints if c.error]
    return Facts(**{**vars(facts), "damage": tuple(damage)})


def check_head(file: Path, head: Sequence[str]) -> bool:
    """True; ValueError where a CSV begins otherwise."""
    with open(file, newline="", encoding="utf-8") as stream:
        found = next(csv.reader(stream), [])
    if found[: len(head)] != list(head):
        raise ValueError(f"its head is {','.join(found)!r}, not {','.join(head)!r}")
    return True


def read_table(file: Path, key: str, damage: list[str]) -> list[Row]:
    """Rows of a CSV whose first column is `key`; damaged ones are named and left out."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        damage.append(f"{file}: its last line was cut short (a kill while it was written) and is left out")
    found: list[Row] = []
    reader = csv.DictReader(whole_lines(file))
    if lines and (reader.fieldnames or [""])[0] != key:
        raise ValueError(f"its first column is {(reader.fieldnames or [''])[0]!r}, not {key!r}")
    words = {"class", "event", "action", "match"}
    for row in reader:
        try:
            if None in row or None in row.values():
                raise ValueError("another number of cells than the head has")
            for name, text in row.items():
                if text and name not in words:
                    int(text) if name == "epoch" else float(text)
        except ValueError as error:
            damage.append(f"{file}:{reader.line_num}: damaged row left out ({error})")
            continue
        found.append(row)
    return found


def read_weights(path: Path) -> Checkpoint:
    size = path.stat().st_size
    try:
        content = read_checkpoint(path)
    except UserError as error:
        return Checkpoint(path, size, {}, {}, {}, {}, str(error))
    keep = path.name in ("best.pt", "last.pt")
    ema, model, patches = (content.get(part, {}) if keep else {} for part in ("ema", "model", "patches"))
    return Checkpoint(path, size, content["meta"], ema, model, patches)
