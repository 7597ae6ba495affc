"""Letterbox: fit an image of any size into a given one, keeping its aspect ratio, and pad the rest with grey.

    input = native * ratio + pad        (pixels, x and y apart)

`fit` computes the numbers from sizes alone; `letterbox` applies them to pixels. Both follow the convention of the YOLO
programs: ratio = min over the axes, sizes rounded half to even, an odd margin gets its extra pixel at the bottom or
right. Shapes: images [H,W,C]; sizes are (height, width); ratio and pad are (x, y).
"""

from typing import NamedTuple

from utils.images.pixels import Image, Pixels, empty, resized


class Fit(NamedTuple):
    """How an image is placed. `pad` is the exact half margin; `left`, `top` are the whole pixels really used."""

    ratio: tuple[float, float]  # (x, y)
    pad: tuple[float, float]  # (x, y), pixels, may end in .5
    inner: tuple[int, int]  # (height, width) of the resized image
    outer: tuple[int, int]  # (height, width) of the result
    left: int
    top: int


def fit(
    size: tuple[int, int],
    new_size: int | tuple[int, int],
    *,
    auto: bool = True,
    scale_fill: bool = False,
    scaleup: bool = True,
    stride: int = 32,
) -> Fit:
    """Place an image of `size` (h, w) into `new_size` (h, w).

    auto: pad only to the next multiple of `stride`, so that the result may be smaller than new_size.
    scale_fill: stretch to new_size, without padding. scaleup: allow a ratio above 1.
    """
    height, width = (new_size, new_size) if isinstance(new_size, int) else new_size
    r = min(height / size[0], width / size[1])
    if not scaleup:
        r = min(r, 1.0)
    ratio, inner = (r, r), (max(round(size[0] * r), 1), max(round(size[1] * r), 1))
    margin_y, margin_x = height - inner[0], width - inner[1]
    if auto:
        margin_y, margin_x = margin_y % stride, margin_x % stride
    elif scale_fill:
        margin_y, margin_x, inner = 0, 0, (height, width)
        ratio = (width / size[1], height / size[0])
    pad = (margin_x / 2, margin_y / 2)
    left, top = round(pad[0] - 0.1), round(pad[1] - 0.1)
    return Fit(ratio, pad, inner, (inner[0] + margin_y, inner[1] + margin_x), left, top)


def place(image: Image, placed: Fit) -> Image:
    """Resize (bilinear) and pad `image` [H,W,C] as `placed` says -> [*placed.outer, C]."""
    if image.shape[:2] != placed.inner:
        image = resized(image, placed.inner)
    if placed.inner == placed.outer:
        return image
    out = empty(placed.outer, Pixels(image.shape[2], 8 * image.itemsize))
    out[placed.top : placed.top + placed.inner[0], placed.left : placed.left + placed.inner[1]] = image
    return out


def letterbox(
    image: Image,
    new_size: int | tuple[int, int] = 640,
    *,
    auto: bool = True,
    scale_fill: bool = False,
    scaleup: bool = True,
    stride: int = 32,
) -> tuple[Image, tuple[float, float], tuple[float, float]]:
    """`image` [H,W,C] -> (fitted image, ratio (x, y), pad (x, y) in pixels). Options as in `fit`."""
    placed = fit(
        (image.shape[0], image.shape[1]), new_size, auto=auto, scale_fill=scale_fill, scaleup=scaleup, stride=stride
    )
    return place(image, placed), placed.ratio, placed.pad
