"""Flags of detect.py."""

from dataclasses import dataclass

from utils.config.options import Program, again, opt
from utils.config.shared import Device, Place, SavedLabels, Size, Thresholds, Trained
from utils.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(Place, SavedLabels, Thresholds, Size, Trained, Device):
    source: str = opt("", "image, folder, glob, video, or a camera's number", "start", required=True)
    max_det: int = opt(300, "detections per image", "evaluation", low=1)
    classes: tuple[int, ...] = opt((), "only these classes", "evaluation", nargs="+", low=0)
    agnostic_nms: bool = opt(False, "suppress across classes", "evaluation")
    on_missing_pair: str = opt(
        "error",
        "a model that reads infrared: an image without partner is an error, or detected beside a grey one",
        "pairs",
        choices=("error", "single"),
    )
    nosave: bool = opt(False, "write no pictures or videos", "saving")
    img_size: int | None = again(Size, "img_size", 640, help="pixels")
    project: str = again(Place, "project", "runs/detect")

    def __post_init__(self) -> None:
        if self.save_conf and not self.save_txt:
            raise UserError("--save-conf adds a column to the files of --save-txt: give that too")


PROGRAM = Program("detect.py", "Draw detections.", Options)
