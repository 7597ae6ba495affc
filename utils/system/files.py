"""Files that are there whole or not at all, and messages that name the one that could not be written."""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the project
KEPT = "what was saved before is untouched, and --resume goes on from it"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system says while `path` is written (disk full, read-only, folder gone) as a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; {KEPT}") from None


def write_whole(path: Path, write: Callable[[BinaryIO], object], keep: Path | None = None) -> None:
    """`write` fills a file aside, which takes the name when all of it is on the disk. A failure leaves what was there
    before, nothing else, and is a UserError. keep: the name under which the file of before stays."""
    aside = path.with_suffix(f".{os.getpid()}.part")
    with naming(path):
        try:
            with open(aside, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if keep:
                keep_as(path, keep)
            os.replace(aside, path)
            sync_folder(path.parent)
        except RuntimeError as error:  # torch.save closes its archive on the way out and hides the reason behind that
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def keep_as(path: Path, kept: Path) -> None:
    """`path`, if there is one, under a second name as well; on a file system without hard links it moves there."""
    spare = kept.with_suffix(f".{os.getpid()}.part")
    try:
        os.link(path, spare)
        os.replace(spare, kept)
    except FileNotFoundError:
        return
    except OSError:
        os.replace(path, kept)
    finally:
        spare.unlink(missing_ok=True)  # it is still there where both names were one file already


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))


def append_text(path: Path, text: str) -> None:
    """All of the text at the end of a file and on the disk, or none of it and a UserError."""
    with naming(path):
        before = path.stat().st_size if path.exists() else None
        try:
            with open(path, "a", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink() if before is None else os.truncate(path, before)
            raise


def sync_folder(folder: Path) -> None:
    """Names in a folder survive a loss of power, too; not every file system offers that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
