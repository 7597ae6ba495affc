"""A report over the runs of a folder: a row for each, what the study itself wrote, and what looks wrong where."""

import csv
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from utils.report.next_commands import line, next_commands
from utils.report.page import PICTURES, Block, Code, Picture, Section, Table, Text
from utils.report.rules import findings
from utils.report.sections import UNMEASURED, number
from utils.runs.folder import Facts, apart, read_facts
from utils.system.errors import UserError, parsing

TABLES = ("study.md", "comparison.csv", "chain.md")
PLACES = ("", "comparison", "chain", "*_chain")  # folders in which a study and a chain keep them


def study_parts(folder: Path) -> tuple[list[Text], list[Section]]:
    """The five lines on top, and the sections. UserError where no run lies in the folder."""
    found = sorted({p.parent for pattern in ("*/run.yaml", "*/results.csv") for p in folder.glob(pattern)})
    if not found:
        raise UserError(f"{folder} is no run folder and holds none: it has no run.yaml, nor has a folder in it")
    runs = [read_facts(path) for path in found]
    verdicts = {run.folder: findings(run) for run in runs}
    said = {f: [(r.name, t) for r, v in each if not isinstance(v, str) for t in v] for f, each in verdicts.items()}
    done = [run for run in runs if run.finished]
    open_runs = [run for run in runs if not run.finished and not run.holder]
    compare = line("-m", "utils", "compare", *[str(r.folder) for r in done], "--out", str(folder / "comparison"))
    go_on = [c for run in open_runs for c in next_commands(run)[:1]]
    wrong = sum(bool(found) for found in said.values())
    summary = [
        Text(f"{folder.name}: {len(runs)} runs"),
        Text(f"{len(done)} finished, {sum(bool(r.holder) for r in runs)} running, {len(open_runs)} unfinished"),
        Text(highest(runs)),
        Text(f"something looks wrong in {wrong} of {len(runs)} runs, see Anomalies", True)
        if wrong
        else Text("nothing looks wrong"),
        Text(f"next: {go_on[0][0]}: {go_on[0][1]}" if go_on else f"next: compare them: {compare}"),
    ]
    doubts: list[Block] = [Text(f"{f.name}: {name}: {text}", True) for f, each in said.items() for name, text in each]
    commands: list[Block] = [b for purpose, command in go_on for b in (Text(purpose), Code(command))]
    commands += [Text("compare the finished runs"), Code(compare)] if done else []
    each = [line("-m", "utils", "report", str(run.folder)) for run in runs]
    return summary, [
        Section("Runs", [Table(run_table(runs, said))]),
        Section("Pictures", pictures(folder)),
        *written(folder),
        Section("Anomalies", doubts or [Text("None of the rules found anything in any run.")]),
        Section("Warnings", [Table(notes(runs))]),
        Section("Next", commands, [Code("\n".join(each))], "a report on each run"),
    ]


def highest(runs: Sequence[Facts]) -> str:
    top = max((run for run in runs if run.best), key=lambda run: float(run.best["mAP"]), default=None)
    if top is None:
        return "best result: not measured, no epoch was evaluated"
    if why := [run.name for run in runs if run.best and apart(top.conditions, run.conditions)]:
        return (
            f"best result: no single one, {', '.join(why)} was measured otherwise than {top.name}: see docs/report.md"
        )
    return (
        f"best result: {top.folder.name}, mAP@0.5:0.95 {float(top.best['mAP']):.4f} at epoch "
        f"{top.best['epoch']} (matching rule {top.best.get('match') or 'not recorded'}); a difference no "
        "larger than that between seeds says nothing"
    )


def run_table(runs: Sequence[Facts], said: dict[Path, list[tuple[str, str]]]) -> list[list[str]]:
    rows = [["run", "status", "seed", "frozen", "epochs", "best epoch", "mAP@0.5", "mAP@0.5:0.95", "last mAP@0.5:0.95",
             "seconds per epoch", "anomalies"]]  # fmt: skip
    for run in runs:
        state = "running" if run.holder else "finished" if run.finished else "unfinished"
        seconds = run.times()
        best = run.best
        shares = [number(float(best[k])) for k in ("mAP50", "mAP")] if best else [UNMEASURED] * 2
        shares.append(number(float(run.scored[-1]["mAP"])) if best else UNMEASURED)
        rows.append([
            run.folder.name, state, str(run.config.get("seed", "not recorded")), run.frozen,
            f"{run.epochs} of {run.planned or '?'}", best["epoch"] if best else UNMEASURED, *shares,
            f"{statistics.median(seconds):.2f}" if seconds else UNMEASURED, str(len(said[run.folder])),
        ])  # fmt: skip
    return rows


def places(folder: Path) -> list[Path]:
    return [place for name in PLACES for place in (sorted(folder.glob(name)) if name else [folder]) if place.is_dir()]


def written(folder: Path) -> list[Section]:
    """Tables that a study and a comparison left in the folder."""
    made = []
    for path in (place / name for place in places(folder) for name in TABLES if (place / name).is_file()):
        try:
            with parsing(f"{path} cannot be read"):
                text = path.read_text(encoding="utf-8")
                blocks: list[Block] = from_markdown(text) if path.suffix == ".md" else [Table(from_csv(text))]
        except UserError as error:
            blocks = [Text(str(error), True)]
        made.append(Section(path.relative_to(folder).as_posix(), blocks))
    return made


def from_csv(text: str) -> list[list[str]]:
    """Numbers with five digits. ValueError where the rows have no common length."""
    rows = list(csv.reader(text.splitlines()))
    if not rows or {len(row) for row in rows} != {len(rows[0])}:
        raise ValueError("its rows have different numbers of cells, or there are none")
    return [
        [number(float(cell)) if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", cell) else cell for cell in row] for row in rows
    ]


def from_markdown(text: str) -> list[Block]:
    """The paragraphs and tables that utils.study.study writes."""
    blocks: list[Block] = []
    for part in filter(None, text.split("\n\n")):
        rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in part.splitlines()]
        is_table = part.startswith("|") and len({len(row) for row in rows[:1] + rows[2:]}) == 1
        blocks.append(Table(rows[:1] + rows[2:]) if is_table else Text(part))
    return blocks


def notes(runs: Sequence[Facts]) -> list[list[str]]:
    """How often each kind of note was given in which run."""
    rows = [["kind", "run", "times", "things"]]
    for run in runs:
        if run.notes is None:
            rows.append([f"{UNMEASURED}: no notes.csv", run.folder.name, "", ""])
        for kind in dict.fromkeys(r["kind"] for r in run.notes or ()):
            mine = [r for r in run.notes or () if r["kind"] == kind]
            rows.append([kind, run.folder.name, str(len(mine)), str(sum(int(r["count"]) for r in mine))])
    return rows


def pictures(folder: Path) -> list[Block]:
    found = [p for place in places(folder) for p in sorted(place.iterdir())]
    return [Picture(p, p.stem.replace("_", " ")) for p in found if p.suffix.lower() in PICTURES] or [Text("none")]
