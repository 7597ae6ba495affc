"""Runs side by side: what each reached, how fast, at what cost, and how it looks.

  python -m utils compare RUN [RUN ...] --out DIR [--device 0]

Everything is read from the runs' files (run.yaml, results.csv, timing.csv) or measured now by evaluating best.pt on the
run's own validation set. What is not there is called missing, what was not measured so. Runs that differ in nothing but
the seed also get a row of means with their spread; runs on other data or by another matching rule are named.
DIR: comparison.csv, per_class.csv, learning.png, PR.png, F1.png, confusion.png, images.png, comparison.html (all in
one file).
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config.options import Program, opt
from utils.config.shared import Device
from utils.report.compare_page import write_page
from utils.study.compared import Entry, Value, conflicts, means, read_entries, repetitions, spread
from utils.study.figures import plot_all

MISSING = "missing"
MEANINGS = {
    "best": "at the epoch that best.pt is from, of highest fitness .1 mAP@0.5 + .9 mAP@0.5:0.95; P and R at the "
    "confidence of highest mean F1",
    "final": "at the last epoch that was evaluated",
    "epochs to 90 % of final mAP@0.5:0.95": "first epoch that reaches 90 % of the last one's mAP@0.5:0.95",
    "train-validation gap of the loss": "sum of the validation loss terms minus sum of the training loss terms in the "
    "last epoch. Training is measured on augmented images while the weights move, validation on plain images with "
    "their average, so a gap below 0 is no mistake; what grows from run to run is overfitting",
    "seconds per epoch": "median over the epochs, training and validation",
    "peak memory, GiB": "on a GPU what torch held at most; on a CPU what the whole process held at most (resident)",
    "mAP@0.5 of HEAD": "per head, at the best epoch",
    "AP@0.5:0.95 of small, medium, large objects": "best.pt by COCO's definition: area below 32², below 96², and "
    "above, in pixels of the image file",
    "mean of N seeds": "of runs that differ in nothing but the seed: mean ± sample standard deviation",
    "data": "first digits of the fingerprint of images and labels",
}
DECIMALS = {"seconds per epoch": 2, "peak memory, GiB": 2}  # of other shares and losses 4
CLASS_FIGURES = ("AP@0.5", "AP@0.5:0.95", "P", "R")


def shown(value: Value | None, column: str = "") -> str:
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.{DECIMALS.get(column, 4)}f}"


def with_spread(pair: tuple[float, float] | None, column: str, whole: bool) -> str:
    """`0.3426 ± 0.0096`; of whole numbers with one decimal where their mean is none."""
    if pair is None:
        return ""
    mean, deviation = pair
    digits = (0 if mean.is_integer() and deviation.is_integer() else 1) if whole else DECIMALS.get(column, 4)
    return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"


def table(entries: Sequence[Entry]) -> list[list[str]]:
    """Head and a row for each run."""
    columns = list(dict.fromkeys(c for e in entries for c in e.values))
    return [["run", *columns], *([e.name, *(shown(e.values.get(c), c) for c in columns)] for e in entries)]


def mean_rows(entries: Sequence[Entry], columns: Sequence[str]) -> list[list[str]]:
    """A row for each group of runs that differ in the seed alone."""
    first, rows = {name: group[0] for name, group in repetitions(entries).items()}, []
    for name, (count, found) in means(entries).items():
        cells = [with_spread(found.get(c), c, isinstance(first[name].values.get(c), int)) for c in columns]
        rows.append([f"{name}, mean of {count} seeds", *cells])
    return rows


def class_table(entries: Sequence[Entry]) -> list[list[str]]:
    """AP@0.5, AP@0.5:0.95, P and R of each class, a column for each run and each group of seeds."""
    classes = list(dict.fromkeys(n for e in entries if e.measured for n in e.measured.per_class))
    groups = {name: group for name, group in repetitions(entries).items() if len(group) > 1}
    heads = [f"{name}, mean of {len(group)} seeds" for name, group in groups.items()]
    rows = [["figure", "class", *(e.name for e in entries), *heads]]
    for i, figure in enumerate(CLASS_FIGURES):
        for name in classes:
            found = {
                e.name: e.measured.per_class[name][i] for e in entries if e.measured and name in e.measured.per_class
            }
            cells = [shown(found.get(e.name)) for e in entries]
            pairs = [spread([found.get(e.name) for e in g]) for g in groups.values()]
            rows.append([figure, name, *cells, *(with_spread(pair, figure, False) for pair in pairs)])
    return rows if classes else []


def compare(runs: Sequence[Path], out: Path, device: str = "") -> list[Entry]:
    """Read and measure the runs, write everything into `out`, print the table."""
    entries = read_entries(runs, device)
    out.mkdir(parents=True, exist_ok=True)
    rows_of_runs, classes = table(entries), class_table(entries)
    seeds = mean_rows(entries, rows_of_runs[0][1:])
    for name, rows in {"comparison.csv": rows_of_runs + seeds, "per_class.csv": classes}.items():
        with open(out / name, "w", newline="") as f:
            csv.writer(f).writerows(rows)
    pictures = plot_all(entries, out)
    warnings = [*conflicts(entries), *(f"{e.name}: {e.note}" for e in entries if e.note)]
    write_page(out / "comparison.html", rows_of_runs, seeds, classes, pictures, warnings, MEANINGS)
    for column in zip(*(rows_of_runs + seeds), strict=True):
        print(f"{column[0]:40} " + "  ".join(f"{cell:>20}" for cell in column[1:]))
    print("\n".join([*warnings, f"comparison in {out / 'comparison.html'}"]))
    return entries


@dataclass(frozen=True, kw_only=True)
class Options(Device):
    runs: tuple[str, ...] = opt((), "run folders", positional=True, nargs="+")
    out: str = opt("", "folder for the comparison", "saving", required=True)


PROGRAM = Program("python -m utils compare", "Runs side by side: tables, curves, pictures, one HTML page.", Options)


def main(argv: list[str]) -> None:
    args = PROGRAM.parse(argv).cfg
    compare([Path(r) for r in args.runs], Path(args.out), args.device)
