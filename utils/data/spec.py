r"""A data YAML read into a `DataSpec`: which images, which classes.

    path: ../datasets/mine      # optional; relative to this file
    train: images/train         # a folder, a .txt list of images, a COCO .json, or a list of such; so val and test
    val: images/val             # or valid:
    nc: 3                       # optional when names are given
    names: [cat, dog, cow]      # or {0: cat, 1: dog, 2: cow}
    channels: 3                 # optional: of every image, 1 to 8; or ch:
    color: rgb                  # optional; none: the three channels are no colours
    scale: [0, 1]               # of TIFFs in floating point: the values that are black and white
    generator: shapes           # optional: the folder is rendered on first use, see utils/data/shapes/scenes.py
    cls_names: [day, night]     # optional: classes of whole images, see utils/data/image_classes.py
    labels: polygons            # optional: what lines of seven and more values are; boxes: there may be none
    group_pattern: '^(\d+)-'    # optional: what names an image's group, see utils/data/prepare/split.py

The label of `.../images/x/y.jpg` is `.../labels/x/y.txt`, see utils/data/listing/label_files.py; docs/data.md has all
of what is read, counted and refused.
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.class_names import ONE_CLASS
from utils.data import image_classes, pairs
from utils.data.image_classes import ClassSource
from utils.data.listing.class_names import class_names
from utils.data.listing.coco_json import names_of
from utils.data.listing.images import Listed, first_there, list_split, places
from utils.data.pairs import PairRule
from utils.data.shapes import pairs as shapes_pairs
from utils.data.shapes import scenes as shapes
from utils.images.pixels import CHANNELS
from utils.images.tiff import Scale
from utils.system.errors import UserError, brief
from utils.system.notes import note
from utils.system.yaml_file import located, read_yaml

SHOWN = 8  # lines quoted in a message
SPLITS = ("train", "val", "test")
KEYS = (
    *("path", *SPLITS, "nc", "names", "channels", "color", "generator", "images", "seed", "bits", "group_pattern"),
    *("scale", "pairs", "labels", "download", "kpt_shape", "valid", "ch", *image_classes.KEYS),
)
ALIASES = {"valid": "val", "ch": "channels"}
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
    listed: dict[str, Listed] = field(default_factory=dict, repr=False)  # by split, how its images were found
    outlines: str = ""  # what lines of more than five values are: "polygons", "boxes" (none there may be), "" not said

    @property
    def cls_names(self) -> tuple[str, ...]:
        """Classes of whole images in the order of their indices; empty where the data set has none."""
        return self.cls.names

    def merged(self) -> "DataSpec":
        """As --single-cls takes it: all boxes are of one class."""
        return replace(self, nc=1, names=ONE_CLASS)

    @property
    def wants(self) -> str:
        return f"says channels: {self.channels}" if self.channels != 3 else "has RGB images (no other `channels:`)"

    def images(self, split: str) -> tuple[Path, ...]:
        """Images of "train", "val" or "test"; UserError when the YAML does not offer that split."""
        files: tuple[Path, ...] = getattr(self, split)
        if not files:
            raise UserError(f"{self.source}: {self.absent.get(split, f'no images for {split!r}')}")
        return files


def read_data(path: str | Path) -> DataSpec:
    """Read and check a data YAML. Every image is listed, none opened. UserError names file, key and what would be
    right."""
    source = located(path)
    content = read_yaml(source)
    for key in map(str, content):
        close = difflib.get_close_matches(key, KEYS, 1, cutoff=0.75) if key not in KEYS else []
        if close:
            raise UserError(f"{source}: unknown key {key!r}; did you mean {close[0]!r}?")
    for alias, key in ALIASES.items():
        if alias in content:
            if content.get(key) not in (None, content[alias]):
                raise UserError(f"{source}: {alias} and {key} both say {key}, and not the same; keep one")
            content[key] = content[alias]
    for key in ("train", "val"):
        if content.get(key) in (None, "", [], {}):
            raise UserError(f"{source}: key {key!r} is missing; train, val and names are needed")
    if "kpt_shape" in content:
        raise UserError(f"{source}: kpt_shape: labels with key points are not read; boxes and polygons are")
    outlines = content.get("labels")
    if outlines not in (None, "polygons", "boxes"):
        raise UserError(
            f"{source}: labels: expected polygons or boxes (the form of the label lines), found {brief(outlines)}"
        )
    channels, colour = _channels(source, content)
    pattern = content.get("group_pattern") or ""
    if not isinstance(pattern, str):
        raise UserError(f"{source}: group_pattern: expected a regular expression, found {brief(pattern)}")

    download = _download(content)
    root = source.parent
    if (entry := content.get("path")) not in (None, ""):
        if not isinstance(entry, str):
            raise UserError(f"{source}: path: expected a path, found {brief(entry)}")
        candidates = places(entry, (source.parent, Path()), ("", "datasets", "../datasets"))
        generated = content.get("generator") is not None
        exists = any(os.path.isdir(place) for place in candidates)
        root = candidates[0] if generated and not exists else first_there(source, "path", entry, candidates, download)
    if (name := content.get("generator")) is not None:
        if not isinstance(name, str) or name not in GENERATORS:
            raise UserError(f"{source}: generator: unknown {brief(name)}; there are: {', '.join(GENERATORS)}")
        GENERATORS[name](root, {key: content[key] for key in shapes.KEYS if key in content})
    elif not root.is_dir():
        raise UserError(f"{source}: path: {root} is no folder")
    names = _names(source, content, root, download)

    listed: dict[str, Listed] = {}
    absent = {"test": "key 'test' is missing"}
    for split in SPLITS:
        if content.get(split) in (None, "", []):
            continue
        try:
            listed[split] = list_split(source, split, content[split], root, names, download)
        except UserError as error:
            if split != "test":
                raise
            absent["test"] = str(error).removeprefix(f"{source}: ")  # matters only to who asks for the test split
    files = {split: listed[split].files if split in listed else () for split in SPLITS}
    return DataSpec(
        root=root, **files, nc=len(names), names=names, source=source, absent=absent,
        cls=image_classes.read_source(source, content, root), channels=channels, colour=colour, group_pattern=pattern,
        pairs=pairs.read_rule(source, content.get("pairs"), root), listed=listed, outlines=outlines or "",
        scale=_scale(source, content.get("scale")),
    )  # fmt: skip


def _channels(source: Path, content: dict[str, object]) -> tuple[int, bool]:
    """`channels` and whether they are red, green and blue."""
    channels = content.get("channels", 3)
    colour = content.get("color", "rgb" if channels == 3 else "none")
    if isinstance(channels, bool) or not isinstance(channels, int) or not 1 <= channels <= CHANNELS:
        raise UserError(f"{source}: channels: expected a whole number from 1 to {CHANNELS}, found {brief(channels)}")
    if colour not in ("rgb", "none"):
        raise UserError(f"{source}: color: expected rgb or none, found {brief(colour)}")
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


def _download(content: dict[str, object]) -> str:
    """What the YAML says about where its data can be had, for an error about files that are not there."""
    said = content.get("download")
    if not isinstance(said, str) or not said.strip():
        return ""
    lines = said.strip().splitlines()
    quoted = "\n  ".join(lines[:SHOWN]) + ("\n  ..." if len(lines) > SHOWN else "")
    return f"nothing is downloaded here; the file's own `download:` says:\n  {quoted[:2000]}"


def _names(source: Path, content: dict[str, object], root: Path, download: str) -> tuple[str, ...]:
    """The classes, of the key `names`, or of the training annotations where these are one COCO file."""
    names, train = content.get("names"), content["train"]
    if names in (None, "", [], {}):
        file = train.get("annotations") if isinstance(train, dict) else train
        if not isinstance(file, str) or not file.endswith(".json"):
            raise UserError(f"{source}: key 'names' is missing; train, val and names are needed")
        texts = names_of(first_there(source, "train", file, places(file, (root, source.parent, Path())), download))
        print(
            note(
                "names from annotations",
                f"{source}: names are those of {file}, in the order of their ids: {', '.join(texts)}",
            )
        )
    else:
        texts = class_names(source, "names", names)
    nc = content.get("nc", len(texts))
    if isinstance(nc, bool) or not isinstance(nc, int) or nc < 1:
        raise UserError(f"{source}: nc: expected a whole number of at least 1, found {brief(nc)}")
    if nc != len(texts):
        raise UserError(f"{source}: nc is {nc} but names holds {len(texts)} classes; make them agree")
    return texts
