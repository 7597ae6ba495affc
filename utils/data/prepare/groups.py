"""Groups of images (of a patient, a clip, a place) and whether splits share some."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from utils.data.spec import SPLITS, DataSpec
from utils.system.errors import UserError
from utils.system.notes import warn
from utils.system.table import few

SHOWN = 5  # groups named in a message


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """The regular expression of a group pattern. Errors: UserError with `where` it was given."""
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: {pattern!r} is no regular expression: {error}") from None
    if found.groups != 1:
        raise UserError(f"{where}: {pattern!r} has {found.groups} parentheses; put one around what names the group")
    return found


def group_of(image: Path, pattern: re.Pattern[str]) -> str | None:
    """The image's group; None where the pattern does not fit."""
    found = pattern.search(image.as_posix() if "/" in pattern.pattern else image.name)
    return found[1] if found else None


def groups_of(images: Sequence[Path], pattern: re.Pattern[str]) -> list[str]:
    """The group of each image. Errors: UserError naming images that belong to none."""
    groups = [group_of(image, pattern) for image in images]
    if missing := [str(image) for image, group in zip(images, groups, strict=True) if not group]:
        raise UserError(f"{pattern.pattern!r} names no group of {len(missing)} of {len(images)} images: {few(missing)}")
    return [group for group in groups if group]


def shared(spec: DataSpec, pattern: re.Pattern[str]) -> dict[tuple[str, str], dict[str, int]]:
    """{(split, other split): {group in both: its images in the two}}, for each pair of splits that there is."""
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        mine: dict[str, int] = {}
        for group in groups_of(getattr(spec, split), pattern):
            mine[group] = mine.get(group, 0) + 1
        if mine:
            counts[split] = mine
    return {
        (a, b): {group: counts[a][group] + counts[b][group] for group in counts[a] if group in counts[b]}
        for a, b in combinations(counts, 2)
    }


def findings(found: Mapping[tuple[str, str], Mapping[str, int]]) -> list[str]:
    """A line for each pair of splits that share groups."""
    return [
        f"{a} and {b} share {len(both)} groups ({', '.join(list(both)[:SHOWN])}{', ...' * (len(both) > SHOWN)}; "
        f"{sum(both.values())} images)"
        for (a, b), both in found.items()
        if both
    ]


def check_groups(spec: DataSpec, *, strict: bool) -> None:
    """At the start of a run: where the data YAML has a `group_pattern`, say which groups are shared between splits, or
    with `strict` stop. Errors: UserError."""
    if not spec.group_pattern:
        if strict:
            raise UserError(f"--strict-split: {spec.source} has no group_pattern, by which groups could be told")
        return
    lines = findings(shared(spec, compiled(spec.group_pattern, f"{spec.source}: group_pattern")))
    if lines and strict:
        raise UserError("\n  ".join([f"--strict-split: {spec.source}: groups lie in several splits:", *lines]))
    if lines:
        said = f"{spec.source}: validation is too kind, as groups lie in several splits:"
        warn("groups shared", "\n  ".join([said, *lines]))
