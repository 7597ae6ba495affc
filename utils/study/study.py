"""A study: arms that differ in their flags, several seeds each, equal budgets; then one table and one picture.

  python -m utils study --project runs/NAME --seeds 0,1,2 --columns mAP50,mAP \\
      --arm "sudden: --freeze 0" --arm "low rate: --freeze 0 --lr0 0.001" -- COMMON TRAIN.PY FLAGS

An arm is `NAME: FLAGS`, FLAGS as on a command line; they come after the common ones and win over them. Its runs are
PROJECT/NAME_seedS, blanks in the name as _, commas dropped. The command goes on where it was stopped: finished runs
are skipped, started ones resumed, a run that fails is named at the end and leaves the others alone (exit code 1). A
folder that was made with other flags, data, weights or code is an error, never a figure.

--jobs N trains N runs at a time, --devices 0,1,2,3 each on a device of its own; the same command started elsewhere on
the same folder takes its share (utils/study/jobs.py). What a run says goes into its log.txt.

--test: at the end best.pt of each run, chosen by validation, is evaluated on the split `test` of its data YAML, once
(test.csv in the run's folder).

PROJECT/study.md and study.csv: for each column of results.csv the value at the start (of the weights, before the first
epoch), the lowest, the final and the best over the epochs, and the best above the start and above the baseline
(--baseline, or the first arm) with the same seed: mean and spread (standard deviation) over the seeds, and each run by
itself; in study.md also what an arm costs. study.png: the columns over the epochs, mean and range over the seeds.

  python -m utils ablate --freeze-list 0,3,4,5,6 --seeds 0,1,2 -- COMMON TRAIN.PY FLAGS

is the study of how much of a network should learn: arms no_freeze, the baseline, freeze_3, ..., in which the first N
modules do not learn, and after it the comparison of all runs (`python -m utils compare`).

In Python: `Queue([Job(...), ...], Log()).carry_out([""])` trains, `report(jobs, folder, columns)` writes the tables.
"""

import csv
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config.options import Given
from utils.config.tools import STUDY, Arms
from utils.data.spec import read_data
from utils.runs.plots import new_figure
from utils.study import child
from utils.study.compared import spread, with_spread
from utils.study.jobs import Job, Queue, check
from utils.study.measure import measure
from utils.system.errors import UserError
from utils.system.files import write_text
from utils.system.table import markdown

OWN = {"--seed", "--project", "--name", "--resume", "--replay", "--exist-ok"}
KINDS = ("start", "lowest", "final", "best")
ABOVE = ("above start", "above baseline")  # best minus start, and minus the baseline's best with the same seed
MISSING = "missing"


def conclude(done: Queue) -> None:
    """The end of a study: exit code 1 where runs failed, 128 + N where signal N ended it."""
    for how, runs, cure in (("failed", done.failed, "tries them again"), ("stopped", done.stopped, "goes on")):
        if runs:
            print(f"{how}: {', '.join(map(str, runs))}; the same command {cure}", file=sys.stderr)
    if done.failed or done.stopped or done.stops.first:
        raise SystemExit(done.stops.code)


def figures(job: Job, column: str) -> dict[str, float]:
    """start, lowest, final and best of one run, as far as they are there."""
    values = [value for _, value in job.run.series(column)]
    start = {"start": job.run.began[column]} if values and column in job.run.began else {}
    return start | ({"lowest": min(values), "final": values[-1], "best": max(values)} if values else {})


def evaluate_test(jobs: Sequence[Job], columns: Sequence[str]) -> None:
    """best.pt of the finished runs on the test split, into their test.csv, where that is not there yet."""
    for job in (j for j in jobs if child.ended(j.folder) and not (j.folder / "test.csv").is_file()):
        row = measure(job.folder, job.run.settings, "", "test").result.row
        known = [c for c in columns if c in row]
        text = "\n".join([",".join(known), ",".join(str(row[c]) for c in known)])
        write_text(job.folder / "test.csv", text + "\n")


def test_table(jobs: Sequence[Job], columns: Sequence[str]) -> list[list[str]]:
    """Head and a row for each arm: what evaluate_test found."""
    rows = [["arm", "runs", *columns]]
    for arm in dict.fromkeys(j.arm for j in jobs):
        found = [r for j in jobs if j.arm == arm for r in j.run.table("test.csv", columns[0])]
        rows.append([arm, str(len(found)), *(mean([float(r[c]) for r in found if r.get(c)]) for c in columns)])
    return rows


def mean(values: Sequence[float]) -> str:
    """Mean and standard deviation; of a single value itself."""
    return with_spread(spread(values)) or (f"{values[0]:.4f}" if values else MISSING)


def above(jobs: Sequence[Job], column: str, baseline: str) -> dict[Path, dict[str, float]]:
    """{run: how far its best lies above its start, and above the best of the baseline with the same seed}."""
    each = {j.folder: figures(j, column) for j in jobs}
    base = {j.seed: each[j.folder].get("best") for j in jobs if j.arm == baseline}
    found: dict[Path, dict[str, float]] = {}
    for job in (j for j in jobs if "best" in each[j.folder]):
        others = {"start": each[job.folder].get("start"), "baseline": base.get(job.seed)}
        best = each[job.folder]["best"]
        found[job.folder] = {f"above {what}": best - other for what, other in others.items() if other is not None}
    return found


def tables(jobs: Sequence[Job], column: str, baseline: str = "") -> list[list[str]]:
    """Head and a row for each arm. baseline: an arm, default the first."""
    baseline = baseline or jobs[0].arm
    rows, changes = [["arm", "runs", *KINDS, *ABOVE]], above(jobs, column, baseline)
    for arm in dict.fromkeys(j.arm for j in jobs):
        mine = [figures(j, column) | changes.get(j.folder, {}) for j in jobs if j.arm == arm]
        there = sum("final" in f for f in mine)
        cells = [mean([f[kind] for f in mine if kind in f]) for kind in (*KINDS, *ABOVE)]
        name = f"{arm} (baseline)" if arm == baseline else arm
        rows.append([name, f"{there} of {len(mine)}", *cells[:-1], "-" if arm == baseline else cells[-1]])
    return rows


def costs(jobs: Sequence[Job]) -> list[list[str]]:
    """Head and a row for each arm: parameters that train, seconds per epoch (median of a run, evaluation included)."""
    rows = [["arm", "parameters", "seconds per epoch"]]
    for arm in dict.fromkeys(j.arm for j in jobs):
        mine = [j.run for j in jobs if j.arm == arm]
        counts = [(run.settings.get("parameters") or {}).get("trainable_params") for run in mine]
        sizes = sorted({count for count in counts if isinstance(count, int)})
        seconds = [statistics.median(run.times()) for run in mine if run.times()]
        rows.append([arm, ", ".join(f"{size:,}" for size in sizes) or MISSING, mean(seconds)])
    return rows


def report(jobs: Sequence[Job], folder: Path, columns: Sequence[str], baseline: str = "") -> None:
    """study.md, study.csv and study.png of what is there; the tables on the screen too."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: None for j in jobs for name in j.run.columns}
    if known and (unknown := [c for c in columns if c not in known]):
        raise UserError(f"--columns {','.join(unknown)}: not in results.csv, which has {', '.join(known)}")
    parts = [f"{column}, mean ± standard deviation\n\n{markdown(tables(jobs, column, baseline))}" for column in columns]
    if any((j.folder / "test.csv").is_file() for j in jobs):
        parts.append(f"Test split, best.pt by validation\n\n{markdown(test_table(jobs, columns))}")
    text = "\n\n".join([*parts, f"Cost\n\n{markdown(costs(jobs))}"])
    write_text(folder / "study.md", text + "\n")
    with open(folder / "study.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(
            ["arm", "seed", "run", "epochs", *(f"{c} {kind}" for c in columns for kind in (*KINDS, *ABOVE))]
        )
        for job in jobs:
            found = {c: figures(job, c) | above(jobs, c, baseline or jobs[0].arm).get(job.folder, {}) for c in columns}
            cells = [found[c].get(kind, "") for c in columns for kind in (*KINDS, *ABOVE)]
            writer.writerow([job.arm, job.seed, job.folder.name, job.run.epochs or "", *cells])
    plot(jobs, columns, folder / "study.png")
    for job in jobs:
        print("".join(f"{gap}\n" for gap in job.run.gaps if job.folder.exists()), end="")
    print(f"{text}\n\ntables and picture: {folder / 'study.md'}, {folder / 'study.png'}")


def plot(jobs: Sequence[Job], columns: Sequence[str], out: Path) -> None:
    """A panel for each column: mean over the seeds of each arm, its range as a band, the common start as a line."""
    figure, axes = new_figure(6.5 * len(columns) + 2, 5, 1, len(columns))
    for ax, column in zip(axes, columns, strict=True):
        for i, arm in enumerate(dict.fromkeys(j.arm for j in jobs)):
            curves = [c for j in jobs if j.arm == arm and (c := dict(j.run.series(column)))]
            epochs = sorted(set.intersection(*map(set, curves))) if curves else []
            values = [[c[e] for c in curves] for e in epochs]
            shade, dashes = f"C{i % 10}", ("-", "--", ":")[i // 10 % 3]
            ax.plot(epochs, [statistics.mean(v) for v in values], dashes, marker=".", label=arm, color=shade)
            ax.fill_between(epochs, [min(v) for v in values], [max(v) for v in values], alpha=0.15, color=shade)
        starts = {j.run.began[column] for j in jobs if column in j.run.began}
        if len(starts) == 1:
            ax.axhline(starts.pop(), color="grey", linewidth=1, linestyle="--", label="start")
        ax.set(title=column, xlabel="epoch")
        ax.locator_params(axis="x", integer=True)
    axes[-1].legend(bbox_to_anchor=(1.02, 1), loc="upper left", fontsize=8)
    figure.savefig(out, dpi=100)


def numbers(text: str, flag: str) -> list[int]:
    """`0,3,4` -> [0, 3, 4]."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"{flag} {text}: expected whole numbers with commas, as 0,3,4")
    found = [int(part) for part in text.split(",")]
    if len(set(found)) != len(found):
        raise UserError(f"{flag} {text}: a number stands there twice")
    return found


def common_words(given: Given[Any], taken: set[str]) -> list[str]:
    """train.py's words after `--`. Errors: UserError where there are none, or a flag is taken."""
    if not given.rest:
        raise UserError("give train.py's flags after `--`: ... -- --data DATA.yaml --cfg MODEL.yaml")
    refuse(given.rest, taken, "after `--`")
    return list(given.rest)


def refuse(words: Sequence[str], taken: set[str], where: str) -> None:
    if found := sorted({w.split("=")[0].replace("_", "-") for w in words if w.startswith("--")} & taken):
        raise UserError(f"{', '.join(found)}: set for each run, take it out {where}")


def read_arm(text: str) -> tuple[str, list[str]]:
    """`NAME: FLAGS` -> name, flags."""
    name, colon, flags = text.partition(":")
    if not colon or not re.fullmatch(r"[\w.+-]+(,? [\w.+-]+)*", name):
        raise UserError(f"--arm {text!r}: expected `NAME: FLAGS`, the name of letters, digits, blanks, commas, _ . + -")
    try:
        words = shlex.split(flags)
    except ValueError as error:
        raise UserError(f"--arm {text!r}: {error}") from None
    refuse(words, OWN, f"of --arm {name}")
    return name, words


def folder_name(arm: str) -> str:
    return arm.replace(",", "").replace(" ", "_")


def main(argv: list[str]) -> None:
    given = STUDY.parse(argv)
    args, common = given.cfg, common_words(given, OWN)
    arms = dict(map(read_arm, args.arm))
    if len({folder_name(name) for name in arms}) != len(args.arm):
        raise UserError("--arm: two arms have the same name")
    conclude(study(arms, common, Path(args.project), args))


def study(arms: Mapping[str, Sequence[str]], common: Sequence[str], project: Path, args: Arms) -> Queue:
    """Train and compare; the runs, and how they ended."""
    if args.baseline and args.baseline not in arms:
        raise UserError(f"--baseline {args.baseline}: no such arm; there are: {', '.join(arms)}")
    jobs = [
        Job(name, seed, project / f"{folder_name(name)}_seed{seed}", (*common, *words))
        for seed in numbers(args.seeds, "--seeds")
        for name, words in arms.items()
    ]
    if args.test:
        for name in {j.words[i + 1] for j in jobs for i, word in enumerate(j.words[:-1]) if word == "--data"}:
            read_data(name).images("test")  # missing: said now, not when everything is trained
    queue = Queue(jobs, child.Log(), args.ranks_per_run)
    if not args.report_only:
        check(jobs)
        queue.carry_out(devices(args))
    columns = args.columns.split(",")
    if args.test and not queue.stops.first:
        evaluate_test(jobs, columns)
    report(jobs, project, columns, args.baseline)
    return queue


def devices(args: Arms) -> list[str]:
    """Of each run that is trained at the same time; empty: the one that train.py chooses."""
    given = [d for d in args.devices.split(",") if d]
    count, ranks = args.jobs or max(len(given) // args.ranks_per_run, 1), args.ranks_per_run
    if given and len(given) != count * ranks:
        raise UserError(
            f"--devices {args.devices}: {count} runs at a time of {ranks} processes need {count * ranks} devices"
        )
    return [",".join(given[i * ranks : (i + 1) * ranks]) for i in range(count)]
