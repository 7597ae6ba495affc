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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.images.pixels import GREY, Image, Pixels, empty, widened
from utils.images.read import fault, read_image
from utils.system.errors import UserError

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


def read_rule(source: Path, value: object, root: Path) -> PairRule | None:
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


POLICIES = ("error", "skip", "single")


READS = ("visible", "infrared", "both")


def seen(visible: Tensor, infrared: Tensor, reads: str, grey: str = "") -> Tensor:
    """visible [C,H,W], infrared [1 or C,H,W] -> [C,H,W], for `both` [2C,H,W]. grey: the one that is taken away."""
    full = GREY * (1 if visible.element_size() == 1 else 257)
    if grey == "visible":
        visible = torch.full_like(visible, full)
    if grey == "infrared":
        infrared = torch.full_like(infrared, full)
    if reads == "visible":
        return visible
    infrared = infrared.expand(len(visible), -1, -1)
    return infrared if reads == "infrared" else torch.cat([visible, infrared])


def recorded(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint says about --modality; empty where it reads visible images."""
    record: dict[str, Any] = (meta.get("patches") or {}).get("modality") or {}
    return record if record.get("modality", "visible") != "visible" else {}


def partner_rule(record: Mapping[str, Any], weights: str) -> PairRule:
    """How the partners of other pictures are found; UserError where training knew them by a list."""
    words: Sequence[str] = record.get("pair_words", ())
    if len(words) != 2:
        raise UserError(
            f"{weights} reads {record['modality']}, and was trained with partners named by a list, which says nothing "
            "of other pictures: evaluate it with test.py, on a data YAML with the key `pairs`"
        )
    return PairRule((words[0], words[1]))


def with_partner(visible: Image, file: Path, rule: PairRule, reads: str, *, alone: bool) -> Image:
    """A picture [H,W,C] -> what detection reads, [H,W,C] or, for `both`, [H,W,2C]. alone: a missing partner is grey,
    instead of an error."""
    height, width = visible.shape[:2]
    channels = visible.shape[2]
    partner = rule.partner(file, (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"))
    if partner is None:
        if not alone:
            raise UserError(f"{file} has no infrared partner (--on-missing-pair single: a grey picture instead)")
        infrared = empty((height, width), Pixels(channels, 8 * visible.dtype.itemsize))
    else:
        wanted = 3 if channels == 3 else 1
        found = read_image(partner, channels=wanted)
        if found is None:
            raise UserError(f"{partner}, the partner of {file}: the image {fault(partner, wanted)}")
        if found.shape[:2] != (height, width):
            raise UserError(
                f"{file} has {width}x{height} pixels, its partner {partner} {found.shape[1]}x{found.shape[0]}"
            )
        infrared = np.repeat(found, channels // wanted, 2)
    if np.uint16 in (visible.dtype, infrared.dtype):
        visible, infrared = widened(visible), widened(infrared)
    return infrared if reads == "infrared" else np.concatenate([visible, infrared], 2)
