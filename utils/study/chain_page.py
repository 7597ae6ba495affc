"""What a chain of stages came to: chain.csv, chain.md and chain.png, one table and one picture over all stages.

Figures are those of each stage's best epoch. Changes are given where data, image size and matching rule are the same;
elsewhere the cell is empty. Epochs count from 0; in the picture they count on from stage to stage.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.report.sections import openings
from utils.runs.folder import Facts, Series, apart
from utils.runs.plots import FEW_LINES, new_figure
from utils.system.files import write_text
from utils.system.table import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("stage", "run", "state", "frozen", "lr0", "epochs", "epochs so far", "best epoch", "mAP50", "mAP",
           "mAP50 since before", "mAP since before", "mAP50 since start", "mAP since start", "check")  # fmt: skip
FIGURES = ("mAP50", "mAP")
Cell = str | int | float
Row = dict[str, Cell]


@dataclass(frozen=True)
class Told:
    """A stage as it is now."""

    name: str
    folder: Path
    state: str  # finished, stopped, failed, not begun
    check: str = ""  # what the check between stages said


def rows(stages: Sequence[Told]) -> list[Row]:
    """One for each stage; the first for what the chain started from, where that has figures."""
    runs = [Facts(stage.folder) for stage in stages]
    begun = runs[0].began if runs and runs[0].rows else {}
    found: list[Row] = []
    if begun:
        found.append(
            {
                "stage": "start",
                "run": str(runs[0].start.get("weights", "")),
                "epochs so far": 0,
                **{k: begun[k] for k in FIGURES if k in begun},
            }
        )
    so_far = 0
    for i, (stage, run) in enumerate(zip(stages, runs, strict=True)):
        row: Row = {"stage": stage.name, "run": str(stage.folder), "state": stage.state, "check": stage.check}
        if run.rows:
            so_far += run.epochs
            row |= {"frozen": run.frozen, "epochs": run.epochs, "epochs so far": so_far}
            row |= {"lr0": run.config["lr0"]} if "lr0" in run.config else {}
        if run.best:
            row |= {"best epoch": int(run.best["epoch"]), **figures(run)}
            before = run.began or (figures_of_same(runs[i - 1], run) if i else {})
            start = begun if i == 0 or not apart(runs[0].conditions, run.conditions) else {}
            for name in FIGURES:
                for since, then in (("before", before), ("start", start)):
                    row |= {f"{name} since {since}": float(row[name]) - then[name]} if name in then else {}
        found.append(row)
    return found


def figures(run: Facts) -> dict[str, float]:
    return {name: float(run.best[name]) for name in FIGURES}


def figures_of_same(before: Facts, run: Facts) -> dict[str, float]:
    """Of the stage before, where they can be compared with this one's."""
    return figures(before) if before.best and not apart(before.conditions, run.conditions) else {}


def shown(name: str, value: Cell) -> str:
    if isinstance(value, float) and name != "lr0":
        return f"{value:+.4f}" if "since" in name else f"{value:.4f}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_markdown(found: Sequence[Row]) -> str:
    names = [name for name in COLUMNS if name != "run"]
    return markdown([names, *([shown(n, row.get(n, "-")) or "-" for n in names] for row in found)])


def write(stages: Sequence[Told], folder: Path) -> str:
    """The three files; the table as text."""
    found = rows(stages)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_text(folder / "chain.csv", text.getvalue())
    table = as_markdown(found)
    write_text(folder / "chain.md", table + "\n")
    plot([Facts(stage.folder) for stage in stages], [stage.name for stage in stages], folder / "chain.png")
    return table


def plot(runs: Sequence[Facts], names: Sequence[str], out: Path) -> None:
    """mAP, mAP of each head and losses over the epochs of all stages, one below the other; borders of stages as lines
    with their names, openings within them as dotted lines, starts as rings. Nothing where nothing has trained."""
    begun = [(run, name) for run, name in zip(runs, names, strict=True) if run.rows]
    if not begun:
        return
    offsets = [sum(run.epochs for run, _ in begun[:i]) for i in range(len(begun) + 1)]
    heads = list(dict.fromkeys(head for run, _ in begun for head in run.heads))
    panels: list[tuple[str, list[tuple[str, list[Series]]]]] = [
        ("mAP", [(name, [run.series(name) for run, _ in begun]) for name in FIGURES]),
        ("mAP@0.5 per head", [(head, [run.series(f"mAP50/{head}") for run, _ in begun]) for head in heads]),
        ("loss", [(what, [run.total(prefix) for run, _ in begun]) for what, prefix in LOSSES.items()]),
    ]
    drawn = [(title, lines) for title, lines in panels if any(any(each) for _, each in lines)]
    figure, axes = new_figure(max(9.0, min(2.5 * len(begun) + 4, 24.0)), 3.4 * len(drawn) + 0.4, len(drawn), 1)
    for ax, (title, lines) in zip(axes, drawn, strict=True):
        for i, (label, each) in enumerate(lines):
            for offset, points in zip(offsets, each, strict=False):
                ax.plot([offset + e for e, _ in points], [v for _, v in points], ".-", color=f"C{i % 10}", label=label)
                label = ""  # once in the legend; stages are not joined: between them a new run starts
        mark(ax, [run for run, _ in begun], offsets)
        if title == "mAP":
            starts([run for run, _ in begun], offsets, ax)
        ax.set(title=title, xlabel="epoch, counted over all stages")
        ax.set_xlim(-0.5 - 0.02 * offsets[-1], offsets[-1] - 0.5 + 0.02 * offsets[-1])
        ax.locator_params(axis="x", integer=True)
        ax.grid(alpha=0.3)
        ax.legend(bbox_to_anchor=(1.01, 1), loc="upper left", fontsize=8, ncols=-(-len(lines) // FEW_LINES))
    for offset, (_, name) in zip(offsets, begun, strict=False):
        axes[0].annotate(
            name, (offset - 0.5, 1), xytext=(3, -3), xycoords=("data", "axes fraction"), textcoords="offset points",
            rotation=90, va="top", fontsize=7,
        )  # fmt: skip
    figure.savefig(out, dpi=100)


LOSSES = {"training": "", "validation": "val_"}  # label: prefix of its columns


def mark(ax: "Axes", runs: Sequence[Facts], offsets: Sequence[int]) -> None:
    """Borders between stages, openings, and the best epoch of each stage, which is where the next one starts."""
    labels: Mapping[str, dict[str, object]] = {
        "stage begins": {"color": "black", "linewidth": 1.2},
        "something opens": {"color": "C3", "linewidth": 1, "linestyle": ":"},
        "best.pt": {"color": "grey", "linewidth": 1, "linestyle": "--"},
    }
    places: dict[str, list[float]] = {label: [] for label in labels}
    for offset, run in zip(offsets, runs, strict=False):
        places["stage begins"].append(offset - 0.5)
        inside = (int(stage["epoch"]) for stage in openings(run))
        places["something opens"] += [
            offset + epoch - 0.5 for epoch in inside if 0 < epoch < max(run.planned, run.epochs)
        ]
        places["best.pt"] += [float(offset + int(run.best["epoch"]))] if run.best else []
    for label, where in places.items():
        for i, x in enumerate(where):
            ax.axvline(x, label="" if i else label, **labels[label])  # type: ignore[arg-type]


def starts(runs: Sequence[Facts], offsets: Sequence[int], ax: "Axes") -> None:
    """What each stage's start is worth on its own data, where that is known."""
    for i, name in enumerate(FIGURES):
        points = [(o - 0.5, run.began[name]) for o, run in zip(offsets, runs, strict=False) if name in run.began]
        if points:
            ax.plot(*zip(*points, strict=True), "o", fillstyle="none", color=f"C{i}", label=f"{name} of the start")
