"""SHA-256 fingerprints of what a run is made from and of what it ends in.

Tensors: over name, type, shape and bytes of each, in order of name, so that neither the file they lie in, nor their
order in it, nor their memory layout counts. Files: over the bytes. Data sets: over class names, the bytes of every
image and label and the classes of whole images, in the order of the data YAML; the listing says them file by file.
"""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.data.scan import fingerprint, scan_split
from utils.data.spec import DataSpec
from utils.seams import Source
from utils.system.files import ROOT

NOT_READ = {"weights", "resume", "replay"}  # of_start has the weights; the other two name runs, not inputs
COLUMNS = ("file", "image", "label", "class")
Row = tuple[str, ...]  # first 16 digits of the SHA-256 of an image and of its label ("" without one), its class if any
Listing = dict[str, Row]  # by split and path, e.g. `train images/train/0001.jpg`; in the order of the data YAML


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """One fingerprint of named tensors of any type, shape, device and memory layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_in(content: object, name: str = "") -> dict[str, Tensor]:
    """The tensors of nested dicts and lists (the state of an optimizer, say) by their dotted place."""
    if isinstance(content, Tensor):
        return {name: content}
    pairs: Any = ()
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, (list, tuple)):
        pairs = enumerate(content)
    return {k: v for key, value in pairs for k, v in tensors_in(value, f"{name}.{key}" if name else str(key)).items()}


def of_file(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_code() -> str:
    """Our own source files: names and bytes. What the commit says, and what was changed since."""
    digest = hashlib.sha256()
    folders = (ROOT / name for name in ("models", "utils", "patches"))
    files = [ROOT / "train.py", *(p for folder in folders for p in folder.rglob("*.py"))]
    for file in sorted(files):
        digest.update(f"{file.relative_to(ROOT)} {of_file(file)}\n".encode())
    return digest.hexdigest()


def of_flags(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """{flag: {path, sha256}} of every value of the configuration and of the patches' flags that is an existing file.

    settings: {"config": {...}, "patches": {name: {...}}}. No patch needs to tell what it reads.
    """
    found: dict[str, dict[str, str]] = {}
    for flags in (settings["config"], *settings["patches"].values()):
        for flag, value in flags.items():
            for word in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(word, str) and word and flag not in NOT_READ and Path(word).is_file():
                    found[flag] = {"path": word, "sha256": of_file(word)}
    return found


def of_start(source: Source | None) -> dict[str, str | None]:
    """The checkpoint that a run starts from: its path, fingerprints of file and tensors, and the folder of the run that
    wrote it (None for a foreign or a moved file). Empty from scratch."""
    if source is None:
        return {}
    folder = Path(source.path).parent.parent
    known = Path(source.path).parent.name == "weights" and (folder / "run.yaml").is_file()
    prints = {"sha256": of_file(source.path), "tensors": of_tensors(source.state)}
    return {"weights": source.path, **prints, "run": str(folder) if known else None}


def of_data(spec: DataSpec) -> tuple[str, Listing]:
    """Fingerprint of the training and validation images and labels, and the same file by file."""
    scans = {split: scan_split(spec, split, on_bad_data="skip", on_missing_pair="single") for split in ("train", "val")}
    rows: Listing = {}
    for split, scan in scans.items():
        for path, image, label, kind in scan.contents:
            inside = path.relative_to(spec.root) if path.is_relative_to(spec.root) else path
            rows[f"{split} {inside.as_posix()}"] = (image[:16], label[:16], *([kind] if spec.cls_names else []))
    return fingerprint(spec, list(scans.values())), rows


def write_listing(path: Path, listing: Listing) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS[: 1 + max(map(len, listing.values()), default=2)])
        writer.writerows((name, *row) for name, row in listing.items())


def read_listing(path: Path) -> Listing:
    """What write_listing wrote; empty where there is none."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        lines: Sequence[Sequence[str]] = list(csv.reader(file))[1:]
    return {line[0]: tuple(line[1:]) for line in lines if len(line) in (3, 4)}
