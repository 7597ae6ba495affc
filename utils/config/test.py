"""Flags of test.py."""

from dataclasses import dataclass

from utils.config.help import test_schemas
from utils.config.options import Program, again, opt
from utils.config.shared import MATCHES, Device, Place, SavedLabels, Size, Thresholds, TrainedTogether
from utils.system.errors import UserError

TASKS = ("val", "train", "test", "speed")


@dataclass(frozen=True, kw_only=True)
class Options(Place, SavedLabels, Thresholds, Size, TrainedTogether, Device):
    data: str = opt("", "data YAML (default: that of the training)", "data")
    task: str = opt("val", "split to evaluate; speed: val, with the times printed first", "data", choices=TASKS)
    on_bad_data: str = opt(
        "error", "broken images and labels: stop, or skip and count them", "data", choices=("error", "skip")
    )
    batch_size: int = opt(
        16, "images at a time; those of like shape go together, so it moves mAP a little", "evaluation", low=1
    )
    conf_thres: float = again(Thresholds, "conf_thres", 0.001)
    iou_thres: float | None = again(
        Thresholds,
        "iou_thres",
        None,
        help="IoU threshold of NMS (default: 0.65, with --match v5 0.6; without anchors 0.7)",
    )
    single_cls: bool = opt(False, "treat all classes as one", "evaluation")
    match: str = opt("coco", "rule that matches detections to boxes", "evaluation", choices=MATCHES)
    v5_metric: bool = opt(False, "end the precision-recall curve at recall 1, as YOLOv5 does", "evaluation")
    verbose: bool = opt(False, "print every class also where there are 50 and more", "evaluation")
    on_missing_pair: str = opt(
        "error",
        "an image without its partner: stop, leave it out, or keep it alone",
        "pairs",
        choices=("error", "skip", "single"),
    )
    workers: int = opt(8, "data loader processes", "speed", low=0)
    save_json: bool = opt(False, "write detections in COCO's format", "saving")
    anno_json: str = opt(
        "", "COCO annotation file: write the detections with its ids, and print COCO's 12 figures", "saving"
    )
    save_per_class_ap: str = opt(
        "", "JSON file to write: map50, map, per_class {id: {ap50, ap, name}}", "saving", metavar="FILE"
    )
    project: str = again(Place, "project", "runs/test")

    def __post_init__(self) -> None:
        if self.save_conf and not self.save_txt:
            raise UserError("--save-conf adds a column to the files of --save-txt: give that too")

    def nms_iou_of(self, usual: float, objectness: bool) -> float:
        """usual: of the detector's kind of head. objectness: whether it has some, as YOLOv5's have."""
        return (0.6 if self.match == "v5" and objectness else usual) if self.iou_thres is None else self.iou_thres


def program() -> Program[Options]:
    """The command line of test.py: its own, and what patches add to it."""
    return Program("test.py", "Evaluate a checkpoint.", Options, test_schemas())
