"""Options of `python -m utils group`: which classes share a head."""

from dataclasses import dataclass

from utils.config.options import Program, opt
from utils.config.shared import Device, Size

GROUP_BY = ("geometry", "cooccurrence", "hybrid", "confusion", "size", "random")


@dataclass(frozen=True, kw_only=True)
class Group(Size, Device):
    data: str = opt("", "data YAML", "data", required=True)
    heads: int = opt(0, "number of heads (with --analyze default: as the file has)", "heads", low=0)
    by: str = opt("", f"{', '.join(GROUP_BY)}: what puts classes together", "heads", choices=GROUP_BY)
    out: str = opt("", "head file to write", "saving", metavar="FILE.yaml")
    analyze: str = opt("", "look at a head file that is there, write none", "heads", metavar="FILE.yaml")
    weights: str = opt("", "checkpoint; what it mistakes on the validation images", "heads")
    pairs: str = opt(
        "", "instead of --weights: classes that are mistaken for each other, two a line, a comma between", "heads",
        metavar="FILE",
    )  # fmt: skip
    min_confusion: float = opt(
        0.02, "share of a class's detected objects that must be taken for another class", "heads", low=0, high=1
    )
    alpha: float = opt(0.5, "weight of like shape in hybrid", "heads", low=0, high=1000)
    beta: float = opt(0.5, "weight of shared images in hybrid", "heads", low=0, high=1000)
    balance: int | None = opt(
        None, "move classes until each head has as many, give or take this number (default: as they come)", "heads",
        low=0,
    )  # fmt: skip
    picture: str = opt("", "also draw the classes, and with --weights the confusion", "saving", metavar="FILE.png")
    seed: int = opt(0, "random seed of k-means and of random", low=0)


GROUP = Program(
    "python -m utils group",
    """A head file for a data set: which classes share a head. Or what a head file does with its classes.

  python -m utils group --data D.yaml --heads 4 --by geometry --out heads.yaml --picture heads.png
  python -m utils group --data D.yaml --heads 4 --by confusion --weights best.pt --out heads.yaml
  python -m utils group --data D.yaml --analyze heads.yaml --weights best.pt

Boxes are those of the training images. What each rule does: docs/head-groups.md.""",
    Group,
)
