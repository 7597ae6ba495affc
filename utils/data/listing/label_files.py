"""Where the label file of each image lies.

First where YOLOv5 looks: the last `images` folder of the path is exchanged for `labels`; without such a folder beside
the image. Where none of a folder's images has a label there, the alternatives are tried in order, from YOLOv7's (the
first `images` folder) over other spellings of the two names to folders beside and below; which one was taken is said.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGES = ("images", "image", "imgs", "img", "jpegimages")  # in lower case
LABELS = ("labels", "Labels", "LABELS", "label", "Label")
SHOWN = 12  # places named in a message


@dataclass(frozen=True)
class LabelFiles:
    """paths: of each image's label, whether it is there or not."""

    paths: list[str]
    said: list[str]  # where labels were found that do not lie in the usual place
    tried: list[str]  # for the first image: all places looked at, the usual one first


def label_path(image: Path) -> Path:
    """The usual place."""
    return Path(label_name(str(image)))


def label_name(image: str) -> str:
    """`label_path` in plain text."""
    folder, name = os.path.split(image)
    return os.path.join(usual(folder), os.path.splitext(name)[0] + ".txt")


def usual(folder: str) -> str:
    """The label folder of an image folder: the last `images` -> `labels`; the same folder without one."""
    return exchanged(folder, "images", "labels", last=True) or folder


def exchanged(folder: str, old: str, new: str, *, last: bool) -> str:
    """`folder` with its last or first part `old` made `new`; empty where it has none."""
    parts = folder.split(os.sep)
    if old not in parts:
        return ""
    at = len(parts) - 1 - parts[::-1].index(old) if last else parts.index(old)
    return os.sep.join([*parts[:at], new, *parts[at + 1 :]])


def alternatives(folder: str, word: str) -> Iterator[tuple[str, str]]:
    """(label folder, why it may be one) for an image folder, without the usual one. word: what tells visible images
    from infrared ones, which labels of both do not have in their path."""
    if "images" in folder.split(os.sep):
        yield (
            exchanged(folder, "images", "labels", last=False),
            "the first `images` of the path exchanged, as YOLOv7 does",
        )
    parts = folder.split(os.sep)
    for at in reversed(range(len(parts))):
        if parts[at].lower() in IMAGES:
            for labels in LABELS:
                written = [*parts[:at], labels, *parts[at + 1 :]]
                yield os.sep.join(written), f"`{parts[at]}` of the path exchanged for `{labels}`"
                if word and word in written:
                    yield os.sep.join(p for p in written if p != word), f"`{labels}`, without `{word}`"
    for labels in LABELS:
        if word and word in parts:
            yield exchanged(folder, word, labels, last=True), f"`{word}` of the path exchanged for `{labels}`"
        above, name = os.path.split(folder)
        yield os.path.join(above, labels), f"`{labels}` beside the images' folder"
        yield os.path.join(above, labels, name), f"`{labels}` beside the images' folder, with its name"
        yield os.path.join(folder, labels), f"`{labels}` in the images' folder"
    yield folder, "beside the images"
    for at in (at for at in reversed(range(len(parts) - 1)) if parts[at].lower() in IMAGES):
        for labels in LABELS:
            yield os.sep.join([*parts[:at], labels]), f"`{labels}` beside `{parts[at]}`, without folders in it"


def find_labels(images: Sequence[str], word: str = "") -> LabelFiles:
    """The label files of `images`, folder by folder. word: see `alternatives`."""
    inside: dict[str, list[str]] = {}
    for image in images:
        inside.setdefault(os.path.dirname(image), []).append(os.path.basename(image))
    namers: dict[str, Callable[[str], str]] = {}
    said, tried = [], list[str]()
    for folder, pictures in inside.items():
        places = {usual(folder): ""}
        for place, why in alternatives(folder, word):
            places.setdefault(place, why)
        tried = tried or [os.path.join(place, stem(pictures[0]) + ".txt") for place in places]
        for place, why in places.items():
            names = label_names(place)
            known = names or {}
            if whole := not any(stem(picture) in known for picture in pictures):
                whole = any(picture in known for picture in pictures)
                why = "; ".join([why] * bool(why) + ["named `a.png.txt` for `a.png`"] * whole)
            if (names is None and not why) or whole or any(stem(picture) in known for picture in pictures):
                namers[folder] = namer(place, known)
                if why:
                    said.append(f"labels of {folder} are read from {place} ({why})")
                break
        else:
            namers[folder] = namer(usual(folder), {})
    return LabelFiles([namers[os.path.dirname(i)](os.path.basename(i)) for i in images], said, tried)


def stem(name: str) -> str:
    return os.path.splitext(name)[0]


def namer(place: str, names: Mapping[str, str]) -> Callable[[str], str]:
    """Of a picture's name, which some tools keep whole in that of its label."""
    return lambda picture: os.path.join(place, names.get(stem(picture)) or names.get(picture) or f"{stem(picture)}.txt")


def label_names(folder: str) -> dict[str, str] | None:
    """{stem: file name} of the .txt (or .TXT) files in a folder, empty where there is no such folder; None where it
    may not be listed, so that a file in it may be there all the same."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)  # .TXT before .txt, so the latter wins
    except (FileNotFoundError, ValueError):
        return {}
    except OSError:
        return None
    return {os.path.splitext(name)[0]: name for name in names if name[-4:].lower() == ".txt"}
