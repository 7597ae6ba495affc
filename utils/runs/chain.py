"""A chain of runs at a glance: the table of its stages, and the checks between one stage and the next.

  python -m utils stages table RUN [RUN ...] [--out FILE.md]
  python -m utils stages check WEIGHTS RUN [--max-drop 0.01 ...]

Every figure is read from the runs' own files (run.yaml, results.csv, timing.csv, the checkpoint's meta); what is not
there is called missing.
`check` compares RUN with the checkpoint WEIGHTS it started from and exits with 1 when mAP@0.5 fell, the loss jumped, or
a head's mAP@0.5 collapsed. What was made with other data, at another size or by another rule is not compared: that is
said by name, and so is it where nothing could be compared at all.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.config.tools import STAGES, Limits
from utils.runs.folder import Facts, apart
from utils.system.errors import UserError, parsing
from utils.system.table import markdown
from utils.weights.checkpoint import read_source

MISSING = "missing"
HEAD = ("stage", "frozen layers", "lr0", "epochs", "mAP@0.5", "mAP@0.5:0.95", "mAP@0.5 per head", "seconds")
# Settings that the loss of a batch depends on: where they differ, two losses are no two values of one quantity.
OF_LOSS = ("box", "obj", "cls", "cls_pw", "obj_pw", "anchor_t", "fl_gamma", "label_smoothing", "loss_ota", "compat",
           "mosaic", "mixup")  # fmt: skip


@dataclass(frozen=True)
class Judgement:
    """A stage against what it started from."""

    faults: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # what could not be compared, and why


def stage_row(run: Facts) -> list[str]:
    """A row of the table."""
    if not run.rows:
        return [run.folder.name, *[MISSING] * (len(HEAD) - 1)]
    means = [f"{float(run.best[k]):.4f}" if run.best else MISSING for k in ("mAP50", "mAP")]
    heads = " ".join(f"{v:.3f}" for v in run.of_heads().values()) or "-"
    rate = f"{run.config['lr0']:g}" if "lr0" in run.config else MISSING
    seconds = f"{sum(run.times()):.0f}" if run.timing else MISSING
    frozen = run.frozen if run.settings else MISSING
    return [run.folder.name, frozen, rate, str(run.epochs), *means, heads, seconds]


def stage_table(stages: Sequence[Facts]) -> tuple[list[list[str]], str]:
    """Head and a row for each stage; what stands below it, the rule by which the mAP was made included."""
    rows = [list(HEAD), *map(stage_row, stages)]
    rules = sorted({run.best.get("match") or MISSING for run in stages if run.best})
    note = f"best epoch of each stage; matching rule: {', '.join(rules) or MISSING}; seconds: training and validation"
    return rows, "\n".join([note, *(gap for run in stages for gap in run.gaps)])


def judge(start: Mapping[str, Any], before: Facts | None, now: Facts, limits: Limits = Limits()) -> Judgement:  # noqa: B008
    """The stage `now` against the checkpoint with the description `start`, and against the run that wrote it."""
    if not now.best:
        return Judgement(["no evaluated epoch in this run"])
    found = Judgement()
    reached = float(now.best["mAP50"])
    if why := now.apart_from(start):
        found.refused.append(f"mAP@0.5 ({why})")
    elif start["map50"] == reached == 0:
        found.refused.append("mAP@0.5 (0 before and now: nothing was learned yet)")
    else:
        found.compared.append(f"mAP@0.5 {start['map50']:.4f} -> {reached:.4f}")
        if reached < start["map50"] - limits.max_drop:
            found.faults.append(
                f"mAP@0.5 fell from {start['map50']:.4f} to {reached:.4f} (more than {limits.max_drop:g})"
            )
    if before is None or not before.rows:
        found.refused.append("the loss and the heads (the run before is not there)")
        return found
    compare_losses(found, before, now, limits)
    compare_heads(found, before, now, limits)
    return found


def compare_losses(found: Judgement, before: Facts, now: Facts, limits: Limits) -> None:
    same = [{**run.conditions, "matching rule": "", **{k: str(run.config.get(k)) for k in OF_LOSS}}
            for run in (before, now)]  # fmt: skip
    why = apart(*same)
    old, new = before.total(), now.total()
    if why or not old or not new:
        found.refused.append(f"the loss ({why or 'one of the runs has none'})")
        return
    last, first = old[-1][1], new[0][1]
    found.compared.append(f"loss {last:.4f} -> {first:.4f}")
    if first > limits.max_loss_jump * last:
        jump = f"from {last:.4f} (last epoch before) to {first:.4f}"
        found.faults.append(f"the loss jumped {jump} (more than {limits.max_loss_jump:g} times)")


def compare_heads(found: Judgement, before: Facts, now: Facts, limits: Limits) -> None:
    old, new = before.of_heads(), now.of_heads()
    if not new and not old:
        return  # both have one
    why = apart(before.conditions, now.conditions) or ("" if set(old) == set(new) else "the run before has other heads")
    if why:
        found.refused.append(f"each head's mAP@0.5 ({why})")
        return
    found.compared.append("each head's mAP@0.5")
    for head, value in new.items():
        fall = old[head] - value
        share = limits.max_head_share * old[head]
        if fall > limits.max_head_drop or fall > max(share, limits.max_drop):
            limit = f"{limits.max_head_drop:g}" if fall > limits.max_head_drop else f"{limits.max_head_share:.0%} of it"
            found.faults.append(f"{head} fell from {old[head]:.4f} to {value:.4f} (more than {limit})")


def outcome(found: Judgement) -> str:
    """Of a stage without a fault."""
    rest = f"; not compared: {'; '.join(found.refused)}" if found.refused else ""
    if not found.compared:
        return f"nothing could be compared{rest.removeprefix('; not compared')}"
    return f"nothing wrong; compared: {', '.join(found.compared)}{rest}"


def main(argv: list[str]) -> None:
    command, args = STAGES.parse(argv)
    if command == "table":
        rows, note = stage_table([Facts(Path(r)) for r in args.runs])
        text = f"{markdown(rows)}\n\n{note}"
        print(text)
        if args.out:
            Path(args.out).write_text(text + "\n")
        return
    now = Facts(Path(args.run))
    if not now.rows:
        raise UserError("; ".join(now.gaps) or f"{args.run} has no results.csv with a finished epoch")
    folder, start = Path(args.weights).parent.parent, read_source(args.weights).meta
    with parsing(f"{args.run} or {args.weights} is damaged"):
        found = judge(start, Facts(folder) if (folder / "results.csv").is_file() else None, now, args)
    for fault in [*found.faults, *now.gaps]:
        print(f"{now.name}: {fault}", file=sys.stderr)
    if found.faults:
        raise SystemExit(1)
    print(f"{now.name}: {outcome(found)}")
