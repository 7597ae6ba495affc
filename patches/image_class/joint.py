"""--classify: the detector also names the class of the whole image, from its own features.
Seams: branches, load_weights, loss_terms, observe (utils.classify).

The head (models.classify.ImageHead) reads one row of the detector, so both tasks train what lies before it.
`--cls-gain 0` trains the detector as if it were not there, to the bit. The classes come from `cls_names` of the data
YAML and are stored with the checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from models.graph import Detector
from patches.image_class.head import ImageHead
from patches.image_class.training import NAME, ImageClasses, Settings
from utils.config.options import check_ranges, opt
from utils.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Flags:
    classify: bool = opt(False, "also name the class of the image (cls_names of the data YAML)", "tasks")
    cls_node: str = opt(
        "backbone", "row whose features are read: its number, or the last one of backbone or neck", "tasks"
    )
    cls_gain: float = opt(1.0, "gain of the image class term", "tasks", low=0)
    cls_dropout: float = opt(0.2, "dropout before the last layer", "tasks", low=0, high=0.99)
    cls_weights: tuple[str, ...] = opt(
        ("none",), "class weights: none, balanced, or one number per class", "tasks", nargs="+"
    )
    cls_names: tuple[str, ...] = opt((), "the classes, as stored in checkpoints", "tasks", hidden=True)

    def __post_init__(self) -> None:
        check_ranges(self)


def node_number(word: str, model: Detector) -> int:
    """--cls-node -> the number of a row with features; UserError with what is valid."""
    last = {name: rows.stop - 1 for name, rows in model.sections.items() if name != "head"}
    if word in last:
        return last[word]
    if re.fullmatch(r"\d+", word) and int(word) < len(model.model) - 1:
        return int(word)
    valid = ", ".join(f"{name} ({row})" for name, row in last.items())
    raise UserError(f"--cls-node {word}: no such row with features; valid: 0..{len(model.model) - 2}, {valid}")


class Joint(ImageClasses[Flags]):
    def __init__(self, flags: Flags) -> None:
        super().__init__(flags, Settings("classify", flags.cls_gain, flags.cls_weights, flags.cls_names))

    def branches(self, model: Detector) -> Mapping[str, tuple[int, nn.Module]]:
        row = node_number(self.flags.cls_node, model)
        self.place = {"cls_node": str(row)}
        return {NAME: (row, ImageHead(model.tap(row), self.names, self.flags.cls_dropout))}


patch = Joint
