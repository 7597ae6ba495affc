"""The one error type for bad input: entry points print it and exit with code 2, without a traceback."""

import os
import reprlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

LONGEST = 4000  # characters of a message


class UserError(ValueError):
    """Says what was wrong, where (file and line, flag, key), and what would be right."""

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]} ...")


class OutputLost(UserError):
    """What is printed cannot be written any more. pipe: because its reader has gone."""

    def __init__(self, said: str, pipe: bool) -> None:
        super().__init__(said)
        self.pipe = pipe


def brief(value: object) -> str:
    """A value that a user gave, for a message: cut while it is formatted, as it may be endless."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 160
    short.maxlevel, short.maxlong = 3, 60
    text = short.repr(value)
    return text if len(text) <= 400 else f"{text[:400]}..."


def fail(message: str) -> NoReturn:
    raise UserError(message)


@contextmanager
def parsing(where: str) -> Iterator[None]:
    """Whatever a parser of foreign bytes raises becomes a UserError that names the file. What can go wrong within a
    library is not for a list of ours to know: any such list lacked members. where: the file, and who asked for it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        said = " ".join(reason[:2000].split()) or type(error).__name__
        raise UserError(f"{where}: {said[:300]}") from None


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """An OSError that names no file, as of a full disk, names the folder that is being written."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise UserError(f"the files in {folder} cannot be written: {error.strerror or error}") from None


@contextmanager
def running(file: Path) -> Iterator[None]:
    """Whatever a user's own code raises becomes a UserError that names its file and the line there."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        trace, line = error.__traceback__, getattr(error, "lineno", None)
        while trace:
            line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == str(file) else line
            trace = trace.tb_next
        where = f"{file}, line {line}" if line else f"{file}"
        raise UserError(f"{where}: {type(error).__name__}: {' '.join(str(error)[:2000].split())[:300]}") from None


@contextmanager
def quiet_pipe(code: int = 128 + signal.SIGPIPE) -> Iterator[None]:
    """Who reads the output has gone (`| head`): the end, without a traceback. code: of the exit; default: that of a
    program in C."""
    try:
        yield
    except (BrokenPipeError, OutputLost) as error:
        if isinstance(error, OutputLost) and not error.pipe:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush finds an open file
        raise SystemExit(code) from None
