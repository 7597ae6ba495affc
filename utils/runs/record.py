"""What a run writes about itself: its folder, run.yaml, results.csv, results.txt (YOLOv7's columns), timing.csv."""

import csv
import io
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch import Tensor

from utils.runs import fingerprint
from utils.system import dist
from utils.system.errors import UserError
from utils.system.files import ROOT, append_text, write_text

VERSION = "0.1.0"
Row = dict[str, str]  # of a CSV file
WORDS = {"class", "event", "action", "match"}  # columns of CSV files that hold no number


def environment() -> dict[str, Any]:
    """Versions and code state that a run depends on."""
    return {
        "thaw": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),  # importing it takes a second
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "opencv": cv2.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "git": git_state(),
        "code": fingerprint.of_code(),
    }


def machine(device: torch.device) -> dict[str, object]:
    """Where a run computes; its last digits may depend on any of this."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "type": device.type,
        "gpu": gpu,
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "ranks": dist.world(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def conditions(device: torch.device, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """All on which the bits of a run depend beside its inputs: versions and code, machine and arithmetic. Recorded in
    run.yaml and with every checkpoint, compared by each --resume and --replay."""
    return {"environment": environment(), "device": {**machine(device), "dtype": str(dtype).removeprefix("torch.")}}


def changed(then: Mapping[str, object], now: Mapping[str, object], without: Sequence[str] = ()) -> list[str]:
    """A line per condition that is another one now. without: conditions that do not count."""
    lines = []
    for section in ("environment", "device"):
        old, new = (x.get(section) for x in (then, now))
        old, new = (x if isinstance(x, dict) else {"type": x} for x in (old, new))
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) != new.get(key) and key not in without:
                lines.append(f"{key}: then {shown_condition(old, key)}, now {shown_condition(new, key)}")
    return lines


def shown_condition(values: Mapping[str, object], key: str) -> str:
    text = str(values[key]) if key in values else "not recorded"
    return text[:12] if key == "code" else text


def cpu_name() -> str:
    """Model of the processor, as the system calls it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(errors="ignore").splitlines() if listing.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def git_state() -> str:
    """Commit, with -dirty where files differ from it; 'unknown' outside of a checkout."""
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return out.stdout.strip()


def write_run_yaml(path: Path, sections: Mapping[str, object], model: Mapping[str, object]) -> None:
    """run.yaml: command line and the folder where it was given, the given sections (conditions, configuration, patches,
    fingerprints, ...), and the model YAML with a row per line."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    content = {"command": command, "folder": os.getcwd(), **sections}
    write_text(path, as_yaml(content) + as_yaml({"model": model}, None))


def as_yaml(content: Mapping[str, object], flow: bool | None = False) -> str:
    """YAML of plain values: tuples become lists, version objects text. flow None: innermost lists on one line."""
    plain = json.loads(json.dumps(content, default=str))
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=flow))


def as_csv(row: Mapping[str, object], head: bool = True) -> str:
    """A row of a table, with its head above it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerow(row)
    return text.getvalue()


class Results:
    """results.csv (every metric of every epoch, no clock in it), results.txt, timing.csv, guard.csv of a run folder."""

    def __init__(self, folder: Path, keep_epochs: int) -> None:
        """keep_epochs: rows of epochs from here on are dropped (a resumed run writes them again)."""
        self.folder = folder
        if not folder.exists() or not dist.main():
            return
        for file in (self.folder / name for name in ("results.csv", "timing.csv", "guard.csv")):
            if file.exists():
                lines = whole_lines(file)
                epochs = [line.split(",")[0] for line in lines[1:]]
                if damaged := [number for number, epoch in enumerate(epochs, 2) if not epoch.isdecimal()]:
                    raise UserError(f"{file}:{damaged[0]}: damaged, the row begins with no epoch; take it out")
                kept = [line for line, epoch in zip(lines[1:], epochs, strict=True) if int(epoch) < keep_epochs]
                write_text(file, "".join(lines[:1] + kept) if kept else "")
        text = self.folder / "results.txt"
        if text.exists():
            write_text(text, "".join(whole_lines(text)[:keep_epochs]))

    def append(self, name: str, row: Mapping[str, object]) -> None:
        """One row of a CSV; the header is written with the first."""
        file = self.folder / name
        fresh = not file.exists() or file.stat().st_size == 0
        append_text(file, as_csv(row, head=fresh))

    def append_text(self, row: Mapping[str, object], kinds: Sequence[str]) -> None:
        """epoch, memory, box, obj, cls, total, labels, size, P, R, mAP@.5, mAP@.5:.95, validation box, obj, cls:
        YOLOv7's order. kinds: the head's three instead of box, obj, cls, in its order."""
        losses = [row.get(k, 0.0) for k in (*kinds, "total")]
        metrics = [row.get(k, 0.0) for k in ("P", "R", "mAP50", "mAP", *(f"val_{kind}" for kind in kinds))]
        line = (
            f"{row['at']:>10}{row['memory']:>10}"
            + "%10.4g" * 4 % tuple(losses)
            + "%10g" * 2 % (row["labels"], row["size"])
        )
        append_text(self.folder / "results.txt", line + "%10.4g" * 7 % tuple(metrics) + "\n")


def whole_lines(file: Path) -> list[str]:
    """Lines of a text file without a last one that was cut short by a kill."""
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from None


def read_rows(file: Path) -> list[Row]:
    """Rows of a CSV written by Results, without a last one that a kill cut short; empty where there is none."""
    return list(csv.DictReader(whole_lines(file))) if file.is_file() else []


def check_head(file: Path, head: Sequence[str]) -> bool:
    """True; ValueError where a CSV begins otherwise."""
    with open(file, newline="", encoding="utf-8") as stream:
        found = next(csv.reader(stream), [])
    if found[: len(head)] != list(head):
        raise ValueError(f"its head is {','.join(found)!r:.200}, not {','.join(head)!r}")
    return True


def read_table(file: Path, key: str, damage: list[str]) -> list[Row]:
    """Rows of a CSV whose first column is `key`; damaged ones are named and left out."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        damage.append(f"{file}: its last line was cut short (a kill while it was written) and is left out")
    found: list[Row] = []
    reader = csv.DictReader(whole_lines(file))
    if lines and (reader.fieldnames or [""])[0] != key:
        raise ValueError(f"its first column is {(reader.fieldnames or [''])[0]!r:.60}, not {key!r}")
    for row in reader:
        try:
            if None in row or None in row.values():
                raise ValueError("another number of cells than the head has")
            for name, text in row.items():
                if text and name not in WORDS and (name, text) != ("epoch", "start"):
                    int(text) if name == "epoch" else float(text)
        except ValueError as error:
            damage.append(f"{file}:{reader.line_num}: damaged row left out ({error!s:.200})")
            continue
        found.append(row)
    return found


def shown(terms: Mapping[str, Tensor]) -> dict[str, str]:
    """Loss terms of a batch by kind, for the progress bar."""
    return {k: f"{v:.4f}" for k, v in sums_by_kind({n: float(t) for n, t in terms.items()}).items()}


def sums_by_kind(terms: Mapping[str, float]) -> dict[str, float]:
    """`box/head_0`, `box/head_1`, ... added up to `box`; other terms as they are."""
    total: dict[str, float] = {}
    for name, value in terms.items():
        kind = name.split("/")[0]
        total[kind] = total.get(kind, 0.0) + value
    return total
