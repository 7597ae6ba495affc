"""A chain of runs at a glance: the table of its stages, and the checks between one stage and the next.

  python -m utils stages table RUN [RUN ...] [--out FILE.md]
  python -m utils stages check WEIGHTS RUN [--max-drop 0.01] [--max-loss-jump 1.5] [--max-head-drop 0.1]

Every figure is read from the runs' own files (run.yaml, results.csv, timing.csv, the checkpoint's meta); what is not
there is called missing.
`check` compares RUN with the checkpoint WEIGHTS it started from and exits with 1 when mAP@0.5 fell, the loss jumped, or
a head's mAP@0.5 collapsed.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.config.options import Program, chosen, opt
from utils.evaluation.ap import fitness
from utils.evaluation.tables import markdown
from utils.runs.record import read_rows, sums_by_kind
from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml
from utils.weights.checkpoint import read_source

TERMS = ("box", "obj", "cls")


@dataclass(frozen=True)
class Stage:
    """What a run folder says about itself. Metrics are those of its best epoch, by the fitness that chose best.pt."""

    name: str
    settings: dict[str, Any]  # run.yaml; empty = missing
    rows: list[dict[str, str]]
    seconds: float

    @property
    def scored(self) -> list[dict[str, str]]:
        """Rows of the epochs that were evaluated."""
        return [r for r in self.rows if r.get("mAP")]

    @property
    def best(self) -> dict[str, str]:
        return max(self.scored, key=lambda r: fitness(float(r["mAP50"]), float(r["mAP"])), default={})

    @property
    def heads(self) -> dict[str, float]:
        """mAP@0.5 of each head at the best epoch; empty for a single head."""
        return {k.removeprefix("mAP50/"): float(v) for k, v in self.best.items() if k.startswith("mAP50/")}

    def loss(self, index: int) -> float:
        """Sum of the training terms of one epoch (0 = first, -1 = last)."""
        return loss_of(self.rows[index])


def loss_of(row: Mapping[str, str], prefix: str = "") -> float:
    """Sum of the loss terms of a row of results.csv; prefix `val_`: of the validation."""
    known = {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}
    terms = {k: float(v) for k, v in known.items() if v and k.split("/")[0] in TERMS}
    return sum(sums_by_kind(terms).values())


def read_stage(folder: Path) -> Stage:
    if not (folder / "results.csv").is_file():
        return Stage(folder.name, {}, [], 0.0)
    seconds = sum(float(r["seconds"]) for r in read_rows(folder / "timing.csv"))
    return Stage(folder.name, read_yaml(folder / "run.yaml", "run.yaml"), read_rows(folder / "results.csv"), seconds)


def columns(stage: Stage) -> list[str]:
    """One row of the table."""
    if not stage.rows:
        return [stage.name, *["missing"] * 7]
    config = stage.settings["config"]
    frozen = frozen_layers(stage.settings["patches"])
    best = stage.best
    heads = " ".join(f"{v:.3f}" for v in stage.heads.values()) or "-"
    found = [f"{float(best[k]):.4f}" for k in ("mAP50", "mAP")] if best else ["missing"] * 2
    return [stage.name, frozen, f"{config['lr0']:g}", str(len(stage.rows)), *found, heads, f"{stage.seconds:.0f}"]


def frozen_layers(patches: Mapping[str, Mapping[str, Any]]) -> str:
    """What a run's flags say about what does not learn."""
    flags = patches.get("freeze", {})
    first = flags.get("trainable_first", -1)
    words = f"all but the first {first}" if first != -1 else " ".join(flags.get("freeze", ["0"]))
    return f"{words}, --unfreeze" if "unfreeze" in patches else words


def table(stages: list[Stage]) -> str:
    """Markdown; says by which rule the mAP was made."""
    head = ["stage", "frozen layers", "lr0", "epochs", "mAP@0.5", "mAP@0.5:0.95", "mAP@0.5 per head", "seconds"]
    rows = [head, *(columns(s) for s in stages)]
    rules = sorted({s.best["match"] for s in stages if s.best})
    note = f"best epoch of each stage; matching rule: {', '.join(rules) or 'missing'}; seconds: training and validation"
    return f"{markdown(rows)}\n\n{note}"


def faults(
    before: dict[str, Any], previous: Stage | None, now: Stage, drop: float, jump: float, head_drop: float
) -> tuple[list[str], list[str]]:
    """What went wrong from the checkpoint with meta `before` (and its run `previous`, where it exists) to the stage
    `now`, and what was compared: with another matching rule or other heads that is less."""
    if not now.best:
        return ["no evaluated epoch in this run"], []
    said, compared = [], []
    start, reached = before.get("map50"), float(now.best["mAP50"])
    if start is not None and before.get("match") == now.best["match"]:
        compared.append(f"mAP@0.5 {start:.4f} -> {reached:.4f}")
        if reached < start - drop:
            said.append(f"mAP@0.5 fell from {start:.4f} to {reached:.4f} (more than {drop:g})")
    if previous and previous.rows:
        last, first = previous.loss(-1), now.loss(0)
        compared.append(f"loss {last:.4f} -> {first:.4f}")
        if first > jump * last:
            said.append(
                f"the loss jumped from {last:.4f} (last epoch before) to {first:.4f} (more than {jump:g} times)"
            )
    if previous and previous.heads and set(previous.heads) == set(now.heads):
        compared.append("each head's mAP@0.5")
        for head, value in now.heads.items():
            if value < previous.heads[head] - head_drop:
                said.append(f"{head} fell from {previous.heads[head]:.4f} to {value:.4f} (more than {head_drop:g})")
    return said, compared


@dataclass(frozen=True, kw_only=True)
class Table:
    runs: tuple[str, ...] = opt((), "run folders of the stages, in their order", positional=True, nargs="+")
    out: str = opt("", "also write the table to this file", "saving")


@dataclass(frozen=True, kw_only=True)
class Check:
    weights: str = opt("", "checkpoint the stage started from", positional=True)
    run: str = opt("", "run folder of the stage", positional=True)
    max_drop: float = opt(0.01, "largest fall of mAP@0.5", "evaluation", low=0, high=1)
    max_loss_jump: float = opt(1.5, "largest ratio of the first loss to the last one before", "loss", low=0)
    max_head_drop: float = opt(0.1, "largest fall of one head's mAP@0.5", "heads", low=0, high=1)


COMMANDS: dict[str, Program[Any]] = {
    "table": Program("python -m utils stages table", "Table of a chain of runs.", Table),
    "check": Program("python -m utils stages check", "Compare a stage with what it started from.", Check),
}


def main(argv: list[str]) -> None:
    about = "Table of a chain of runs, and the checks between stages."
    command, args = chosen("python -m utils stages", about, COMMANDS, argv)
    if command == "table":
        text = table([read_stage(Path(r)) for r in args.runs])
        print(text)
        if args.out:
            Path(args.out).write_text(text + "\n")
        return
    now = read_stage(Path(args.run))
    if not now.rows:
        raise UserError(f"{args.run} has no results.csv")
    folder = Path(args.weights).parent.parent
    previous = read_stage(folder) if (folder / "results.csv").is_file() else None
    said, compared = faults(
        dict(read_source(args.weights).meta), previous, now, args.max_drop, args.max_loss_jump, args.max_head_drop
    )
    for fault in said:
        print(f"{now.name}: {fault}", file=sys.stderr)
    if said:
        raise SystemExit(1)
    print(f"{now.name}: nothing wrong; compared: {', '.join(compared) or 'nothing, the start has no figures'}")
