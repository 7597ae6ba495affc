"""Runs side by side: what each reached, how fast, at what cost, and how it looks.

  python -m utils compare RUN [RUN ...] --out DIR [--device 0]

Everything is read from the runs' files (run.yaml, results.csv, timing.csv) or measured now by evaluating best.pt on the
run's own validation set. What is not there is called missing, what was not measured so. Runs that differ in nothing but
the seed also get a row of means with their spread; runs on other data or by another matching rule are named.
DIR: comparison.csv and per_class.csv (plain numbers, empty where there is none), learning.png, PR.png, F1.png,
confusion.png, images.png, comparison.html (all in one file).
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from utils.config.tools import COMPARE
from utils.report.page import Picture, Section, Table, Text, as_html
from utils.study.compared import (
    UNMEASURED,
    Entry,
    Value,
    conflicts,
    hold_against,
    means,
    names_of,
    read_entries,
    repetitions,
    spread,
    with_spread,
)
from utils.study.figures import plot_all
from utils.system.errors import UserError
from utils.system.files import naming, write_text
from utils.system.table import aligned

MISSING = "missing"
MEANINGS = {
    "best": "at the epoch (from 0) that best.pt is from, see `best.pt by`; P, R and F1 at the confidence of highest "
    "mean F1",
    "best.pt by": "what --best-by chose it by; fitness: .1 mAP@0.5 + .9 mAP@0.5:0.95",
    "final": "at the last epoch that was evaluated",
    "start": "what the weights it began with reached, measured before its first epoch (start.csv); else what their "
    "checkpoint states, where that was measured on the same data, at the same size and by the same rule",
    "above the start, above the baseline": "best minus start, and minus the best of the baseline with the same seed, "
    "where that was measured on the same data, at the same size and by the same rule",
    "first epoch with 90 % of final mAP@0.5:0.95": "counted from 0",
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
CLASS_FIGURES = ("AP@0.5", "AP@0.5:0.95", "F1", "P", "R")
ON_SCREEN = ("frozen layers", "epochs", "start mAP@0.5:0.95", "best epoch", "best mAP@0.5", "best mAP@0.5:0.95",
             "mAP@0.5:0.95 above the start", "mAP@0.5:0.95 above the baseline", "best F1", "final mAP@0.5:0.95",
             "seconds per epoch")  # fmt: skip
CAPTIONS = {
    "learning": "Learning curves: one colour for each setting, one line style for each seed",
    "PR": "Precision over recall at IoU 0.5, mean over the classes, best.pt",
    "F1": "F1 over confidence at IoU 0.5, mean over the classes, best.pt",
    "confusion": "Confusion matrices of best.pt, each column (true class) as shares of its sum; confidence above 0.25, "
    "IoU above 0.45; the column background holds detections without an object",
    "images": "The same validation images: truth, then each run's best.pt, detections of confidence 0.25 and more",
}


def shown(value: Value | None, column: str = "") -> str:
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.{DECIMALS.get(column, 4)}f}"


def digits(column: str, whole: bool, pair: tuple[float, float] | None) -> int:
    """Decimals of a mean; of whole numbers one where their mean is none."""
    if not whole or pair is None:
        return DECIMALS.get(column, 4)
    return 0 if all(value.is_integer() for value in pair) else 1


def columns_of(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(c for e in entries for c in e.values))


def run_rows(entries: Sequence[Entry], columns: Sequence[str], baseline: str = "") -> list[list[str]]:
    """Head and a row for each run, as people read it; baseline: the name of the run that is one."""
    rows = [["run", *columns]]
    for e in entries:
        name = f"{e.name} (baseline)" if e.name == baseline else e.name
        rows.append([name, *(shown(e.values.get(c), c) for c in columns)])
    return rows


def mean_rows(entries: Sequence[Entry], columns: Sequence[str]) -> list[list[str]]:
    """A row for each group of runs that differ in the seed alone."""
    first, rows = {name: group[0] for name, group in repetitions(entries).items()}, []
    for name, (count, found) in means(entries).items():
        pairs = {c: (found.get(c), isinstance(first[name].values.get(c), int)) for c in columns}
        cells = [with_spread(pair, digits(c, whole, pair)) for c, (pair, whole) in pairs.items()]
        rows.append([f"{name}, mean of {count} seeds", *cells])
    return rows


def numbers(entries: Sequence[Entry], columns: Sequence[str]) -> list[list[Value]]:
    """Head and rows for programs: plain numbers, empty where there is none; means and deviations in own rows."""
    no_value = ("", UNMEASURED, "no such objects")
    rows: list[list[Value]] = [["run", *columns]]
    for e in entries:
        cells = [e.values.get(c, "") for c in columns]
        rows.append([e.name, *("" if cell in no_value else cell for cell in cells)])
    for name, (count, found) in means(entries).items():
        for i, what in enumerate(("mean", "standard deviation")):
            rows.append([f"{name}, {what} of {count} seeds", *(found[c][i] if c in found else "" for c in columns)])
    return rows


def class_rows(entries: Sequence[Entry]) -> list[list[Value]]:
    """AP@0.5, AP@0.5:0.95, F1, P and R of each class, a column for each run and two for each group of seeds."""
    measured = {e.name: e.measured.per_class for e in entries if e.measured}
    groups = {name: group for name, group in repetitions(entries).items() if len(group) > 1}
    heads = [f"{name}, {what}" for name in groups for what in ("mean", "standard deviation")]
    rows: list[list[Value]] = [["figure", "class", *(e.name for e in entries), *heads]]
    for i, figure in enumerate(CLASS_FIGURES):
        for name in dict.fromkeys(n for own in measured.values() for n in own):
            values = {run: own[name][i] for run, own in measured.items() if name in own}
            pairs = [spread([values.get(e.name) for e in group]) for group in groups.values()]
            cells = [cell for pair in pairs for cell in pair or ("", "")]
            rows.append([figure, name, *(values.get(e.name, "") for e in entries), *cells])
    return rows if len(rows) > 1 else []


def page(entries: Sequence[Entry], baseline: str, warnings: Sequence[str], pictures: Sequence[Path]) -> str:
    """The comparison as HTML: figures in rows, runs side by side."""
    columns, classes = columns_of(entries), class_rows(entries)
    seeds = [c for c in zip(["", *columns], *mean_rows(entries, columns), strict=True) if any(c[1:])]
    parts = [Section("Means over seeds", [Table(seeds)])] if len(seeds) > 1 else []
    meanings = Table([["figure", "what it is"], *map(list, MEANINGS.items())])
    runs = Table(list(zip(*run_rows(entries, columns, baseline), strict=True)))
    parts.append(Section("Runs", [runs], [meanings], "what the figures are"))
    parts += [Section(picture.stem, [Picture(picture, CAPTIONS[picture.stem])]) for picture in pictures]
    for figure in CLASS_FIGURES if classes else ():
        rows = [[shown(None if cell == "" else cell) for cell in row[1:]] for row in classes if row[0] == figure]
        parts.append(Section(f"{figure} per class", [Table([[str(c) for c in classes[0][1:]], *rows])]))
    summary = [Text(f"{len(entries)} runs: {', '.join(e.name for e in entries)}"), *(Text(w, True) for w in warnings)]
    return as_html("Comparison of runs", summary, parts)


def compare(runs: Sequence[Path], out: Path, device: str = "", baseline: str = "") -> list[Entry]:
    """Read and measure the runs, write everything into `out`, print the table. baseline: a run's name, default the
    first. Errors: UserError for a name that no run has."""
    names = list(names_of(runs).values())
    baseline = baseline or names[0]
    if baseline not in names:
        raise UserError(f"--baseline {baseline}: no such run; there are: {', '.join(names)}")
    entries = read_entries(runs, device)
    hold_against(entries, baseline)
    columns = columns_of(entries)
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, rows in {"comparison.csv": numbers(entries, columns), "per_class.csv": class_rows(entries)}.items():
            with open(out / name, "w", newline="") as f:
                csv.writer(f).writerows(rows)
        pictures = plot_all(entries, out)
    warnings = [*conflicts(entries), *(f"{e.name}: {note}" for e in entries for note in e.notes)]
    write_text(out / "comparison.html", page(entries, baseline, warnings, pictures))
    short = [c for c in ON_SCREEN if c in columns]
    print(aligned([*run_rows(entries, short, baseline), *mean_rows(entries, short)]))
    print("\n".join([*warnings, f"all figures, per class too, and pictures: {out / 'comparison.html'}"]))
    return entries


def main(argv: list[str]) -> None:
    args = COMPARE.parse(argv).cfg
    compare([Path(r) for r in args.runs], Path(args.out), args.device, args.baseline)
