"""Flags of detect.py."""

from dataclasses import dataclass

from utils.config.options import Program, again, opt
from utils.config.shared import Device, Place, SavedLabels, Size, Thresholds, TrainedTogether
from utils.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(Place, SavedLabels, Thresholds, Size, TrainedTogether, Device):
    source: str = opt(
        "",
        "image, folder, glob, video, camera's number, stream (rtsp, http), or a .txt list of these",
        "start",
        required=True,
    )
    classes: tuple[int, ...] = opt((), "only these classes, by number", "evaluation", nargs="+", low=0)
    agnostic_nms: bool = opt(
        False, "NMS across classes: overlapping boxes of different classes count as one", "evaluation"
    )
    on_missing_pair: str = opt(
        "error",
        "for a model that reads infrared: an image without its partner is an error, or is given a grey one",
        "pairs",
        choices=("error", "single"),
    )
    on_bad_data: str = opt(
        "skip", "a picture that cannot be read: go on and count it, or stop", "data", choices=("error", "skip")
    )
    view_img: bool = opt(False, "show what is found in a window, where there is a display", "saving")
    nosave: bool = opt(False, "write no pictures or videos", "saving")
    project: str = again(Place, "project", "runs/detect")

    @property
    def nms_iou(self) -> float:
        return 0.45 if self.iou_thres is None else self.iou_thres

    def __post_init__(self) -> None:
        if self.save_conf and not self.save_txt:
            raise UserError("--save-conf adds a column to the files of --save-txt: give that too")


PROGRAM = Program("detect.py", "Draw detections.", Options)
