"""When a run ends before its last epoch (--patience), and when an opening is taken back (--guard-drop).

An opening is an epoch above 0 at which optimizer groups begin to learn: their field `opens`. Right before it all that
training changes goes into a file. The opening is watched until the next one or the end: when mAP@0.5 has been below the
best mAP@0.5 from before it by more than the drop in `guard_patience` evaluations in a row, the run goes back to that
file, and

  halve     the lr_scale of what was opened is halved; it opens again, with its ramp, in the next epoch
  postpone  it opens guard_patience epochs after the next one
  stop      the run ends

What is still to open keeps its distance to it. An opening that comes while mAP is below is judged with the one before
it: the run would go back to before both. The epoch counts on, so budgets stay equal and every draw is a function of the
epoch; what a schedule ties to epochs and not to groups (rates' decay, augmentation) is not moved.

Here are the decisions, on plain values: they read and edit fields of the groups, and their state goes into the
checkpoint. Files and tensors are the business of utils.runs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from utils.config.train import Config
from utils.runs.choice import FITNESS, Choice
from utils.runs.resumable import BEFORE
from utils.seams import Groups
from utils.system.errors import UserError
from utils.system.schema import Count, check
from utils.system.table import few

FIELDS = ("opens", "lr_scale")
MEAN = Choice("mAP@0.5", ("mAP50",))  # what is watched where best.pt is chosen by the fitness
Row = dict[str, Any]  # of guard.csv: epoch, event, before, now, action


class Watched(TypedDict):
    """An Opening in a checkpoint."""

    first: Count
    file: str
    before: float
    groups: list[Count]
    below: Count


class State(TypedDict):
    """What a checkpoint holds of a Guard."""

    since: Count
    top: float
    opening: Watched | None
    undone: Count
    ended: str


@dataclass
class Opening:
    """What is watched."""

    first: int  # epoch; with those that joined it, of the first of them
    file: str  # in weights/, the state before
    before: float  # best score before
    groups: list[int]  # numbers of the optimizer groups that opened
    below: int = 0  # evaluations in a row


class Guard:
    """Errors: UserError where nothing opens that could be guarded."""

    def __init__(self, cfg: Config, groups: Groups, choice: Choice) -> None:
        self.cfg, self.choice = cfg, choice
        self.watched = MEAN if choice.name == FITNESS else choice
        self.since = 0  # evaluated epochs without a better score
        self.top = 0.0 if self.watched is MEAN else -math.inf  # best score so far, without epochs that were taken back
        self.opening: Opening | None = None
        self.undone = 0  # updates of the average that were taken back
        self.ended = ""  # why the run is over
        self.back = ""  # file to go back to now, at this epoch's end
        self.edits: list[dict[str, Any]] = []  # fields of each group from then on
        self.saved = ""  # the file that last.pt refers to
        if cfg.guard_drop and not any(0 < opens(g) < cfg.epochs for g in groups):
            raise UserError(
                "--guard-drop: this run has no opening to guard, nothing begins to learn between its first and its "
                f"last epoch ({cfg.epochs}); see docs/unfreezing.md"
            )

    def opens_now(self, epoch: int, groups: Groups) -> bool:
        """At an epoch's start, before anything is opened: whether the state is to be kept, as `opening.file`."""
        if not self.cfg.guard_drop or epoch == 0:
            return False
        known = self.opening.groups if self.opening else []
        new = [i for i, g in enumerate(groups) if opens(g) == epoch and i not in known]
        if not new:
            return False
        if self.opening and self.opening.below:
            self.opening.groups += new
            return False
        self.opening = Opening(epoch, f"{BEFORE}{epoch:03d}.pt", self.top, new)
        return True

    def judge(self, epoch: int, row: Mapping[str, float], best: float, groups: Groups) -> list[Row]:
        """After an epoch's evaluation: sets `back` or `ended` where that is due. row: its figures, empty where there
        was none. best: score so far."""
        self.back = ""
        score, now = self.choice.score(row), self.watched.score(row)
        if math.isnan(score) or math.isnan(now):  # nothing was measured, and so nothing is judged
            return []
        rows: list[Row] = []
        self.since = 0 if score > best else self.since + 1
        self.top = max(self.top, now)
        if self.opening:
            rows = self.judge_opening(self.opening, epoch, now, groups)
        if self.cfg.patience and self.since >= self.cfg.patience and not self.ended:
            self.ended = f"no better {self.choice.name} in {self.since} evaluated epochs (--patience)"
            shown = self.watched.value(now)
            rows.append({"epoch": epoch, "event": "end", "before": "", "now": shown, "action": self.ended})
        return rows

    def judge_opening(self, opening: Opening, epoch: int, now: float, groups: Groups) -> list[Row]:
        low = now < opening.before - self.cfg.guard_drop
        opening.below = opening.below + 1 if low else 0
        before, shown = (self.watched.value(x) for x in (opening.before, now))
        row = {"epoch": epoch, "event": "", "before": before, "now": shown, "action": ""}
        names = ", ".join(groups[i]["name"] for i in opening.groups)
        rows = [{**row, "event": "opening", "action": names}] if epoch == opening.first else []
        rows += [{**row, "event": "below", "action": f"{opening.below} of {self.cfg.guard_patience}"}] if low else []
        if opening.below >= self.cfg.guard_patience:
            rows.append({**row, "event": "back", "action": self.take_back(opening, epoch, groups)})
        return rows

    def take_back(self, opening: Opening, epoch: int, groups: Groups) -> str:
        """Decide what is done; it in words."""
        action, wait = self.cfg.guard_action, self.cfg.guard_patience
        self.back, self.top = opening.file, opening.before
        self.edits = [{k: g[k] for k in FIELDS if k in g} for g in groups]
        if action == "stop":
            side, name = "above" if self.watched.lower else "below", self.watched.name
            limit = f"{self.watched.value(opening.before):.4f}"
            self.ended = f"{name} stayed {side} {limit} after the opening at epoch {opening.first}"
            return f"stop: {self.ended}"
        again = epoch + 1 + (wait if action == "postpone" else 0)
        for i, edit in enumerate(self.edits):
            if opens(edit) >= opening.first:
                edit["opens"] += again - opening.first
            if action == "halve" and i in opening.groups:
                edit["lr_scale"] /= 2
        changed = "; ".join(describe(groups[i], self.edits[i]) for i in opening.groups)
        if action == "postpone":
            self.opening = None
        else:
            again_open = [i for i in opening.groups if self.edits[i]["opens"] == again]
            self.opening = Opening(again, opening.file, opening.before, again_open)
        return f"{action}: {changed}"

    def rewrite(self, groups: Groups) -> None:
        """The edits, into the groups as the file has brought them back."""
        for group, edit in zip(groups, self.edits, strict=True):
            group.update(edit)

    def state(self) -> dict[str, Any]:
        """For a checkpoint's description."""
        opening = vars(self.opening) if self.opening else None
        return {"since": self.since, "top": self.top, "opening": opening, "undone": self.undone, "ended": self.ended}

    def restore(self, state: Mapping[str, Any]) -> None:
        """state: empty in checkpoints from before there was a guard."""
        check(state, State if state else dict[str, Any], "guard")
        if state:
            self.since, self.top, self.undone, self.ended = (state[k] for k in ("since", "top", "undone", "ended"))
            self.opening = Opening(**state["opening"]) if state["opening"] else None
        self.saved = self.opening.file if self.opening else ""

    def tidy(self, weights: Path) -> None:
        """After last.pt was written: remove what neither it nor the checkpoint before it refers to."""
        if self.cfg.guard_drop:
            current = self.opening.file if self.opening else ""
            for file in weights.glob(f"{BEFORE}*.pt"):
                if file.name not in (self.saved, current):
                    file.unlink()
            self.saved = current


def opens(group: Mapping[str, Any]) -> int:
    return int(group.get("opens", 0))


def describe(before: Mapping[str, object], after: Mapping[str, object]) -> str:
    """One group's edit in words."""
    return f"{before['name']} lr_scale {after['lr_scale']:g}, opens at epoch {after['opens']}"


def tell(rows: Iterable[Row], watched: Choice) -> None:
    for row in rows:
        before = f" (before the opening {row['before']:.4f})" if row["before"] != "" else ""
        sep = ", " if row["event"] == "opening" else "; "
        action = few(str(row["action"]).split(sep), 4, sep)  # guard.csv has them all
        print(f"guard: {row['event']}, {watched.name} {row['now']:.4f}{before}: {action}")
