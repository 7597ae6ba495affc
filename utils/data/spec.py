r"""A data YAML read into a `DataSpec`: which images, which classes.

    path: ../datasets/mine      # optional; relative to this file
    train: images/train         # a folder, a .txt list of images, or a list of such entries; the same for val and test
    val: images/val
    nc: 3                       # optional when names are given
    names: [cat, dog, cow]      # or {0: cat, 1: dog, 2: cow}
    channels: 3                 # optional: of every image, 1 to 8
    color: rgb                  # optional; none: the three channels are no colours
    scale: [0, 1]               # of TIFFs in floating point: the values that are black and white
    generator: shapes           # optional: the folder is rendered on first use, see utils/data/shapes/scenes.py
    cls_names: [day, night]     # optional: classes of whole images, see utils/data/image_classes.py
    group_pattern: '^(\d+)-'    # optional: what names an image's group, see utils/data/prepare/split.py

The label of `.../images/x/y.jpg` is `.../labels/x/y.txt`: the last `images` folder of the path is exchanged.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from utils.data import image_classes, pairs
from utils.data.image_classes import ClassSource
from utils.data.pairs import PairRule
from utils.data.shapes import pairs as shapes_pairs
from utils.data.shapes import scenes as shapes
from utils.images.pixels import CHANNELS
from utils.images.read import SUFFIXES
from utils.images.tiff import Scale
from utils.system.errors import UserError
from utils.system.notes import note
from utils.system.yaml_file import located, read_yaml

SHOWN = 5  # groups named in a message
SPLITS = ("train", "val", "test")
KEYS = (
    *(
        "path",
        *SPLITS,
        "nc",
        "names",
        "channels",
        "color",
        "scale",
        "generator",
        "images",
        "seed",
        "bits",
        "group_pattern",
    ),
    "pairs",
    *image_classes.KEYS,
)
GENERATORS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "shapes": shapes.ensure,
    "shapes_joint": shapes.ensure_joint,
    "shapes_pairs": shapes_pairs.ensure,
}


@dataclass(frozen=True)
class DataSpec:
    """One data set. Image paths are as found; `absent` says, per optional split, why it has no images."""

    root: Path
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    test: tuple[Path, ...]
    nc: int
    names: tuple[str, ...]
    source: Path  # the YAML file
    absent: dict[str, str] = field(default_factory=dict)
    cls: ClassSource = ClassSource()  # of whole images
    channels: int = 3  # of every image
    colour: bool = True  # they are red, green and blue
    group_pattern: str = ""
    pairs: PairRule | None = None  # how infrared partners are found
    scale: Scale | None = None  # values that are black and full, of images in floating point numbers

    @property
    def cls_names(self) -> tuple[str, ...]:
        """Classes of whole images in the order of their indices; empty where the data set has none."""
        return self.cls.names

    @property
    def wants(self) -> str:
        return f"says channels: {self.channels}" if self.channels != 3 else "has RGB images (no other `channels:`)"

    def images(self, split: str) -> tuple[Path, ...]:
        """Images of "train", "val" or "test"; UserError when the YAML does not offer that split."""
        files: tuple[Path, ...] = getattr(self, split)
        if not files:
            raise UserError(f"{self.source}: {self.absent.get(split, f'no images for {split!r}')}")
        return files


def label_path(image: Path) -> Path:
    """Where the label of an image is: last `images` folder -> `labels`, suffix -> .txt; beside the image without
    one."""
    return Path(label_name(str(image)))


def label_name(image: str) -> str:
    """`label_path` in plain text."""
    sep = os.sep
    before, found, after = (sep + image).rpartition(f"{sep}images{sep}")  # the sep in front: `images` may come first
    return os.path.splitext(f"{before}{sep}labels{sep}{after}"[1:] if found else image)[0] + ".txt"


def read_data(path: str | Path) -> DataSpec:
    """Read and check a data YAML. Every image is listed, none opened. UserError names file, key and what would be
    right."""
    source = located(path)
    content = read_yaml(source)
    for key in map(str, content):
        close = difflib.get_close_matches(key, KEYS, 1, cutoff=0.75) if key not in KEYS else []
        if close:
            raise UserError(f"{source}: unknown key {key!r}; did you mean {close[0]!r}?")
    for key in ("train", "val", "names"):
        if content.get(key) in (None, "", [], {}):
            raise UserError(f"{source}: key {key!r} is missing; train, val and names are needed")
    names = _names(source, content["names"])
    nc = content.get("nc", len(names))
    if isinstance(nc, bool) or not isinstance(nc, int) or nc < 1:
        raise UserError(f"{source}: nc: expected a whole number of at least 1, found {nc!r}")
    if nc != len(names):
        raise UserError(f"{source}: nc is {nc} but names holds {len(names)} classes; make them agree")

    channels, colour = _channels(source, content)
    root = _resolve(source, "path", content["path"]) if content.get("path") else source.parent
    if (name := content.get("generator")) is not None:
        if name not in GENERATORS:
            raise UserError(f"{source}: generator: unknown {name!r}; there are: {', '.join(GENERATORS)}")
        GENERATORS[name](root, {key: content[key] for key in shapes.KEYS if key in content})
    elif not root.is_dir():
        raise UserError(f"{source}: path: folder {root} does not exist (path is relative to the YAML's own folder)")

    found: dict[str, tuple[Path, ...]] = {"test": ()}
    absent = {"test": "key 'test' is missing"}
    for split in SPLITS:
        if content.get(split) in (None, "", []):
            continue
        try:
            found[split] = _images(source, split, content[split], root)
        except UserError as error:
            if split != "test":
                raise
            absent["test"] = str(error).removeprefix(f"{source}: ")  # matters only to who asks for the test split
    cls = image_classes.read_source(source, content, root)
    pattern = content.get("group_pattern") or ""
    if not isinstance(pattern, str):
        raise UserError(f"{source}: group_pattern: expected a regular expression, found {pattern!r}")
    return DataSpec(
        root, found["train"], found["val"], found["test"], nc, names, source, absent, cls, channels, colour,
        pattern,
        pairs.read_rule(source, content.get("pairs"), root),
        _scale(source, content.get("scale")),
    )  # fmt: skip


def _channels(source: Path, content: dict[str, Any]) -> tuple[int, bool]:
    """`channels` and whether they are red, green and blue."""
    channels = content.get("channels", 3)
    colour = content.get("color", "rgb" if channels == 3 else "none")
    if isinstance(channels, bool) or not isinstance(channels, int) or not 1 <= channels <= CHANNELS:
        raise UserError(f"{source}: channels: expected a whole number from 1 to {CHANNELS}, found {channels!r}")
    if colour not in ("rgb", "none"):
        raise UserError(f"{source}: color: expected rgb or none, found {colour!r}")
    if colour == "rgb" and channels != 3:
        raise UserError(f"{source}: color: rgb needs three channels, and channels is {channels}")
    return channels, colour == "rgb"


def _scale(source: Path, scale: Any) -> Scale | None:
    """`scale: [lo, hi]`, finite and rising."""
    if scale is None:
        return None
    numbers = isinstance(scale, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in scale)
    if not numbers or len(scale) != 2 or not -1e300 < scale[0] < scale[1] < 1e300:
        raise UserError(f"{source}: scale: expected [lowest, highest] value, e.g. [0, 1], found {scale!r:.60}")
    return float(scale[0]), float(scale[1])


def _names(source: Path, names: Any) -> tuple[str, ...]:
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise UserError(f"{source}: names: the ids must be 0..{len(names) - 1}, each once; found {list(names)}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise UserError(f"{source}: names: expected a list or a map {{id: name}}, found {names!r}")
    if doubled := {str(n) for n in names if names.count(n) > 1}:
        raise UserError(f"{source}: names: {', '.join(sorted(doubled))} given more than once")
    return tuple(str(name) for name in names)


def _resolve(source: Path, key: str, entry: Any, bases: Sequence[Path] = ()) -> Path:
    """First existing one of base/entry, the YAML's folder / entry, working folder / entry; else the first candidate."""
    if not isinstance(entry, str):
        raise UserError(f"{source}: {key}: expected a path, found {entry!r}")
    candidates = [base / Path(entry).expanduser() for base in (*bases, source.parent, Path())]
    return next((c for c in candidates if c.exists()), candidates[0])


def _images(source: Path, split: str, entries: Any, root: Path) -> tuple[Path, ...]:
    files: list[Path] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        where = _resolve(source, split, entry, [root])
        if where.is_dir():
            files += _folder(source, split, where)
        elif where.is_file() and where.suffix == ".txt":
            files += _listed(where, root)
        elif where.is_file():
            raise UserError(f"{source}: {split}: {where} is neither a folder nor a .txt list of images")
        else:
            raise UserError(f"{source}: {split}: {where} does not exist")
    return tuple(files)


def _folder(source: Path, split: str, folder: Path) -> list[Path]:
    """Images below a folder, in the order of their paths, name by name."""
    found = [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names if name[0] != "."]
    inside = [(os.path.splitext(path)[1], path) for path in found if os.path.isfile(path)]
    images = sorted((path for suffix, path in inside if suffix.lower() in SUFFIXES), key=lambda p: p.split(os.sep))
    if not images:
        other = ", ".join(sorted({suffix or os.path.basename(path) for suffix, path in inside})[:5])
        raise UserError(
            f"{source}: {split}: folder {folder} holds no image ({' '.join(sorted(SUFFIXES))})"
            + (f"; it holds {other}" if other else "; it is empty")
        )
    return list(map(Path, images))


def _listed(listing: Path, root: Path) -> list[Path]:
    """Images named in a .txt list, one per line, relative to the list's folder, the data root or the working folder."""
    bases, files = [listing.parent, root, Path()], []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        if not (name := line.strip()):
            continue
        if os.path.splitext(name)[1].lower() not in SUFFIXES:
            raise UserError(f"{listing}:{number}: {name!r} has no image suffix ({' '.join(sorted(SUFFIXES))})")
        hit = next((base for base in bases if os.path.exists(os.path.join(base, name))), None)
        if hit is not None and hit is not bases[0]:
            bases.remove(hit)
            bases.insert(0, hit)  # where one image was found the next one will be
        files.append(Path(os.path.join(hit or listing.parent, name)))
    if not files:
        raise UserError(f"{listing}: the list is empty; one image path per line is expected")
    return files


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """The regular expression of a group pattern. Errors: UserError with `where` it was given."""
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: {pattern!r} is no regular expression: {error}") from None
    if found.groups != 1:
        raise UserError(f"{where}: {pattern!r} has {found.groups} parentheses; put one around what names the group")
    return found


def group_of(image: Path, pattern: re.Pattern[str]) -> str | None:
    """The image's group; None where the pattern does not fit."""
    found = pattern.search(image.as_posix() if "/" in pattern.pattern else image.name)
    return found[1] if found else None


def groups_of(images: Sequence[Path], pattern: re.Pattern[str]) -> list[str]:
    """The group of each image. Errors: UserError naming images that belong to none."""
    groups = [group_of(image, pattern) for image in images]
    if missing := [str(image) for image, group in zip(images, groups, strict=True) if not group]:
        raise UserError(
            f"{pattern.pattern!r} names no group of {len(missing)} of {len(images)} images: {', '.join(missing[:3])}"
        )
    return [group for group in groups if group]


def shared(spec: DataSpec, pattern: re.Pattern[str]) -> dict[tuple[str, str], dict[str, int]]:
    """{(split, other split): {group in both: its images in the two}}, for each pair of splits that there is."""
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        mine: dict[str, int] = {}
        for group in groups_of(getattr(spec, split), pattern):
            mine[group] = mine.get(group, 0) + 1
        if mine:
            counts[split] = mine
    return {
        (a, b): {group: counts[a][group] + counts[b][group] for group in counts[a] if group in counts[b]}
        for a, b in combinations(counts, 2)
    }


def findings(found: Mapping[tuple[str, str], Mapping[str, int]]) -> list[str]:
    """A line for each pair of splits that share groups."""
    return [
        f"{a} and {b} share {len(both)} groups ({', '.join(list(both)[:SHOWN])}{', ...' * (len(both) > SHOWN)}; "
        f"{sum(both.values())} images)"
        for (a, b), both in found.items()
        if both
    ]


def check_groups(spec: DataSpec, *, strict: bool) -> None:
    """At the start of a run: where the data YAML has a `group_pattern`, say which groups are shared between splits, or
    with `strict` stop. Errors: UserError."""
    if not spec.group_pattern:
        if strict:
            raise UserError(f"--strict-split: {spec.source} has no group_pattern, by which groups could be told")
        return
    lines = findings(shared(spec, compiled(spec.group_pattern, f"{spec.source}: group_pattern")))
    if lines and strict:
        raise UserError("\n  ".join([f"--strict-split: {spec.source}: groups lie in several splits:", *lines]))
    if lines:
        said = f"{spec.source}: validation is too kind, as groups lie in several splits:"
        print("warning: " + note("groups shared", "\n  ".join([said, *lines])))
