"""Evaluate a checkpoint.

  python test.py --data data/shapes.yaml --weights runs/train/exp/weights/best.pt --img 160

Prints P, R, mAP@.5 and mAP@.5:.95 with the matching rule they were made by, per class and per head; draws curves,
confusion matrix and the first batch. --match v5 or v7 repeats that program throughout: its matching, its AP, its NMS
rounding and how it batches and maps images; with its --iou-thres and --batch-size the figures are its own.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.graph import Detector
from utils import seams
from utils.config.options import add_flags, make_parser
from utils.data.build import evaluation
from utils.data.spec import read_data
from utils.evaluation import coco, tables
from utils.evaluation.evaluate import Result, evaluate
from utils.runs import lock, plots
from utils.system import dist
from utils.system.device import select_device
from utils.system.errors import UserError, run_main
from utils.weights import class_rows
from utils.weights.checkpoint import check_channels, lasting, load_detector

Change = Callable[[seams.Batch], seams.Batch]
TASKS = ("val", "train", "test", "speed")


def parse(argv: list[str]) -> Any:
    p = make_parser("test.py", "Evaluate a checkpoint.")
    p.add_argument("--weights", required=True, help="checkpoint, ours or YOLOv5's or YOLOv7's")
    p.add_argument("--cfg", default="", help="model YAML, for weights that carry none")
    p.add_argument("--data", default="data/coco.yaml", help="data YAML")
    p.add_argument(
        "--batch-size",
        "--batch",
        type=int,
        default=16,
        help="images of like shape are batched, so it moves mAP a little",
    )
    p.add_argument("--img-size", "--img", "--imgsz", type=int, default=640, help="pixels")
    p.add_argument("--conf-thres", "--conf", type=float, default=0.001, help="lowest confidence")
    p.add_argument("--iou-thres", "--iou", type=float, help="IoU of NMS (default 0.65, with --match v5 0.6)")
    p.add_argument("--task", default="val", choices=TASKS, help="split to evaluate; speed: val, timings in front")
    p.add_argument("--device", default="", help="cuda device number, cpu or mps")
    p.add_argument("--workers", type=int, default=8)
    p.add_argument("--single-cls", action="store_true", help="treat all classes as one")
    p.add_argument("--verbose", action="store_true", help="per class also for 50 classes and more")
    p.add_argument("--save-txt", action="store_true", help="write detections as label files")
    p.add_argument("--save-conf", action="store_true", help="with --save-txt: confidence as last column")
    p.add_argument("--save-json", action="store_true", help="write detections in COCO's format")
    p.add_argument(
        "--anno-json",
        default="",
        help="COCO annotations: also write the JSON, with their ids, and print COCO's 12 figures",
    )
    p.add_argument(
        "--save-per-class-ap", default="", metavar="PATH", help="JSON: map50, map, per_class {id: {ap50, ap, name}}"
    )
    p.add_argument(
        "--match", default="coco", choices=("coco", "v7", "v5"), help="rule that matches detections to boxes"
    )
    p.add_argument("--v5-metric", action="store_true", help="YOLOv5's recall sentinel in AP")
    p.add_argument("--no-trace", action="store_true", help="accepted for old commands; nothing is ever traced")
    p.add_argument("--on-bad-data", default="error", choices=("error", "skip"))
    p.add_argument("--on-missing-pair", default="error", choices=("error", "skip", "single"))
    p.add_argument("--project", default="runs/test")
    p.add_argument("--name", default="exp")
    p.add_argument("--exist-ok", action="store_true")
    kinds = seams.with_test_flags()
    for name, kind in kinds.items():
        add_flags(p, kind.TestFlags, f"patches/{name}")
    args = p.parse_args(argv)
    args.of_patches = [(kind.under_test, taken(kind.TestFlags, args)) for kind in kinds.values()]
    if args.iou_thres is None:
        args.iou_thres = 0.6 if args.match == "v5" else 0.65
    args.named = any(a.split("=")[0] == "--name" for a in argv)
    return args


def taken(schema: type, args: Any) -> Any:
    """A patch's flags out of the parsed ones."""
    return schema(**{f.name: getattr(args, f.name) for f in dataclasses.fields(schema) if hasattr(args, f.name)})


def main(argv: list[str]) -> Result:
    args = parse(argv)
    device = select_device(args.device)
    dist.join(device)
    folder, held = lock.claim(args.project, args.name, named=args.named, exist_ok=args.exist_ok)
    with held:
        result = run(args, device, folder)
    dist.leave()
    return result


def run(args: Any, device: torch.device, folder: Path) -> Result:
    """The evaluation, and what it writes into `folder`."""
    model, meta = load_detector(args.weights, args.cfg)
    records: seams.Records = lasting(meta)
    for under_test, flags in args.of_patches:
        records = under_test(flags, records, model, args.weights)
    patches = seams.revive(records)
    spec = read_data(args.data)
    patches.each("on_data_read", spec)
    if not args.single_cls and spec.nc != model.nc:
        raise UserError(f"{args.weights} has {model.nc} classes, {args.data} has {spec.nc}")
    if not args.single_cls:
        cure = f"write the model's names into {args.data} where they mean its classes, or take all as one: --single-cls"
        columns = class_rows.compare(meta, args.weights, spec.names, args.data, cure)
        model.head.renumber([columns.index(c) for c in range(model.nc)])
    check_channels(spec.channels, meta, args.weights, args.data)
    loader = evaluation(
        spec, "val" if args.task == "speed" else args.task, patches, size=args.img_size,
        stride=int(model.stride.max()), batch_size=args.batch_size, workers=args.workers, single_cls=args.single_cls,
        on_bad_data=args.on_bad_data, on_missing_pair=args.on_missing_pair,
        like="" if args.match == "coco" else args.match,
    )  # fmt: skip
    names = ["item"] if args.single_cls else list(spec.names)
    coco.read_ids(names, args.anno_json)  # a wrong annotation file stops here, not after the evaluation
    judged = partial(
        evaluate, device=device, names=names, conf_thres=args.conf_thres, iou_thres=args.iou_thres,
        match=args.match, v5_metric=args.v5_metric, single_cls=args.single_cls,
    )  # fmt: skip

    def measure(detector: Detector | None = None, change: Change | None = None) -> Result:
        return judged(detector or model, map(change, loader) if change else loader)

    result = judged(
        model.to(device),
        loader,
        patches=patches,
        first_batch_sink=lambda batch, found: plots.plot_found(batch, found, names, folder),
    )
    if dist.main():
        write(result, args, names, loader.dataset.sizes, folder)
    patches.each("after_evaluation", result, measure, folder)
    if dist.main():
        print(f"results in {folder}")
    return result


def write(result: Result, args: Any, names: list[str], sizes: Any, folder: Path) -> None:
    """Tables, curves and whatever files were asked for. sizes [n,2]: native width and height of each image."""
    if args.task == "speed":
        print(tables.speed_line(result))
    print(tables.result_table(result, per_class=args.verbose or len(names) < 50))
    plots.plot_evaluation(result, folder)
    if args.save_per_class_ap:
        tables.write_per_class_ap(result, Path(args.save_per_class_ap))
    if args.save_txt:
        tables.write_labels(result, sizes, folder / "labels", args.save_conf)
    if args.save_json or args.anno_json:
        coco.report(result, names, folder / "detections.json", args.anno_json)


if __name__ == "__main__":
    run_main(main)
