"""Infrared partners of visible images: which file belongs to which, by the `pairs` key of the data YAML.

    pairs: llvip                  visible/train/010001.jpg -> infrared/train/010001.jpg
    pairs: kaist                  set00_V000_visible_I01216.jpg -> set00_V000_lwir_I01216.jpg, likewise with folders
    pairs: {rgb: thermal}         the last `rgb` of the path -> `thermal`; either may hold slashes (a second root)
    pairs: partners.csv           two columns with the header visible,infrared; paths relative to the file's folder

A partner may have another image suffix than its image. The two pictures are taken pixel by pixel as one, so they must
have the same size; boxes are shared.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError

PRESETS = {"llvip": ("visible", "infrared"), "kaist": ("visible", "lwir")}


@dataclass(frozen=True)
class PairRule:
    """How partners are found."""

    replace: tuple[str, str] = ("", "")
    manifest: dict[str, str] = field(default_factory=dict)  # absolute path -> path
    file: Path | None = None  # the manifest

    def partner(self, image: Path, suffixes: Sequence[str]) -> Path | None:
        """The partner's file, None where there is none. UserError where the rule does not apply to the name."""
        if self.file is not None:
            found = self.manifest.get(os.path.abspath(image))
            return Path(found) if found is not None and os.path.isfile(found) else None
        old, new = self.replace
        before, hit, after = str(image).rpartition(old)
        if not hit:
            raise UserError(f"pairs: there is no {old!r} in the path {image}, so it has no partner's name")
        wanted = Path(f"{before}{new}{after}")
        names = [wanted, *(wanted.with_suffix(s) for s in suffixes)]
        return next((name for name in names if name.is_file()), None)


def read_rule(source: Path, value: Any, root: Path) -> PairRule | None:
    """The `pairs` key of the data YAML `source`; None where there is none. Errors: UserError naming file and key."""
    if value is None:
        return None
    if isinstance(value, dict) and len(value) == 1:
        ((old, new),) = value.items()
        if isinstance(old, str) and isinstance(new, str) and old and old != new:
            return PairRule((old, new))
    if isinstance(value, str):
        if value in PRESETS:
            return PairRule(PRESETS[value])
        for base in (root, source.parent, Path()):
            if value.endswith(".csv") and (base / value).is_file():
                return PairRule(manifest=read_manifest(base / value), file=base / value)
    wanted = f"{', '.join(PRESETS)}, {{part of the path: what it becomes}}, or a .csv file that exists"
    raise UserError(f"{source}: pairs: expected {wanted}; found {value!r}")


def read_manifest(file: Path) -> dict[str, str]:
    """{absolute path of the visible image: path of its partner}. Errors: UserError naming file and line."""
    found: dict[str, str] = {}
    with file.open(newline="", encoding="utf-8") as text:
        rows = csv.reader(text)
        if [cell.strip() for cell in next(rows, [])] != ["visible", "infrared"]:
            raise UserError(f"{file}:1: wanted the header visible,infrared")
        for row in rows:
            where = f"{file}:{rows.line_num}"
            if not row:
                continue
            if len(row) != 2 or not all(cell.strip() for cell in row):
                raise UserError(f"{where}: wanted two paths, got {','.join(row)!r}")
            image, partner = (os.path.abspath(file.parent / cell.strip()) for cell in row)
            if image in found:
                raise UserError(f"{where}: {row[0].strip()} has a partner already")
            found[image] = partner
    return found
