"""Data in one place: from a data YAML to batches. What train.py, test.py and patches use is exported here.

data YAML -> read_data -> DataSpec -> make_dataset -> DetectionDataset -> make_loader -> batches -> to_device
(spec.py)  (scan.py, labels.py, images.py, cache.py, dataset.py, augment.py, letterbox.py)  (loader.py)
"""

from utils.augment import AugmentParams
from utils.augment_plan import AugmentPlan
from utils.dataset import DetectionDataset, Sample, masked_share
from utils.errors import UserError
from utils.image_class import summary
from utils.images import read_image
from utils.labels import Labels
from utils.letterbox import letterbox
from utils.loader import (
    Batch,
    Fed,
    Order,
    build_loader,
    class_weights,
    collate,
    image_weights,
    make_loader,
    multiscale,
    to_device,
)
from utils.notes import note
from utils.scan import Scan, fingerprint, scan_split
from utils.spec import SUFFIXES, DataSpec, label_path, read_data

__all__ = [
    "SUFFIXES",
    "AugmentParams",
    "AugmentPlan",
    "Batch",
    "DataSpec",
    "DetectionDataset",
    "Fed",
    "Labels",
    "Order",
    "Sample",
    "Scan",
    "build_loader",
    "class_weights",
    "collate",
    "fingerprint",
    "image_weights",
    "label_path",
    "letterbox",
    "make_dataset",
    "make_loader",
    "masked_share",
    "multiscale",
    "read_data",
    "read_image",
    "scan_split",
    "to_device",
]


def make_dataset(
    spec: DataSpec,
    split: str,
    *,
    img_size: int,
    stride: int,
    batch_size: int,
    augment: AugmentParams | AugmentPlan | None,
    rect: bool,
    pad: float,
    cache_images: bool,
    single_cls: bool,
    on_bad_data: str,
    seed: int,
    quad: bool = False,
    like: str = "",
    on_missing_pair: str = "error",
) -> DetectionDataset:
    """Check a split of a data set and open it. augment None: evaluation. rect: batches of like aspect ratio in their
    own shape, `pad` strides larger (0.5 in evaluation, 0 in training). like: see DetectionDataset. Prints what was
    found. Errors: UserError."""
    if img_size < stride or img_size % stride:
        right = max(round(img_size / stride), 1) * stride
        raise UserError(f"--img-size {img_size} is no multiple of the model's stride {stride}; {right} would be")
    scan = scan_split(
        spec, split, on_bad_data=on_bad_data, single_cls=single_cls, on_missing_pair=on_missing_pair
    )  # fmt: skip
    print(describe(scan, split))
    note_findings(scan, split)
    if scan.cls_names and augment:
        print(describe_masking(augment, split, rect=rect, quad=quad))
    return DetectionDataset(
        scan,
        img_size=img_size,
        stride=stride,
        augment=augment,
        rect=rect,
        pad=pad,
        batch_size=batch_size,
        cache_images=cache_images,
        seed=seed,
        quad=quad,
        like=like,
    )


def describe(scan: Scan, split: str) -> str:
    """What a scan found, in a line, and a line for each thing that was left out."""
    boxes = sum(map(len, scan.labels))
    channels, bits, _ = scan.pixels
    form = f" of {channels} channel{'s' * (channels > 1)} in {bits} bits" if (channels, bits) != (3, 8) else ""
    line = f"{split}: {len(scan.files)} images{form}, {boxes} objects, {scan.background} images without objects"
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
    return "\n".join(lines)


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
    each = ", ".join(f"{share:.0%}" + f" from epoch {start + 1} on" * (start > 0) for start, share in shares)
    return note(
        "image classes masked",
        f"{split}: composed of several images, and so without image class: about {each} of the pictures"
        " (mosaic, mixup, paste_in, --quad; --close-mosaic ends the first two)",
    )
