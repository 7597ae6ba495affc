"""Boxes: conversions between forms, between the native image and the network's input, clipping, and the IoU matrix.

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


def xyxy_to_xywh(boxes: Array) -> Array:
    """[..., 4] corner form -> centre form, any unit."""
    out = _copy(boxes)
    out[..., 0:2] = (boxes[..., 0:2] + boxes[..., 2:4]) / 2
    out[..., 2:4] = boxes[..., 2:4] - boxes[..., 0:2]
    return out


def xywhn_to_xyxy(boxes: Array, width: float, height: float, pad_x: float = 0.0, pad_y: float = 0.0) -> Array:
    """[..., 4] centre form in 0..1 of a `width` x `height` image -> corners in pixels, moved by the padding."""
    out = xywh_to_xyxy(boxes)
    out[..., 0::2] = out[..., 0::2] * width + pad_x
    out[..., 1::2] = out[..., 1::2] * height + pad_y
    return out


def xyxy_to_xywhn(boxes: Array, width: float, height: float) -> Array:
    """[..., 4] corners in pixels of a `width` x `height` image -> centre form in 0..1."""
    out = xyxy_to_xywh(boxes)
    out[..., 0::2] = out[..., 0::2] / width
    out[..., 1::2] = out[..., 1::2] / height
    return out


def points_to_pixels(points: Array, width: float, height: float, pad_x: float = 0.0, pad_y: float = 0.0) -> Array:
    """[..., 2] points in 0..1 -> pixels, moved by the padding."""
    out = _copy(points)
    out[..., 0] = points[..., 0] * width + pad_x
    out[..., 1] = points[..., 1] * height + pad_y
    return out


def polygon_box(points: Floats, width: float, height: float) -> Floats:
    """Corners [4] around those of the points [K, 2] (pixels) that lie in the image; zeros where none does."""
    x, y = points[:, 0], points[:, 1]
    inside = points[(x >= 0) & (y >= 0) & (x <= width) & (y <= height)]
    if len(inside) == 0:
        return np.zeros(4, points.dtype)
    return np.concatenate([inside.min(0), inside.max(0)])


def polygons_to_xywh(polygons: Sequence[Floats]) -> Floats:
    """Polygons, each [K, 2] -> centre form [N, 4] of the smallest box around each, same unit."""
    if not polygons:
        return np.zeros((0, 4), np.float32)
    return xyxy_to_xywh(np.stack([np.concatenate([p.min(0), p.max(0)]) for p in polygons]))


def resample_polygon(points: Floats, n: int = 1000) -> Floats:
    """[K, 2] -> [n, 2] float64: points at even steps of the index along the closed line, which ends where it began."""
    ring = np.concatenate([points, points[:1]])
    at, old = np.linspace(0, len(points), n), np.arange(len(ring))
    return np.stack([np.interp(at, old, ring[:, 0]), np.interp(at, old, ring[:, 1])], 1)


def clip(boxes: Array, width: float, height: float) -> Array:
    """[..., 4] corners in pixels, cut at the image border."""
    out = _copy(boxes)
    out[..., 0::2] = boxes[..., 0::2].clip(0, width)
    out[..., 1::2] = boxes[..., 1::2].clip(0, height)
    return out


def letterbox_gain_pad(input_hw: tuple[int, int], native_hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """(gain_x, gain_y, pad_x, pad_y) of a native image centred in the input at the largest size that fits."""
    gain = min(input_hw[0] / native_hw[0], input_hw[1] / native_hw[1])
    return gain, gain, (input_hw[1] - native_hw[1] * gain) / 2, (input_hw[0] - native_hw[0] * gain) / 2


def to_native(boxes: Array, gain_pad: Sequence[float], native_hw: tuple[int, int]) -> Array:
    """[..., 4] corners in input pixels -> corners in native pixels, cut at the native image's border."""
    gain_x, gain_y, pad_x, pad_y = gain_pad
    out = _copy(boxes)
    out[..., 0::2] = (boxes[..., 0::2] - pad_x) / gain_x
    out[..., 1::2] = (boxes[..., 1::2] - pad_y) / gain_y
    return clip(out, native_hw[1], native_hw[0])


def to_input(boxes: Array, gain_pad: Sequence[float]) -> Array:
    """[..., 4] corners in native pixels -> corners in input pixels; nothing is cut."""
    gain_x, gain_y, pad_x, pad_y = gain_pad
    out = _copy(boxes)
    out[..., 0::2] = boxes[..., 0::2] * gain_x + pad_x
    out[..., 1::2] = boxes[..., 1::2] * gain_y + pad_y
    return out


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


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Corners [N, 4] and [M, 4] in one frame -> IoU [N, M] in 0..1."""
    return paired_iou(a[:, None], b[None])


def wh_iou(a: Tensor, b: Tensor) -> Tensor:
    """Sizes [N, 2] and [M, 2] -> IoU [N, M] of boxes of these sizes that share their centre."""
    inter = torch.minimum(a[:, None], b[None]).prod(2)
    return inter / (a.prod(1)[:, None] + b.prod(1) - inter)
