"""Annotations of other forms -> YOLO label files.

Two forms are read. Pascal VOC: NAME.xml with size/width, size/height and object/{name, bndbox/{xmin,ymin,xmax,ymax}}
in pixels, in any encoding that its head names. Piotr Dollar's bbGt text (KAIST): NAME.txt, a first line
`% bbGt version=3`, then per line a class and x y w h in pixels (upper left corner, size); it does not say how large the
picture is, so --size does.

VOC counts pixels from 1 and the last one belongs to the box: 1..640 is the whole width. Where any box of the set begins
at 0 its writer counts from 0, and corners are taken as they are (--first-pixel says which). Objects marked difficult
(VOC) or to be ignored (bbGt) are left out and counted, as in YOLOv5's VOC.yaml; --keep-difficult keeps them. Exchanged
corners are put right and counted. Where the picture is found (beside the file, in a JPEGImages or images folder beside
its folder, or below --images) its size must be the one that the file says.

Each file becomes NAME.txt with lines `class cx cy w h` in 0..1, an empty file where there is no object. Boxes are cut
at the picture's edge; those that keep no area are left out and counted. Nothing is overwritten; sub-folders are kept.
"""

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils.config.tools import VOC2YOLO
from utils.images.read import SUFFIXES, examine, read_bytes
from utils.images.tiff import ImageError
from utils.images.walk import walk
from utils.system.errors import UserError, parsing
from utils.system.files import plain_bytes, read_text, write_text

LISTS = ("classes.txt", "predefined_classes.txt", "labels.txt", "obj.names.txt")  # names of classes, as labelImg leaves


class Box(NamedTuple):
    """An object: class name, corners in pixels."""

    name: str
    x0: float
    y0: float
    x1: float
    y1: float
    difficult: bool = False


class Annotation(NamedTuple):
    """One file. size: (width, height), None where it does not say."""

    size: tuple[float, float] | None
    boxes: list[Box]


def read_xml(file: Path) -> ElementTree.Element:
    """The root of an XML file in the encoding of its head; the parser itself knows only a few. Errors: UserError."""
    with parsing(f"{file} is not valid XML"):
        content = plain_bytes(file)
        head = re.match(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*encoding\s*=\s*["']([\w.:-]+)["'][^>]*\?>""", content[:200])
        if head is None or head[1].lower() in (b"utf-8", b"utf8", b"utf-16"):
            return ElementTree.fromstring(content)
        named = head[1].decode().lower()
        encoding = "gb18030" if named in ("gb2312", "gbk", "gb18030") else named  # the last one holds the others
        return ElementTree.fromstring(content[head.end() :].decode(encoding))


def read_voc(file: Path) -> Annotation:
    """A Pascal VOC file; UserError that names the file and the element."""
    root = read_xml(file)

    def number(node: ElementTree.Element, path: str) -> float:
        text = node.findtext(path)
        try:
            value = float(text or "")
        except ValueError:
            raise UserError(f"{file}: <{path}> of <{node.tag}> is {text!r:.80}, wanted a number") from None
        return finite(value, f"{file}: <{path}>")

    boxes = []
    for node in root.iter("object"):
        x0, y0, x1, y1 = (number(node, f"bndbox/{k}") for k in ("xmin", "ymin", "xmax", "ymax"))
        difficult = (node.findtext("difficult") or "").strip() not in ("", "0")
        boxes.append(Box((node.findtext("name") or "").strip(), x0, y0, x1, y1, difficult))
    if root.find("size") is None:
        return Annotation(None, boxes)
    size = number(root, "size/width"), number(root, "size/height")
    return Annotation(size if min(size) > 0 else None, boxes)


def read_bbgt(file: Path) -> Annotation:
    """A bbGt text file; UserError that names file and line."""
    lines = read_text(file).splitlines()
    if not lines or not lines[0].replace(" ", "").startswith("%bbGt"):
        raise UserError(f"{file}:1: wanted `% bbGt version=3`, got {lines[0] if lines else 'an empty file'!r:.80}")
    boxes = []
    for i, line in enumerate(lines[1:], 2):
        words = line.split()
        if not words:
            continue
        try:
            x, y, w, h = map(float, words[1:5])
        except ValueError:
            raise UserError(f"{file}:{i}: wanted `class x y w h ...`, got {line.strip()!r:.80}") from None
        for value in (x, y, w, h):
            finite(value, f"{file}:{i}")
        boxes.append(Box(words[0], x, y, x + w, y + h, len(words) > 10 and words[10] == "1"))
    return Annotation(None, boxes)


def finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise UserError(f"{where}: {value} is no coordinate")
    return value


def label_line(box: Box, number: int, size: tuple[float, float], first: int = 0) -> str:
    """`class cx cy w h` in 0..1, cut at the edge; empty where no area is left. first: number of the first pixel; from
    1, xmin is the first pixel of the box and xmax its last."""
    width, height = size
    x0, x1 = (min(max(v / width, 0.0), 1.0) for v in (box.x0 - first, box.x1))
    y0, y1 = (min(max(v / height, 0.0), 1.0) for v in (box.y0 - first, box.y1))
    if x1 <= x0 or y1 <= y0:
        return ""
    return f"{number} {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}\n"


def upright(box: Box) -> Box:
    """With its corners in order."""
    (x0, x1), (y0, y1) = sorted((box.x0, box.x1)), sorted((box.y0, box.y1))
    return box._replace(x0=x0, y0=y0, x1=x1, y1=y1)


def picture_of(file: Path, images: Path | None, by_stem: dict[str, list[Path]]) -> Path | None:
    """The picture of an annotation file, where it is found. by_stem: of all pictures below `images`."""
    if images is not None:
        found = by_stem.get(file.stem, [])
        return found[0] if len(found) == 1 else None
    folders = (file.parent, file.parent.parent / "JPEGImages", file.parent.parent / "images")
    return next(
        (p for folder in folders for s in sorted(SUFFIXES) if (p := folder / f"{file.stem}{s}").is_file()), None
    )


def read_all(
    source: Path, size: tuple[float, float] | None, images: Path | None, count: Counter[str]
) -> dict[Path, Annotation]:
    """All annotations below `source`, each with the size of its picture. Errors: UserError."""
    found = walk(source, (".xml", ".txt"))
    for path, why in found.broken.items():
        raise UserError(f"{path} {why}")
    files = list(map(Path, found.paths))
    described = {file.parent for file in files if file.suffix.lower() == ".xml"}
    by_stem: dict[str, list[Path]] = {}
    for path in walk(images, SUFFIXES).paths if images else ():
        by_stem.setdefault(Path(path).stem, []).append(Path(path))
    annotations: dict[Path, Annotation] = {}
    for file in files:
        if file.suffix.lower() == ".xml":
            own, boxes = read_voc(file)
        elif file.name.lower() in LISTS or file.parent in described:
            count["other .txt files left out"] += 1
            continue
        else:
            own, boxes = read_bbgt(file)
        picture = picture_of(file, images, by_stem)
        if picture is not None:
            try:
                (height, width), _ = examine(read_bytes(picture))
            except ImageError as error:
                raise UserError(f"{picture}: the image {error}") from None
            if (own or size or (width, height)) != (width, height):
                w, h = own or size or (0, 0)
                raise UserError(f"{file}: says {w:g} x {h:g} pixels, and {picture} has {width} x {height}")
            own = float(width), float(height)
        count["pictures not found, their sizes not checked"] += picture is None
        if (own := own or size) is None:
            raise UserError(
                f"{file} does not say how large its picture is: give --size WIDTH HEIGHT, or --images FOLDER"
            )
        annotations[file] = Annotation(own, boxes)
    if not annotations:
        raise UserError(f"{source}: there are no .xml or .txt annotations")
    return annotations


def convert(
    source: Path,
    out: Path,
    classes: Sequence[str],
    ignore: Sequence[str],
    size: tuple[float, float] | None,
    *,
    images: Path | None = None,
    keep_difficult: bool = False,
    first_pixel: int | None = None,
) -> Counter[str]:
    """All annotations below `source` -> label files below `out`; how many of what. Everything is read and checked
    before anything is written. first_pixel: number of the first pixel in VOC files; None: told from the boxes."""
    count, texts = Counter[str](files=0, objects=0, **{"without area": 0}, ignored=0), dict[Path, str]()
    annotations = read_all(source, size, images, count)
    xml = [a for file, a in annotations.items() if file.suffix.lower() == ".xml"]
    if first_pixel is None:
        first_pixel = int(all(min(b.x0, b.y0, b.x1, b.y1) >= 1 for a in xml for b in a.boxes))
    for file, (own, boxes) in annotations.items():
        target = out / file.relative_to(source).with_suffix(".txt")
        if target.exists() or target in texts:
            raise UserError(f"{target} exists already (from {file}); nothing was written")
        if unknown := {b.name for b in boxes} - {*classes, *ignore}:
            raise UserError(f"{file}: class {sorted(unknown)[0]!r:.80} is neither in --classes nor in --ignore")
        wanted = [b for b in boxes if b.name in classes]
        kept = [b for b in wanted if keep_difficult or not b.difficult]
        first = first_pixel if file.suffix.lower() == ".xml" else 0
        assert own is not None
        lines = [label_line(upright(b), list(classes).index(b.name), own, first) for b in kept]
        texts[target] = "".join(lines)
        count["files"] += 1
        count["objects"] += sum(map(bool, lines))
        count["without area"] += lines.count("")
        count["ignored"] += len(boxes) - len(wanted)
        count["difficult left out"] += len(wanted) - len(kept)
        count["with exchanged corners"] += sum(upright(b) != b for b in kept)
    for target, text in texts.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    if xml:
        print(f"pixels of the XML files are counted from {first_pixel} (--first-pixel 0 or 1 says otherwise)")
    return count


def main(argv: list[str]) -> None:
    args = VOC2YOLO.parse(argv).cfg
    for folder in filter(None, (args.source, args.images)):
        if not Path(folder).is_dir():
            raise UserError(f"{folder} is no folder")
    size = (float(args.size[0]), float(args.size[1])) if args.size else None
    count = convert(
        Path(args.source), Path(args.out), args.classes, args.ignore, size,
        images=Path(args.images) if args.images else None, keep_difficult=args.keep_difficult,
        first_pixel=args.first_pixel if args.first_pixel >= 0 else None,
    )  # fmt: skip
    always = ("files", "objects", "without area", "ignored")
    print(", ".join(f"{n} {what}" for what, n in count.items() if n or what in always) + f"; labels in {args.out}")
