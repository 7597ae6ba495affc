"""last.pt and previous.pt of a run: one of the two is whole at any moment, and a damaged one is not the end.

A save writes the new file aside and flushes it; the last.pt of before becomes previous.pt, then the new one takes its
name (utils/system/files.py). The price: the space of one more checkpoint, and no time (a hard link).
"""

import os
from pathlib import Path
from typing import Any

from utils.system.errors import UserError
from utils.system.files import naming
from utils.weights.checkpoint import read_resumable

LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", "last.damaged.pt"
BEFORE = "before_epoch_"  # and the epoch of an opening: to where utils.guard goes back


def find(resume: str, project: str) -> Path:
    """The last.pt that --resume means: a file, a run folder, or, for `auto`, the newest below `project`. It may be
    missing where there is a previous.pt."""
    if resume == "auto":
        found = [p for name in (LAST, PREVIOUS) for p in Path(project).glob(f"**/weights/{name}")]
        if not found:
            raise UserError(f"--resume: there is no weights/{LAST} below {project}")
        return max(found, key=lambda p: p.stat().st_mtime).with_name(LAST)
    path = Path(resume)
    path = path / "weights" / LAST if path.is_dir() else path
    if not path.is_file() and not (path.name == LAST and path.with_name(PREVIOUS).is_file()):
        raise UserError(f"--resume {resume}: there is no checkpoint {path}")
    return path


def read(path: Path) -> tuple[dict[str, Any], str]:
    """The checkpoint to go on from, and what is wrong with `path` where that is the previous one ("": nothing)."""
    previous = path.with_name(PREVIOUS)
    try:
        return read_resumable(path), ""
    except UserError as error:
        if path.name != LAST or not previous.is_file():
            raise
        try:
            content = read_resumable(previous)
        except UserError as second:
            raise UserError(f"{error}\nand the one before it: {second}") from None
        return content, f"{error}\ngoing on from the checkpoint before it, {previous} (step {content['meta']['step']})"


def put_aside(path: Path) -> None:
    """Another name for a damaged last.pt, as the next save would keep it in place of the good one. To be called by the
    one process that may write there, when all have read."""
    if path.exists():
        aside = path.with_name(DAMAGED)
        with naming(aside):
            os.replace(path, aside)
        print(f"the damaged file is now {aside}")


def clear(weights: Path) -> None:
    """Remove what a killed process left half written. To be called by the one process that may write there."""
    for part in weights.glob("*.part"):
        with naming(part):
            part.unlink()


def forget(weights: Path) -> None:
    """A run that replaces another one's files (--exist-ok) must not be resumed from that one's state."""
    for file in (weights / LAST, weights / PREVIOUS, *weights.glob(f"{BEFORE}*.pt")):
        with naming(file):
            file.unlink(missing_ok=True)
