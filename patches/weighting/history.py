"""history.csv, history.json and history.png of a run that weighs tasks: what each epoch did to each task.

All of it is read from results.csv, which a resume has brought in order, when training has ended; so no row can be
missing or doubled. In history.json a row is {"epoch": 0, FAMILY: {name: number}}, with the families loss (mean loss
terms, unweighted), val_loss, weight, grad_norm (mean length of each task's gradient at the shared layer, unweighted),
cosine (of two tasks' gradients there; below 0 they disturb each other), rate, metric (mAP, accuracy, ...). history.csv
has columns FAMILY/name. What was not measured in an epoch is null, or empty.
"""

import csv
import io
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path

from utils.runs.plots import new_figure
from utils.runs.record import read_rows
from utils.system.files import write_text

MEASURED = ("weight", "grad_norm", "cosine")  # first parts of columns of results.csv
FAMILIES = ("loss", "val_loss", *MEASURED, "rate", "metric")
ASIDE = ("epoch", "step", "match")  # columns that are no quantity
Row = dict[str, dict[str, float | None]]  # {family: {name: value}}


def family_of(column: str, terms: Collection[str]) -> tuple[str, str]:
    """A column of results.csv -> (family, name). terms: the run's loss terms."""
    first, _, rest = column.partition("/")
    if first in MEASURED:
        return first, rest
    if column in terms:
        return "loss", column
    for prefix, family in (("val_", "val_loss"), ("lr_", "rate")):
        if column.startswith(prefix):
            return family, column.removeprefix(prefix)
    return "metric", column


def sorted_row(row: Mapping[str, str], terms: Collection[str]) -> Row:
    """One row of results.csv by families."""
    found: Row = {family: {} for family in FAMILIES}
    for column, text in row.items():
        if column not in ASIDE:
            value = float(text) if text else math.nan
            family, name = family_of(column, terms)
            found[family][name] = value if math.isfinite(value) else None
    return found


def write(folder: Path, terms: Collection[str]) -> None:
    """history.csv and history.json from the folder's results.csv."""
    rows = read_rows(folder / "results.csv")
    parts = [{"epoch": int(row["epoch"]), **sorted_row(row, terms)} for row in rows]
    flat = [
        {"epoch": part["epoch"]} | {f"{f}/{k}": "" if v is None else v for f in FAMILIES for k, v in part[f].items()}  # type: ignore[attr-defined]
        for part in parts
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(flat[0]) if flat else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    write_text(folder / "history.csv", text.getvalue())
    write_text(folder / "history.json", "[\n" + ",\n".join(map(json.dumps, parts)) + "\n]\n")


def plot(folder: Path) -> None:
    """history.png from history.json: a panel for each family."""
    rows = json.loads((folder / "history.json").read_text())
    epochs = [row["epoch"] for row in rows]
    panels = {f: list(rows[0][f]) for f in FAMILIES if rows and rows[0][f]}
    panels["metric"] = [k for k in panels.get("metric", []) if 0 <= largest(rows, "metric", k) <= 1]
    figure, axes = new_figure(13, 10, 3, 3)
    for ax, (family, names) in zip(axes, panels.items(), strict=False):
        for name in names:
            values = [math.nan if row[family][name] is None else row[family][name] for row in rows]
            ax.plot(epochs, values, ".-", label=name)
        positive = [v for row in rows for v in row[family].values() if v]
        if family in ("loss", "val_loss", "grad_norm", "weight") and positive and min(positive) > 0:
            ax.set_yscale("log")
        if family == "cosine":
            ax.axhline(0, color="grey", linewidth=1)
        ax.set(title=family.replace("_", " "), xlabel="epoch")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    figure.savefig(folder / "history.png", dpi=100)


def largest(rows: list[dict[str, dict[str, float | None]]], family: str, name: str) -> float:
    """Largest value of a quantity over the epochs; -1 where it was never measured."""
    return max((v for row in rows if (v := row[family][name]) is not None), default=-1.0)
