"""What a run's user should still know when the screen is long gone: notes by kind, in notes.csv of the run folder.

    print(note("data left out", "train: 3 unusable images", count=3))

`note` gives its text back, so that a place which prints says it once. Notes are kept while `collecting` (train.main)
is active, first in memory, from `keep_in` on in the file; elsewhere (test.py, a tool) note does nothing else. One that
the file already has, of the same epoch, kind and text, is not written again: what a resumed run says anew at its start,
or in an epoch that it repeats, stands there once.
notes.csv: epoch (from 0; empty: said at a start), kind, count (how many things the text is about), text on one line.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from utils.system import dist
from utils.system.files import append_text, write_text

NAME = "notes.csv"
COLUMNS = ["epoch", "kind", "count", "text"]
Row = dict[str, str]


@dataclass
class Notes:
    """Those of one run."""

    waiting: list[Row] = field(default_factory=list)  # for a file
    file: Path | None = None
    known: set[tuple[str, ...]] = field(default_factory=set)  # what is in the file


_active: ContextVar[Notes | None] = ContextVar("notes", default=None)  # set for as long as `collecting` lasts


@contextmanager
def collecting() -> Iterator[None]:
    """A run: its notes and no other's. Serves as a decorator, too."""
    before = _active.set(Notes())
    try:
        yield
    finally:
        _active.reset(before)


def note(kind: str, text: str, *, count: int = 1, epoch: int | None = None) -> str:
    """Keep a note, and give its text back. epoch: from 0, of what happened in one; None: of a start."""
    notes = _active.get()
    if notes is not None and dist.main():
        at = "" if epoch is None else str(epoch)
        notes.waiting.append({"epoch": at, "kind": kind, "count": str(count), "text": " ".join(text.split())})
        flush(notes)
    return text


def warn(kind: str, text: str, *, count: int = 1, epoch: int | None = None) -> None:
    """Keep a note, and print it as a warning."""
    print("warning: " + note(kind, text, count=count, epoch=epoch))


def keep_in(folder: Path, fresh: bool) -> None:
    """From now on in this folder's notes.csv, what was kept so far included. fresh: not after what is there."""
    notes = _active.get()
    if notes is None or not dist.main():
        return
    notes.file = folder / NAME
    rows = [] if fresh else read_notes(folder)
    write_text(notes.file, ",".join(COLUMNS) + "\n" + as_csv(rows))  # without a line that a kill cut short
    notes.known = {identity(row) for row in rows}
    flush(notes)


def flush(notes: Notes) -> None:
    if notes.file is None:
        return
    new = {identity(row): row for row in notes.waiting if identity(row) not in notes.known}
    notes.waiting = []
    notes.known |= new.keys()
    if new:
        append_text(notes.file, as_csv(list(new.values())))


def read_notes(folder: Path) -> list[Row]:
    """The notes of a run folder; empty where there are none."""
    file = folder / NAME
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if file.is_file() else []
    rows = csv.DictReader(line for line in lines if line.endswith("\n"))
    return [r for r in rows if set(r) == set(COLUMNS) and None not in r.values() and r["count"].isdecimal()]


def as_csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
    return text.getvalue()


def identity(row: Row) -> tuple[str, ...]:
    return tuple(row[k] for k in ("epoch", "kind", "text"))
