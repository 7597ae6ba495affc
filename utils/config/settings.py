"""What an evaluation and a data set are told, as plain values; Config makes them for train.py, test.py its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """How detections are made and judged."""

    names: Sequence[str]  # of the classes
    conf_thres: float = 0.001  # lowest confidence
    iou_thres: float = 0.65  # of NMS
    match: str = "coco"  # rule that matches detections to objects: coco | v7 | v5
    v5_metric: bool = False  # YOLOv5's recall sentinel in AP
    single_cls: bool = False  # every class counts as one
    single_class_conf: str = ""  # see utils.evaluation.nms; empty: product for match v5, else obj
    max_det: int = 300  # per image
    autocast: "torch.dtype | None" = None  # type to compute in
    progress: bool = True  # a bar on the screen


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How a split is opened and put into batches."""

    img_size: int  # pixels
    stride: int = 32  # of the model
    batch_size: int = 1
    rect: bool = False  # batches of like aspect ratio in their own shape, no mosaic
    pad: float = 0.0  # strides that such a shape is larger: 0.5 in evaluation
    quad: bool = False  # four images collated into one, now and then
    cache_images: bool = False  # in RAM
    single_cls: bool = False
    on_bad_data: str = "error"  # or skip
    on_missing_pair: str = "error"  # or skip, single
    workers: int = 0
    seed: int = 0
    like: str = ""  # v5 or v7: that program's habits, see utils.data.dataset.DetectionDataset
