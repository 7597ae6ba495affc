"""A run as a comparison sees it: read from its files, best.pt measured again, beside the others it is compared with.

Runs are alike (repetitions of one experiment) when they differ in nothing but the seed: settings, patches, data, and,
where they started from weights, that run in turn. Runs on other data, or scored by another matching rule, are not
comparable with each other.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config.train import PLACES
from utils.runs.chain import Stage, loss_of, read_stage
from utils.runs.record import read_rows
from utils.study.measure import Measured, measure
from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml

UNMEASURED = "not measured"
DRIFT = 0.005  # of mAP@0.5:0.95, beyond which best.pt is no longer what results.csv says
Value = float | str
FIGURES = {"mAP50": "mAP@0.5", "mAP": "mAP@0.5:0.95", "P": "P", "R": "R"}


@dataclass(frozen=True)
class Entry:
    """One run of a comparison. settings of the stage empty: the run is missing."""

    name: str
    stage: Stage
    measured: Measured | None = None  # best.pt on the validation set
    note: str = ""  # why something is missing
    values: dict[str, Value] = field(default_factory=dict)  # the columns

    @property
    def kind(self) -> str:
        """The same for runs that are alike."""
        return like(self.stage.settings)


def like(settings: Mapping[str, Any]) -> str:
    """All of run.yaml that a run's outcome depends on, but for the seed."""
    config = {k: v for k, v in settings["config"].items() if k not in PLACES | {"seed"}}
    start = settings.get("start") or {}
    file = Path(str(start.get("run"))) / "run.yaml"
    origin = like(read_yaml(file, "run.yaml")) if start.get("run") and file.is_file() else start.get("tensors")
    return repr((config, settings.get("patches"), fingerprint(settings), origin))


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Of the data; "" where a run does not say it."""
    return str((settings.get("data") or {}).get("fingerprint", ""))


def rule(settings: Mapping[str, Any]) -> str:
    """By which rule mAP was made."""
    config = settings["config"]
    return str(config.get("match", "")) + (", recall to 1" if config.get("v5_metric") else "")


def read_entries(folders: Sequence[Path], device: str) -> list[Entry]:
    """The runs in the order given. Folders of one name are called by as much of their path as tells them apart."""
    names = {f: f.name for f in folders}
    for depth in range(2, max((len(f.parts) for f in folders), default=0) + 1):
        shared = [n for n in names.values() if list(names.values()).count(n) > 1]
        names = {f: "/".join(f.parts[-depth:]) if n in shared else n for f, n in names.items()}
    return [read_entry(folder, names[folder], device) for folder in names]


def read_entry(folder: Path, name: str, device: str) -> Entry:
    """A run folder as it is; a folder that is not there, or has no epoch yet, gives an entry that says so."""
    if not (folder / "run.yaml").is_file() or not read_rows(folder / "results.csv"):
        return Entry(name, Stage(name, {}, [], 0.0), note=f"{folder} holds no finished epoch")
    stage, found, note = read_stage(folder), None, ""
    try:
        found = measure(folder, stage.settings, device)
    except UserError as error:
        note = f"best.pt could not be evaluated: {error}"
    if found and stage.best and abs(found.result.map - float(stage.best["mAP"])) > DRIFT:
        note = (
            f"best.pt reaches mAP@0.5:0.95 {found.result.map:.4f} now, {float(stage.best['mAP']):.4f} while it was "
            "trained: data, device or code are others now"
        )
    return Entry(name, stage, found, note, figures(stage, read_rows(folder / "timing.csv"), found))


def figures(stage: Stage, timing: Sequence[Mapping[str, str]], measured: Measured | None) -> dict[str, Value]:
    """The columns of a run. timing: rows of timing.csv."""
    out: dict[str, Value] = {"epochs": len(stage.rows)}
    if stage.scored:
        best, last = stage.best, stage.scored[-1]
        final = float(last["mAP"])
        out["best epoch"] = int(best["epoch"]) + 1
        out |= {f"best {title}": float(best[k]) for k, title in FIGURES.items()}
        out |= {f"final {title}": float(last[k]) for k, title in FIGURES.items()}
        reached = next(int(r["epoch"]) + 1 for r in stage.scored if float(r["mAP"]) >= 0.9 * final)
        out["epochs to 90 % of final mAP@0.5:0.95"] = reached if final else UNMEASURED
        out["train-validation gap of the loss"] = loss_of(last, "val_") - loss_of(last)
    memory = max((float(t["memory_gib"]) for t in timing), default=0.0)
    device = stage.settings.get("device") or {}
    out["seconds per epoch"] = statistics.median(float(t["seconds"]) for t in timing) if timing else UNMEASURED
    out["peak memory, GiB"] = memory or UNMEASURED
    out["device"] = str(device.get("gpu") or device.get("cpu") or device.get("type") or UNMEASURED)
    out["trainable parameters"] = stage.settings.get("parameters", {}).get("trainable_params", UNMEASURED)
    for column, title in (("mAP50", "mAP@0.5"), ("mAP", "mAP@0.5:0.95")):
        heads = {k.partition("/")[2]: v for k, v in stage.best.items() if k.startswith(f"{column}/") and v}
        out |= {f"{title} of {head}": float(value) for head, value in heads.items()}
    if measured:
        sizes = {f"AP@0.5:0.95 of {name} objects": v for name, v in measured.by_size.items()}
        out |= {k: "no such objects" if v < 0 else v for k, v in sizes.items()}
        out |= measured.result.figures
    out["data"] = fingerprint(stage.settings)[:8] or UNMEASURED
    out["matching rule"] = rule(stage.settings) or UNMEASURED
    return out


def conflicts(entries: Sequence[Entry]) -> list[str]:
    """Why some of the runs cannot be compared with others; empty where they all can."""
    said = []
    reasons: tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...] = (
        ("data", lambda s: fingerprint(s)[:8]),
        ("matching rules of mAP", rule),
    )
    for what, of in reasons:
        there: dict[str, list[str]] = {}
        for entry in entries:
            if entry.stage.settings and of(entry.stage.settings):
                there.setdefault(of(entry.stage.settings), []).append(entry.name)
        if len(there) > 1:
            each = "; ".join(f"{value}: {', '.join(names)}" for value, names in there.items())
            said.append(f"NOT COMPARABLE, different {what} ({each})")
    return said


def repetitions(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """{name: runs that differ in the seed alone}, groups of one included, missing runs left out. A run that repeats a
    seed of its group stands alone."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        if entry.stage.settings:
            seed = entry.stage.settings["config"].get("seed")
            mine = groups.setdefault(entry.kind, [])
            if seed in [e.stage.settings["config"].get("seed") for e in mine]:
                groups[entry.name, entry.kind] = [entry]
            else:
                mine.append(entry)
    return {group_name([e.name for e in group]): group for group in groups.values()}


def group_name(names: Sequence[str]) -> str:
    """`a_seed0`, `a_seed1` -> `a`; names with nothing in common: the first."""
    if len(names) == 1:
        return names[0]
    common = names[0][: next((i for i, c in enumerate(zip(*names, strict=False)) if len(set(c)) > 1), len(names[0]))]
    common = common.rstrip("0123456789").removesuffix("seed").rstrip("_-. /")
    return common or names[0]


def means(entries: Sequence[Entry]) -> dict[str, tuple[int, dict[str, tuple[float, float]]]]:
    """{group: (runs, {column: (mean, standard deviation)})} of the groups with several runs, and of the columns that
    are numbers in all of them."""
    out: dict[str, tuple[int, dict[str, tuple[float, float]]]] = {}
    for name, group in repetitions(entries).items():
        if len(group) > 1:
            found = {column: spread([e.values.get(column) for e in group]) for column in group[0].values}
            out[name] = (len(group), {column: pair for column, pair in found.items() if pair})
    return out


def spread(values: Sequence[Value | None]) -> tuple[float, float] | None:
    """Mean and sample standard deviation; None where one is no number."""
    numbers = [float(v) for v in values if isinstance(v, (int, float))]
    if len(numbers) < len(values) or len(numbers) < 2:
        return None
    return statistics.mean(numbers), statistics.stdev(numbers)
