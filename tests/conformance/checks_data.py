"""Comparisons with the reference values: boxes, letterbox, NMS, evaluation, rates and averages (see checks.py)."""

import importlib.util
import json
import tempfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.head import Part
from models.iou import iou
from tests.conformance.checks import Found, differ, unequal
from tests.conformance.reference import Absent, Reference
from utils.config.train import Config
from utils.evaluation import boxes
from utils.evaluation.ap import Ap, average_precision
from utils.evaluation.coco import Entries, figures
from utils.evaluation.matching import NMS_OFFSET, confusion_matrix, find_pairs, tp_table
from utils.evaluation.nms import nms
from utils.images.letterbox import letterbox
from utils.train.optim import Ema, Schedule

OFFSETS = {"yolov7": 4096.0, "yolov5": 7680.0}  # of the originals' class trick, in float32
SINGLE = {"yolov7": "obj", "yolov5": "product"}  # score of a model with one class
COLUMNS = ("lr0", "lr1", "lr2", "momentum", "accumulate", "did_step")


def iou_family(ref: Reference, family: str, what: str) -> Found:
    arrays = ref.npz(f"geometry/{family}.npz")
    for kind in ("iou", "giou", "diou", "ciou"):
        one, two = (torch.from_numpy(arrays[name]) for name in ("xywh", "xywh2"))
        one.requires_grad_()
        found, want = iou(one, two, kind=kind), torch.from_numpy(arrays[f"bbox_{kind}_xywh"])
        known = ~want.isnan()  # the originals divide 0 by 0 for some empty boxes
        if what == "values":
            yield kind, differ(found[known], want[known])
        else:
            found[known].sum().backward()
            yield kind, differ(one.grad, arrays[f"bbox_{kind}_xywh_grad_box1"])
    if what == "values":
        matrix = arrays["box_iou_matrix"]
        corners = [boxes.xywh_to_xyxy(torch.from_numpy(arrays[k]))[:n] for k, n in (("xywh", 20), ("xywh2", 16))]
        yield (
            "matrix",
            differ(
                boxes.paired_iou(corners[0][:, None], corners[1]).numpy()[~np.isnan(matrix)], matrix[~np.isnan(matrix)]
            ),
        )


def centred(input_hw: tuple[int, int], native_hw: tuple[int, int]) -> tuple[float, float, float, float]:
    """(gain_x, gain_y, pad_x, pad_y) of a native image centred in the input at the largest size that fits."""
    gain = min(input_hw[0] / native_hw[0], input_hw[1] / native_hw[1])
    return gain, gain, (input_hw[1] - native_hw[1] * gain) / 2, (input_hw[0] - native_hw[0] * gain) / 2


def conversions(ref: Reference, family: str) -> Found:
    arrays = ref.npz(f"geometry/{family}.npz")
    yield "xywh to xyxy", unequal(boxes.xywh_to_xyxy(torch.from_numpy(arrays["xywh"])), arrays["xywh2xyxy"])
    moved = boxes.xywhn_to_xyxy(torch.from_numpy(arrays["xywhn"]), 640, 480, 7, 3)
    yield "0..1 to pixels", unequal(moved, arrays["xywhn2xyxy_w640_h480_padw7_padh3"])
    for case in ref.json(f"geometry/{family}.json")["scale"]:
        native = tuple(case["img0_shape"])
        gain_pad = centred(tuple(case["img1_shape"]), native)
        if case["ratio_pad"]:
            gain_pad = (*case["ratio_pad"][0], *case["ratio_pad"][1])
        found = boxes.to_native(torch.from_numpy(arrays["boxes_xyxy"]), gain_pad, native)
        yield case["key"], unequal(found, arrays[case["key"]])


def letterboxes(ref: Reference, family: str) -> Found:
    arrays = ref.npz(f"geometry/{family}.npz")
    for case in ref.json(f"geometry/{family}.json")["letterbox"]:
        options = {{"scaleFill": "scale_fill"}.get(k, k): v for k, v in case["kw"].items()}
        h, w = case["h"], case["w"]
        image = np.random.RandomState(h * 1000 + w).randint(0, 256, (h, w, 3)).astype(np.uint8)
        size = case["new_shape"] if isinstance(case["new_shape"], int) else tuple(case["new_shape"])
        out, ratio, pad = letterbox(image, size, **options)
        off = unequal([*out.shape, *ratio, *pad], [*case["out_shape"], *case["ratio"], *case["pad"]])
        if case.get("key") in arrays.files:
            off += unequal(out, arrays[case["key"]])
        yield f"{h}x{w}", off


def kept_boxes(ref: Reference, family: str) -> Found:
    inputs, want = ref.npz("nms/inputs.npz"), ref.npz(f"nms/{family}.npz")
    for name in inputs.files:
        part = Part(torch.from_numpy(inputs[name]), torch.arange(inputs[name].shape[2] - 5))
        for setting, options in ref.json(f"nms/{family}.json")["settings"].items():
            fixed = {"multi_label": False, "offset": OFFSETS[family], "single_class_conf": SINGLE[family]}
            for i, rows in enumerate(nms([part], **{**fixed, **options})):
                yield f"{name}/{setting}/{i}", unequal(rows, want[f"{name}/{setting}/{i}"])


class Evaluation(NamedTuple):
    tp: NDArray[Any]
    ap: Ap
    confusion: NDArray[Any]


@cache
def evaluate(ref: Reference, rule: str, v5_metric: bool = False) -> Evaluation:
    """Decoded predictions -> NMS -> native pixels -> matching by `rule` -> AP."""
    inputs = ref.npz("metrics/inputs.npz")
    gain, pad_x, pad_y = inputs["gain_pad"].tolist()
    gt, part = torch.from_numpy(inputs["gt"]), Part(torch.from_numpy(inputs["preds"]), torch.arange(10))
    out = nms([part], 0.001, 0.65, multi_label=True, offset=NMS_OFFSET[rule])
    dets = torch.cat(out)
    dets[:, :4] = boxes.to_native(dets[:, :4], (gain, gain, pad_x, pad_y), (480, 640))
    image, gt_image = np.repeat(np.arange(len(out)), [len(rows) for rows in out]), gt[:, 0].long().numpy()
    tp = tp_table(find_pairs(dets, image, gt[:, 1:], gt_image, rule), len(dets), rule)
    found = average_precision(tp, dets[:, 4].numpy(), dets[:, 5].numpy(), gt[:, 1].numpy(), rule, v5_metric)
    return Evaluation(tp, found, confusion_matrix(dets, image, gt[:, 1:], gt_image, 10, rule))


def metrics(ref: Reference, rule: str, what: str) -> Found:
    want = ref.npz(f"metrics/yolo{rule}.npz")
    for key, v5_metric in (("e2e", False),) if rule == "v5" else (("e2e_v5metric0", False), ("e2e_v5metric1", True)):
        ours = evaluate(ref, rule, v5_metric)
        if what == "tp":
            yield key, unequal(ours.tp, want[f"{key}/tp"])
        elif what == "confusion":
            matrix = want["confusion_matrix"].copy()
            if rule == "v7":  # it stores matched pairs transposed, the background row and column as we do
                matrix[:10, :10] = matrix[:10, :10].T
            yield "matrix", unequal(ours.confusion, matrix)
            return
        else:
            yield key, differ(getattr(ours.ap, what), want[f"{key}/{what}"])


def default_rule(ref: Reference) -> Found:
    want, ap = ref.npz("metrics/coco.npz"), evaluate(ref, "coco").ap
    yield "every class and threshold", differ(ap.ap.T, want["e2e/ap_per_iou_class"][:, ap.classes])
    yield "AP, AP50, AP75", differ([ap.ap.mean(), ap.ap[:, 0].mean(), ap.ap[:, 5].mean()], want["e2e/stats"][:3])


def twelve_figures(ref: Reference) -> Found:
    if importlib.util.find_spec("hotcoco") is None:
        raise Absent("package hotcoco not present")
    for case, book in ref.json("metrics/coco.json").items():
        images = [{**image, "file_name": f"{image['id']:012d}.jpg"} for image in book["images"]]
        columns = [[d[k] for d in book["detections"]] for k in ("image_id", "category_id", "bbox", "score")]
        entries = Entries(*map(np.array, columns))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "annotations.json"
            path.write_text(json.dumps({**{k: book[k] for k in ("annotations", "categories")}, "images": images}))
            found = figures(path, entries, [image["id"] for image in images])
        yield case, differ(list(found.values()), book["stats"])


def run_config(book: dict[str, Any]) -> Config:
    same = ("epochs", "lr0", "lrf", "momentum", "warmup_epochs", "warmup_momentum", "warmup_bias_lr")
    more = {"batch_size": book["batch"], "linear_lr": book["linear"], "weight_decay": book["weight_decay_in"]}
    return Config(**{k: book[k] for k in same}, **more, compat=book["kind"].removeprefix("yolo"))


def schedule(ref: Reference, columns: tuple[str, ...]) -> Found:
    book, tables = ref.json("schedule/schedule.json"), ref.npz("schedule/lr.npz")
    for name, run in book["configs"].items():
        made = Schedule.of(run_config(run), run["nb"], from_weights=True)
        if not run["warmup_floor"]:  # a table made without the originals' lower limit
            made = Schedule(**{**vars(made), "warmup": run["nw"]})
        ours: dict[str, list[float]] = {c: [] for c in COLUMNS}
        bias, pending = ("lr0" if run["kind"] == "yolov5" else "lr2"), 0
        for step in range(len(tables[name])):
            pending += 1
            due = made.due(step, pending)
            pending = 0 if due else pending
            for column in ("lr0", "lr1", "lr2"):
                ours[column].append(made.lr(step, bias=column == bias))
            for column, value in (("momentum", made.momentum_at(step)), ("accumulate", made.accumulate(step))):
                ours[column].append(value)
            ours["did_step"].append(due)
        for column in columns:
            want = tables[name][:, book["columns"].index(column)]
            if not np.isnan(want).all():  # Adam has no momentum
                yield f"{name} {column}", differ(ours[column], want, 0.0)


def weight_decay(ref: Reference) -> Found:
    for batch, want in ref.json("schedule/schedule.json")["weight_decay_by_batch"].items():
        cfg = Config(batch_size=int(batch))
        ours = [cfg.accumulate, cfg.scaled_decay]
        yield f"batch {batch}", differ(ours, [want["accumulate_nominal"], want["weight_decay_scaled"]], 0.0)


def net() -> nn.Sequential:
    return nn.Sequential(OrderedDict([("0", nn.Linear(3, 3)), ("1", nn.BatchNorm1d(3))]))


def average_decay(ref: Reference) -> Found:
    ema: Any = Ema(net())  # type: ignore[arg-type]
    for updates, want in ref.json("schedule/schedule.json")["ema_decay"].items():
        yield f"update {updates}", differ(ema.decay_at(int(updates)), want, 0.0)


def averages(ref: Reference) -> Found:
    arrays = ref.npz("schedule/ema.npz")

    def state(part: str) -> dict[str, Tensor]:
        own = [k for k in arrays.files if k.split("/")[0] == part]
        return {k.split("/")[1]: torch.from_numpy(np.asarray(arrays[k])) for k in own}

    for start, first, steps in ((0, "model0", [str(t) for t in range(1, 6)]), (2000, "model5", ["_u2001"])):
        model = net()
        model.load_state_dict(state(first))
        ema = Ema(model)  # type: ignore[arg-type]
        ema.updates = start
        for t in steps:
            model.load_state_dict(state(f"model{t}"))
            ema.update()
            for key, want in state(f"ema{t}").items():
                if not key.endswith("num_batches_tracked"):  # a counter that nothing reads: copied here, not there
                    yield f"update {t} {key}", differ(ema.model.state_dict()[key], want)
