"""Modules of a model by words (0-10, backbone, backbone+neck), what such a choice cuts through, and the division of a
model by depth.

Words are numbers, ranges a-b with both ends, and the sections backbone, neck, head; + or , joins them.
"""

import re
from collections.abc import Iterable, Sequence

from models.graph import Detector
from utils.system.errors import UserError


def parse_modules(words: Sequence[str], model: Detector, where: str) -> list[int]:
    """Words -> sorted module numbers, each exactly as named. where: the flag, for errors: an unknown name or a number
    beyond the model is one, with what is valid."""
    total = len(model.model)
    parts = ", ".join(f"{name} ({r.start}-{r.stop - 1})" for name, r in model.sections.items())
    chosen: set[int] = set()
    for word in (part.strip() for w in words for part in re.split(r"[+,]", w)):
        if word in model.sections:
            chosen |= set(model.sections[word])
        elif match := re.fullmatch(r"(\d+)(?:-(\d+))?", word):
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < total:
                raise UserError(f"{where} {word}: no such modules; valid: 0..{total - 1}, {parts}")
            chosen |= set(range(first, last + 1))
        else:
            raise UserError(f"{where} {word}: unknown name; valid: 0..{total - 1}, {parts}")
    return sorted(chosen)


def parse_first(words: Sequence[str], model: Detector, where: str) -> list[int]:
    """As parse_modules, but a number N all by itself means the first N modules, 0..N-1."""
    if len(words) != 1 or not re.fullmatch(r"\d+", words[0]):
        return parse_modules(words, model, where)
    count, total = int(words[0]), len(model.model)
    if count > total:
        sections = ", ".join(f"{name} ({r.start}-{r.stop - 1})" for name, r in model.sections.items())
        raise UserError(f"{where} {count}: the model has {total} modules; valid: 0..{total - 1}, {sections}")
    return list(range(count))


def spans(numbers: Iterable[int]) -> str:
    """Module numbers as the words that name them: 0, 1, 2, 7 -> `0-2+7`."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return "+".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def cut(frozen: Sequence[int], model: Detector) -> str:
    """Which sections are frozen, in whole or in part."""
    said = []
    for name, modules in model.sections.items():
        count = len(set(modules) & set(frozen))
        partly = f"frozen in part ({count} of {len(modules)} modules)"
        said.append(f"{name} {'learns' if not count else 'frozen' if count == len(modules) else partly}")
    return ", ".join(said)


def depth_groups(model: Detector) -> dict[str, list[int]]:
    """The model by depth, deepest first: head, neck, then the backbone in as many groups as it has resolutions; a group
    begins at the first module whose output is smaller than any before. Groups without parameters are left out."""
    size, smallest = 128, 129
    shapes = model.shapes(size)
    groups: dict[str, list[int]] = {}
    for i in model.sections["backbone"]:
        if shapes[i][-1] < smallest:
            smallest = shapes[i][-1]
        groups.setdefault(f"stride {size // smallest}", []).append(i)
    groups |= {name: list(model.sections[name]) for name in ("neck", "head")}
    full = {k: v for k, v in groups.items() if any(True for i in v for _ in model.model[i].parameters())}
    return dict(reversed(full.items()))
