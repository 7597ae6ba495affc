"""Files that are there whole or not at all, and messages that name the one that could not be written."""

import codecs
import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from utils.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]  # of the project


def decoded(content: bytes) -> str:
    """Text as editors write it: UTF-8 with or without a byte order mark, UTF-16 with. Errors: UnicodeDecodeError."""
    wide = content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return content.decode("utf-16" if wide else "utf-8-sig")


def plain_bytes(path: str | Path) -> bytes:
    """A plain file; OSError for a pipe or a device as well, which might never end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "is a pipe or a device, not a file", str(path))
        return file.read()


def read_text(path: str | Path) -> str:
    """The text of a plain file. Errors: UserError naming it."""
    try:
        return decoded(plain_bytes(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # UnicodeDecodeError, or a NUL in the name
        raise UserError(f"{path} is no text (UTF-8): {error}") from None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system says while `path` is written (disk full, read-only, folder gone) as a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


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
