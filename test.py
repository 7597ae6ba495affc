"""Evaluate a checkpoint.

  python test.py --data data/shapes.yaml --weights runs/train/exp/weights/best.pt --img 160

Prints P, R, mAP@.5 and mAP@.5:.95 with the matching rule they were made by, per class and per head; draws curves,
confusion matrix and the first batch. --match v5 or v7 repeats that program throughout: its matching, its AP, its NMS
rounding and how it batches and maps images; with its --iou-thres and --batch-size the figures are its own.
"""

import sys
from pathlib import Path
from typing import Any

from utils.config.options import Given
from utils.config.test import Options, program

if __name__ == "__main__":
    program().answer_help(sys.argv[1:])  # before torch, whose import takes longer than the answer

import numpy as np
import torch
from numpy.typing import NDArray

from models.graph import Detector
from utils import seams
from utils.config.settings import DataSettings, EvalSettings
from utils.data.build import evaluation, trained_size
from utils.data.spec import read_data
from utils.evaluation import coco, tables
from utils.evaluation.evaluate import Result, evaluate
from utils.evaluation.outputs import Outputs
from utils.evaluation.predict import check_together
from utils.runs import lock, plots
from utils.system import dist
from utils.system.device import select_device
from utils.system.errors import UserError, naming
from utils.system.processes.program import run_main
from utils.weights import class_rows
from utils.weights.checkpoint import check_pixels, lasting, load_detector


def main(argv: list[str]) -> Result:
    given = program().parse(argv)
    args = given.cfg
    device = select_device(args.device)
    dist.join(device)
    folder, held = lock.claim(args.project, args.name, named="name" in given.names, exist_ok=args.exist_ok)
    with held, naming(folder):
        result = run(given, device, folder)
    dist.leave()
    return result


def run(given: Given[Options], device: torch.device, folder: Path) -> Result:
    """The evaluation, and what it writes into `folder`."""
    args = given.cfg
    weights, *more = args.weights
    model, meta = load_detector(weights, args.cfg, args.modules)
    others = [load_detector(path, args.cfg, args.modules) for path in more]
    models = [model, *(other for other, _ in others)]
    check_together(models, [meta["names"], *(said["names"] for _, said in others)], args.weights)
    records: seams.Records = lasting(meta)
    for name, kind in seams.kinds(given.flags).items():
        records = kind.under_test(kind.TestFlags(**given.flags[name]), records, model, weights)
    patches = seams.revive(records)
    data = args.data or (meta.get("config") or {}).get("data", "")
    if not data:
        raise UserError(f"--data is missing, and {weights} does not say on which data it was trained")
    if not args.data:
        print(f"--data {data}, as in training")
    spec = read_data(data)
    patches.each("on_data_read", spec)
    if not args.single_cls and spec.nc != model.nc:
        raise UserError(f"{weights} has {model.nc} classes, {data} has {spec.nc}")
    if not args.single_cls:
        cure = f"write the model's names into {data} where they mean its classes, or take all as one: --single-cls"
        columns = class_rows.compare(meta, weights, spec.names, data, cure)
        for each in models:
            each.head.renumber([columns.index(c) for c in range(model.nc)])
    check_pixels(spec, meta, weights)
    stride = max(int(each.stride.max()) for each in models)
    size = trained_size(args.img_size, meta, stride)
    settings = DataSettings(
        img_size=size, stride=stride, batch_size=args.batch_size, workers=args.workers,
        single_cls=args.single_cls, on_bad_data=args.on_bad_data, on_missing_pair=args.on_missing_pair,
        like="" if args.match == "coco" else args.match,
    )  # fmt: skip
    loader = evaluation(spec, "val" if args.task == "speed" else args.task, patches, settings)
    names = list((spec.merged() if args.single_cls else spec).names)
    if args.save_json or args.anno_json:  # what stops the file must not stop it after the evaluation
        coco.check_images(list(map(str, loader.dataset.files)), coco.read_ids(names, args.anno_json))
    nms_iou = args.nms_iou_of(model.head.nms_iou(), "obj" in model.head.loss_kinds())
    judging = EvalSettings(
        names=names, conf_thres=args.conf_thres, iou_thres=nms_iou, match=args.match,
        v5_metric=args.v5_metric, single_cls=args.single_cls, max_det=args.max_det,
    )  # fmt: skip

    together: dict[str, Any] = {"others": [other.to(device) for other in models[1:]], "augment": args.augment}

    def measure(detector: Detector | None = None, change: seams.BatchChange | None = None) -> Result:
        return evaluate(detector or model, map(change, loader) if change else loader, device, judging, **together)

    outputs = Outputs(folder) if dist.main() else None  # also removes those of an earlier run
    result = evaluate(
        model.to(device),
        loader,
        device,
        judging,
        patches=patches,
        **together,
        first_batch_sink=lambda batch, found: plots.plot_found(batch, found, names, folder),
    )
    if outputs:
        how = {
            "weights": list(args.weights), "data": str(data), "split": args.task, "img_size": size,
            "batch_size": args.batch_size, "conf_thres": args.conf_thres, "iou_thres": nms_iou,
            "max_det": args.max_det, "match": args.match, "augment": args.augment, "single_cls": args.single_cls,
        }  # fmt: skip
        tables.write_figures(result, outputs, how)
        write(result, args, names, loader.dataset.sizes, outputs)
    patches.each("after_evaluation", result, measure, folder)
    if dist.main():
        print(f"results in {folder}")
    return result


def write(result: Result, args: Options, names: list[str], sizes: NDArray[np.int64], outputs: Outputs) -> None:
    """Tables, curves and whatever files were asked for. sizes [n,2]: native width and height of each image."""
    if args.task == "speed":
        print(tables.speed_line(result))
    print(tables.result_table(result, per_class=args.verbose or len(names) < 50, lowest=args.conf_thres))
    plots.plot_evaluation(result, outputs.folder)
    if args.save_per_class_ap:
        tables.write_per_class_ap(result, Path(args.save_per_class_ap))
    if args.save_txt:
        tables.write_labels(result, sizes, outputs, args.save_conf)
    if args.save_json or args.anno_json:
        coco.report(result, names, outputs.path("detections.json"), args.anno_json)


if __name__ == "__main__":
    run_main(main)
