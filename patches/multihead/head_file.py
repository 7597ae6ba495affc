"""Head files: which head owns which classes. YAML with nc, heads, head_assignments {head_0: {classes: [...], weight:
1.0}, ...}.

The order of `classes` gives the local class ids. Every class belongs to exactly one head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml


@dataclass(frozen=True)
class HeadTable:
    """Who owns which class: validated, and the only place that knows."""

    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]  # global class ids per head; position = local class id
    weights: tuple[float, ...]
    grouping: str = ""
    full_head: bool = False  # every head has a column for each class of the data set, in global order

    @property
    def nc(self) -> int:
        return sum(len(g) for g in self.groups)

    def columns(self, head: int) -> int:
        """Class columns of a head."""
        return self.nc if self.full_head else len(self.groups[head])

    @property
    def owner(self) -> list[int]:
        """Head of each class."""
        of = {c: h for h, group in enumerate(self.groups) for c in group}
        return [of[c] for c in range(self.nc)]

    @property
    def local(self) -> list[int]:
        """Local id of each class in its head."""
        of = {c: i for group in self.groups for i, c in enumerate(group)}
        return [of[c] for c in range(self.nc)]

    def used(self, head: int) -> list[int]:
        """Columns of a head's output that mean something: box, objectness, its own classes in local order."""
        group = self.groups[head]
        return [0, 1, 2, 3, 4, *(5 + (c if self.full_head else i) for i, c in enumerate(group))]

    @property
    def starts(self) -> list[int]:
        """First column of each head where the heads lie side by side, and the end of the last."""
        widths = [5 + self.columns(h) for h in range(len(self.groups))]
        return [sum(widths[:h]) for h in range(len(widths) + 1)]

    @property
    def sorted_columns(self) -> list[int]:
        """Of heads that lie side by side: box and objectness head by head, then the classes in global order."""
        starts = self.starts
        of: dict[int, int] = {}
        for h, group in enumerate(self.groups):
            of |= {c: starts[h] + k for c, k in zip(group, self.used(h)[5:], strict=True)}
        return [start + i for start in starts[:-1] for i in range(5)] + [of[c] for c in range(self.nc)]


def read_head_file(path: str, heads: int) -> HeadTable:
    """A head file -> HeadTable. Every class in exactly one head; anything else is an error that names the file, the
    head and the classes."""
    spec = read_yaml(path, "--head-config")
    heads_in_file = spec.get("head_assignments")
    if not isinstance(heads_in_file, dict) or not heads_in_file:
        raise UserError(f"{path}: no `head_assignments` with head_0, head_1, ...")
    keys = [f"head_{i}" for i in range(len(heads_in_file))]
    if set(keys) != set(heads_in_file):
        raise UserError(f"{path}: head_assignments must be {', '.join(keys)}, got {', '.join(map(str, heads_in_file))}")
    for what, count in (("`heads`", spec.get("heads", len(keys))), ("--heads", heads or len(keys))):
        if count != len(keys):
            raise UserError(f"{path}: {what} says {count}, head_assignments has {len(keys)}")
    nc = spec.get("nc")
    if not isinstance(nc, int) or nc < 1:
        raise UserError(f"{path}: `nc` must be the number of classes, got {nc!r}")
    groups, names, weights = [], [], []
    for key in keys:
        entry = heads_in_file[key]
        classes = entry.get("classes") if isinstance(entry, dict) else None
        if (
            not isinstance(classes, list)
            or not classes
            or not all(isinstance(c, int) and not isinstance(c, bool) for c in classes)
        ):
            raise UserError(f"{path}: {key} needs `classes`, a list of class numbers, got {classes!r}")
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
            raise UserError(f"{path}: {key}: weight must be a number above 0, got {weight!r}")
        groups.append(tuple(classes))
        weights.append(float(weight))
        names.append(key)
    check_cover(path, groups, nc)
    return HeadTable(
        tuple(names), tuple(groups), tuple(weights), str(spec.get("grouping", "")), bool(spec.get("full_head", False))
    )


def restored_table(record: Mapping[str, Any]) -> HeadTable:
    """A HeadTable from the plain values that a checkpoint holds."""
    groups = tuple(tuple(int(c) for c in g) for g in record["groups"])
    weights = tuple(float(w) for w in record["weights"])
    return HeadTable(tuple(record["names"]), groups, weights, str(record["grouping"]), bool(record["full_head"]))


def check_cover(path: str, groups: Sequence[Sequence[int]], nc: int) -> None:
    flat = [c for g in groups for c in g]
    doubled = sorted({c for c in flat if flat.count(c) > 1})
    faults = {
        "in no head": sorted(set(range(nc)) - set(flat)),
        "in more than one head": doubled,
        f"outside of 0..{nc - 1}": sorted({c for c in flat if not 0 <= c < nc}),
    }
    said = [f"classes {classes} are {what}" for what, classes in faults.items() if classes]
    if said:
        raise UserError(f"{path}: {'; '.join(said)}")
