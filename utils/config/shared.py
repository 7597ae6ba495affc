"""Options that several programs have: the same name, help and range in each."""

from dataclasses import dataclass

from utils.config.options import opt

LARGEST = 16384  # pixels of an input
MATCHES = ("coco", "v7", "v5")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where results go."""

    project: str = opt("runs", "parent folder of runs", "saving", place=True)
    name: str = opt("exp", "run name; the default counts up where it is taken", "saving", place=True)
    exist_ok: bool = opt(False, "write into an existing run folder (its files are replaced)", "saving", place=True)


@dataclass(frozen=True, kw_only=True)
class Device:
    device: str = opt("", "cuda device number(s), cpu or mps (default: the best there is)", "start", place=True)


@dataclass(frozen=True, kw_only=True)
class OwnModules:
    """Code that a model needs beside its YAML."""

    modules: tuple[str, ...] = opt(
        (), "Python file with blocks of your own for the rows of the model YAML; may be given several times", "model",
        repeated=True, metavar="FILE.py",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trained(OwnModules):
    """A model that is there already."""

    weights: str = opt("", "checkpoint of this program, YOLOv5 or YOLOv7", "model", required=True)
    cfg: str = opt("", "model YAML, for weights that carry none", "model")


@dataclass(frozen=True, kw_only=True)
class TrainedTogether(OwnModules):
    """One model that is there already, or several whose detections are put together."""

    weights: tuple[str, ...] = opt(
        (), "checkpoint of this program, YOLOv5 or YOLOv7; of several, what all find is put together", "model",
        required=True, nargs="+",
    )  # fmt: skip
    cfg: str = opt("", "model YAML, for weights that carry none", "model")
    augment: bool = opt(False, "also look at the picture in two smaller sizes, one of them flipped", "evaluation")
    max_det: int = opt(300, "detections per image", "evaluation", low=1)

    @property
    def said(self) -> str:
        """The weights in words."""
        return " ".join(self.weights)


@dataclass(frozen=True, kw_only=True)
class Size:
    img_size: int | None = opt(
        None, "size of the input, pixels (default: as in training)", "evaluation", low=32, high=LARGEST
    )


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    conf_thres: float = opt(0.25, "leave out detections below this confidence", "evaluation", low=0, high=1)
    iou_thres: float | None = opt(
        None,
        "NMS: boxes of a class that overlap by more than this IoU count as one (default: 0.45)",
        "evaluation",
        low=0,
        high=1,
    )


@dataclass(frozen=True, kw_only=True)
class SavedLabels:
    save_txt: bool = opt(False, "write detections as label files, a text file for each picture", "saving")
    save_conf: bool = opt(False, "with --save-txt: confidence as last column", "saving")
