"""Non-maximum suppression of decoded predictions, part by part, without ever making a dense tensor over all classes.

A candidate is a box with objectness above `conf_thres` and one of its classes whose score = objectness * class is, too.
Of two boxes of one class in one image with IoU above `iou_thres` the higher score stays (greedy, best first).
Candidates are thinned first and only then turned to float32, so half-precision predictions are never copied as a whole.
Nothing here is limited by time: a slow machine gives the same boxes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.head import Part
from utils.boxes import xywh_to_xyxy

PER_CLASS_FROM = 10_000  # above this many candidates one call per class is faster than one call with moved boxes


def nms(
    parts: Sequence[Part],
    conf_thres: float,
    iou_thres: float,
    *,
    multi_label: bool,
    classes: Sequence[int] | None = None,
    agnostic: bool = False,
    max_det: int = 300,
    max_nms: int = 30_000,
    single_class_conf: str = "obj",
    offset: float | None = None,
) -> list[Tensor]:
    """Parts of B images -> B tensors [n, 6]: x1, y1, x2, y2 in input pixels, confidence, global class; best first.

    multi_label: every class above the threshold makes a candidate (evaluation), else only a box's best class (drawing).
    classes: keep these global ids only. agnostic: boxes of different classes suppress each other, too.
    max_nms: the most candidates of an image that take part; max_det: the most boxes of an image that are returned.
    single_class_conf: score of a model with one part and one class; "obj" as YOLOv7, "product" as YOLOv5. A one-class
    part beside others always uses the product: its scores must be comparable with theirs.
    offset: None compares exact coordinates. A number repeats what the originals do (4096 YOLOv7, 7680 YOLOv5): boxes
    are moved by class * offset in float32; the digits lost so decide a few IoUs near the threshold the other way.
    Equal scores keep their order: parts, then boxes, then classes as they come.
    """
    if single_class_conf not in ("obj", "product"):
        raise ValueError(f"single_class_conf must be 'obj' or 'product', not {single_class_conf!r}")
    alone = len(parts) == 1 and len(parts[0].classes) == 1 and single_class_conf == "obj"
    wanted = None if classes is None else torch.tensor(list(classes), device=parts[0].pred.device)
    images = []
    for i in range(parts[0].pred.shape[0]):
        found = [_candidates(part.pred[i], part.classes, conf_thres, multi_label, alone) for part in parts]
        rows = torch.cat(found)  # [K,6]
        if wanted is not None:
            rows = rows[torch.isin(rows[:, 5], wanted.to(rows.dtype))]
        rows = rows[rows[:, 4].argsort(descending=True, stable=True)[:max_nms]]
        if offset is None:
            kept = keep(rows[:, :4], rows[:, 4], None if agnostic else rows[:, 5], iou_thres)
        else:
            moved = rows[:, :4] + rows[:, 5:6] * (0 if agnostic else offset)
            kept = suppress(moved, rows[:, 4], iou_thres)
        images.append(rows[kept[:max_det]])
    return images


def _candidates(pred: Tensor, ids: Tensor, conf_thres: float, multi_label: bool, obj_only: bool) -> Tensor:
    """One image of one part, [M, 5+n] -> candidates [K, 6] float32 in the order of boxes, then classes."""
    pred = pred[pred[:, 4] > conf_thres].float()
    score = pred[:, 4:5] if obj_only else pred[:, 5:] * pred[:, 4:5]  # [M,n]
    if multi_label:
        box, cls = (score > conf_thres).nonzero(as_tuple=True)
    else:
        best, cls = score.max(1)
        box = (best > conf_thres).nonzero()[:, 0]
        cls = cls[box]
    conf, label = score[box, cls], ids.to(cls.device)[cls]
    return torch.cat([xywh_to_xyxy(pred[box, :4]), conf[:, None], label[:, None].to(pred.dtype)], 1)


def suppress(boxes: Tensor, scores: Tensor, iou_thres: float) -> Tensor:
    """Greedy NMS of boxes [n,4] by scores [n] -> indices, best first. torchvision takes a second to import, which a
    start should not wait for."""
    from torchvision.ops import nms as greedy

    kept: Tensor = greedy(boxes, scores, iou_thres)
    return kept


def keep(boxes: Tensor, scores: Tensor, cls: Tensor | None, iou_thres: float) -> Tensor:
    """Indices of the boxes that stay, in the order given. boxes [K, 4] corners, sorted by falling `scores` [K].

    cls [K]: boxes of different classes never meet; None: all may. Few boxes: each class is moved to a place of its own
    and all go in one call; many: one call per class. Coordinates are float64, where moving by a power of two is exact,
    so both ways compare the same numbers and keep the same boxes.
    """
    device = boxes.device
    if device.type == "mps":  # it has no float64
        boxes, scores, cls = boxes.cpu(), scores.cpu(), None if cls is None else cls.cpu()
    boxes = boxes.double()
    kept: Tensor
    if cls is None or len(boxes) == 0:
        kept = suppress(boxes, scores.double(), iou_thres)
    elif len(boxes) <= PER_CLASS_FROM:
        step = 2.0 ** (boxes.abs().max() * 2 + 1).log2().ceil()
        kept = suppress(boxes + cls.double()[:, None] * step, scores.double(), iou_thres)
    else:
        stays = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        for c in torch.unique(cls).tolist():
            mine = (cls == c).nonzero()[:, 0]
            stays[mine[suppress(boxes[mine], scores[mine].double(), iou_thres)]] = True
        kept = stays.nonzero()[:, 0]
    return kept.to(device)
