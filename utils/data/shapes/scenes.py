"""The embedded data set: 12 classes of drawn shapes on textured backgrounds, with YOLO labels, rendered on first use.

A picture is first *described* (`Scene`: background, objects with class, geometry, depth, colour, temperature) and then
*drawn* by `render`. Each kind of description has its own random stream, so that a second rendering of the same scenes
(another spectrum, another bit depth, a label of the whole image) can be added without changing a pixel of this one.

Confusable on purpose: circle / ellipse / ring / crescent, square / rectangle / diamond, triangle / arrow / star, plus
/ saltire. Visibility rule: an object is labelled when at least 40 % of its area can be seen (not covered, not outside
the picture); its box is the extent of what can be seen. Byte-identical for a seed. Command: python -m utils shapes

With a class of the whole image (data/shapes_joint.yaml): the same pictures, and in the label files a one-hot last line
that names the hue of the background, which no box depends on; a tenth of the images, drawn singly, has no such line.
"""

import colorsys
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from utils.config.tools import SHAPES
from utils.images.pixels import Image
from utils.images.tiff import encode_tiff
from utils.system.errors import UserError, brief
from utils.system.rng import rng

VERSION = 2  # raise it when a pixel or a label changes: existing folders are rendered anew
NAMES = (
    *("circle", "ellipse", "ring", "crescent", "square", "rectangle", "diamond"),
    *("triangle", "arrow", "star", "plus", "saltire"),
)
SIZES = ((192, 256), (192, 256), (256, 192), (224, 224))  # pictures (h, w), drawn from
VISIBLE = 0.4  # least visible share of a labelled object
CLS_NAMES = ("warm", "green", "cold", "violet")  # of whole images
HUES = (0, 0, 1, 2, 2, 3)  # the class of red, yellow, green, cyan, blue and magenta backgrounds
UNKNOWN_SHARE = 0.1  # of the images
MARK = "generator.json"
MOST_IMAGES = 10_000  # of a split
SETTINGS: dict[str, Any] = {"images": {"train": 320, "val": 80}, "seed": 0}
KEYS = (*SETTINGS, "channels", "bits")  # what a data YAML may say; 3 channels and 8 bits where it does not
# what other channels than RGB show: red, green, blue, the mean of two of them, and of all
MIXES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1], [2, 1, 1]], np.float32)
Grid = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Thing:
    """One object. Centre and size (diameter of the enclosing circle) in pixels, angle in degrees, colour RGB 0..255."""

    label: int
    centre: tuple[float, float]
    size: float
    aspect: float  # height / width, for the classes that have one
    angle: float
    colour: tuple[int, int, int]
    temperature: float  # 0..1: how it would look in the thermal infrared; not drawn here


@dataclass(frozen=True)
class Background:
    kind: str  # noise, stripes, checks or slope
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    texture: int  # seed of its random texture


@dataclass(frozen=True)
class Scene:
    size: tuple[int, int]  # (h, w)
    background: Background
    things: tuple[Thing, ...]  # from the farthest to the nearest: later ones cover earlier ones


def describe(seed: int, split: str, index: int) -> Scene:
    """The scene of one picture: a function of its arguments alone."""
    draw = rng(seed, f"shapes/{split}/scene", 0, index)
    heat = rng(seed, f"shapes/{split}/temperature", 0, index)
    size = SIZES[draw.integers(len(SIZES))]
    base = draw.integers(40, 216, 3)
    other = np.clip(base + draw.integers(-36, 37, 3), 0, 255)
    kind = ("noise", "stripes", "checks", "slope")[draw.integers(4)]
    background = Background(kind, (_rgb(base), _rgb(other)), int(draw.integers(1 << 30)))
    things: list[Thing] = []
    for label in draw.permutation(len(NAMES))[: draw.integers(2, 7)].tolist():
        things.append(_thing(draw, float(heat.random()), label, size, (base + other) / 2, things))
    return Scene(size, background, tuple(things))


def image_class(scene: Scene) -> int:
    """Index into CLS_NAMES: the nearest of six hues of the background's mean colour, two of them taken twice."""
    red, green, blue = (sum(channel) / 510 for channel in zip(*scene.background.colours, strict=True))
    return HUES[round(colorsys.rgb_to_hsv(red, green, blue)[0] * 6) % 6]


def _rgb(values: npt.NDArray[np.generic]) -> tuple[int, int, int]:
    return int(values[0]), int(values[1]), int(values[2])


def _thing(
    draw: np.random.Generator,
    temperature: float,
    label: int,
    size: tuple[int, int],
    ground: npt.NDArray[np.uint8],
    others: list[Thing],
) -> Thing:
    """Draw an object: log-uniform size, a colour away from the ground's, a place that hides no other object
    entirely."""
    diameter = float(np.exp(draw.uniform(np.log(26), np.log(100))))
    name = NAMES[label]
    aspect = float(draw.uniform(0.4, 0.62)) if name in ("ellipse", "rectangle") else 1.0
    upright = bool(draw.random() < 0.5)  # an ellipse or rectangle lies or stands
    angle = float(draw.uniform(-12, 12)) + 90 * upright * (aspect != 1.0)
    colours = draw.integers(0, 256, (16, 3))
    colour = colours[np.abs(colours - ground).sum(1).argmax()]  # of 16 random ones the one that stands out most
    colour = np.clip(colour * 0.85 + draw.integers(0, 39, 3), 0, 255)
    centre = (0.0, 0.0)
    for _ in range(30):
        reach = 0.3 * diameter  # up to this much may lie outside
        centre = (float(draw.uniform(reach, size[1] - reach)), float(draw.uniform(reach, size[0] - reach)))
        gaps = [
            np.hypot(centre[0] - o.centre[0], centre[1] - o.centre[1]) / (diameter + o.size) * 2 for o in others
        ]  # 1: the enclosing circles touch
        if min(gaps, default=1.0) > (0.4 if draw.random() < 0.35 else 0.95):
            break
    return Thing(label, centre, diameter, aspect, angle, _rgb(colour), temperature)


def outline(name: str) -> list[npt.NDArray[np.float64]]:
    """Contours of a shape inside the unit circle, [k,2] x right, y down; where two contours overlap there is a hole."""
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    half = np.sqrt(0.5)
    square = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    bar = np.array([[-1, -0.3], [-0.3, -0.3], [-0.3, -1], [0.3, -1], [0.3, -0.3], [1, -0.3]])
    plus = np.concatenate([bar, -bar])
    quarter = np.array([[half, half], [-half, half]])
    if name in ("circle", "ellipse"):
        return [circle]
    if name == "ring":
        return [circle, circle * 0.55]
    if name == "crescent":
        tip = np.arccos(0.25)
        outer, inner = np.linspace(tip, 2 * np.pi - tip, 60), np.linspace(np.pi + tip, np.pi - tip, 40)
        dent = np.stack([np.cos(inner) + 0.5, np.sin(inner)], 1)
        return [np.concatenate([np.stack([np.cos(outer), np.sin(outer)], 1), dent])]
    if name in ("square", "rectangle"):
        return [square]
    if name == "diamond":
        return [np.array([[0, -1], [1, 0], [0, 1], [-1, 0.0]])]
    if name == "triangle":
        return [np.array([[0, -1], [0.87, 0.5], [-0.87, 0.5]])]
    if name == "arrow":
        return [np.array([[0, -1], [0.8, 0.05], [0.3, 0.05], [0.3, 0.95], [-0.3, 0.95], [-0.3, 0.05], [-0.8, 0.05]])]
    if name == "star":
        spikes = np.arange(10) * np.pi / 5 - np.pi / 2
        return [np.stack([np.cos(spikes), np.sin(spikes)], 1) * np.where(np.arange(10) % 2, 0.42, 1)[:, None]]
    if name in ("plus", "saltire"):
        return [plus if name == "plus" else plus @ quarter]
    raise ValueError(f"no outline for {name!r}")


def mask(thing: Thing, size: tuple[int, int]) -> Grid:
    """How much of each pixel the object would cover if nothing hid it: float32 [h,w] in 0..1, drawn at fourfold
    size."""
    angle = np.deg2rad(thing.angle)
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    contours = [
        ((c * (1, thing.aspect) * thing.size / 2) @ rotate.T + thing.centre) * 4 for c in outline(NAMES[thing.label])
    ]
    big = np.zeros((size[0] * 4, size[1] * 4), np.uint8)
    cv2.fillPoly(big, [np.rint(c).astype(np.int32) for c in contours], 255)
    small = cv2.resize(big, size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(small / np.float32(255), np.float32)


def render(scene: Scene, channels: int = 3, bits: int = 8) -> tuple[Image, npt.NDArray[np.float64]]:
    """Draw a scene -> (image [h,w,C], RGB if C is 3, grey if it is 1, else the first of MIXES; uint8 or uint16; labels
    [n,5] class, cx, cy, w, h in 0..1 of what can be seen)."""
    h, w = scene.size
    draw = np.random.Generator(np.random.PCG64(scene.background.texture))
    picture = _ground(scene.background, scene.size, draw)
    covers = [mask(thing, scene.size) for thing in scene.things]
    for thing, cover in zip(scene.things, covers, strict=True):
        edge = cover - cv2.erode(cover, np.ones((3, 3), np.uint8))  # a darker rim
        shade = 1 + 0.10 * _smooth(draw, scene.size, 6) - 0.35 * edge
        picture += cover[..., None] * (np.array(thing.colour, np.float32) * shade[..., None] - picture)
    picture += draw.integers(-3, 4, (h, w, 1)).astype(np.float32)
    if channels != 3:
        mixes = MIXES[6:7] if channels == 1 else MIXES[:channels]
        picture = picture.clip(0, 255) @ (mixes / mixes.sum(1, keepdims=True)).T
    if bits == 16:
        image: Image = np.rint(picture * 257).clip(0, 65535).astype(np.uint16)
    else:
        image = np.rint(picture).clip(0, 255).astype(np.uint8)

    rows = []
    hidden = np.zeros(scene.size, bool)
    for thing, cover in zip(reversed(scene.things), reversed(covers), strict=True):  # from the nearest
        solid = cover > 0.5
        seen = solid & ~hidden
        hidden |= solid
        if seen.sum() >= VISIBLE * _area(thing):
            ys, xs = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            x0, x1, y0, y1 = xs[0] / w, (xs[-1] + 1) / w, ys[0] / h, (ys[-1] + 1) / h
            rows.append((thing.label, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0))
    return image, np.array(rows[::-1], np.float64).reshape(-1, 5)


def _area(thing: Thing) -> float:
    """Area in pixels of the whole object (shoelace formula; a second contour is a hole)."""
    areas = [
        abs(np.sum(c[:, 0] * np.roll(c[:, 1], -1) - c[:, 1] * np.roll(c[:, 0], -1))) / 2
        for c in outline(NAMES[thing.label])
    ]
    return float(2 * areas[0] - sum(areas)) * thing.aspect * (thing.size / 2) ** 2


def _smooth(draw: np.random.Generator, size: tuple[int, int], cells: int) -> Grid:
    """Smooth noise [h,w] in about -1..1 with `cells` bumps along each side."""
    coarse = draw.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32, copy=False)


def _ground(ground: Background, size: tuple[int, int], draw: np.random.Generator) -> Grid:
    """The textured background, float32 [h,w,3] in 0..255: a blend of two colours by a pattern in 0..1."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    angle, pitch = draw.uniform(0, np.pi), draw.uniform(12, 40)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if ground.kind == "stripes":
        pattern = 0.5 + 0.5 * np.sin(2 * np.pi * along / pitch)
    elif ground.kind == "checks":
        pattern = (np.floor(along / pitch) + np.floor(across / pitch)) % 2
    elif ground.kind == "slope":
        pattern = (along - along.min()) / (along.max() - along.min())
    else:
        pattern = 0.5 + 0.5 * _smooth(draw, size, 14)
    low, high = (np.array(c, np.float32) for c in ground.colours)
    picture = low + (high - low) * pattern[..., None].astype(np.float32)
    return np.asarray(picture + 9 * _smooth(draw, size, 24)[..., None], np.float32)


def write(folder: Path, settings: dict[str, Any]) -> None:
    """Render all pictures and labels into `folder` (made here): images/<split>/0000.png, labels/<split>/0000.txt; .tiff
    where they are not grey or RGB."""
    form = {key: settings[key] for key in ("channels", "bits") if key in settings}
    total = sum(settings["images"].values())
    with tqdm(total=total, desc="rendering shapes", unit="image", dynamic_ncols=True) as bar:
        for split, count in settings["images"].items():
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True)
            for i in range(count):
                image, labels = render(scene := describe(settings["seed"], split, i), **form)
                write_image(folder / "images" / split / f"{i:04d}", image)
                lines = [f"{int(row[0])} {row[1]:.6f} {row[2]:.6f} {row[3]:.6f} {row[4]:.6f}\n" for row in labels]
                if "unknown" in settings and _known(settings, split, i):
                    lines.append(" ".join(str(int(k == image_class(scene))) for k in range(len(CLS_NAMES))) + "\n")
                (folder / "labels" / split / f"{i:04d}.txt").write_text("".join(lines))
                bar.update()
    (folder / MARK).write_text(marked(settings))


def write_image(stem: Path, image: Image) -> None:
    """As PNG, or as TIFF where a PNG does not hold so many channels."""
    if image.shape[2] in (1, 3):
        cv2.imwrite(f"{stem}.png", image[..., ::-1])
    else:
        Path(f"{stem}.tiff").write_bytes(encode_tiff(image))


def _known(settings: dict[str, Any], split: str, index: int) -> bool:
    return bool(rng(settings["seed"], f"shapes/{split}/known", 0, index).random() >= settings["unknown"])


def marked(settings: dict[str, object]) -> str:
    """What the file MARK says of a data set."""
    return json.dumps({"generator": "shapes", "version": VERSION, **settings}, sort_keys=True)


def ensure(folder: Path, settings: dict[str, object], write: Callable[[Path, dict[str, object]], None] = write) -> None:
    """Make the data set at `folder` unless it is there already, with the same generator and settings.

    It is rendered beside its place and then renamed, so that a half-made one is never seen and two programs may do
    this at once. A folder that something else has filled is never touched: UserError.
    """
    settings = {**SETTINGS, **settings}
    images = settings["images"]
    if not isinstance(images, dict) or not all(
        isinstance(split, str) and re.fullmatch(r"[\w-]+", split) and type(n) is int and 0 < n <= MOST_IMAGES
        for split, n in images.items()
    ):
        wanted = f"{{split: number of images up to {MOST_IMAGES}}}, a split named by letters and digits"
        raise UserError(f"generator shapes: images: expected {wanted}, found {brief(images)}")
    if not isinstance(settings["seed"], int) or settings["seed"] < 0:
        raise UserError(f"generator shapes: seed: expected a whole number of at least 0, found {settings['seed']!r}")
    if settings.get("bits", 8) not in (8, 16):
        raise UserError(f"generator shapes: bits: expected 8 or 16, found {settings['bits']!r}")
    if _made(folder, settings):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            write(fresh := Path(beside, "new"), settings)
            for attempt in range(10):
                if _made(folder, settings):  # another program was faster
                    return
                try:
                    if folder.exists():
                        folder.rename(Path(beside, f"old{attempt}"))
                    fresh.rename(folder)
                    return
                except OSError:
                    if attempt == 9:
                        raise
    except OSError as error:
        raise UserError(f"cannot write the shapes data set to {folder}: {error.strerror}") from None


def ensure_joint(folder: Path, settings: dict[str, object]) -> None:
    """`ensure` for the data set with a class of the whole image."""
    ensure(folder, {**settings, "image_classes": CLS_NAMES, "unknown": UNKNOWN_SHARE})


def _made(folder: Path, settings: dict[str, object]) -> bool:
    """Is this very data set there? UserError when the folder holds something that this generator did not make."""
    try:
        return (folder / MARK).read_text() == marked(settings)
    except (FileNotFoundError, NotADirectoryError):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists and holds other files; remove it or give another path") from None
        return False


def main(argv: list[str]) -> None:
    args = SHAPES.parse(argv).cfg
    ensure(Path(args.out), {"seed": args.seed})
    print(f"{args.out}: {sum(1 for _ in os.scandir(Path(args.out, 'images', 'train')))} training images")
