"""The files that detect.py and test.py write: named by their source, and known to the next run into the same folder."""

import csv
import re
from pathlib import Path

from utils.system.errors import UserError

WRITTEN = "written.txt"  # in the folder: every file of the run, so that the next one with --exist-ok can remove them


class Stems:
    """One name without suffix for each source, for all files that are made of it: that of its file, numbered where
    another source has it (x.png of two folders). A video's frames are STEM_1, STEM_2, ...; no picture is called so."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}  # source -> stem
        self.moving: set[str] = set()  # stems of videos

    def of(self, source: str, moving: bool = False) -> str:
        """The stem of a source, always the same one."""
        if source not in self.given:
            public = re.sub(r"://[^/@]*@", "://", source)  # a name and a password in an address are not for file names
            plain = re.sub(r"[^\w.-]+", "_", public) if "://" in source else Path(source).stem
            plain = f"camera{plain}" if source.isdigit() else plain
            plain += "_picture" * (plain in self.moving and not moving)  # its numbers are those of the video's frames
            stem, number, taken = plain, 2, set(self.given.values())
            while stem in taken or self._meets(stem, moving, taken):
                stem, number = f"{plain}_{number}", number + 1
            self.given[source] = stem
            if moving:
                self.moving.add(stem)
        return self.given[source]

    def _meets(self, stem: str, moving: bool, taken: set[str]) -> bool:
        """Whether a video's frame and another source would have one name."""
        if moving:
            return any(re.fullmatch(re.escape(stem) + r"_\d+", other) for other in taken - self.moving)
        before = re.fullmatch(r"(.*)_\d+", stem)
        return before is not None and before[1] in self.moving

    @property
    def numbered(self) -> dict[str, str]:
        """{stem: source} of those that are not called as their file is."""
        return {stem: source for source, stem in self.given.items() if stem != Path(source).stem}


class Outputs:
    """The files of one run in its folder. Those of an earlier run are removed first, as far as it said that they are
    its own: a folder may hold pictures of somebody else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stems = folder, Stems()
        self.known: set[str] = set()
        listing = folder / WRITTEN
        for name in listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []:
            path = folder / name
            if name and path.resolve().is_relative_to(folder.resolve()):
                path.unlink(missing_ok=True)
        listing.unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """Where to write a file of the run, `labels/x.txt`; it is the run's from now on. Errors: UserError."""
        path = self.folder / name
        if name not in self.known:
            self.known.add(name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.folder / WRITTEN, "a", encoding="utf-8") as file:
                    file.write(name + "\n")
            except OSError as error:
                raise UserError(f"{path} cannot be written: {error.strerror}") from None
        return path

    def text(self, name: str, content: str) -> None:
        """Errors: UserError where it cannot be written."""
        path = self.path(name)
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None

    def tell_numbered(self) -> None:
        """names.csv: which source a numbered name stands for; none where every name is that of its file."""
        if self.stems.numbered:
            with open(self.path("names.csv"), "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([("name", "source"), *self.stems.numbered.items()])
