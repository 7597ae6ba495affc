"""Non-maximum suppression of decoded predictions, part by part, without ever making a dense tensor over all classes.

A candidate is a box with objectness above `conf_thres` and one of its classes whose score = objectness * class is, too;
where a head has no objectness, a box and one of its classes with probability above `conf_thres`.
Of two boxes of one class in one image with IoU above `iou_thres` the higher score stays (greedy, best first).
Candidates are thinned first and only then turned to float32, so half-precision predictions are never copied as a whole.
All images go together: on a GPU the host waits a few times for a batch, not for each image.
Nothing here is limited by time: a slow machine gives the same boxes.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from models.head import Part
from utils.evaluation.boxes import xywh_to_xyxy

WIDENED = 1 << 24  # numbers of the predictions that are looked at together, as float32 64 MB at most
TOGETHER = {"cpu": 128}  # boxes of several groups that go in one call: on a CPU a call costs what so many boxes cost
TOGETHER_ELSEWHERE = 1 << 14  # where it is calls that cost; the kernel's table then takes 32 MB
FIRST = 4  # times max_det: as many of an image's best candidates nearly always hold all that is returned


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
    images = len(parts[0].pred)
    rows, image = _candidates(parts, conf_thres, multi_label, alone)
    if classes is not None:
        wanted = torch.isin(rows[:, 5], torch.tensor(list(classes), device=rows.device).to(rows.dtype))
        rows, image = rows[wanted], image[wanted]
    device = rows.device
    if device.type == "mps":  # it has no float64
        rows, image = rows.cpu(), image.cpu()
    rows, image = _best_first(rows, image, images, max_nms)
    rank, count = _ranks(image, images)
    stays = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    todo, most = count > 0, max(FIRST * max_det, 1)
    while todo.any():  # a worse candidate never changes the fate of a better one, so the best `most` suffice at first
        now = todo[image] & (rank < most)
        stays[now] = _stay(rows[now], image[now], iou_thres, agnostic, offset)
        todo = (count > most) & (torch.bincount(image[stays], minlength=images) < max_det)
        most *= 4
    rows, image = rows[stays], image[stays]
    rank, count = _ranks(image, images)
    return list(rows[rank < max_det].to(device).split(count.clamp(max=max_det).tolist()))


def _best_first(rows: Tensor, image: Tensor, images: int, max_nms: int) -> tuple[Tensor, Tensor]:
    """Candidates [K,6] of images [K] by image, then falling score, the best `max_nms` of each."""
    order = image.argsort(stable=True)
    best, start = [], 0
    for n in torch.bincount(image, minlength=images).tolist():
        mine = order[start : start + n]
        best.append(mine[rows[mine, 4].argsort(descending=True, stable=True)[:max_nms]])
        start += n
    order = torch.cat(best)
    return rows[order], image[order]


def _ranks(image: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Rising image numbers [K] -> place of each row among its image's rows [K], rows of each image [images]."""
    count = torch.bincount(image, minlength=images)
    return torch.arange(len(image), device=image.device) - (count.cumsum(0) - count)[image], count


def _candidates(parts: Sequence[Part], conf_thres: float, multi_label: bool, obj_only: bool) -> tuple[Tensor, Tensor]:
    """Candidates [K,6] float32 and their images [K]; those of an image in the order of parts, boxes, classes."""
    rows, images = [], []
    for pred, ids, objectness in parts:
        step = max(WIDENED // max(pred[0].numel(), 1), 1)
        for start in range(0, len(pred), step):
            some = pred[start : start + step, :, 4] if objectness else pred[start : start + step, :, 4:].amax(2)
            image, box = (some > conf_thres).nonzero(as_tuple=True)
            image = image + start
            own = pred[image, box].float()  # [M,5+n]
            score = own[:, 4:]  # [M,n]
            if objectness:
                score = own[:, 4:5] if obj_only else own[:, 5:] * own[:, 4:5]
            if multi_label:
                row, cls = (score > conf_thres).nonzero(as_tuple=True)
            else:
                best, cls = score.max(1)
                row = (best > conf_thres).nonzero()[:, 0]
                cls = cls[row]
            conf, label = score[row, cls], ids.to(cls.device)[cls].to(own.dtype)
            rows.append(torch.cat([xywh_to_xyxy(own[row, :4]), conf[:, None], label[:, None]], 1))
            images.append(image[row])
    return torch.cat(rows), torch.cat(images)


def _stay(rows: Tensor, image: Tensor, iou_thres: float, agnostic: bool, offset: float | None) -> Tensor:
    """Which of the candidates [K,6] of images [K] stay, [K]; sorted by image, then falling score.

    Boxes meet within a group: those of an image and a class, or of an image. Groups are taken one by one where they
    are large, since the cost is quadratic; small ones share a call, each moved to a place of its own by a power of two
    in float64, which keeps every digit that can matter. With `offset` boxes are where it puts them and are not moved;
    then classes are groups only if they lie apart.
    """
    cls = torch.zeros_like(image) if agnostic else rows[:, 5].long()
    if offset is None:
        boxes = rows[:, :4].double()
        step = 2.0 ** (boxes.abs().nan_to_num(0.0, 0.0).max() * 2 + 1).log2().ceil()
    else:
        boxes = rows[:, :4] if agnostic else rows[:, :4] + rows[:, 5:6] * offset
        if rows[:, :4].max() - rows[:, :4].min() >= offset:
            cls = torch.zeros_like(image)
    classes = int(cls.max()) + 1
    key, order = (image * classes + cls).sort(stable=True)
    boxes, scores = boxes[order], rows[order, 4].to(boxes.dtype)
    group, size = key.unique_consecutive(return_counts=True)
    sizes = size.tolist()
    together = TOGETHER.get(rows.device.type, TOGETHER_ELSEWHERE)
    first = _first_of_call(sizes, [0] * len(sizes) if offset is None else (group // classes).tolist(), together)
    if offset is None:
        place = torch.tensor([i - f for i, f in enumerate(first)], device=rows.device).repeat_interleave(size)
        boxes = boxes + place[:, None] * step
    starts, kept = [0, *accumulate(sizes)], []
    for f, g in pairwise([*sorted(set(first)), len(sizes)]):
        low, high = starts[f], starts[g]
        kept.append(low + suppress(boxes[low:high], scores[low:high], iou_thres))
    stays = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    stays[order[torch.cat(kept)]] = True
    return stays


def _first_of_call(sizes: list[int], owners: list[int], together: int) -> list[int]:
    """Groups of `sizes` boxes, in order -> for each the first group of its call. A call takes groups of one owner, and
    several of them up to `together` boxes."""
    first: list[int] = []
    held = 0
    for i, size in enumerate(sizes):
        joins = i > 0 and owners[i] == owners[i - 1] and held + size <= together
        first.append(first[-1] if joins else i)
        held = held + size if joins else size
    return first


def suppress(boxes: Tensor, scores: Tensor, iou_thres: float) -> Tensor:
    """Greedy NMS of boxes [n,4] by scores [n] -> indices, best first. torchvision takes a second to import, which a
    start should not wait for."""
    from torchvision.ops import nms as greedy

    kept: Tensor = greedy(boxes, scores, iou_thres)
    return kept
