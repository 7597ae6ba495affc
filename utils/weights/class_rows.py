"""The rows of a detector that belong to a class, taken from a checkpoint by the class's name.

`Source.columns` says of each class of the data its number in the file. A head says which of its tensors go row by row
(models.head.Rows): per anchor some of the box and objectness, one per class.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.class_names import Columns, differences, find, nameless, shown
from models.graph import Detector
from utils.seams import Source, State
from utils.system.errors import UserError
from utils.system.notes import note


def compare(meta: Mapping[str, Any], path: str, names: Sequence[str], where: str, refusal: str = "") -> Columns:
    """Of each class `names` of the data (`where`) its number in the checkpoint `path`. Anything but equal names in one
    order is said in a line. () where names are not known and the counts differ.

    refusal: what to do about other classes, which are then a UserError; without it they are said.
    """
    in_file = meta.get("names")
    count = meta.get("nc") or len(in_file or ())
    in_file = in_file if in_file and len(in_file) == count else None
    columns, in_order = find(names, in_file or ()), tuple(range(len(names)))
    same = in_file is not None and count == len(names) and None not in columns
    if in_file is None or (not same and (nameless(in_file) or nameless(names))):
        if count != len(names):
            return ()
        who = path if nameless(in_file) else where
        said = f"{who} does not name its classes: the {count} of {path} are taken for those of {where}, in their order"
        print("classes: " + note("classes without names", said))
        return in_order
    if same:
        if columns != in_order:
            moved = [f"{i} {name} was {c}" for i, (name, c) in enumerate(zip(names, columns, strict=True)) if i != c]
            said = f"{path} has the same names in another order; matched by name: {shown(moved)}"
            print("classes: " + note("classes in another order", said))
        elif spelt := [f"{a!r} for {b!r}" for a, b in zip(in_file, names, strict=True) if a != b]:
            print(f"classes: {path} spells names otherwise, taken for the same: {shown(spelt)}")
        return columns
    if refusal:
        raise UserError(f"the classes of {path} are not those of {where}: {differences(names, in_file)}; {refusal}")
    fresh = [name for name, c in zip(names, columns, strict=True) if c is None]
    left = [name for i, name in enumerate(in_file) if i not in columns]
    said = f"{len(names) - len(fresh)} of {len(names)} are among the {count} of {path}, by name"
    said += f"; fresh: {shown(fresh)}" * bool(fresh) + f"; left over: {shown(left)}" * bool(left)
    print("classes: " + note("other classes", said))
    return columns


def groups_of(source: Source) -> list[list[int]]:
    """Classes of each head of the file, in its own numbers."""
    groups: list[list[int]] = source.meta.get("groups") or [[]]
    return groups


def origins(model: Detector, source: Source) -> dict[int, int]:
    """Of each head of a model with several the head of the file that had its classes, by name. UserError where the file
    grouped the classes otherwise."""
    groups, columns = groups_of(source), source.columns
    owner = {c: h for h, group in enumerate(groups) for c in group}
    found: dict[int, int] = {}
    for h, group in enumerate(model.groups):
        heads = {owner[c] for own in group if (c := columns[own] if columns else own) in owner}
        if len(heads) > 1 or heads & set(found.values()) or (not columns and groups != model.groups):
            raise UserError(
                f"{source.path} was trained with another grouping of the classes over the heads (its heads have the "
                f"classes {shown([str(g) for g in groups])}, here {shown([str(g) for g in model.groups])})"
            )
        found |= {h: heads.pop()} if heads else {}
    return found


def by_name(source: Source, model: Detector) -> State:
    """The file's state with the rows of its detector in the order of the model's classes; of a class that the file has
    not, the model's own. The same state where nothing is to be moved, or the two detectors are of different kinds."""
    state, own, columns, groups = source.state, model.state_dict(), source.columns, groups_of(source)
    several = len(groups) > 1
    heads = origins(model, source) if several else {0: 0}
    last, priors, layout = f"model.{len(model.model) - 1}.", model.head.priors(), model.head.rows()
    anchors = state.get(f"{last}anchors")
    if not columns or several != (len(model.groups) > 1) or (anchors is None) != (priors is None):
        return state
    if anchors is not None and priors is not None and anchors.shape != priors.shape:
        return state
    per_cell = 1 if priors is None else priors.shape[1]
    outputs = next(k for k in own if k.startswith(last + layout[0].start) and k.endswith("bias"))
    count = sum(map(len, groups)) if several else rows_of(state, outputs) // per_cell - layout[0].lead
    groups = groups if several else [list(range(count))]
    if columns == tuple(range(count)) and groups == model.groups:
        return state
    if count != model.nc and set(columns) == {None}:
        return state
    moved: State = {}
    for start, head, classes, lead in layout:
        origin = heads.get(head)
        before = start.replace(f".{head}.", f".{origin}.", 1)
        for key in (k for k in own if k.startswith(last + start)):
            old = state.get(last + before + key.removeprefix(last + start))
            if origin is None:
                moved[key] = own[key]
            elif old is not None:
                per_anchor = rows_of(state, f"{last}{before}") // per_cell - lead if classes else 0
                there = groups[origin] if per_anchor == len(groups[origin]) else list(range(count))
                pairs = [(j, there.index(c)) for j, own_class in enumerate(classes or ())
                         if (c := columns[own_class]) is not None and c in there]  # fmt: skip
                moved[key] = old if classes is None else joined(own[key], old, per_cell, pairs, lead)
    return {**state, **moved}


def rows_of(state: State, start: str) -> int:
    """Outputs of the first convolution whose keys begin so; 0 where there is none."""
    return next((len(v) for k, v in state.items() if k.startswith(start) and k.endswith("bias")), 0)


def joined(own: Tensor, old: Tensor, anchors: int, pairs: Sequence[tuple[int, int]], lead: int) -> Tensor:
    """`own` with the `lead` first rows of each anchor of `old` and, for each (class column here, there), that of the
    class. Rows lie along the first dimension that has several: [A*(5+n),...] or [1,A*(5+n),1,1]; where no row leads,
    along the first."""
    at = 0 if len(own) > 1 or not lead else 1
    if own.dim() != old.dim() or any(
        a != b for i, (a, b) in enumerate(zip(own.shape, old.shape, strict=True)) if i != at
    ):
        return old  # of another width: it does not fit, and whoever loads it says so
    here = torch.tensor([*range(lead), *(lead + a for a, _ in pairs)], dtype=torch.long)
    there = torch.tensor([*range(lead), *(lead + b for _, b in pairs)], dtype=torch.long)
    rows, taken = own.clone().unflatten(at, (anchors, -1)), old.to(own).unflatten(at, (anchors, -1))
    found: Tensor = rows.index_copy(at + 1, here, taken.index_select(at + 1, there)).flatten(at, at + 1)
    return found
