"""Model YAMLs by name: the user's, and those of cfg/training and cfg/hub, some of which describe several sizes.

Of a file with `scales` the size is the letter in the name that was asked for: `yolo11s.yaml` is that file itself, else
`yolo11.yaml` in size s; `yolov5su.yaml` is `yolov5u.yaml` in size s.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from models.rows import OTHER_NETWORK, SETTINGS
from utils.system.errors import UserError
from utils.system.files import ROOT
from utils.system.notes import note
from utils.system.yaml_file import located, read_yaml

FOLDERS = ["cfg/training", "cfg/hub"]  # deploy and baseline have names of theirs again
DETECTORS = {"Segment": ("cv4.", "proto."), "Pose": ("cv4.",)}  # heads that are a detector and more, by the parts of it
SIZED = re.compile(r"(.*\d)([a-z])(u?)(\W.*)?")  # name, letter of the size, kind of head, what a user put behind


def read_model(cfg: str) -> dict[str, Any]:
    """The model YAML of --cfg; a bare name is looked for among those of the program, too. Keys that nothing here reads
    are said."""
    path, letter = Path(cfg), ""
    if parts := SIZED.fullmatch(path.stem):
        letter = parts[2]
        several = path.with_name(f"{parts[1]}{parts[3]}{path.suffix}")
        if not located(path, FOLDERS).is_file() and located(several, FOLDERS).is_file():
            path = several
    spec = read_yaml(path, "--cfg", FOLDERS)
    if "scales" in spec:
        spec = sized(spec, letter, cfg)
    if unknown := sorted(str(key) for key in spec if key not in SETTINGS | OTHER_NETWORK.keys()):
        said = f"{cfg}: {', '.join(unknown)[:200]}: not known in a model YAML, without effect"
        print(note("unknown keys", said, count=len(unknown)))
    return spec


def sized(spec: dict[str, Any], letter: str, where: str) -> dict[str, Any]:
    """With the size as `scale`; UserError where neither the file nor its name says one."""
    scale = spec.get("scale", letter)
    if not isinstance(spec["scales"], dict) or scale not in spec["scales"]:
        stem, listed = Path(where).stem, ", ".join(map(str, spec["scales"])) if spec["scales"] else ""
        if "scale" in spec or not listed:
            raise UserError(f"{where}: scale {scale!r} is none of its scales: {listed or 'there are none'}")
        raise UserError(f"{where} describes several sizes ({listed}): name one, as in {stem}{listed[0]}.yaml")
    return {**spec, "scale": scale}


@cache
def shipped() -> Sequence[tuple[str, dict[str, Any]]]:
    """Name of every model file of the program, each size of one with several by itself, and what it says."""
    found = []
    for file in (file for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.yaml"))):
        spec = read_yaml(file)
        for letter in spec.get("scales", [""]):
            name = f"{file.stem[:-1]}{letter}u" if letter and file.stem.endswith("u") else f"{file.stem}{letter}"
            found.append((str(file.relative_to(ROOT).with_stem(name)), {**spec, "scale": letter} if letter else spec))
    return found


def detector_part(spec: dict[str, Any] | None) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The model YAML of a file of another program with the detector that its last row contains, and what the keys of
    the row's other tensors begin with."""
    rows = (spec or {}).get("head")
    last = rows[-1] if isinstance(rows, list) and rows else None
    if not spec or not isinstance(rows, list) or not isinstance(last, list) or len(last) != 4:
        return spec, ()
    if not isinstance(last[2], str) or last[2] not in DETECTORS or not isinstance(spec.get("backbone"), list):
        return spec, ()
    detect = [*rows[:-1], [*last[:2], "Detect", ["nc"]]]
    number = len(spec["backbone"]) + len(rows) - 1
    kept = {k: v for k, v in spec.items() if k != "kpt_shape"}
    return {**kept, "head": detect}, tuple(f"model.{number}.{part}" for part in DETECTORS[last[2]])


def linear_pools(spec: dict[str, Any] | None, activations: Mapping[str, str]) -> dict[str, Any] | None:
    """The model YAML, saying of each SPPF whose first convolution has no activation in the file that it has none: some
    releases of Ultralytics build it so, with the same YAML."""
    parts: dict[str, Any] = {}
    number = 0
    for part in ("backbone", "head"):
        rows = (spec or {}).get(part)
        parts[part] = list(rows) if isinstance(rows, list) else rows
        for i, row in enumerate(rows if isinstance(rows, list) else ()):
            linear = activations.get(f"model.{number}.cv1.act") == "Identity"
            if linear and isinstance(row, list) and row[2:3] == ["SPPF"] and isinstance(row[-1], list):
                args = row[-1]
                parts[part][i] = [*row[:-1], [*args[:2], *[5][: 2 - len(args[:2])], False]]
            number += 1
    return {**spec, **parts} if spec else spec
