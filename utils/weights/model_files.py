"""Model YAMLs by name: the user's, and those of cfg/training, one file of which may describe a model in several sizes.

Of a file with `scales` the size is the letter in the name that was asked for: `yolo11s.yaml` is that file itself, else
`yolo11.yaml` in size s; `yolov5su.yaml` is `yolov5u.yaml` in size s.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.rows import OTHER_NETWORK, SETTINGS
from utils.system.errors import UserError
from utils.system.files import ROOT
from utils.system.notes import note
from utils.system.yaml_file import located, read_yaml

FOLDER = "cfg/training"
SIZED = re.compile(r"(.*\d)([a-z])(u?)(\W.*)?")  # name, letter of the size, kind of head, what a user put behind


def read_model(cfg: str) -> dict[str, Any]:
    """The model YAML of --cfg; a bare name is looked for among those of the program, too. Keys that nothing here reads
    are said."""
    path, letter = Path(cfg), ""
    if parts := SIZED.fullmatch(path.stem):
        letter = parts[2]
        several = path.with_name(f"{parts[1]}{parts[3]}{path.suffix}")
        if not located(path, [FOLDER]).is_file() and located(several, [FOLDER]).is_file():
            path = several
    spec = read_yaml(path, "--cfg", [FOLDER])
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


def shipped() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of every model file of the program, each size of one with several by itself, and what it says."""
    for file in sorted((ROOT / FOLDER).glob("*.yaml")):
        spec = read_yaml(file)
        for letter in spec.get("scales", [""]):
            name = f"{file.stem[:-1]}{letter}u" if letter and file.stem.endswith("u") else f"{file.stem}{letter}"
            yield f"{FOLDER}/{name}.yaml", {**spec, "scale": letter} if letter else spec
