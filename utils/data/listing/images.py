"""The images that an entry of a data YAML names: of a folder, of a .txt list, or of a COCO annotation file.

Paths are looked for in the places that YOLOv5, YOLOv7, Ultralytics and Roboflow mean by them; an error lists them all.
An image that is given twice counts once, and that is said. A list may have a byte order mark, `#` comments and Windows'
line ends and backslashes.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.data.labels import Problem
from utils.data.listing.coco_json import Annotated, read_annotations
from utils.images.read import SUFFIXES
from utils.images.walk import unusable, walk
from utils.system.errors import UserError, brief
from utils.system.files import read_text


@dataclass(frozen=True)
class Listed:
    """The images of a split, in the order of the YAML."""

    files: tuple[Path, ...] = ()
    said: tuple[str, ...] = ()  # what was passed over or counted once
    problems: tuple[Problem, ...] = ()  # unusable annotations
    annotated: Mapping[Path, Annotated] = field(default_factory=dict)  # by image, where a COCO file holds its objects


def places(entry: str, bases: Sequence[Path], folders: Sequence[str] = ("",)) -> list[Path]:
    """Where `entry` may lie: below each base, and there below each of `folders`; then likewise with / for Windows' \\
    and without leading ../"""
    written = [os.path.expanduser(spelling) for spelling in spellings(entry)]
    written += [re.sub(r"^(\.\./)+", "", s) for s in written]  # Roboflow writes ../train for what lies beside the YAML
    return list(dict.fromkeys(base / folder / spelling for spelling in written for folder in folders for base in bases))


def first_there(source: Path, key: str, entry: object, candidates: Sequence[Path], hint: str = "") -> Path:
    """The first of the places that exists. Errors: UserError listing all of them."""
    for place in candidates:
        if os.path.exists(place):
            return place
    looked = [f"{p}" if (why := unusable(p)) == "does not exist" else f"{p} ({why})" for p in candidates]
    raise UserError(
        f"{source}: {key}: {entry} does not exist; looked for:\n  "
        + "\n  ".join(looked)
        + (f"\n{hint}" if hint else "")
    )


def list_split(
    source: Path, split: str, entries: object, root: Path, names: Sequence[str], download: str = ""
) -> Listed:
    """The images of one split. names: the classes, for COCO files. Errors: UserError naming the file and the key."""
    files: list[Path] = []
    said: list[str] = []
    problems: list[Problem] = []
    annotated: dict[Path, Annotated] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        pictures = None
        if isinstance(entry, dict) and set(entry) == {"annotations", "images"}:
            entry, pictures = entry["annotations"], entry["images"]
        if not isinstance(entry, str) or not isinstance(pictures or "", str):
            wanted = "a path, or {annotations: a COCO file, images: the folder of its images}"
            raise UserError(f"{source}: {split}: expected {wanted}, found {brief(entry)}")
        bases = [root, source.parent, Path()]
        where = first_there(source, split, entry, places(entry, bases), download)
        if pictures is not None or where.suffix.lower() == ".json":
            folder = None
            if pictures is not None:
                folder = first_there(source, f"{split}: images", pictures, places(pictures, bases), download)
            coco = read_annotations(where, names, root, folder)
            files += coco.objects
            said += coco.said
            problems += coco.problems
            annotated |= coco.objects
        elif where.is_dir():
            found, left_out = images_below(source, split, where)
            files += found
            said += [left_out] if left_out else []
        elif where.suffix.lower() == ".txt":
            files += images_of_list(where, root)
        else:
            raise UserError(f"{source}: {split}: {where} is neither a folder, a .txt list of images nor a COCO .json")
    once = each_once(files)
    if len(once) < len(files):
        said.append(f"{len(files) - len(once)} images are given more than once; each counts once")
    return Listed(tuple(once), tuple(said), tuple(problems), annotated)


def each_once(files: Sequence[Path]) -> list[Path]:
    """The files without repetitions, told by their real folder and their name."""
    folders: dict[str, str] = {}
    kept: dict[tuple[str, str], Path] = {}
    for file in files:
        folder, name = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        kept.setdefault((folders[folder], name), file)
    return list(kept.values())


def images_below(source: Path, split: str, folder: Path) -> tuple[list[Path], str]:
    """Images below a folder, in the order of their paths, name by name, those that cannot be opened among them: the
    scan names these. And what was left out, in words."""
    found = walk(folder, SUFFIXES)
    images = sorted([*found.paths, *found.broken], key=lambda path: path.split(os.sep))
    if os.fspath(folder) in found.broken:
        raise UserError(f"{source}: {split}: folder {folder} {found.broken[os.fspath(folder)]}")
    if not images:
        kinds = ", ".join(sorted(found.unread | found.other)[:5])
        raise UserError(
            f"{source}: {split}: folder {folder} holds no image ({' '.join(sorted(SUFFIXES))})"
            + (f"; it holds {kinds}" if kinds else "; it is empty")
            + (f" (and {found.left_out})" if found.hidden or found.again else "")
        )
    return list(map(Path, images)), f"{folder}: left out: {found.left_out}" if found.left_out else ""


def images_of_list(listing: Path, root: Path) -> list[Path]:
    """Images named in a .txt list, one per line, relative to the list's folder, the data root or the working folder."""
    bases, files = [listing.parent, root, Path()], []
    for number, line in enumerate(read_text(listing).splitlines(), 1):
        name = line.strip()
        if not name or (name[0] == "#" and not os.path.exists(listing.parent / name)):
            continue
        if os.path.splitext(name)[1].lower() not in SUFFIXES:
            kinds = f"has no image suffix ({' '.join(sorted(SUFFIXES))})"
            raise UserError(
                f"{listing}:{number}: {brief(name)} {kinds}; a list names one image per line and nothing behind it, "
                "label files are found by the images' names"
            )
        hit = next(((b, n) for n in spellings(name) for b in bases if os.path.exists(os.path.join(b, n))), None)
        if hit is None:
            files.append(Path(os.path.join(listing.parent, name)))
            continue
        base, name = hit
        if base is not bases[0]:
            bases.remove(base)
            bases.insert(0, base)  # where one image was found the next one will be
        files.append(Path(os.path.join(base, name)))
    if not files:
        raise UserError(f"{listing}: the list is empty; one image path per line is expected")
    return files


def spellings(name: str) -> list[str]:
    """A path as written, and with / for Windows' backslashes."""
    return [name, name.replace("\\", "/")] if "\\" in name else [name]
