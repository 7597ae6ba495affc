"""Boxes: conversions between forms, between the native image and the network's input, clipping, and IoU.

Forms (last axis 4): `xyxy` = corners x1, y1, x2, y2; `xywh` = centre x, y, width, height. A trailing `n` means
normalised to 0..1 of an image, otherwise pixels. A conversion takes a tensor or an array and returns a new one.
A letterbox is written `gain_pad` = (gain_x, gain_y, pad_x, pad_y):  input pixels = native pixels * gain + pad.
IoU = intersection / union (Jaccard); boxes without any area have IoU 0 with everything.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", Tensor, NDArray[Any])
Floats = NDArray[np.floating[Any]]


def _copy(x: Array) -> Array:
    return x.clone() if isinstance(x, Tensor) else x.copy()


def xywh_to_xyxy(boxes: Array) -> Array:
    """[..., 4] centre form -> corner form, any unit."""
    out = _copy(boxes)
    half = boxes[..., 2:4] / 2
    out[..., 0:2] = boxes[..., 0:2] - half
    out[..., 2:4] = boxes[..., 0:2] + half
    return out


def xywhn_to_xyxy(boxes: Array, width: float, height: float, pad_x: float = 0.0, pad_y: float = 0.0) -> Array:
    """[..., 4] centre form in 0..1 of a `width` x `height` image -> corners in pixels, moved by the padding."""
    out = xywh_to_xyxy(boxes)
    out[..., 0::2] = out[..., 0::2] * width + pad_x
    out[..., 1::2] = out[..., 1::2] * height + pad_y
    return out


def clip(boxes: Array, width: float, height: float) -> Array:
    """[..., 4] corners in pixels, cut at the image border."""
    out = _copy(boxes)
    out[..., 0::2] = boxes[..., 0::2].clip(0, width)
    out[..., 1::2] = boxes[..., 1::2].clip(0, height)
    return out


def to_native(boxes: Array, gain_pad: Sequence[float], native_hw: tuple[int, int]) -> Array:
    """[..., 4] corners in input pixels -> corners in native pixels, cut at the native image's border."""
    gain_x, gain_y, pad_x, pad_y = gain_pad
    out = _copy(boxes)
    out[..., 0::2] = (boxes[..., 0::2] - pad_x) / gain_x
    out[..., 1::2] = (boxes[..., 1::2] - pad_y) / gain_y
    return clip(out, native_hw[1], native_hw[0])


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Corners [..., 4] and [..., 4] in one frame, broadcast against each other -> IoU [...] in 0..1."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:4], b[..., 2:4])
    inter, area_a, area_b = (
        _area(x) for x in ((high - low).clamp(min=0), a[..., 2:4] - a[..., :2], b[..., 2:4] - b[..., :2])
    )
    union = area_a + area_b - inter
    return torch.where(union > 0, inter / union, torch.zeros_like(union))


def _area(size: Tensor) -> Tensor:
    return size[..., 0] * size[..., 1]
