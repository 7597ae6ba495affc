"""Augmentation of images together with their objects; the parameters carry the names of the hyp files.

Every function takes its random generator, so that a picture is a function of (seed, epoch, index). Frame: pixels, x
right, y down, continuous (pixel i covers i..i+1). Images [H,W,C], uint8 or uint16; boxes xyxy.
Mosaic: Bochkovskiy et al., "YOLOv4", arXiv:2004.10934; mixup: Zhang et al., arXiv:1710.09412; copy-paste: Ghiasi et
al., arXiv:2012.07177.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt

from utils.data.labels import Labels
from utils.images.pixels import Image, blend, by_groups, grey, resized
from utils.system.errors import UserError

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
# OpenCV counts from pixel centres, boxes from pixel edges
TO_EDGES = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
FROM_EDGES = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])


@dataclass(frozen=True)
class AugmentParams:
    """Gains (hsv, degrees, translate, scale, shear, perspective) and probabilities (the rest), as in a hyp file."""

    hsv_h: float = 0.0
    hsv_s: float = 0.0
    hsv_v: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    paste_in: float = 0.0

    @classmethod
    def of(cls, config: object) -> Self:
        """Take the parameters from any object that has them as attributes."""
        return cls(**{f.name: float(getattr(config, f.name)) for f in fields(cls)})


@dataclass(frozen=True, slots=True)
class Objects:
    """Objects of one picture as points, so that a warp moves all at once. A box is its four corners."""

    classes: Floats  # [n]
    points: Floats  # [p,2] x, y; object i owns points[starts[i]:starts[i+1]]
    starts: npt.NDArray[np.int64]  # [n]
    outlined: Mask  # [n], True: a polygon, False: a box

    @classmethod
    def of(cls, labels: Labels) -> Self:
        """From labels; the points are fractions of the image until `moved`."""
        parts = [c if p is None else p for c, p in zip(corners(labels.boxes), labels.polygons, strict=True)]
        sizes = np.array([0, *map(len, parts)], np.int64)
        points = np.concatenate([np.zeros((0, 2), np.float32), *parts])
        outlined = np.array([p is not None for p in labels.polygons], bool)
        return cls(labels.boxes[:, 0].copy(), points, np.cumsum(sizes)[:-1], outlined)

    @classmethod
    def of_all(cls, images: Sequence[Labels]) -> list[Self]:
        """`of` each image; those without polygons are parts of arrays made once, ten times as fast."""
        boxes = np.concatenate([np.zeros((0, 5), np.float32), *(labels.boxes for labels in images)])
        classes, points = boxes[:, 0].copy(), corners(boxes)
        most = max(map(len, images), default=0)
        starts, outlined = np.arange(0, 4 * most, 4), np.zeros(most, bool)
        objects, end = [], 0
        for labels in images:
            start, end = end, end + len(labels)
            if any(polygon is not None for polygon in labels.polygons):
                objects.append(cls.of(labels))
            else:
                own = points[start:end].reshape(-1, 2)
                objects.append(cls(classes[start:end], own, starts[: len(labels)], outlined[: len(labels)]))
        return objects

    def __len__(self) -> int:
        return len(self.classes)

    def polygon(self, i: int) -> Floats:
        """Points of object i, [k,2]."""
        return self.points[self.starts[i] : self.starts[i + 1] if i + 1 < len(self.starts) else None]

    def boxes(self) -> Floats:
        """[n,4] xyxy, the extent of each object's points."""
        if not len(self):
            return np.zeros((0, 4), np.float32)
        low, high = np.minimum.reduceat(self.points, self.starts), np.maximum.reduceat(self.points, self.starts)
        return np.concatenate([low, high], 1)

    def moved(self, gain: tuple[float, float], offset: tuple[float, float]) -> "Objects":
        """points * gain + offset, both (x, y)."""
        points = self.points * np.array(gain, np.float32) + np.array(offset, np.float32)
        return Objects(self.classes, points, self.starts, self.outlined)

    def select(self, keep: Mask) -> "Objects":
        if keep.all():
            return self
        sizes = np.diff(np.append(self.starts, len(self.points)))
        points, sizes = self.points[np.repeat(keep, sizes)], sizes[keep]
        return Objects(self.classes[keep], points, np.cumsum(sizes) - sizes, self.outlined[keep])

    def clipped(self, width: int, height: int) -> "Objects":
        """Cut to the picture; what is too small, too thin or mostly outside afterwards (`worth_keeping`) is dropped."""
        before = self.boxes()
        points = self.points.clip(0, np.array([width, height], np.float32))
        inside = Objects(self.classes, points, self.starts, self.outlined)
        return inside.select(worth_keeping(before, inside.boxes()))


def corners(boxes: Floats) -> Floats:
    """Boxes [n,5] class, cx, cy, w, h -> their corners [n,4,2] x, y, clockwise from the upper left."""
    half = boxes[:, 3:5] / 2
    low, high = boxes[:, 1:3] - half, boxes[:, 1:3] + half
    return np.stack([low, np.stack([high[:, 0], low[:, 1]], 1), high, np.stack([low[:, 0], high[:, 1]], 1)], 1)


def joined(parts: Sequence[Objects]) -> Objects:
    """The objects of several pictures as one."""
    shifts = np.cumsum([0, *(len(p.points) for p in parts[:-1])])
    return Objects(
        np.concatenate([p.classes for p in parts]),
        np.concatenate([p.points for p in parts]),
        np.concatenate([p.starts + s for p, s in zip(parts, shifts, strict=True)]),
        np.concatenate([p.outlined for p in parts]),
    )


def worth_keeping(before: Floats, after: Floats) -> Mask:
    """Of boxes [n,4] before and after clipping, in the same scale: sides over 2 px, over a tenth of the area left,
    sides in a ratio below 20."""
    w0, h0 = (before[:, 2:] - before[:, :2]).T
    w, h = (after[:, 2:] - after[:, :2]).T
    small = 1e-9
    ratio = np.maximum(w / (h + small), h / (w + small))
    return np.asarray((w > 2) & (h > 2) & (w * h > 0.1 * w0 * h0) & (ratio < 20))


def covered(boxes: Floats, by: Floats) -> Floats:
    """Share of each box [n,4] that lies under the box `by` [4]."""
    wh = (np.minimum(boxes[:, 2:], by[2:]) - np.maximum(boxes[:, :2], by[:2])).clip(0)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return np.asarray(wh.prod(1) / np.maximum(area, 1e-9), np.float32)


def paste(canvas: Image, tile: Image, x: int, y: int) -> None:
    """Copy `tile` into `canvas` with its upper left corner at (x, y), as far as it lies inside."""
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + tile.shape[1], canvas.shape[1]), min(y + tile.shape[0], canvas.shape[0])
    if x1 > x0 and y1 > y0:
        canvas[y0:y1, x0:x1] = tile[y0 - y : y1 - y, x0 - x : x1 - x]


def mosaic_offsets(draw: np.random.Generator, sizes: Sequence[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Upper left corners (x, y) of 4 or 9 tiles of the given (h, w), at most `size` each, on a canvas of 2*size
    squared.

    4: all touch one random point of the middle half. 9: a 3x3 grid of cells, its tiles drawn towards the middle one;
    the canvas is a random window of it.
    """
    if len(sizes) == 4:
        x, y = draw.integers(size // 2, size + size // 2 + 1, 2).tolist()
        return [(x - w * (i % 2 == 0), y - h * (i < 2)) for i, (h, w) in enumerate(sizes)]
    x, y = draw.integers(0, size + 1, 2).tolist()
    offsets = []
    for i, (h, w) in enumerate(sizes):
        row, column = divmod(i, 3)
        slack_x, slack_y = (size - w) * (2 - column) // 2, (size - h) * (2 - row) // 2
        offsets.append((column * size + slack_x - x, row * size + slack_y - y))
    return offsets


def warp_matrix(
    draw: np.random.Generator, params: AugmentParams, source: tuple[int, int], target: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Random 3x3 matrix from a picture of `source` (h, w) to one of `target` (h, w): the centre goes near the centre.

    Perspective, then rotation with scale, then shear, then shift; drawn in the order of the fields of AugmentParams.
    """
    angle = np.deg2rad(draw.uniform(-params.degrees, params.degrees))
    shift = draw.uniform(0.5 - params.translate, 0.5 + params.translate, 2) * (target[1], target[0])
    scale = draw.uniform(1 - params.scale, 1 + params.scale)
    shear = np.tan(np.deg2rad(draw.uniform(-params.shear, params.shear, 2)))
    tilt = draw.uniform(-params.perspective, params.perspective, 2)
    centre = np.array([[1, 0, -source[1] / 2], [0, 1, -source[0] / 2], [0, 0, 1]])
    perspective = np.array([[1, 0, 0], [0, 1, 0], [tilt[0], tilt[1], 1]])
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    slant = np.array([[1, shear[0], 0], [shear[1], 1, 0], [0, 0, 1]])
    place = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    return np.asarray(place @ slant @ rotation @ perspective @ centre)


def visible(
    matrix: npt.NDArray[np.float64], source: tuple[int, int], target: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The part x0, y0, x1, y1 of a picture of `source` (h, w) outside of which `warp` by `matrix` onto `target` (h, w)
    takes no pixel from; everything where there is perspective."""
    height, width = source
    if matrix[2, 0] or matrix[2, 1]:
        return 0, 0, width, height
    corners = np.array([[0, target[1], 0, target[1]], [0, 0, target[0], target[0]], [1, 1, 1, 1]])
    x, y = (np.linalg.inv(matrix) @ corners)[:2]
    reach = 2  # bilinear sampling takes its four nearest pixels, at most one pixel away
    x0, y0 = np.floor((x.min() - reach, y.min() - reach)).clip(0, (width, height)).astype(int).tolist()
    x1, y1 = np.ceil((x.max() + reach, y.max() + reach)).clip(0, (width, height)).astype(int).tolist()
    return x0, y0, x1, y1


def warp(
    image: Image, objects: Objects, matrix: npt.NDArray[np.float64], target: tuple[int, int]
) -> tuple[Image, Objects]:
    """Move picture and objects by `matrix` onto a picture of `target` (h, w), grey outside, objects clipped."""
    height, width = target
    if (matrix == np.eye(3)).all() and image.shape[:2] == target:
        return image, objects.clipped(width, height)
    centres = FROM_EDGES @ matrix @ TO_EDGES
    outside, size = (grey(image),) * 4, (width, height)
    if matrix[2, 0] or matrix[2, 1]:
        image = by_groups(image, lambda part: cv2.warpPerspective(part, centres, size, borderValue=outside))
    else:
        image = by_groups(image, lambda part: cv2.warpAffine(part, centres[:2], size, borderValue=outside))
    points = objects.points @ matrix[:, :2].T + matrix[:, 2]
    depth = points[:, 2:]
    flat: Floats = np.asarray(points[:, :2] / np.maximum(depth, 0.1), np.float32)
    moved = Objects(objects.classes, flat, objects.starts, objects.outlined)
    if depth.size and depth.min() < 0.1:  # a strong perspective turns these points over the horizon
        moved = moved.select(np.minimum.reduceat(depth[:, 0], objects.starts) >= 0.1)
    return image, moved.clipped(width, height)


def hsv(draw: np.random.Generator, image: Image, params: AugmentParams, colour: bool = True) -> Image:
    """Scale hue, saturation and value of RGB by factors in 1 +- gain. Without `colour` there is no hue and no
    saturation, and the gain of value is one on all channels."""
    gains = np.array([params.hsv_h, params.hsv_s, params.hsv_v])
    if not gains.any():
        return image
    factors = 1 + draw.uniform(-1, 1, 3) * gains
    if not colour:
        return blend(image, float(factors[2]), image, 0)
    if image.dtype != np.uint8:
        return hsv_deep(image, factors)
    table = np.arange(256)[:, None] * factors  # [256,3]
    table[:, 0] %= 180  # OpenCV's hue goes from 0 to 179
    lookup = np.ascontiguousarray(table.clip(0, 255).astype(np.uint8).T)  # [3,256]
    planes = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))  # one table each is faster than one of three channels
    turned = cv2.merge([cv2.LUT(plane, row) for plane, row in zip(planes, lookup, strict=True)])
    return cv2.cvtColor(turned, cv2.COLOR_HSV2RGB, dst=turned).astype(np.uint8, copy=False)


def check_colour(values: Mapping[str, float], colour: bool, why: str) -> None:
    """UserError for hue and saturation among parameters where the channels are not red, green and blue."""
    given = " ".join(f"--{key.replace('_', '-')} {values[key]:g}" for key in ("hsv_h", "hsv_s") if values.get(key))
    if given and not colour:
        raise UserError(
            f"{given}: hue and saturation are those of red, green and blue, but {why}; set both to 0, as "
            "data/hyp.logchroma.yaml does (--hsv-v works on any channels)"
        )


def hsv_deep(image: Image, factors: npt.NDArray[np.float64]) -> Image:
    """`hsv` of uint16 RGB by way of float32: OpenCV has it in 8 bits and in floating point."""
    planes = np.asarray(cv2.cvtColor(image.astype(np.float32) / 65535, cv2.COLOR_RGB2HSV), np.float64) * factors
    planes[..., 0] %= 360
    turned = planes.clip(0, [360, 1, 1]).astype(np.float32)
    back = np.asarray(cv2.cvtColor(turned, cv2.COLOR_HSV2RGB), np.float32)
    return np.rint(back * 65535).clip(0, 65535).astype(np.uint16)


def flip(draw: np.random.Generator, image: Image, boxes: Floats, params: AugmentParams) -> tuple[Image, Floats]:
    """Mirror picture and boxes [n,4] upside down and left to right with their probabilities."""
    down, sideways = draw.random(2) < (params.flipud, params.fliplr)
    height, width = image.shape[:2]
    if down:
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1)
    if sideways:
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    if down or sideways:  # OpenCV's axes: 0 upside down, 1 left to right, -1 both
        axis = -1 if down and sideways else int(sideways)
        image = np.asarray(cv2.flip(image, axis), image.dtype).reshape(image.shape)
    return image, boxes


def mixup(draw: np.random.Generator, image: Image, other: Image) -> Image:
    """r * image + (1 - r) * other with r from Beta(8, 8)."""
    r = float(draw.beta(8, 8))
    return blend(image, r, other, 1 - r)


def copy_paste(draw: np.random.Generator, image: Image, objects: Objects, probability: float) -> Objects:
    """Mirror outlined objects to the other side of the picture, each with `probability`, where they cover no box by
    more than 30 %. Changes `image` in place. Objects that are only boxes have no outline to cut along and stay
    single."""
    chosen = np.flatnonzero(objects.outlined & (draw.random(len(objects)) < probability))
    if not len(chosen):
        return objects
    width = image.shape[1]
    source, boxes = image[:, ::-1].copy(), objects.boxes()
    copies = []
    for i in chosen:
        polygon = objects.polygon(int(i)) * np.array([-1, 1], np.float32) + np.array([width, 0], np.float32)
        box = np.concatenate([polygon.min(0), polygon.max(0)])
        if (covered(boxes, box) > 0.3).any():
            continue
        stencil(image, source, polygon, 0, 0)
        boxes = np.concatenate([boxes, box[None]])
        copies.append(Objects(objects.classes[i : i + 1], polygon, np.zeros(1, np.int64), np.ones(1, bool)))
    return joined([objects, *copies])


def stencil(image: Image, source: Image, polygon: Floats, x: int, y: int) -> None:
    """Copy the inside of `polygon` (pixels of `source`) from `source` to `image`, shifted by (x, y), in place.

    The shifted polygon must lie inside `image`.
    """
    low = np.floor(polygon.min(0)).astype(int).clip(0)
    high = np.minimum(np.ceil(polygon.max(0)).astype(int), source.shape[1::-1])
    part = source[low[1] : high[1], low[0] : high[0]]
    inside = np.zeros(part.shape[:2], np.uint8)
    cv2.fillPoly(inside, [np.rint(polygon - low - 0.5).astype(np.int32)], 1)
    target = image[low[1] + y : high[1] + y, low[0] + x : high[0] + x]
    np.copyto(target, part, where=inside[..., None] > 0)


def paste_in(
    draw: np.random.Generator, image: Image, objects: Objects, sources: Sequence[tuple[Image, Objects]]
) -> Objects:
    """Paste up to four objects of each of the `sources`, shrunk to 30..100 %, at random places where they cover no box
    by more than 30 %. Outlined objects are cut along their outline, boxes as rectangles. Changes `image` in place."""
    height, width = image.shape[:2]
    boxes, pasted = objects.boxes(), [objects]
    for source, available in sources:
        for i in draw.permutation(len(available))[:4].tolist():
            polygon = available.polygon(i)
            low, high = polygon.min(0), polygon.max(0)
            size = high - low
            gain = float(draw.uniform(0.3, 1.0)) * min(1.0, width / 2 / size[0], height / 2 / size[1])
            spot = draw.random(2)
            if (size * gain < 8).any():
                continue
            x0, y0 = np.floor(low).astype(int).clip(0)
            part = source[y0 : int(np.ceil(high[1])), x0 : int(np.ceil(high[0]))]
            shape = (max(round(part.shape[1] * gain), 1), max(round(part.shape[0] * gain), 1))
            small = resized(part, shape[::-1], cv2.INTER_AREA)
            outline = np.asarray((polygon - np.array([x0, y0])) * shape / part.shape[1::-1], np.float32)
            x, y = int(spot[0] * (width - shape[0] + 1)), int(spot[1] * (height - shape[1] + 1))
            box = np.concatenate([outline.min(0), outline.max(0)]) + np.array([x, y, x, y], np.float32)
            if (covered(boxes, box) > 0.3).any():
                continue
            if available.outlined[i]:
                stencil(image, small, outline, x, y)
            else:
                paste(image, small, x, y)
            boxes = np.concatenate([boxes, box[None]])
            moved = np.asarray(outline + np.array([x, y]), np.float32)
            kind = available.outlined[i : i + 1]
            pasted.append(Objects(available.classes[i : i + 1], moved, np.zeros(1, np.int64), kind))
    return joined(pasted)


Change = tuple[int, Mapping[str, float]]  # from this epoch on, these parameters


@dataclass(frozen=True)
class AugmentPlan:
    """params from epoch 0, and what changes."""

    params: AugmentParams
    changes: tuple[Change, ...] = ()  # by epoch; a value holds until a later change gives another
    closes: int | None = None  # from this epoch on no mosaic, and no mixup, which mixes two of them

    def at(self, epoch: int) -> AugmentParams:
        params = self.params
        for start, values in self.changes:
            if start <= epoch:
                params = replace(params, **values)
        return replace(params, mosaic=0.0, mixup=0.0) if self.closes is not None and epoch >= self.closes else params

    def changed(self, changes: Sequence[Change]) -> "AugmentPlan":
        return replace(self, changes=tuple(sorted((*self.changes, *changes), key=lambda change: change[0])))
