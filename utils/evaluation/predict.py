"""Decoded predictions of one detector or of several, plain or with test-time augmentation."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.graph import Detector
from models.head import Part
from utils.system.errors import UserError

VIEWS = ((1.0, False), (0.83, True), (0.67, False))  # size and whether left and right are exchanged, as YOLOv7 does
GREY = 0.447  # of the margin of a smaller view, in 0..1: the mean of ImageNet, as YOLOv7 fills it


def check_together(models: Sequence[Detector], names: Sequence[Sequence[str]], paths: Sequence[str]) -> None:
    """UserError where the detections of several models cannot stand in one list."""
    first = models[0]
    for model, own, path in zip(models[1:], names[1:], paths[1:], strict=True):
        if list(own) != list(names[0]):
            raise UserError(f"--weights {paths[0]} {path}: their class names differ; together they must name the same")
        if model.groups != first.groups:
            raise UserError(f"--weights {paths[0]} {path}: their classes lie in other heads; evaluate them one by one")
        if ("obj" in model.head.loss_kinds()) != ("obj" in first.head.loss_kinds()):
            raise UserError(
                f"--weights {paths[0]} {path}: one has objectness, one has not: their scores do not compare"
            )
        if model.in_channels != first.in_channels or model.stem or first.stem:
            raise UserError(f"--weights {paths[0]} {path}: they read other pictures; evaluate them one by one")


def predictions(models: Sequence[Detector], image: Tensor, det: list[Tensor], augment: bool = False) -> list[Part]:
    """image [B,C,H,W] in 0..1 -> the parts of all models and views, joined along their boxes, before NMS.

    det: raw output of the first model on the image as it is, which is not computed again."""
    found = [models[0].decode(det)]
    found += [model.decode(model(image)["det"]) for model in models[1:]]
    if augment:
        stride = max(int(model.stride.max()) for model in models)
        for scale, flip in VIEWS[1:]:
            seen = smaller(image, scale, flip, stride)
            for model in models:
                parts = model.decode(model(seen)["det"])
                found.append([p._replace(pred=restored(p.pred, scale, flip, image.shape[3])) for p in parts])
    if len(found) == 1:
        return found[0]
    return [same[0]._replace(pred=torch.cat([p.pred for p in same], 1)) for same in zip(*found, strict=True)]


def smaller(image: Tensor, scale: float, flip: bool, stride: int) -> Tensor:
    """A view [B,C,h,w] of an image: flipped, resized, and filled up to whole strides at the right and the bottom."""
    image = image.flip(3) if flip else image
    size = [max(int(side * scale), 1) for side in image.shape[2:]]
    image = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
    down, right = (-size[0]) % stride, (-size[1]) % stride
    return F.pad(image, (0, right, 0, down), value=GREY)


def restored(pred: Tensor, scale: float, flip: bool, width: int) -> Tensor:
    """Predictions [B,M,4+...] of a view, in pixels of the image."""
    box = pred[..., :4] / scale
    if flip:
        box = torch.cat((width - box[..., :1], box[..., 1:]), 2)
    return torch.cat((box, pred[..., 4:]), 2)
