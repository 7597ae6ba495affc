"""A run as a comparison sees it: read from its files, best.pt measured again, beside the others it is compared with.

Runs are alike (repetitions of one experiment) when they differ in nothing but the seed: settings, patches, data, and,
where they started from weights, that run in turn. Runs on other data, or scored by another matching rule, are not
comparable with each other.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.runs.folder import Facts, apart, is_run
from utils.study.measure import Measured, measure
from utils.system.errors import UserError, parsing

UNMEASURED = "not measured"
DRIFT = 0.005  # of mAP@0.5:0.95, beyond which best.pt is no longer what results.csv says
Value = float | str
FIGURES = {"mAP50": "mAP@0.5", "mAP": "mAP@0.5:0.95", "P": "P", "R": "R", "F1": "F1"}


@dataclass(frozen=True)
class Entry:
    """One run of a comparison."""

    name: str
    run: Facts
    measured: Measured | None = None  # best.pt on the validation set
    notes: tuple[str, ...] = ()  # why something is missing, or is not what it was
    values: dict[str, Value] = field(default_factory=dict)  # the columns; none: the run is missing


def read_entries(folders: Sequence[Path], device: str) -> list[Entry]:
    """The runs in the order given. Folders of one name are called by as much of their path as tells them apart."""
    names = names_of(folders)
    return [read_entry(folder, names[folder], device) for folder in names]


def names_of(folders: Sequence[Path]) -> dict[Path, str]:
    """What the runs are called."""
    names = {f: f.name for f in folders}
    for depth in range(2, max((len(f.parts) for f in folders), default=0) + 1):
        shared = [n for n in names.values() if list(names.values()).count(n) > 1]
        names = {f: "/".join(f.parts[-depth:]) if n in shared else n for f, n in names.items()}
    return names


def hold_against(entries: Sequence[Entry], baseline: str) -> None:
    """Adds to every run how far its best lies above that of the baseline: of its repetition with the same seed, where
    there is one."""
    base = next(e for e in entries if e.name == baseline)
    group = next((own for own in repetitions(entries).values() if base in own), [base])
    for entry in (e for e in entries if e.values):
        mine = entry.run.config.get("seed")
        other = next((e for e in group if e.run.config.get("seed") == mine), base)
        for title in (FIGURES[k] for k in ("mAP50", "mAP")):
            pair = [e.values.get(f"best {title}") for e in (entry, other)]
            alike = not apart(other.run.conditions, entry.run.conditions)
            numbers = [v for v in pair if isinstance(v, (int, float))]
            entry.values[f"{title} above the baseline"] = (
                numbers[0] - numbers[1] if alike and numbers[1:] else UNMEASURED
            )


def read_entry(folder: Path, name: str, device: str) -> Entry:
    """A run folder as it is; a folder that is not there, is damaged, or has no epoch yet, gives an entry that says
    so."""
    run, notes, measured = Facts(folder), [], None
    if not is_run(folder) or not run.rows or not run.config:
        return Entry(name, run, notes=(f"{folder} holds no finished epoch", *(run.gaps if is_run(folder) else ())))
    try:
        measured = measure(folder, run.settings, device)
    except UserError as error:
        notes.append(f"best.pt could not be evaluated: {error}")
    try:
        with parsing(f"{folder} is damaged"):
            values = figures(run, measured)
    except UserError as error:
        return Entry(name, run, notes=(str(error), *run.gaps))
    if measured and run.best and abs(measured.result.map - float(run.best["mAP"])) > DRIFT:
        notes.append(
            f"best.pt reaches mAP@0.5:0.95 {measured.result.map:.4f} now, {float(run.best['mAP']):.4f} while it was "
            "trained: data, device or code are others now"
        )
    if run.best and run.began.get("mAP", 0) > float(run.best["mAP"]):
        notes.append(f"training made it worse: it started from mAP@0.5:0.95 {run.began['mAP']:.4f}, see best and start")
    return Entry(name, run, measured, (*notes, *run.gaps), values)


def figures(run: Facts, measured: Measured | None) -> dict[str, Value]:
    """The columns of a run."""
    out: dict[str, Value] = {"frozen layers": run.frozen, "epochs": run.epochs}
    if run.scored:
        last, final = run.scored[-1], float(run.scored[-1]["mAP"])
        known = {k: v for k, v in run.began.items() if k in ("mAP50", "mAP")}
        out |= {f"start {FIGURES[k]}": v for k, v in known.items()}
        out |= {"best.pt by": run.choice.name} | ({"best epoch": int(run.best["epoch"])} if run.best else {})
        out |= {f"best {title}": float(run.best[k]) for k, title in FIGURES.items() if run.best.get(k)}
        out |= {f"{FIGURES[k]} above the start": float(run.best[k]) - v for k, v in known.items() if run.best}
        out |= {f"final {title}": float(last[k]) for k, title in FIGURES.items() if last.get(k)}
        reached = next((int(r["epoch"]) for r in run.scored if float(r["mAP"]) >= 0.9 * final), UNMEASURED)
        out["first epoch with 90 % of final mAP@0.5:0.95"] = reached if final else UNMEASURED
        train, val = dict(run.total()), dict(run.total("val_"))
        if int(last["epoch"]) in val:
            out["train-validation gap of the loss"] = val[int(last["epoch"])] - train[int(last["epoch"])]
    device = run.settings.get("device") or {}
    device = device if isinstance(device, dict) else {"type": device}
    out["seconds per epoch"] = statistics.median(run.times()) if run.times() else UNMEASURED
    out["peak memory, GiB"] = max(run.times("memory_gib"), default=0.0) or UNMEASURED
    out["device"] = str(device.get("gpu") or device.get("cpu") or device.get("type") or UNMEASURED)
    out["trainable parameters"] = (run.settings.get("parameters") or {}).get("trainable_params", UNMEASURED)
    for column, title in (("mAP50", "mAP@0.5"), ("mAP", "mAP@0.5:0.95")):
        out |= {f"{title} of {head}": value for head, value in run.of_heads(column).items()}
    if measured:
        sizes = {f"AP@0.5:0.95 of {name} objects": v for name, v in measured.by_size.items()}
        out |= {k: "no such objects" if v < 0 else v for k, v in sizes.items()}
        out |= measured.result.figures
    out["data"] = run.data[:8] or UNMEASURED
    out["matching rule"] = run.rule or UNMEASURED
    return out


def conflicts(entries: Sequence[Entry]) -> list[str]:
    """Why some of the runs cannot be compared with others; empty where they all can."""
    said = []
    for what, column in (("data", "data"), ("matching rules of mAP", "matching rule")):
        there: dict[Value, list[str]] = {}
        for entry in entries:
            if entry.values.get(column, UNMEASURED) != UNMEASURED:
                there.setdefault(entry.values[column], []).append(entry.name)
        if len(there) > 1:
            each = "; ".join(f"{value}: {', '.join(names)}" for value, names in there.items())
            said.append(f"NOT COMPARABLE, different {what} ({each})")
    return said


def repetitions(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """{name: runs that differ in the seed alone}, groups of one included, missing runs left out. A run that repeats a
    seed of its group stands alone."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        if entry.values:
            kind = entry.run.likeness
            mine = groups.setdefault(kind, [])
            if entry.run.config.get("seed") in [e.run.config.get("seed") for e in mine]:
                groups[entry.name, kind] = [entry]
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


def with_spread(pair: tuple[float, float] | None, digits: int = 4) -> str:
    """`0.3426 ± 0.0096`; empty where there is nothing."""
    return "" if pair is None else f"{pair[0]:,.{digits}f} ± {pair[1]:,.{digits}f}"
