"""One process writes into a run folder: it is made by exactly one, and locked as long as that one lives.

The lock is a record lock (fcntl.lockf) on `run.lock`. The system frees it when the process ends, by kill -9 too; unlike
a flock it does not live on in the loader's worker processes, so a killed run can be resumed at once. Where the file
system has no locks the run goes on without, and says so.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from utils.system import dist
from utils.system.errors import UserError
from utils.system.notes import note

NAME = "run.lock"
LOG = "log.txt"  # what the run says, where another program started it (utils/study/child.py)
STUDY = "study.lock"  # held by the study that trains the run (utils/study/jobs.py)
LEFT = {NAME, LOG, STUDY}  # in a folder where nothing was begun
BEGUN = {*LEFT, "run.yaml", "data.csv", "notes.csv", "labels.png", "train_batch0.jpg", "weights"} | {
    "start.csv",
    "start_per_class.csv",
}  # in one of a run that has saved nothing
HELD = (errno.EACCES, errno.EAGAIN)
PATIENCE = 5  # tries, a tenth of a second apart


class Held(UserError):
    """Another process has the right."""

    def __init__(self, text: str, holder: str) -> None:
        super().__init__(text)
        self.holder = holder


class Lock:
    """The right to write into `folder`, until the end of the process or of a `with`. A folder that was made for it and
    into which nothing was written goes with it: a start that is refused leaves no trace. name: of the file."""

    def __init__(self, folder: Path, made: bool = False, name: str = NAME) -> None:
        self.folder, self.made = folder, made
        self.path = folder / name
        try:
            self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115  held, not used up
        except OSError as error:
            raise UserError(f"cannot write into the run folder {folder}: {error.strerror}") from None
        for attempt in reversed(range(PATIENCE)):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in HELD:
                    said = f"{self.path}: there are no locks here ({error.strerror})"
                    print(note("no locks", f"{said}: see to it that no other run writes into {folder}"))
                    return
                if not attempt:
                    raise Held(
                        f"run folder {folder} is being written by {self.holder()}: wait for its end, stop it, or "
                        "choose another --name",
                        self.holder(),
                    ) from None
                time.sleep(0.1)  # somebody may only be looking whether the folder is in use
        if not self.path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
            raise UserError(f"run folder {folder} was removed at this moment by another start; try again")
        text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its holder's name
            self._file.truncate(0)
            self._file.write(text.encode())

    def holder(self) -> str:
        self._file.seek(0)
        return self._file.read().decode(errors="replace").strip() or "another process"

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # where the folder was removed or renamed meanwhile
            if self.made and set(os.listdir(self.folder)) == {self.path.name}:
                self.path.unlink()
                self.folder.rmdir()
        self._file.close()


def holder(folder: Path) -> str:
    """Who writes into this run folder now; empty where nobody does, or where locks do not tell."""
    with contextlib.suppress(OSError), open(folder / NAME, "rb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back with the file
        except OSError as error:
            if error.errno in HELD:
                return file.read().decode(errors="replace").strip() or "another process"
    return ""


def saved_nothing(folder: Path) -> bool:
    """Whether a start that was ended before its first checkpoint left this folder, and nobody put anything into it."""
    files = {file.name for file in folder.iterdir() if file.suffix != ".part"}  # half written
    return files <= BEGUN and not any(file.suffix != ".part" for file in folder.glob("weights/*"))


def claim(
    project: str, name: str, *, named: bool, exist_ok: bool, resumes: bool = False
) -> tuple[Path, contextlib.AbstractContextManager[object]]:
    """As new_run, for one of several ranks: the folder, and the right to write there, which rank 0 takes."""
    held = new_run(project, name, named=named, exist_ok=exist_ok, resumes=resumes) if dist.main() else None
    return dist.share(held.folder if held else Path()), held or contextlib.nullcontext()


def new_run(project: str, name: str, *, named: bool, exist_ok: bool, resumes: bool = False) -> Lock:
    """project/name, made and locked. The default name counts up (exp, exp2, ...) until a folder can be made; a chosen
    one must be free, or --exist-ok given. resumes: whether the program has --resume."""
    wished = Path(project) / name
    try:
        wished.parent.mkdir(parents=True, exist_ok=True)
        for i in range(1, 10**6):
            path = wished if i == 1 else wished.with_name(f"{name}{i}")
            try:
                path.mkdir()  # the one step at which two starts cannot both succeed
                return Lock(path, made=True)
            except FileExistsError:
                if named or exist_ok:
                    break
    except OSError as error:
        raise UserError(f"--project {project}: cannot make {wished}: {error.strerror}") from None
    if not wished.is_dir():
        raise UserError(f"--project {project}: {wished} is there and not a folder")
    found = set(os.listdir(wished))
    lock = Lock(wished, made=bool(found) and found <= LEFT)  # says first when somebody is at work there
    if not exist_ok and not saved_nothing(wished):
        resume = f" continue it with --resume {wished}," if resumes else ""
        raise UserError(
            f"run folder {wished} exists: choose another --name,{resume} or replace its files with --exist-ok"
        )
    return lock
