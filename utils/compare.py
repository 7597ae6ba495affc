"""Runs side by side: what each reached, how fast, at what cost, and how it looks.

  python -m utils.compare RUN [RUN ...] --out DIR [--device 0]

Everything is read from the runs' files (run.yaml, results.csv, timing.csv) or measured now by evaluating best.pt on the
run's own validation set. What is not there is called missing, what was not measured so. Runs whose settings differ in
nothing but the seed also get a row of means with their spread (standard deviation).
DIR: comparison.csv, per_class.csv, learning.png, PR.png, F1.png, confusion.png, images.png, comparison.html (all in
one file).
"""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.compare_page import write_page
from utils.compare_plots import plot_all
from utils.config import make_parser
from utils.errors import UserError, run_main
from utils.measure import Measured, measure
from utils.record import read_rows
from utils.report import PLACES
from utils.stages import Stage, loss_of, read_stage

MISSING, UNMEASURED = "missing", "not measured"
Value = float | str


@dataclass(frozen=True)
class Entry:
    """One run of a comparison. settings empty: the run is missing."""

    stage: Stage
    measured: Measured | None  # best.pt on the validation set
    note: str = ""  # why something is missing
    values: dict[str, Value] = field(default_factory=dict)  # the columns

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def key(self) -> str:
        """The same for runs that differ in nothing but the seed."""
        config = {k: v for k, v in self.stage.settings["config"].items() if k not in PLACES | {"seed"}}
        return repr((config, self.stage.settings.get("patches")))


def read_entry(folder: Path, device: str) -> Entry:
    """A run folder as it is; a folder that is not there, or has no epoch yet, gives an entry that says so."""
    if not (folder / "run.yaml").is_file() or not read_rows(folder / "results.csv"):
        return Entry(Stage(folder.name, {}, [], 0.0), None, f"{folder} holds no finished epoch")
    stage, found, note = read_stage(folder), None, ""
    try:
        found = measure(folder, stage.settings, device)
    except UserError as error:
        note = f"best.pt could not be evaluated: {error}"
    return Entry(stage, found, note, figures(stage, read_rows(folder / "timing.csv"), found))


def figures(stage: Stage, timing: Sequence[Mapping[str, str]], measured: Measured | None) -> dict[str, Value]:
    """The columns of a run. timing: rows of timing.csv."""
    if not stage.scored:
        return {"epochs": len(stage.rows)}
    best, last = stage.best, stage.scored[-1]
    reached = next(int(r["epoch"]) + 1 for r in stage.scored if float(r["mAP"]) >= 0.9 * float(last["mAP"]))
    memory = max((float(t["memory_gib"]) for t in timing), default=0.0)
    trainable = stage.settings.get("parameters", {}).get("trainable_params", UNMEASURED)
    out: dict[str, Value] = {
        "epochs": len(stage.rows),
        "best epoch": int(best["epoch"]) + 1,
        "best mAP@0.5": float(best["mAP50"]),
        "best mAP@0.5:0.95": float(best["mAP"]),
        "final mAP@0.5": float(last["mAP50"]),
        "final mAP@0.5:0.95": float(last["mAP"]),
        "P": float(best["P"]),
        "R": float(best["R"]),
        "epochs to 90 % of final": reached if float(last["mAP"]) else UNMEASURED,
        "validation - training loss, last epoch": loss_of(last, "val_") - loss_of(last),
        "seconds per epoch": statistics.median(float(t["seconds"]) for t in timing),
        "peak memory GiB": memory or UNMEASURED,
        "trainable parameters": trainable,
    }
    out |= {f"mAP@0.5 {head}": value for head, value in stage.heads.items()}
    if measured:
        out |= {f"AP {name}": UNMEASURED if v < 0 else v for name, v in measured.by_size.items()}
    return out


def means(entries: Sequence[Entry]) -> list[tuple[str, int, dict[str, tuple[float, float]]]]:
    """Of runs that differ in the seed alone: (name of the first, how many, {column: (mean, standard deviation)})."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.stage.settings:
            groups.setdefault(entry.key, []).append(entry)
    out = []
    for group in groups.values():
        if len(group) < 2:
            continue
        columns = {c: [e.values.get(c) for e in group] for c in group[0].values}
        numbers = {c: [float(x) for x in v if isinstance(x, (int, float))] for c, v in columns.items()}
        spread = {c: (statistics.mean(v), statistics.stdev(v)) for c, v in numbers.items() if len(v) == len(group)}
        out.append((group[0].name, len(group), spread))
    return out


def shown(value: Value | None) -> str:
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if value >= 10 else f"{value:.4f}"


def table(entries: Sequence[Entry]) -> list[list[str]]:
    """Head, a row for each run, and a row of means for each group of seeds."""
    columns = list(dict.fromkeys(c for e in entries for c in e.values))
    rows = [["run", *columns], *([e.name, *(shown(e.values.get(c)) for c in columns)] for e in entries)]
    for name, count, spread in means(entries):
        cells = [f"{spread[c][0]:.4g} ± {spread[c][1]:.2g}" if c in spread else "" for c in columns]
        rows.append([f"mean of {count} seeds: {name}", *cells])
    return rows


def class_table(entries: Sequence[Entry]) -> list[list[str]]:
    """AP@0.5 and AP@0.5:0.95 of each class, by run; empty where no run was evaluated."""
    known = [e for e in entries if e.measured]
    names = list(dict.fromkeys(n for e in known if e.measured for n in e.measured.per_class))
    rows = [["class", *(f"{e.name} {kind}" for e in entries for kind in ("AP@0.5", "AP@0.5:0.95"))]]
    for name in names:
        cells = [e.measured.per_class.get(name) if e.measured else None for e in entries]
        rows.append([name, *(shown(v) for pair in cells for v in (pair or (None, None)))])
    return rows if names else []


def compare(runs: Sequence[Path], out: Path, device: str = "") -> list[Entry]:
    """Read and measure the runs, write everything into `out`, print the table."""
    entries = [read_entry(run, device) for run in runs]
    out.mkdir(parents=True, exist_ok=True)
    tables = {"comparison.csv": table(entries), "per_class.csv": class_table(entries)}
    for name, rows in tables.items():
        with open(out / name, "w", newline="") as f:
            csv.writer(f).writerows(rows)
    pictures = plot_all(entries, out)
    notes = [f"{e.name}: {e.note}" for e in entries if e.note]
    rules = sorted({r["match"] for e in entries for r in e.stage.rows if r.get("match")})
    notes.append(f"mAP by the matching rule: {', '.join(rules) or MISSING}")
    write_page(out / "comparison.html", tables, pictures, notes)
    for row in zip(*tables["comparison.csv"], strict=True):
        print(f"{row[0]:40} " + "  ".join(f"{cell:>20}" for cell in row[1:]))
    print("\n".join([*notes, f"comparison in {out / 'comparison.html'}"]))
    return entries


def main(argv: list[str]) -> None:
    parser = make_parser("python -m utils.compare", "Runs side by side: tables, curves, pictures, one HTML page.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", required=True, help="folder for the comparison")
    parser.add_argument("--device", default="", help="where best.pt is evaluated")
    args = parser.parse_args(argv)
    compare([Path(r) for r in args.runs], Path(args.out), args.device)


if __name__ == "__main__":
    run_main(main)
