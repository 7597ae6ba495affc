"""What detection reads of a pair of pictures: the visible one, the infrared one in as many channels, or both, the
visible channels first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.images import fault, read_image
from utils.pairs import PairRule
from utils.pixels import Image, Pixels, empty, widened

READS = ("visible", "infrared", "both")


def seen(visible: Tensor, infrared: Tensor, reads: str) -> Tensor:
    """visible [C,H,W], infrared [1 or C,H,W] -> [C,H,W], for `both` [2C,H,W]."""
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
