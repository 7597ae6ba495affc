"""What a checkpoint says about itself: its keys and their types, declared once and checked whenever one is read.

A file may have been edited by hand, damaged, or made up; what is not of these types would fail far from here. Keys that
are absent are the reader's business, and so are keys of which nothing is known here.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from utils.system.errors import UserError
from utils.system.schema import Count, check

MOST_CLASSES = 1_000_000


class DataSaid(TypedDict):
    yaml: str
    fingerprint: str


class Conditions(TypedDict):
    environment: dict[str, Any]
    device: dict[str, Any]


class Description(TypedDict, total=False):
    # the model
    spec: dict[str, Any] | None  # its YAML
    nc: Annotated[int, (1, MOST_CLASSES)] | None
    names: list[str] | None
    groups: list[list[Count]] | None  # class ids of each head
    group_names: list[str] | None
    channels: Annotated[int, (1, 64)] | None
    modules: dict[str, str] | None  # files of --modules that it is built with, and the SHA-256 of each
    img_size: Annotated[int, (1, 1 << 20)] | None
    scale: list[float] | None
    patches: dict[str, dict[str, Any]] | None
    config: dict[str, Any]
    data: DataSaid
    # a figure, and the rule it was made by
    map50: float | None
    map: float | None
    match: str | None
    # progress
    epoch: Count
    step: Count
    pending: Count
    next_epoch: Count
    next_batch: Count
    best: float
    ema_updates: Count
    class_ap: list[float] | None
    conditions: Conditions
    guard: dict[str, Any]


def check_description(meta: Mapping[str, Any], where: str) -> None:
    """Errors: UserError naming the key, also where numbers that belong together differ."""
    check(meta, Description, where)
    nc, names, groups = meta.get("nc"), meta.get("names"), meta.get("groups")
    if nc and names and len(names) != nc:
        raise UserError(f"{where}: nc is {nc}, and names has {len(names)}")
    if nc and groups and sorted(c for group in groups for c in group) != list(range(nc)):
        raise UserError(f"{where}: groups must hold each class 0..{nc - 1} once")
    if (scale := meta.get("scale")) is not None and not (len(scale) == 2 and scale[0] < scale[1]):
        raise UserError(f"{where}: scale must be the values that are black and white, the lower one first")
