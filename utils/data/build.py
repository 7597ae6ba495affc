"""The loaders of a training run and of an evaluation, as their settings and the patches make them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from utils import seams
from utils.config.settings import DataSettings
from utils.config.train import Config
from utils.data.augment import AugmentParams, AugmentPlan, check_colour
from utils.data.dataset import DetectionDataset, masked_share
from utils.data.image_classes import summary
from utils.data.loader import Loader, make_loader
from utils.data.prepare.groups import check_groups
from utils.data.scan import Scan, scan_split
from utils.data.spec import DataSpec
from utils.system import dist
from utils.system.errors import UserError
from utils.system.notes import note, warn

SHOWN = 12  # places of labels in a message
SMALL = 2  # px


def make_loaders(cfg: Config, spec: DataSpec, patches: seams.Patches, size: int, stride: int) -> tuple[Loader, Loader]:
    """Training batches as augmented as the hyp file and --close-mosaic say; validation batches in rectangles. Groups
    and images that lie in both splits are said; with --strict-split such groups are an error."""
    check_groups(spec, strict=cfg.strict_split)
    if both := set(spec.images("train")) & set(spec.images("val")):
        said = f"{len(both)} of the {len(spec.images('val'))} validation images are training images as well"
        warn("validation on training images", f"{said}, e.g. {min(both)}", count=len(both))
    spec = coloured(cfg, spec)
    closes = cfg.epochs - cfg.close_mosaic if cfg.close_mosaic else None
    settings = cfg.training_data(size, stride)
    with dist.main_first():  # the others then find its label cache
        plan = AugmentPlan(AugmentParams.of(cfg), closes=closes)
        dataset: seams.Dataset = make_dataset(spec, "train", settings, plan)
    dataset = patches.fold("wrap_dataset", dataset, "train")
    train = make_loader(
        dataset, batch_size=cfg.batch_size, shuffle=True, quad=cfg.quad, workers=cfg.workers, seed=cfg.seed,
        rank=dist.rank(), ranks=dist.world(),
    )  # fmt: skip
    return train, evaluation(spec, "val", patches, cfg.validation_data(stride))


def evaluation(spec: DataSpec, split: str, patches: seams.Patches, settings: DataSettings) -> Loader:
    """Batches of a split, not augmented, in rectangles; the size is rounded up to whole strides."""
    settings = replace(settings, img_size=whole_strides(settings.img_size, settings.stride), rect=True, pad=0.5)
    with dist.main_first():
        dataset: seams.Dataset = make_dataset(spec, split, settings)
    dataset = patches.fold("wrap_dataset", dataset, split)
    return make_loader(
        dataset, batch_size=settings.batch_size, workers=settings.workers, shuffle=False, seed=settings.seed,
        rank=dist.rank(), ranks=dist.world(),
    )  # fmt: skip


def coloured(cfg: Config, spec: DataSpec) -> DataSpec:
    """The data set for training: with --force-hsv any three channels count as red, green and blue. UserError for hue
    and saturation jitter where they do not."""
    if cfg.force_hsv and spec.channels == 3:
        return replace(spec, colour=True)
    many = spec.channels != 3
    why = f"{spec.source} {f'has {spec.channels} channels' if many else 'says color: none'}"
    check_colour(
        {"hsv_h": cfg.hsv_h, "hsv_s": cfg.hsv_s},
        spec.colour,
        why + ("" if many else " (--force-hsv takes them for colours)"),
    )
    return spec


def whole_strides(size: int, stride: int) -> int:
    """The size rounded up to a multiple of the largest stride, said where it differs."""
    rounded = -(-size // stride) * stride
    if rounded != size:
        print(note("size rounded", f"--img-size {size} is not a multiple of the stride {stride}: using {rounded}"))
    return rounded


def trained_size(asked: int | None, meta: Mapping[str, Any], stride: int) -> int:
    """--img-size, else the size that a checkpoint says it was trained at, else 640; in whole strides, and said."""
    size = asked or int(meta.get("img_size") or 640)
    if not asked:
        print(f"--img-size {size}" + (", as in training" if meta.get("img_size") else ": the weights name none"))
    return whole_strides(size, stride)


def make_dataset(
    spec: DataSpec, split: str, settings: DataSettings, augment: AugmentParams | AugmentPlan | None = None
) -> DetectionDataset:
    """Check a split of a data set and open it. augment None: evaluation. Prints what was found. Errors: UserError."""
    size, stride = settings.img_size, settings.stride
    if size < stride or size % stride:
        right = max(round(size / stride), 1) * stride
        raise UserError(f"--img-size {size} is no multiple of the model's stride {stride}; {right} would be")
    scan = scan_split(
        spec, split, on_bad_data=settings.on_bad_data, single_cls=settings.single_cls,
        on_missing_pair=settings.on_missing_pair,
    )  # fmt: skip
    print(describe(scan, split))
    note_findings(scan, split)
    check_objects(spec, split, scan, needed=augment is not None)
    if augment is not None:
        say_small(scan, split, size)
    if scan.cls_names and augment:
        print(describe_masking(augment, split, rect=settings.rect, quad=settings.quad))
    return DetectionDataset(scan, settings, augment)


def describe(scan: Scan, split: str) -> str:
    """What a scan found, in a line, and a line for each thing that was left out."""
    boxes = sum(map(len, scan.labels))
    channels, bits, _ = scan.pixels
    form = f" of {channels} channel{'s' * (channels > 1)} in {bits} bits" if (channels, bits) != (3, 8) else ""
    line = f"{split}: {len(scan.files)} images{form}, {boxes} objects, {scan.background} images without objects"
    if scan.background:
        line += f" ({scan.background - scan.missing} with an empty label, {scan.missing} without a label file)"
    if scan.duplicates:
        line += f", {scan.duplicates} repeated label lines removed"
    if scan.problems:
        line += f", {len(scan.problems)} unusable images or label lines left out:"
    lines = ["\n  ".join([line, *map(str, scan.problems)])]
    if scan.cls_names:
        lines.append(f"{split}: {summary(scan.image_classes, scan.cls_names)}")
    if scan.partners:
        lost, kind = len(scan.partners.problems), "colour" if scan.partners.channels == 3 else "grey"
        lines.append(f"{split}: infrared partners ({kind}, {scan.partners.bits} bits); {lost} missing or unusable")
        lines += [f"  {problem}" for problem in scan.partners.problems[:3]]
    if scan.cls_others:
        lines.append(f"{split}: the CSV of image classes also names {scan.cls_others} images of no split")
    lines += [f"{split}: {said}" for said in scan.said]
    return "\n".join(lines)


def check_objects(spec: DataSpec, split: str, scan: Scan, *, needed: bool) -> None:
    """A split without a single object, and one that lacks most of its label files, with the places looked at. Errors:
    UserError, where objects are needed to train on."""
    places = "\n  ".join(scan.tried[:SHOWN]) + ("\n  ..." if len(scan.tried) > SHOWN else "")
    where = f"the label of {scan.files[0]} was looked for as:\n  {places}" if places else "the annotations have none"
    if not any(map(len, scan.labels)):
        said = f"{spec.source}: {split}: not a single object in {len(scan.files)} images"
        counted = f"({scan.missing} have no label file); {where}"
        if needed:
            raise UserError(f"{said} {counted}\nwithout objects there is nothing to train on")
        warn("no objects", f"{said} {counted}\nP, R and mAP are not measured on it")
    elif scan.missing > len(scan.files) / 2:
        said = f"{split}: {scan.missing} of {len(scan.files)} images have no label file and count as showing nothing"
        warn("labels missing", f"{said}; {where}", count=scan.missing)


def say_small(scan: Scan, split: str, img_size: int) -> None:
    """Boxes that shrink below 2 px at the training size: augmentation drops them. Errors: UserError where all do."""
    sides = [
        (labels.boxes[:, 3:5] * size[::-1] * (img_size / size.max())).min(1)
        for labels, size in zip(scan.labels, scan.sizes, strict=True)
        if len(labels)
    ]
    small, boxes = int((np.concatenate(sides) < SMALL).sum()), sum(map(len, sides))
    if small:
        said = f"{split}: {small} of {boxes} boxes are under {SMALL} px on a side at --img-size {img_size}"
        if small == boxes:
            raise UserError(f"{said}: nothing can be learned. Is the size too small, or are they in another unit?")
        print(note("small boxes", f"{said}; augmented pictures lose them", count=small))


def note_findings(scan: Scan, split: str) -> None:
    """What of a scan the run's notes should keep."""
    if scan.problems:
        count = len(scan.problems)
        note("data left out", f"{split}: {count} images or label lines, first: {scan.problems[0]}", count=count)
    if scan.duplicates:
        note("repeated labels", f"{split}: {scan.duplicates} repeated label lines removed", count=scan.duplicates)
    if unknown := int((scan.image_classes < 0).sum()) if scan.cls_names else 0:
        note("image class unknown", f"{split}: {unknown} of {len(scan.files)} images", count=unknown)


def describe_masking(augment: AugmentParams | AugmentPlan, split: str, *, rect: bool, quad: bool) -> str:
    """Which share of the pictures will have no image class because they are composed of several images, by epoch."""
    plan = augment if isinstance(augment, AugmentPlan) else AugmentPlan(augment)
    starts = sorted({0, *(start for start, _ in plan.changes), *([plan.closes] if plan.closes is not None else [])})
    shares = [(start, masked_share(plan.at(start), rect=rect, quad=quad)) for start in starts]
    if not any(share for _, share in shares):
        return f"{split}: every picture is of one image and keeps its image class"
    each = ", ".join(f"{share:.0%}" + f" from epoch {start} on" * (start > 0) for start, share in shares)
    return note(
        "image classes masked",
        f"{split}: composed of several images, and so without image class: about {each} of the pictures"
        " (mosaic, mixup, paste_in, --quad; --close-mosaic ends the first two)",
    )
