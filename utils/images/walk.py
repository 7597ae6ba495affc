"""What lies below a folder: the one walk that data YAMLs, detect.py's sources and the converters share.

Sub-folders behind links are walked as others are, each folder once, so that no circle of links is endless and none is
walked twice. Hidden files and folders and macOS's `__MACOSX` are left out and counted. What cannot be opened (a link to
nothing, a pipe, a device, a folder that may not be listed) is named, never passed over.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

# pictures by their suffix that are not read
PICTURES = frozenset((
    ".apng", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dds", ".dib", ".dng", ".exr", ".fits", ".gif", ".hdr", ".heic",
    ".heif", ".ico", ".j2k", ".jfif", ".jif", ".jp2", ".jpe", ".jpx", ".jxl", ".mpo", ".nef", ".orf", ".pbm", ".pcx",
    ".pfm", ".pgm", ".pnm", ".ppm", ".psd", ".raf", ".ras", ".raw", ".rw2", ".sr", ".svg", ".tga", ".xbm", ".xpm",
))  # fmt: skip


@dataclass
class Walk:
    """What was found; `paths` in the order of their parts."""

    paths: list[str] = field(default_factory=list)  # that have one of the wanted suffixes and may be opened
    broken: dict[str, str] = field(default_factory=dict)  # such paths that may not be opened, and folders: why
    hidden: int = 0  # files and folders
    again: int = 0  # folders reached a second time, by a link
    unread: Counter[str] = field(default_factory=Counter)  # pictures of other kinds, by suffix
    other: Counter[str] = field(default_factory=Counter)  # everything else, by suffix

    @property
    def left_out(self) -> str:
        """What was passed over, in words; empty where that is nothing a user would miss."""
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in sorted(self.unread.items()))
        parts = [
            f"{sum(self.unread.values())} pictures of kinds that are not read ({kinds})" if kinds else "",
            f"{self.hidden} hidden files or folders" if self.hidden else "",
            f"{self.again} folders that links lead to a second time" if self.again else "",
        ]
        return ", ".join(filter(None, parts))


def walk(folder: str | Path, suffixes: Collection[str]) -> Walk:
    """Files below `folder` with one of `suffixes` (lower case)."""
    found, seen = Walk(), set[tuple[int, int]]()
    _walk(os.fspath(folder), suffixes, found, seen)
    found.paths.sort(key=lambda path: path.split(os.sep))
    return found


def _walk(folder: str, suffixes: Collection[str], found: Walk, seen: set[tuple[int, int]]) -> None:
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            status = os.stat(place)
            identity = (status.st_dev, status.st_ino)
            if identity in seen and status.st_ino:
                found.again += 1
                continue
            seen.add(identity)
            with os.scandir(place) as entries:
                inside = sorted(entries, key=lambda e: e.name)
        except OSError as error:
            found.broken[place] = f"cannot be listed: {error.strerror}"
            continue
        folders: list[str] = []
        for entry in inside:
            suffix = os.path.splitext(entry.name)[1].lower()
            try:
                folder_here = entry.is_dir()
                if entry.name[0] == "." or entry.name == "__MACOSX":
                    found.hidden += folder_here or suffix in suffixes
                    continue
                if folder_here:
                    # real folders are walked before those behind links, so that theirs is the path that stays
                    folders.insert(0, entry.path) if entry.is_symlink() else folders.append(entry.path)
                    continue
                plain = entry.is_file()
            except OSError:  # a circle of links
                plain = False
            if suffix in suffixes or (not suffix and not plain and entry.is_symlink()):  # it may have been a folder's
                if plain:
                    found.paths.append(entry.path)
                else:
                    found.broken[entry.path] = unusable(entry.path) or "is no file"
            else:
                (found.unread if suffix in PICTURES else found.other)[suffix or entry.name] += 1
        waiting += folders


def unusable(path: str | Path) -> str:
    """Why a path cannot be opened as a file, in words that go on after its name; empty where it can."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "is a link to a file that does not exist" if os.path.islink(path) else "does not exist"
        return "is a circle of links" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
    except ValueError:  # a NUL in the name
        return "is no name of a file"
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return f"is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file"
