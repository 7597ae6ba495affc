"""Annotations of other forms -> YOLO label files.

  python -m utils voc2yolo Annotations --out labels/train --classes person                 # Pascal VOC XML (LLVIP)
  python -m utils voc2yolo annotations --out labels --classes person --ignore people person? cyclist --size 640 512

Two forms are read. Pascal VOC: NAME.xml with size/width, size/height and object/{name, bndbox/{xmin,ymin,xmax,ymax}}
in pixels. Piotr Dollar's bbGt text (KAIST): NAME.txt, a first line `% bbGt version=3`, then per line a class and
x y w h in pixels (upper left corner, size); it does not say how large the picture is, so --size does.

Each file becomes NAME.txt with lines `class cx cy w h` in 0..1, an empty file where there is no object. Boxes are cut
at the picture's edge; those that keep no area are left out and counted. Nothing is overwritten; sub-folders are kept.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils.config.options import Program, opt
from utils.system.errors import UserError
from utils.system.files import write_text


class Box(NamedTuple):
    """An object: class name, corners in pixels."""

    name: str
    x0: float
    y0: float
    x1: float
    y1: float


def read_voc(file: Path) -> tuple[tuple[float, float], list[Box]]:
    """(width, height) and objects of a Pascal VOC file; UserError that names the file and the element."""
    try:
        root = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise UserError(f"{file} is not valid XML: {error}") from None

    def number(node: ElementTree.Element, path: str) -> float:
        text = node.findtext(path)
        try:
            value = float(text or "")
        except ValueError:
            raise UserError(f"{file}: <{path}> of <{node.tag}> is {text!r}, wanted a number") from None
        return finite(value, f"{file}: <{path}>")

    boxes = [
        Box(
            (node.findtext("name") or "").strip(),
            *(number(node, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax")),
        )
        for node in root.iter("object")
    ]
    return (number(root, "size/width"), number(root, "size/height")), boxes


def read_bbgt(file: Path) -> list[Box]:
    """Objects of a bbGt text file; UserError that names file and line."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or not lines[0].replace(" ", "").startswith("%bbGt"):
        raise UserError(f"{file}:1: wanted `% bbGt version=3`, got {lines[0] if lines else 'an empty file'!r}")
    boxes = []
    for i, line in enumerate(lines[1:], 2):
        words = line.split()
        if not words:
            continue
        try:
            x, y, w, h = map(float, words[1:5])
        except ValueError:
            raise UserError(f"{file}:{i}: wanted `class x y w h ...`, got {line.strip()!r}") from None
        for value in (x, y, w, h):
            finite(value, f"{file}:{i}")
        boxes.append(Box(words[0], x, y, x + w, y + h))
    return boxes


def finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise UserError(f"{where}: {value} is no coordinate")
    return value


def label_line(box: Box, number: int, size: tuple[float, float]) -> str:
    """`class cx cy w h` in 0..1, cut at the edge; empty where no area is left."""
    width, height = size
    x0, x1 = (min(max(v / width, 0.0), 1.0) for v in (box.x0, box.x1))
    y0, y1 = (min(max(v / height, 0.0), 1.0) for v in (box.y0, box.y1))
    if x1 <= x0 or y1 <= y0:
        return ""
    return f"{number} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}\n"


def convert(
    source: Path, out: Path, classes: Sequence[str], ignore: Sequence[str], size: tuple[float, float] | None
) -> Counter[str]:
    """All annotations below `source` -> label files below `out`; how many of what. Everything is read and checked
    before anything is written."""
    files = sorted(p for p in source.rglob("*") if p.suffix.lower() in (".xml", ".txt"))
    if not files:
        raise UserError(f"{source}: there are no .xml or .txt annotations")
    count, texts = Counter[str](), dict[Path, str]()
    for file in files:
        if file.suffix.lower() == ".xml":
            own, boxes = read_voc(file)
        elif size is None:
            raise UserError(f"{file} does not say how large its picture is: give --size WIDTH HEIGHT")
        else:
            own, boxes = size, read_bbgt(file)
        if min(own) <= 0:
            raise UserError(f"{file}: a picture of {own[0]:g} x {own[1]:g} pixels")
        target = out / file.relative_to(source).with_suffix(".txt")
        if target.exists() or target in texts:
            raise UserError(f"{target} exists already (from {file}); nothing was written")
        if unknown := {b.name for b in boxes} - {*classes, *ignore}:
            raise UserError(f"{file}: class {sorted(unknown)[0]!r} is neither in --classes nor in --ignore")
        lines = [label_line(b, list(classes).index(b.name), own) for b in boxes if b.name in classes]
        texts[target] = "".join(lines)
        count["files"] += 1
        count["objects"] += sum(map(bool, lines))
        count["without area"] += lines.count("")
        count["ignored"] += len(boxes) - len(lines)
    for target, text in texts.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    return count


@dataclass(frozen=True, kw_only=True)
class Options:
    source: str = opt("", "folder of annotations, sub-folders included", positional=True)
    out: str = opt("", "folder for the label files", "saving", required=True)
    classes: tuple[str, ...] = opt((), "class names, in the order of ids", "data", nargs="+", required=True)
    ignore: tuple[str, ...] = opt((), "names to leave out", "data", nargs="+")
    size: tuple[int, ...] = opt((), "width and height of all pictures, for bbGt", "data", nargs=2, low=1)


PROGRAM = Program("python -m utils voc2yolo", "Pascal VOC XML or bbGt text -> YOLO label files.", Options)


def main(argv: list[str]) -> None:
    args = PROGRAM.parse(argv).cfg
    if not Path(args.source).is_dir():
        raise UserError(f"{args.source} is no folder")
    size = (float(args.size[0]), float(args.size[1])) if args.size else None
    count = convert(Path(args.source), Path(args.out), args.classes, args.ignore, size)
    print(", ".join(f"{n} {what}" for what, n in count.items()) + f"; labels in {args.out}")
