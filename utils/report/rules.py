"""What looks wrong in a run, by rules that the report states beside what they found.

A rule reads Facts and returns what it found (an empty list: nothing), or in words why the run's files do not let it be
measured. Trends are those of utils.report.trend; epochs count from 0.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from utils.config.tools import Limits
from utils.report.frozen import Verdict, frozen_moved
from utils.report.trend import FEWEST, trend
from utils.runs.chain import judge
from utils.runs.fingerprint import of_tensors
from utils.runs.folder import Facts, Series
from utils.seams import Source
from utils.system.errors import UserError, parsing

CHANCE = 0.98  # of the chance level, from which a loss counts as being at it
RISE = 0.05
STEADY = 0.5
STARVED = 0.05
WAIT = 0.2
DAMAGED = "the run's files hold something else than a run writes"
LIMITS = Limits()
FEW = f"fewer than {FEWEST} epochs"


@dataclass(frozen=True)
class Rule:
    """name and text: for the reader. check: what it found."""

    name: str
    text: str
    check: Callable[[Facts], Verdict]


def damaged(run: Facts) -> Verdict:
    return list(run.damage)


def unfinished(run: Facts) -> Verdict:
    return [] if run.finished or run.holder else [run.status.removeprefix("unfinished: ")]


def gaps(run: Facts) -> Verdict:
    if not run.rows:
        return "no epoch is finished"
    missing = sorted(set(range(run.epochs)) - {int(r["epoch"]) for r in run.rows})
    return [f"results.csv has {run.epochs} rows, but none for epoch {missing[0]}"] if missing else []


def unvalidated(run: Facts) -> Verdict:
    if not run.rows:
        return "no epoch is finished"
    count = len(run.scored)
    if count == run.epochs:
        return []
    why = " (--notest)" if run.config.get("notest") else ""
    return [f"{run.epochs - count} of {run.epochs} epochs were not evaluated{why}: best.pt was not chosen among them"]


def nothing_found(run: Facts) -> Verdict:
    if not run.scored:
        return "no epoch was evaluated"
    highest = max(float(r["mAP50"]) for r in run.scored)
    return [f"mAP@0.5 is 0 in all {len(run.scored)} evaluated epochs"] if highest == 0 else []


def rising(run: Facts) -> Verdict:
    found = {c: t for c in (*run.terms, *(f"val_{n}" for n in run.terms)) if (t := trend(run.series(c)))}
    if not found:
        return FEW
    score = trend(run.series("mAP"))
    if score is not None and score.word == "rises":
        return []  # objectness is to be the IoU, so its loss may grow as boxes get better
    return [
        f"{c} rises by {t.change:.0%} from epoch {t.first} to the last"
        for c, t in found.items()
        if t.change > RISE and t.steady >= STEADY
    ]


def opposite(run: Facts) -> Verdict:
    loss, score = trend(run.total()), trend(run.series("mAP"))
    if loss is None or score is None:
        return FEW
    if loss.word == "falls" and score.change < -RISE and score.steady <= -STEADY:
        return [f"from epoch {score.first} on mAP@0.5:0.95 falls by {-score.change:.0%} while the training loss falls"]
    return []


def gap(run: Facts) -> Verdict:
    train, val = dict(run.total()), dict(run.total("val_"))
    if not val:
        return "the validation loss was not measured"
    both: Series = [(e, val[e] - train[e]) for e in val if e in train]
    found, validation = trend(both), trend(run.total("val_"))
    if found is None or validation is None:
        return FEW
    growth = found.slope * (both[-1][0] - found.first)
    share = growth / statistics.median(train[e] for e, _ in both if e >= found.first)
    if share > RISE and found.steady >= STEADY and validation.word == "rises":
        return [f"from epoch {found.first} on the gap grew by {share:.0%} of the training loss, validation loss rising"]
    return []


def not_a_number(run: Facts) -> Verdict:
    bad = [
        f"{c} is {r[c]} in epoch {r['epoch']}"
        for c in run.terms
        for r in run.rows
        if r.get(c) and not math.isfinite(float(r[c]))
    ]
    return bad[:5] if run.rows else "no epoch is finished"


def levels(run: Facts) -> dict[str, tuple[Series, str]]:
    """{column: (chance level by epoch, its formula)}, as far as the run's files tell it."""
    found: dict[str, tuple[Series, str]] = {}
    done = {-1: 0.0, **dict(run.series("step"))}
    steps = {e: v - done[e - 1] for e, v in done.items() if e - 1 in done}
    for flags in run.patches.values():
        classes = list(flags.get("cls_names") or ())
        gain = next((flags[k] for k in ("cls_gain", "dual_gain") if k in flags), None)
        plain = list(flags.get("cls_weights") or flags.get("dual_weights") or ["none"]) == ["none"]
        if "image_class" in run.terms and classes and gain and plain:
            blank = dict(run.series("image_blank_steps"))
            each = [(e, gain * math.log(len(classes)) * (1 - blank.get(e, 0) / n)) for e, n in steps.items() if n > 0]
            found["image_class"] = each, "gain * ln(image classes), steps without a known class counted as 0"
    flags = run.patches.get("align") or {}
    for term, counter in (("align", "align_pairs"), ("align_box", "align_boxes")):
        if term in run.terms and flags.get("align_weight"):
            start, ramp = int(flags.get("align_start", 0)), max(int(flags.get("align_ramp", 1)), 1)
            share = {e: min(max((e + 1 - start) / ramp, 0.0), 1.0) for e in steps}
            many = {e: v / steps[e] for e, v in run.series(counter) if steps.get(e, 0) > 0}
            each = [(e, flags["align_weight"] * share[e] * math.log(m)) for e, m in many.items() if m > 1 and share[e]]
            found[term] = each, f"weight * ln({counter} / steps)"
    return found


def at_chance(run: Facts) -> Verdict:
    known = {c: (level, how) for c, (level, how) in levels(run).items() if level}
    if not known:
        return "no loss term whose chance level the run's files tell"
    said = []
    for column, (level, how) in known.items():
        values = dict(run.series(column))
        both = [(values[e] / at, values[e], at) for e, at in level if e in values and at > 0]
        window = both[-math.ceil(len(both) / 3) :]
        if len(both) >= 3 and statistics.median(r for r, _, _ in window) >= CHANCE:
            _, value, at = both[-1]
            said.append(f"{column} is at its chance level: last {value:.4g}, chance {at:.4g} = {how}")
    for score, chance in (("image_acc", "image_majority"), ("align_top1_visible", "align_top1_chance")):
        mine, theirs = run.series(score), run.series(chance)
        if mine and theirs and mine[-1][1] <= theirs[-1][1]:
            said.append(f"{score} ends at {mine[-1][1]:.4g}, not above {chance} {theirs[-1][1]:.4g}")
    return said


def other_best(run: Facts) -> Verdict:
    file, best = run.checkpoint("best.pt"), run.best
    if file is None or not best:
        return "there is no readable best.pt, or no evaluated epoch"
    said = []
    epoch, held = file.meta.get("epoch"), file.meta.get("map")
    rule = run.scored[-1]["match"]
    if epoch is not None and epoch != int(best["epoch"]) and not (run.config.get("nosave") or run.holder):
        highest = best["epoch"]
        said.append(f"best.pt is of epoch {epoch}, the {run.choice.words} in results.csv is that of epoch {highest}")
    elif held is not None and file.meta.get("match") == rule and abs(held - float(best["mAP"])) > 1e-9:
        said.append(f"best.pt says mAP@0.5:0.95 {held:.4f}, results.csv {float(best['mAP']):.4f} for its epoch")
    ended = (run.result.get("tensors") or {}).get("best.pt ema")
    if ended and ended != of_tensors(file.state):
        said.append("best.pt has other tensors than when the run ended (result.yaml)")
    return said


def starved(run: Facts) -> Verdict:
    """Weights that a rule moves (--mtl, but fixed ones), over the last third of the epochs."""
    flags, columns = run.patches.get("weighting") or {}, [c for c in run.columns if c.startswith("weight/")]
    if len(columns) < 2 or flags.get("mtl") in (None, "fixed"):
        return "no weights of tasks that move (--mtl)"
    known = {c.removeprefix("weight/"): [v for _, v in run.series(c)] for c in columns}
    ends = {t: statistics.median(values[-math.ceil(len(values) / 3) :]) for t, values in known.items() if values}
    if len(ends) < 2:
        return "no epoch is finished"
    mean, said = statistics.mean(ends.values()), []
    low = float(flags.get("gradnorm_min") or 0) if flags.get("mtl") == "gradnorm" else 0.0
    for task, weight in ends.items():
        lengths = {t: statistics.median(v for _, v in s) for t in ends if (s := run.series(f"grad_norm/{t}"))}
        longest = max((v for t, v in lengths.items() if t != task), default=0.0)
        why = ""
        if task in lengths and longest > 0:
            why = f"; its gradients are {lengths[task] / longest:.3g} times as long as the longest other's"
        if low and weight <= 1.01 * low:
            said.append(f"the weight of {task} lies at its bound {low:g} (--gradnorm-min){why}")
        elif weight < STARVED * mean:
            said.append(f"the weight of {task} is {weight:.3g}, under {STARVED:.0%} of the mean of all tasks{why}")
    return said


def weak_head(run: Facts) -> Verdict:
    if len(run.heads) < 2 or not run.best:
        return "one head, or none evaluated"
    known = run.of_heads()
    said = []
    for head, value in known.items():
        others = [v for h, v in known.items() if h != head]
        if others and value < statistics.mean(others) / 2:
            said.append(f"{head} has mAP@0.5 {value:.4f} in the best epoch, the others {statistics.mean(others):.4f}")
    return said


def silent_classes(run: Facts) -> Verdict:
    if not run.classes:
        return "per_class.csv is not there"
    lost = [r["class"] for r in run.classes if float(r.get("objects") or 0) > 0 and float(r.get("AP50") or 0) == 0]
    more = ", ..." if len(lost) > 8 else ""
    return [f"{len(lost)} classes with objects have AP@0.5 0: {', '.join(lost[:8])}{more}"] if lost else []


def not_better(run: Facts) -> Verdict:
    if len(run.scored) < 3:
        return "fewer than 3 evaluated epochs"
    first, best = run.scored[0], run.best
    if best is first:
        return ["no epoch is better than the first one"]
    last = run.scored[-1]
    high, end = float(best["mAP"]), float(last["mAP"])
    return [f"mAP@0.5:0.95 ends at {end:.4f}, more than a tenth below its best {high:.4f}"] if end < 0.9 * high else []


def since_the_start(run: Facts) -> Verdict:
    """As `python -m utils stages check`, with its limits."""
    if not run.best:
        return "no epoch was evaluated"
    before = run.origin.meta if isinstance(run.origin, Source) else {}
    found = judge(before, run.before, run)
    if not (found.compared or found.faults or found.doubts):
        return run.origin if isinstance(run.origin, str) and not run.before else "; ".join(found.refused)
    last, began = float(run.scored[-1]["mAP"]), run.began.get("mAP", 0.0)
    ended = [f"ended worse than it began: mAP@0.5:0.95 {began:.4f} at the start, {last:.4f} in the last epoch"]
    return [*(ended if last < began else []), *found.faults, *found.doubts]


def waiting(run: Facts) -> Verdict:
    shares = run.times("data_wait")
    if not shares:
        return "the wait for data was not measured"
    middle = statistics.median(shares)
    return [f"{middle:.0%} of the training pass was spent waiting for data (median)"] if middle > WAIT else []


def taken_back(run: Facts) -> Verdict:
    if not run.config.get("guard_drop"):
        return "no guard (--guard-drop)"
    back = [r for r in run.guard if r["event"] == "back"]
    return [f"after epoch {r['epoch']} the guard took an opening back: {r['action']}" for r in back]


def other_data(run: Facts) -> Verdict:
    return [f"{p.name}: the data were changed in mid-run" for p in sorted(run.folder.glob("data.until_step_*.csv"))]


RULES = (
    Rule("damaged files", "a file of the run folder that cannot be read, or a row of it", damaged),
    Rule("unfinished", "no result.yaml, and nobody writes into the folder", unfinished),
    Rule("missing epochs", "results.csv counts its epochs without a gap", gaps),
    Rule("not a number", "a loss term that is infinite or nan", not_a_number),
    Rule("validation missing", "an epoch without a validation", unvalidated),
    Rule("mAP 0", "mAP@0.5 is 0 in every evaluated epoch", nothing_found),
    Rule("not better", "the first evaluated epoch of three or more is the best, or mAP@0.5:0.95 ends more than a tenth "
         "below its best", not_better),
    Rule("a term rises", f"a loss term of training or validation whose trend is more than {RISE:.0%} upwards over its "
         f"window, with Kendall's tau of at least {STEADY}, while mAP@0.5:0.95 does not rise", rising),
    Rule("mAP falls while losses fall", f"over the window mAP@0.5:0.95 falls by more than {RISE:.0%} (tau at most "
         f"-{STEADY}) and the training loss falls", opposite),
    Rule("gap grows", f"over the window validation loss minus training loss (box, obj, cls) grows by more than "
         f"{RISE:.0%} of the median training loss (tau at least {STEADY}) and the validation loss rises", gap),
    Rule("at chance", f"in the last third of the epochs the median of a term over its chance level is at least {CHANCE}"
         " (image_class: gain * ln(image classes); align: weight * ln(pairs per step)); or accuracy or retrieval ends "
         "not above its chance level", at_chance),
    Rule("a task starves", f"in the last third of the epochs the median of a task's weight is at its lower bound, or "
         f"under {STARVED:.0%} of the mean weight (not with fixed weights)", starved),
    Rule("worse than the start", "last mAP@0.5:0.95 below that of the start; best mAP@0.5 more than "
         f"{LIMITS.max_drop:g} or a half below it, a head's more than {LIMITS.max_head_drop:g} or "
         f"{LIMITS.max_head_share:.0%}, a class's AP@0.5 more than {LIMITS.max_class_drop:g} or "
         f"{LIMITS.max_class_share:.0%}; a loss more than {LIMITS.max_loss_jump:g} times that of the epoch, start or "
         "run before; the start as measured before the first epoch, or as its checkpoint states it, where data, "
         "size and rule are the same", since_the_start),
    Rule("weak head", "a head's mAP@0.5 in the best epoch below half the mean of the others", weak_head),
    Rule("silent class", "a class with objects whose AP@0.5 is 0 with best.pt", silent_classes),
    Rule("frozen tensors moved", "tensors of frozen modules in best.pt and last.pt against the start checkpoint, bit "
         "for bit; without one, best.pt against last.pt", frozen_moved),
    Rule("another best.pt", "best.pt is of the best epoch in results.csv by --best-by, says the same mAP, and has the "
         "tensors that result.yaml recorded", other_best),
    Rule("opening taken back", "guard.csv has an event `back`", taken_back),
    Rule("data changed", "the folder keeps a list of earlier data (--allow-changed-data)", other_data),
    Rule("data wait", f"more than {WAIT:.0%} of the training pass waits for data (median of the epochs)", waiting),
)  # fmt: skip


def findings(run: Facts) -> list[tuple[Rule, Verdict]]:
    """Every rule with what it found."""
    return [(rule, checked(rule, run)) for rule in RULES]


def checked(rule: Rule, run: Facts) -> Verdict:
    """What a rule found; where the run's files hold something else than a run writes, that."""
    try:
        with parsing(DAMAGED):
            return rule.check(run)
    except UserError as error:
        return str(error)
