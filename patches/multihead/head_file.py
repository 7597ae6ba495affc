"""Head files: which head owns which classes. YAML with nc, heads, head_assignments {head_0: {classes: [...], weight:
1.0}, ...}.

`classes` lists numbers or names; its order gives the local class ids. Every class belongs to exactly one head. Where
the file has `names` of its own, or a head the `name` of a class, they must be those of the data.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from models.class_names import differences, find, nameless, shown
from utils.system.errors import UserError, brief
from utils.system.schema import Count, check
from utils.system.yaml_file import read_yaml

MOST_CLASSES = 1_000_000


class Recorded(TypedDict):
    """A HeadTable in a checkpoint."""

    names: list[str]
    groups: list[list[Count]]
    weights: list[float]
    grouping: str
    full_head: bool


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


def read_head_file(path: str, heads: int, names: Sequence[str] = ()) -> HeadTable:
    """A head file -> HeadTable. names: of the data's classes, as far as they are known. Every class in exactly one
    head; anything else, and classes that go by other numbers than in the data, is an error that names the file, the
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
    classes = {key: listed(path, key, heads_in_file[key]) for key in keys}
    words = [word for group in classes.values() for word in group if isinstance(word, str)]
    own = own_names(path, spec.get("names"))
    nc = spec.get("nc", len(names or own or words) if words else len(own) or None)
    if type(nc) is not int or nc < 1:
        raise UserError(f"{path}: `nc` must be the number of classes, got {brief(nc)}")
    if own and len(own) != nc:
        raise UserError(f"{path}: nc is {nc} but names holds {len(own)} classes; make them agree")
    known = names if len(names) == nc and not nameless(names) else ()
    if words:
        groups = [numbers(path, key, classes[key], known or names or own or words) for key in keys]
    else:
        groups = [tuple(int(c) for c in classes[key]) for key in keys]
        if known and own and find(known, own) != tuple(range(nc)):
            raise UserError(
                f"{path}: its numbers are for other classes than the data's: {differences(known, own)}; number them as "
                "the data does, or list each head's classes by their names"
            )
    check_cover(path, groups, nc)
    weights = []
    for key, group in zip(keys, groups, strict=True):
        weight = heads_in_file[key].get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
            raise UserError(f"{path}: {key}: weight must be a number above 0, got {brief(weight)}")
        weights.append(float(weight))
        check_title(path, key, heads_in_file[key].get("name"), group, known)
    return HeadTable(
        tuple(keys), tuple(groups), tuple(weights), str(spec.get("grouping", "")), bool(spec.get("full_head", False))
    )


def listed(path: str, key: str, entry: object) -> list[int] | list[str]:
    """The `classes` of a head: all numbers, or all names."""
    classes = entry.get("classes") if isinstance(entry, dict) else None
    kinds = {type(c) for c in classes} if isinstance(classes, list) else set()
    if kinds not in ({int}, {str}):
        raise UserError(f"{path}: {key} needs `classes`, a list of class numbers or one of names, got {brief(classes)}")
    return list(classes or ())


def own_names(path: str, names: object) -> list[str]:
    """The file's own class names by number; none where it has no `names`."""
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    if names is not None and not (isinstance(names, list) and all(isinstance(n, (str, int)) for n in names)):
        raise UserError(f"{path}: names: expected a list or a map {{id: name}}, found {brief(names)}")
    return [str(name) for name in names or ()]


def numbers(path: str, key: str, words: Sequence[int | str], names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the classes that a head lists by name."""
    found = find(list(map(str, words)), names)
    if missing := [word for word, c in zip(words, found, strict=True) if c is None]:
        close = difflib.get_close_matches(str(missing[0]), names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {shown(names)}"
        raise UserError(f"{path}: {key}: there is no class {missing[0]!r}; {hint}")
    return tuple(c for c in found if c is not None)


def check_title(path: str, key: str, title: object, group: Sequence[int], names: Sequence[str]) -> None:
    """A head that is called as a class of the data has that class."""
    number = find([str(title)], names)[0] if title else None
    if number is not None and number not in group:
        raise UserError(
            f"{path}: {key} is named {title!r}, which is class {number} of the data, but has the classes "
            f"{shown([f'{c} {names[c]}' for c in group])}"
        )


def restored_table(record: Mapping[str, Any]) -> HeadTable:
    """A HeadTable from the plain values that a checkpoint holds. UserError where they are none."""
    check(record, Recorded, "head_table")
    if not len(record["names"]) == len(record["weights"]) == len(record["groups"]) > 0:
        raise UserError("head_table: names, weights and groups must be of one length")
    check_cover("head_table", record["groups"], sum(map(len, record["groups"])))
    groups = tuple(tuple(int(c) for c in g) for g in record["groups"])
    weights = tuple(float(w) for w in record["weights"])
    return HeadTable(tuple(record["names"]), groups, weights, str(record["grouping"]), bool(record["full_head"]))


def check_cover(path: str, groups: Sequence[Sequence[int]], nc: int) -> None:
    flat = [c for g in groups for c in g]
    if nc > MOST_CLASSES:
        raise UserError(f"{path}: {brief(nc)} classes; {MOST_CLASSES:,} are the most")
    doubled = sorted(c for c, count in Counter(flat).items() if count > 1)
    faults = {
        "in no head": sorted(set(range(nc)) - set(flat)),
        "in more than one head": doubled,
        f"outside of 0..{nc - 1}": sorted({c for c in flat if not 0 <= c < nc}),
    }
    said = [f"classes {brief(classes)} are {what}" for what, classes in faults.items() if classes]
    if said:
        raise UserError(f"{path}: {'; '.join(said)}")
