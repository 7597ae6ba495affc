"""The rows, keys and words (nc, anchors, None, nn.LeakyReLU(0.1), ...) of a model YAML: checked and looked up, never
evaluated."""

import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    name: getattr(nn, name)
    for name in ("LeakyReLU", "SiLU", "ReLU", "ReLU6", "Hardswish", "Mish", "GELU", "Identity", "Sigmoid")
}
SETTINGS = {
    "nc", "nh", "ch", "names", "anchors", "depth_multiple", "width_multiple", "max_channels", "scales", "scale",
    "activation", "backbone", "head",
}  # fmt: skip
MULTIPLES = ("depth_multiple", "width_multiple", "max_channels")  # in the order of `scales`
OTHER_NETWORK = {  # keys by which other programs build other networks
    "channel_multiple": "write the channels as they are, with width_multiple 1.0",
    "kpt_shape": "key points are not supported",
    "end2end": "detectors that need no NMS (YOLOv10, YOLO26) are not supported",
    "reg_max": "boxes are told by distributions of 16 bins, without this key",
}


MOST_ROWS, MOST_REPEATS = 2000, 1000  # of a model, and of a module in its row
MOST_PARAMETERS = 2_000_000_000
MOST_NUMBER = 1_000_000  # among the arguments of a row


class GraphError(ValueError):
    """A model YAML that cannot be built; the message names the row."""


def parse_word(word: object, known: Mapping[str, object]) -> Any:
    """One YAML argument: numbers and lists as they are, words looked up among `known`, None/True/False and
    activations."""
    if isinstance(word, list):
        return [parse_word(w, known) for w in word]
    if not isinstance(word, str):
        return word
    constants = {"None": None, "True": True, "False": False, **known}
    if word in constants:
        return constants[word]
    if match := re.fullmatch(r"(?:torch\.)?nn\.(\w+)\(([\w., =-]*)\)", word.strip()):
        return parse_activation(match[1], match[2])
    return word


def parse_activation(name: str, text: str) -> nn.Module:
    """`LeakyReLU`, `0.1, inplace=True` -> the module. `inplace` is dropped: it changes memory, not numbers."""
    if name not in ACTIVATIONS:
        raise GraphError(f"unknown activation nn.{name}; known: {', '.join(ACTIVATIONS)}")
    parts = [part for part in re.split(r"\s*,\s*", text) if part]
    positional = [part for part in parts if "=" not in part and part not in ("True", "False")]
    named = {key.strip(): value for key, _, value in (part.partition("=") for part in parts if "=" in part)}
    try:
        options = {key: float(value) for key, value in named.items() if key != "inplace"}
        return ACTIVATIONS[name](*map(float, positional), **options)
    except (TypeError, ValueError):
        raise GraphError(f"cannot read the activation nn.{name}({text})") from None


def check_rows(spec: Mapping[str, object], part: str) -> list[Any]:
    """The rows of `backbone` or `head`, each checked to be [from, number, module, args]."""
    rows = spec.get(part)
    if not isinstance(rows, list) or not rows:
        raise GraphError(f"model YAML has no list `{part}` of rows [from, number, module, args]")
    if len(rows) > MOST_ROWS:
        raise GraphError(f"{part} has {len(rows)} rows; {MOST_ROWS} are the most")
    for i, row in enumerate(rows):
        if not (isinstance(row, list) and len(row) == 4 and isinstance(row[2], str) and isinstance(row[3], list)):
            raise GraphError(f"{part} row {i}: {cut(row)} is not [from, number, module, args]")
        source = row[0] if isinstance(row[0], list) else [row[0]]
        if not source or not all(whole(s) for s in source):
            raise GraphError(f"{part} row {i}: {cut(row)}: from must be a row number or a list of them")
        if not whole(row[1]) or not 1 <= row[1] <= MOST_REPEATS:
            raise GraphError(f"{part} row {i}: {cut(row)}: number must be 1 or more, {MOST_REPEATS} at most")
        if any(abs(number) > MOST_NUMBER for number in numbers_in(row[3])):
            raise GraphError(
                f"{part} row {i}: {cut(row)}: the numbers among its arguments may be {MOST_NUMBER:,} at most"
            )
    return rows


def numbers_in(args: list[Any]) -> Iterator[float]:
    for arg in args:
        if isinstance(arg, list):
            yield from numbers_in(arg)
        elif isinstance(arg, (int, float)):
            yield arg


def cut(value: object) -> str:
    """A value of the file, for a message."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlong = 3, 40
    return short.repr(value)[:200]


def whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def at_scale(spec: Mapping[str, object]) -> Mapping[str, object]:
    """With the multiples that its `scale`, one of its `scales`, stands for; GraphError where that is none of them."""
    scales, scale = spec.get("scales"), spec.get("scale")
    if scales is None:
        return spec
    if not isinstance(scales, dict) or not isinstance(scale, str) or scale not in scales:
        listed = ", ".join(f"{s!s:.20}" for s in scales) if isinstance(scales, dict) else ""
        raise GraphError(f"scale is {cut(scale)}: give the letter of one of its scales ({listed or 'there are none'})")
    values = scales[scale]
    if not isinstance(values, list) or len(values) != len(MULTIPLES):
        raise GraphError(f"scales: {scale:.60}: {cut(values)} is not [depth, width, max_channels]")
    return {**spec, **dict(zip(MULTIPLES, values, strict=True))}


def check_settings(spec: Mapping[str, object]) -> None:
    """The keys beside the rows."""
    for key in OTHER_NETWORK.keys() & spec.keys():
        raise GraphError(f"the key {key!r} is not known here: {OTHER_NETWORK[key]}")
    for key, most in zip(MULTIPLES, (1000, 1000, MOST_NUMBER), strict=True):
        value = spec.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise GraphError(f"{key} must be a number above 0, and {most} at most; got {cut(value)}")
    if whole(anchors := spec.get("anchors")) and not 1 <= anchors <= 100:  # type: ignore[operator]
        raise GraphError(f"anchors: as a number, of each level, from 1 to 100; got {cut(anchors)}")
    if "activation" in spec and not isinstance(parse_word(spec["activation"], {}), nn.Module):
        raise GraphError(f"activation: {cut(spec['activation'])} is none of nn.{', nn.'.join(ACTIVATIONS)}")


def spelled(name: str, slope: object = None) -> str:
    """An activation in short: `SiLU`, `LeakyReLU(0.1)`."""
    return f"{name}({slope:g})" if isinstance(slope, int | float) else name


def outputs_per_level(anchors: Any, nc: int) -> int:
    """Channels of a plain detector's convolutions; 0 where the anchors do not say."""
    first = anchors[0] if isinstance(anchors, list) and anchors else None
    count = len(first) // 2 if isinstance(first, list) else anchors if whole(anchors) else 0
    return int(count) * (nc + 5)
