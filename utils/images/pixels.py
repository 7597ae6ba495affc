"""What pictures are made of: 1 to 8 channels of 8 or 16 bits, and OpenCV's functions for any of these.

Images are [H,W,C] always, with the channel axis kept for C = 1, uint8 or uint16. OpenCV takes four channels in most
functions; some take more but then round differently (warpAffine of 2 and of 5 to 8 channels is up to 2 % off that of
1, 3 and 4), so `by_groups` hands them over in ones, threes and fours: a channel's values do not depend on how many
others there are. 16 bits hold 257 times the number of 8 bits (65535 = 255 * 257), so that both mean the same fraction
of the full scale.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Image = npt.NDArray[np.unsignedinteger[Any]]
CHANNELS = 8  # most that are read
GROUPS = {1: (1,), 2: (1, 1), 5: (4, 1), 6: (3, 3), 7: (4, 3), 8: (4, 4)}
GREY = 114  # the padding value every published YOLO weight has been trained with, of 255


class Pixels(NamedTuple):
    """Of all pictures of a split."""

    channels: int = 3
    bits: int = 8
    colour: bool = True  # the three channels are red, green and blue

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        return np.dtype(np.uint16 if self.bits > 8 else np.uint8)


def grey(image: Image) -> int:
    """GREY in an image's own scale."""
    return GREY * (257 if image.dtype == np.uint16 else 1)


def empty(size: tuple[int, int], pixels: Pixels) -> Image:
    """A grey picture [*size, channels]."""
    image: Image = np.empty((*size, pixels.channels), pixels.dtype)
    image[:] = grey(image)
    return image


def widened(image: Image) -> Image:
    """8 bits -> 16 bits: the same fractions of the full scale."""
    return image if image.dtype == np.uint16 else np.multiply(image, 257, dtype=np.uint16)


def by_groups(image: Image, function: Callable[[Image], object]) -> Image:
    """function, one of OpenCV's for 1, 3 or 4 channels, of all channels."""
    if image.shape[2] in (3, 4):
        return np.asarray(function(image), image.dtype)
    parts: list[Image] = []
    start = 0
    for count in GROUPS[image.shape[2]]:
        part = np.asarray(function(np.ascontiguousarray(image[..., start : start + count])), image.dtype)
        parts.append(part.reshape(*part.shape[:2], count))
        start += count
    return parts[0] if len(parts) == 1 else np.concatenate(parts, 2)


def resized(image: Image, size: tuple[int, int], how: int = cv2.INTER_LINEAR) -> Image:
    """[H,W,C] -> [*size, C]; size (height, width); how: OpenCV's interpolation."""
    return by_groups(image, lambda part: cv2.resize(part, size[::-1], interpolation=how))


def blend(image: Image, weight: float, other: Image, rest: float) -> Image:
    """weight * image + rest * other, rounded and clipped to the full scale."""
    return np.asarray(cv2.addWeighted(image, weight, other, rest, 0), image.dtype).reshape(image.shape)


def fractions(image: Tensor) -> Tensor:
    """uint8 or uint16 -> float32 in 0..1 of the full scale."""
    return image.float() / torch.iinfo(image.dtype).max


def viewable(image: Image) -> npt.NDArray[np.uint8]:
    """[H,W,C] -> 8 bits RGB [H,W,3], for the eye: full scale stays full scale; one channel grey, two red and green, of
    more the first three."""
    if image.dtype == np.uint16:
        image = np.rint(image / np.float32(257)).astype(np.uint8)
    channels = image.shape[2]
    if channels == 1:
        image = np.repeat(image, 3, 2)
    elif channels == 2:
        image = np.concatenate([image, np.zeros_like(image[..., :1])], 2)
    return np.ascontiguousarray(image[..., :3], np.uint8)
