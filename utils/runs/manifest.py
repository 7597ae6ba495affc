"""What a run is trained on, file by file, and whether it still is that when the run is resumed.

A checkpoint holds the fingerprint (utils/runs/fingerprint.py: class names, names and bytes of images and label files,
and the classes of whole images where there are any), the run folder's data.csv the files one by one. Unchanged size and
modification time count as unchanged bytes: with a warm scan cache the check is quick.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.data.spec import DataSpec
from utils.runs import fingerprint
from utils.runs.fingerprint import Listing
from utils.system import dist
from utils.system.errors import UserError
from utils.system.files import naming
from utils.system.notes import note
from utils.system.table import few
from utils.weights.checkpoint import check_pixels

NAME = "data.csv"


@dataclass(frozen=True)
class Manifest:
    """A data set as it is now."""

    names: tuple[str, ...]  # of the classes
    fingerprint: str
    listing: Listing


def differences(old: Listing, new: Listing) -> list[str]:
    """Per split: how many images are gone, new, changed or otherwise labelled, and the first names."""
    both = [name for name in old if name in new]
    kinds = {
        "gone": [name for name in old if name not in new],
        "new": [name for name in new if name not in old],
        "with another picture": [name for name in both if old[name][0] != new[name][0]],
        "with another label": [name for name in both if old[name][1] != new[name][1]],
        "with another image class": [name for name in both if old[name][2:] != new[name][2:]],
    }
    lines = []
    for split in ("train", "val"):
        for kind, found in kinds.items():
            names = [name.removeprefix(f"{split} ") for name in found if name.startswith(f"{split} ")]
            if names:
                lines.append(f"{split}: {len(names)} {kind} ({few(names)})")
    return lines


def check(spec: DataSpec, resumed: Mapping[str, Any] | None, folder: Path, *, allow_changed: bool) -> Manifest:
    """The data as they are now; of a resumed run they must be those of its checkpoint. With --allow-changed-data a
    change is said instead, and the list of before kept beside the new one."""
    if resumed:
        check_pixels(spec, resumed["meta"], folder)
    now = Manifest(tuple(spec.names), *fingerprint.of_data(spec))
    if resumed and not resumed["meta"]["config"]["single_cls"] and resumed["meta"]["nc"] != len(now.names):
        raise UserError(
            f"--resume {folder}: its model has {resumed['meta']['nc']} classes, {spec.source} has "
            f"{len(now.names)} now; put the data back, or start a new stage with --weights and --transfer-weights"
        )
    if resumed is None or resumed["meta"]["data"]["fingerprint"] == now.fingerprint:
        return now
    at, file = resumed["meta"], folder / NAME
    old = fingerprint.read_listing(file)
    what = "\n  ".join(
        (differences(old, now.listing) if old else [])
        or ["class names, the order of the images, or files whose list is lost"]
    )
    if not allow_changed:
        raise UserError(
            f"--resume {folder}: the data are not those of its checkpoint:\n  {what}\n"
            "put them back, start a new stage with --weights, or go on all the same with --allow-changed-data"
        )
    said = (
        f"the data have changed:\n  {what}\n--allow-changed-data: the run goes on from the start of epoch "
        f"{at['next_epoch']}, but it is no longer the run that run.yaml describes"
    )
    print(note("data changed", said, epoch=at["next_epoch"]))
    if dist.main():
        with naming(file):
            if old:
                os.replace(file, folder / f"data.until_step_{at['step']}.csv")
            fingerprint.write_listing(file, now.listing)
    return now
