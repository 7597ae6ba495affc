"""Hyper-parameter files. A file is a recipe: what it leaves out has the value of the program it comes from.

What is filled in is said. Which program that is, three keys tell. A file with `dfl` is for heads without anchors
(YOLOv8 and later) and needs no key of the others. YOLOv5 has neither `loss_ota` nor `paste_in`, so a file without both
trains with neither; YOLOv7's files have `paste_in`, and there a missing `loss_ota` means OTA.
"""

import dataclasses
import math
import re
from collections.abc import Container
from typing import Any

from utils.config.options import check_range
from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml

YOLOV5 = {  # where its files, if they leave a key out, mean another value than this program's default
    "lrf": 0.01, "cls": 0.5, "obj": 1.0, "translate": 0.1, "scale": 0.5, "mixup": 0.0, "paste_in": 0.0, "loss_ota": 0.0,
}  # fmt: skip
YOLOV8 = YOLOV5 | {"box": 7.5}
OF_ANCHORS = {"cls_pw", "obj", "obj_pw", "iou_t", "anchor_t", "fl_gamma", "loss_ota", "paste_in"}
MAY_LACK = {"label_smoothing", "anchors", "dfl", "close_mosaic", "linear_lr"}  # keys that no recipe need have
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # which YAML 1.1 takes for text where it has no point


def keys_of(schema: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(schema) if f.metadata.get("hyp"))  # type: ignore[arg-type]


def read_hyp(path: str, schema: type) -> dict[str, float]:
    """What stands in the file, checked: every key known, every value a number in its range."""
    values, kinds = read_yaml(path, "--hyp"), {f.name: f.type for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    for key, value in values.items():
        if key not in keys_of(schema):
            raise UserError(f"{path}: unknown hyper-parameter {key!r:.100}; known: {', '.join(keys_of(schema))}")
        if isinstance(value, str) and NUMBER.fullmatch(value):
            values[key] = value = float(value)
        if kinds[key] is bool and isinstance(value, bool):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{path}: {key} must be a number, got {value!r:.100}")
        if not math.isfinite(float(value)):
            raise UserError(f"{path}: {key} must be a finite number, got {value}")
    for f in dataclasses.fields(schema):  # type: ignore[arg-type]
        if f.name in values:
            check_range(f, values[f.name], f"{path}: {f.name}")
    if uneven := [key for key, value in values.items() if kinds[key] in (int, bool) and value != int(value)]:
        raise UserError(f"{path}: {uneven[0]} must be a whole number, got {values[uneven[0]]}")
    return {key: kinds[key](value) for key, value in values.items()}  # type: ignore[operator]


def fill_in(values: dict[str, float], schema: type, given: Container[str] = ()) -> tuple[dict[str, float], str]:
    """(what a recipe leaves out, a line that says so; empty where it is complete). given: not to be filled."""
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    free, yolov5 = "dfl" in values, not {"loss_ota", "paste_in"} & values.keys()
    form = "YOLOv5's form, without loss_ota and paste_in" if yolov5 and not free else ""
    if free:
        defaults |= YOLOV8
    elif yolov5:
        defaults |= YOLOV5
    elif "loss_ota" not in values:
        form = "YOLOv7's form, where no loss_ota means OTA"
    elif "paste_in" not in values:
        defaults["paste_in"] = 0.0
    lacking = [k for k in keys_of(schema) if k not in values and k not in MAY_LACK]
    filled = {k: float(defaults[k]) for k in lacking if k not in given}
    said = ", ".join(f"{k} {v:g}" for k, v in filled.items() if not (free and k in OF_ANCHORS))
    return filled, f"{form + '; ' if form else ''}filled in: {said}" if said else ""
