"""last.pt and previous.pt of a run: one of the two is whole at any moment, and a damaged one is not the end.

A save writes the new file aside and flushes it; the last.pt of before becomes previous.pt, then the new one takes its
name (utils/system/files.py). The price: the space of one more checkpoint, and no time (a hard link).
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.system.errors import UserError
from utils.system.files import naming
from utils.system.processes.program import Ended
from utils.system.table import few
from utils.system.yaml_file import read_yaml
from utils.weights.checkpoint import read_resumable

LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", "last.damaged.pt"
MOVES = ("device", "workers", "allow_changed_data", "data", "resume")  # settings that a resume may change
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
    path = path.resolve() if path.is_symlink() else path
    if not path.is_file() and not (path.name == LAST and path.with_name(PREVIOUS).is_file()):
        begun = path.parent.parent / "run.yaml"
        cure = f"; nothing was saved there yet: begin anew with its command (in {begun}) and --exist-ok"
        raise UserError(f"--resume {resume}: there is no checkpoint {path}" + cure * begun.is_file())
    return path


def check_place(path: Path) -> None:
    """A run goes on in its own folder only, from its last.pt or previous.pt: whatever else lies beside another file
    would be overwritten."""
    if not path.is_file() and path.name == LAST:
        return
    stage = f"to begin a new stage from it: --weights {path}"
    if path.parent.name != "weights" or not (path.parent.parent / "run.yaml").is_file():
        raise UserError(
            f"--resume {path}: it does not lie in the folder of a run (RUN/weights/{LAST} beside RUN/run.yaml); put it "
            f"back there, or, {stage}"
        )
    if path.name not in (LAST, PREVIOUS):
        read_resumable(path)  # which says where it holds weights only
        raise UserError(f"--resume {path}: a run goes on from its {LAST}: --resume {path.parent.parent}; {stage}")


def check_run(path: Path, config: Mapping[str, object], recorded: object) -> None:
    """The checkpoint at `path`, written by a run of settings `config`, is of the run whose run.yaml says `recorded`."""
    recorded = recorded if isinstance(recorded, dict) else {}
    old, new = ({k: json.dumps(v) for k, v in each.items() if k not in MOVES} for each in (recorded, config))
    if other := [f"{k} {new.get(k, '-')}, there {old.get(k, '-')}" for k in {**old, **new} if old.get(k) != new.get(k)]:
        raise UserError(
            f"--resume {path}: it is a checkpoint of another run than the one in {path.parent.parent} (run.yaml: "
            f"{few(other, sep='; ')}); put it back into its own run's weights/, or begin a new stage with --weights"
        )


def ended(folder: Path) -> str:
    """Where the run has ended: how, and what can be done with it now; empty while it can go on."""
    if not (folder / "result.yaml").is_file():
        return ""
    result = read_yaml(folder / "result.yaml", "--resume")
    early = f" ({result['ended']})" if result.get("ended") else ""
    return (
        f"{folder} has ended after {result.get('epochs')} epochs{early}: there is nothing to go on with. To train it "
        f"further begin a new stage: python train.py --weights {folder / 'weights' / LAST} ... --name NEW"
    )


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


def clear(folder: Path) -> None:
    """Remove what a killed process left half written. To be called by the one process that may write there."""
    for part in [*folder.glob("*.part"), *folder.glob("weights/*.part")]:
        with naming(part):
            part.unlink()


@contextmanager
def way_on(folder: Path) -> Iterator[None]:
    """What ends a run, by an error or a signal, says also how to go on; what names --resume itself stays."""
    try:
        yield
    except UserError as error:
        raise UserError(with_way(str(error), folder)) from None
    except Ended as asked:
        raise Ended(asked.number, with_way("", folder)) from None


def with_way(said: str, folder: Path) -> str:
    if "--resume" in said:
        return said
    gap = "\n" if said else ""
    if any((folder / "weights" / name).is_file() for name in (LAST, PREVIOUS)):
        return f"{said}{gap}what was saved before is untouched; go on with: python train.py --resume {folder}"
    if not folder.is_dir():
        moved = "if it was moved, go on with: python train.py --resume ITS_PLACE_NOW"
        return f"{said}{gap}the run folder {folder} is no longer there; {moved}" if said else ""
    begun = (folder / "run.yaml").is_file()
    return f"{said}{gap}nothing was saved yet (no --resume): the same command begins anew" if begun else said


def drop_previous(weights: Path) -> None:
    """At the end of a run that was to save once: what stops and clocks left beside its last.pt."""
    with naming(weights / PREVIOUS):
        (weights / PREVIOUS).unlink(missing_ok=True)


def forget(weights: Path) -> None:
    """A run that replaces another one's files (--exist-ok) must not be resumed from that one's state."""
    for file in (weights / LAST, weights / PREVIOUS, *weights.glob(f"{BEFORE}*.pt")):
        with naming(file):
            file.unlink(missing_ok=True)
