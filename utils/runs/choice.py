"""By which figure best.pt is chosen (--best-by): the fitness, or any that is logged of every evaluated epoch and of
which is known whether a higher or a lower one is better.

A `Choice` makes one number of an epoch's row, higher = better: in training of the row as it is made, afterwards of the
row in results.csv. It is written to run.yaml (`best_by`), so that whoever reads the folder chooses alike.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.evaluation.ap import fitness
from utils.evaluation.evaluate import MEANS
from utils.seams import Patches
from utils.system.errors import UserError

FITNESS = "fitness"
SECOND_NAMES = {"map50-95": "mAP", "map@0.5:0.95": "mAP", "map@.5:.95": "mAP", "map": "mAP", "map@0.5": "mAP50",
                "map@.5": "mAP50", "map50": "mAP50"}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """columns: of results.csv, of which the figure is the mean, or for losses the sum. lower: whether that is better"""

    name: str = FITNESS
    columns: tuple[str, ...] = ("mAP50", "mAP")
    lower: bool = False

    def score(self, row: Mapping[str, Any]) -> float:
        """Higher is better; nan where the figure was not measured."""
        values = [float(row[c]) if row.get(c) not in (None, "") else math.nan for c in self.columns]
        if self.name == FITNESS:
            return fitness(*values)
        return -sum(values) if self.lower else sum(values) / len(values)

    def known(self, row: Mapping[str, Any]) -> bool:
        """Whether it was measured."""
        return not math.isnan(self.score(row))

    def value(self, score: float) -> float:
        """The figure itself."""
        return -score if self.lower else score

    @property
    def words(self) -> str:
        if self.name == FITNESS:
            return "highest fitness .1 mAP@0.5 + .9 mAP@0.5:0.95"
        return f"{'lowest' if self.lower else 'highest'} {self.name} (--best-by)"

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "columns": list(self.columns), "lower": self.lower}


def recorded(content: object) -> Choice:
    """Of a run.yaml; the fitness where that says nothing else."""
    if not isinstance(content, dict) or not isinstance(content.get("columns"), list) or not content["columns"]:
        return Choice()
    columns = tuple(map(str, content["columns"]))
    return Choice(str(content.get("name")), columns, bool(content.get("lower")))


def of_run(
    name: str, validated: Sequence[str], terms: Sequence[str], heads: Collection[str], patches: Patches
) -> Choice:
    """validated: loss terms of training and validation. terms: all of training. UserError for a name that no epoch has,
    or of which it is not known whether a higher or a lower one is better."""
    wanted, judged = SECOND_NAMES.get(name.lower(), name), patches.judged()
    of_heads = [f"{kind}/{head}" for kind in ("mAP50", "mAP") for head in heads if len(heads) > 1]
    known = {FITNESS: Choice(), **{c: Choice(c, (c,)) for c in (*MEANS, *of_heads)}}
    sums = {"val_loss": tuple(f"val_{term}" for term in validated), "loss": tuple(terms)}
    known |= {c: Choice(c, columns, True) for c, columns in sums.items()}
    known |= {c: Choice(c, (c,), True) for columns in sums.values() for c in columns}
    known |= {c: Choice(c, (c,), lower) for c, lower in judged.items()}
    family = tuple(c for c, lower in judged.items() if c.startswith(f"{wanted}_") and not lower)
    if family:  # align_top1: in both directions
        known.setdefault(wanted, Choice(wanted, family))
    if wanted not in known:
        raise UserError(f"--best-by {name}: no such figure of an epoch of this run; there are: {', '.join(known)}")
    return known[wanted]
