"""A chain of runs at a glance: the table of its stages, and the checks between one stage and the next.

  python -m utils stages table RUN [RUN ...] [--out FILE.md]
  python -m utils stages check WEIGHTS RUN [--max-drop 0.01 ...]

Every figure is read from the runs' own files (run.yaml, results.csv, timing.csv, the checkpoint's meta); what is not
there is called missing.
`check` compares RUN with where it began, which it measured before its first epoch on its own data (start.csv); for want
of that with what the checkpoint WEIGHTS states. What was made with other data, at another size, by another rule or, of
losses, in another form is not compared: that is said by name. Exit code 1: mAP@0.5 fell, a head or a class collapsed,
the loss jumped; 3: nothing could be compared, or mAP@0.5 is 0 from the start to the end, which is not "nothing wrong",
and whoever asked decides; 2: the check could not be made; 0: nothing wrong in what was compared.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from utils.config.tools import STAGES, Limits
from utils.data.augment import AugmentParams
from utils.runs.folder import Facts, apart
from utils.system.errors import UserError, parsing
from utils.system.table import markdown
from utils.weights.checkpoint import read_source

MISSING = "missing"
HEAD = ("stage", "frozen layers", "lr0", "epochs", "mAP@0.5", "mAP@0.5:0.95", "mAP@0.5 per head", "seconds")
# Settings that the loss of a batch depends on: where they differ, two losses are no two values of one quantity.
OF_LOSS = ("box", "obj", "cls", "dfl", "cls_pw", "obj_pw", "anchor_t", "fl_gamma", "label_smoothing", "loss_ota",
           "compat", *(f.name for f in fields(AugmentParams)))  # fmt: skip
HALF = 0.5  # of mAP@0.5, however small it is
LEAST, LEAST_OF_CLASS = 0.005, 0.02  # mAP and AP@0.5 below which a share is chance
FEW = 5  # objects below which a class's AP is chance
UNKNOWN = 3  # exit code: nothing could be compared, or nothing was learned


@dataclass(frozen=True)
class Judgement:
    """A stage against what it started from."""

    faults: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # what could not be compared, and why
    doubts: list[str] = field(default_factory=list)  # why nothing wrong would be too much said

    @property
    def code(self) -> int:
        """Exit code, see above."""
        return 1 if self.faults else UNKNOWN if self.doubts or not self.compared else 0


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


def judge(start: Mapping[str, object], before: Facts | None, now: Facts, limits: Limits = Limits()) -> Judgement:  # noqa: B008
    """The stage `now` against where it began: what it measured before its first epoch; for want of that against what
    the checkpoint with the description `start` states and the run that wrote it, where they can be compared."""
    if not now.best:
        return Judgement(["no evaluated epoch in this run"])
    found = Judgement()
    compare_means(found, start, now, limits)
    compare_losses(found, before, now, limits)
    compare_heads(found, before, now, limits)
    compare_classes(found, now, limits)
    return found


def fell(what: str, old: float, new: float, most: float, share: float, least: float) -> list[str]:
    """A fall by more than `most`, or by more than that share of what it was; where both are below `least` that is
    chance."""
    fall = old - new
    if not (fall > most or (fall > share * old and old >= least)):
        return []
    limit = f"{most:g}" if fall > most else f"{share:.0%} of it"
    return [f"{what} fell from {old:.4f} to {new:.4f} (more than {limit})"]


def compare_means(found: Judgement, start: Mapping[str, Any], now: Facts, limits: Limits) -> None:
    reached, own = float(now.best["mAP50"]), now.began.get("mAP50") if now.start_row else None
    if max(value for _, value in now.series("mAP50")) == 0 and not own:
        found.doubts.append("mAP@0.5 is 0 in every epoch" + (", as at the start" if own == 0 else ""))
        return
    if own is None and (why := now.apart_from(start)):
        found.refused.append(f"mAP@0.5 ({why})")
        return
    old = float(start["map50"]) if own is None else own
    found.compared.append(f"mAP@0.5 {old:.4f} -> {reached:.4f}")
    found.faults.extend(fell("mAP@0.5", old, reached, limits.max_drop, HALF, LEAST))


def compare_losses(found: Judgement, before: Facts | None, now: Facts, limits: Limits) -> None:
    """Epoch by epoch; the first epoch against the last one of the run before; in validation against the start."""
    new, name = now.total(), "the loss"
    for (last, old), (epoch, value) in pairwise(new):
        if value > limits.max_loss_jump * old > 0 and epoch not in changes(now):
            found.faults.append(jumped(name, old, f"epoch {last}", value, f"epoch {epoch}", limits))
    began, validation = total_at_start(now), now.total("val_")
    if began and validation:
        epoch, value = validation[0]
        found.compared.append(f"validation loss {began:.4f} -> {value:.4f}")
        if value > limits.max_loss_jump * began:
            found.faults.append(jumped("the validation loss", began, "at the start", value, f"epoch {epoch}", limits))
    if before is None or not before.rows:
        found.refused.append(f"{name} with the run before (which is not there)")
        return
    old_total = before.total()
    why = apart(of_loss(before), of_loss(now))
    if why or not old_total or not new:
        found.refused.append(f"{name} with the run before ({why or 'one of the runs has none'})")
        return
    old, value = old_total[-1][1], new[0][1]
    found.compared.append(f"loss {old:.4f} -> {value:.4f}")
    if value > limits.max_loss_jump * old:
        found.faults.append(jumped(name, old, "last epoch before", value, f"epoch {new[0][0]}", limits))


def total_at_start(run: Facts) -> float:
    """Sum of the validation loss terms before the first epoch; 0 where it was not measured."""
    terms = [f"val_{term}" for own in run.kinds.values() for term in own]
    return sum(float(run.start_row[t]) for t in terms) if all(run.start_row.get(t) for t in terms) else 0.0


def changes(run: Facts) -> set[int]:
    """Epochs from which on the pictures or the rate's cycle are others, as planned."""
    closing = {run.planned - int(run.config.get("close_mosaic") or 0)}
    tables = [v for flags in run.patches.values() for k, v in flags.items() if k.endswith("_table")]
    stages = [s for table in tables if isinstance(table, dict) for s in table.get("stages") or ()]
    return closing | {int(s["epoch"]) for s in stages if isinstance(s, dict) and s.get("hyp")}


def jumped(what: str, old: float, when: str, new: float, then: str, limits: Limits) -> str:
    return f"{what} jumped from {old:.4f} ({when}) to {new:.4f} ({then}; more than {limits.max_loss_jump:g} times)"


def of_loss(run: Facts) -> dict[str, str]:
    """All that two losses must share to be values of one quantity."""
    terms = ", ".join(term for own in run.kinds.values() for term in own)
    settings = {k: str(run.config.get(k)) for k in OF_LOSS}
    return {**run.conditions, "matching rule": "", "loss terms": terms, **settings}


def compare_heads(found: Judgement, before: Facts | None, now: Facts, limits: Limits) -> None:
    new = now.of_heads()
    if not new:
        return  # there is one
    old, what = (
        {k.removeprefix("mAP50/"): v for k, v in now.began.items() if k.startswith("mAP50/")},
        "each head's mAP@0.5",
    )
    if not old:
        old = before.of_heads() if before else {}
        other = "" if set(old) == set(new) else "the run before has other heads"
        why = (apart(before.conditions, now.conditions) or other) if before else "the start was not measured"
        if why:
            found.refused.append(f"{what} ({why})")
            return
    compare_each(found, what, old, new, (limits.max_head_drop, limits.max_head_share, LEAST))


def compare_classes(found: Judgement, now: Facts, limits: Limits) -> None:
    what = "each class's AP@0.5"
    old, new = ({r["class"]: float(r["AP50"]) for r in rows if r.get("AP50") and int(r["objects"]) >= FEW}
                for rows in (now.start_classes, now.classes))  # fmt: skip
    if not old or not new:
        lacking = "the start was not measured" if not now.start_classes else "per_class.csv is not there yet"
        few = now.start_classes and now.classes
        found.refused.append(f"{what} ({f'none has {FEW} objects' if few else lacking})")
        return
    compare_each(found, what, old, new, (limits.max_class_drop, limits.max_class_share, LEAST_OF_CLASS))


def compare_each(
    found: Judgement, what: str, old: Mapping[str, float], new: Mapping[str, float], limits: tuple[float, float, float]
) -> None:
    """limits: see `fell`."""
    known = [name for name in new if name in old]
    nought = [name for name in known if old[name] == new[name] == 0]
    if len(nought) < len(known):
        found.compared.append(what)
    if nought:
        found.refused.append(f"{', '.join(nought[:5])}{', ...' if len(nought) > 5 else ''} (0 at the start and now)")
    for name in known:
        found.faults.extend(fell(name, old[name], new[name], *limits))


def outcome(found: Judgement) -> str:
    """Of a stage without a fault."""
    rest = f"; not compared: {'; '.join(found.refused)}" if found.refused else ""
    if found.doubts:
        return f"nothing was learned: {'; '.join(found.doubts)}{rest}"
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
    if not found.faults:
        print(f"{now.name}: {outcome(found)}")
    if found.code:
        raise SystemExit(found.code)
