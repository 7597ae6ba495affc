"""What an evaluation prints and writes: tables per class and per head, AP as JSON, detections as label files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from torch import Tensor

from utils.evaluation.evaluate import Result
from utils.evaluation.matching import occurring
from utils.evaluation.outputs import Outputs
from utils.system.files import write_text
from utils.system.table import aligned


def number(value: float, digits: int = 4) -> str:
    """A share with four digits, or - where there was nothing to measure."""
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def write_classes(path: Path, result: Result) -> None:
    """per_class.csv: class, objects, P, R, F1, AP50, AP; a class without objects has no shares."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "objects", "P", "R", "F1", "AP50", "AP"])
    shares = (result.p, result.r, result.f1_per_class, result.ap50, result.ap)
    for c, name in enumerate(result.names):
        values = [float(x[c]) for x in shares]
        writer.writerow([name, int(result.n_gt[c]), *("" if np.isnan(v) else v for v in values)])
    write_text(path, text.getvalue())


def result_table(result: Result, per_class: bool, lowest: float = 0.001) -> str:
    """All classes, then each class with objects, then each head where there are several. lowest: confidence of the
    detections that were kept; above the usual one the heading says so, since mAP is then another figure."""
    means = (result.mp, result.mr, result.f1, result.map50, result.map)
    rows = [["class", "objects", "P", "R", "F1", "mAP@.5", "mAP@.5:.95"]]
    rows += [["all", str(result.n_gt.sum()), *map(number, means)]]
    if per_class and len(result.names) > 1:
        shares = (result.p, result.r, result.f1_per_class, result.ap50, result.ap)
        rows += [[name, str(result.n_gt[c]), *(number(x[c]) for x in shares)]
                 for c, name in enumerate(result.names) if result.n_gt[c]]  # fmt: skip
    cut = f"; of detections above confidence {lowest:g} alone, which is no mAP to compare" if lowest > 0.001 else ""
    lines = [f"{result.images} images, {result.rule}{cut}", aligned(rows)]
    if len(result.per_head) > 1:
        heads = [[k, str(h.n_gt), number(h.map50), number(h.map)] for k, h in result.per_head.items()]
        lines.append(aligned([["head", "objects", "mAP@.5", "mAP@.5:.95"], *heads]))
    return "\n".join([*lines, result.said] if result.said else lines)


def speed_line(result: Result) -> str:
    """Milliseconds per image of each part."""
    return ", ".join(f"{k} {1000 * v / max(result.images, 1):.1f} ms" for k, v in result.seconds.items()) + " per image"


def write_per_class_ap(result: Result, path: Path) -> None:
    """JSON: map50, map, match, per_class {id: {ap50, ap, name}} of the classes that have objects."""
    classes = {
        str(c): {"ap50": float(result.ap50[c]), "ap": float(result.ap[c]), "name": name}
        for c, name in enumerate(result.names)
        if result.n_gt[c]
    }
    means = {k: None if np.isnan(v) else v for k, v in (("map50", result.map50), ("map", result.map))}
    content = {**means, "match": result.match, "per_class": classes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def label_lines(
    found: Tensor, shape: Sequence[int], with_confidence: bool, shares: Sequence[float] | None = None
) -> str:
    """Detections [n,6] (x0,y0,x1,y1 native pixels, confidence, class) of an image (h, w) as label lines, in 0..1.

    shares [C]: probabilities of the image's classes, if it was asked for these: a last one-hot line as in label files,
    with_confidence the probabilities themselves."""
    h, w = shape
    lines = []
    for x0, y0, x1, y1, confidence, c in found.tolist():
        box = ((x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h)
        values = [*box, confidence] if with_confidence else box
        lines.append(" ".join([str(int(c)), *(f"{v:.6f}" for v in values)]))
    if shares is not None:
        top = max(range(len(shares)), key=lambda i: shares[i])
        lines.append(" ".join(f"{v:.6f}" if with_confidence else str(int(i == top)) for i, v in enumerate(shares)))
    return "".join(line + "\n" for line in lines)


def write_labels(result: Result, sizes: npt.NDArray[np.int64], outputs: Outputs, with_confidence: bool) -> None:
    """One label file per image with detections, or per image where they have classes. sizes [images,2]: native (h, w),
    in the order of result.paths."""
    logits = result.observed.get("image_logits")
    shares = [None] * len(result.paths) if logits is None else logits.softmax(1).tolist()
    for path, found, shape, share in zip(result.paths, result.detections, sizes.tolist(), shares, strict=True):
        stem = outputs.stems.of(path)  # of every image: a number must not depend on what was found
        if len(found) or share is not None:
            outputs.text(f"labels/{stem}.txt", label_lines(found, shape, with_confidence, share))
    outputs.tell_numbered()


def write_figures(result: Result, outputs: Outputs, how: Mapping[str, object]) -> None:
    """metrics.yaml, per_class.csv and confusion.csv. how: by which settings they were measured."""
    row = {k: None if np.isnan(v) else float(v) for k, v in result.row.items()}
    heads = {k: {"mAP50": number(h.map50), "mAP": number(h.map), "objects": h.n_gt} for k, h in result.per_head.items()}
    content = {
        **how, "rule": result.rule, "images": result.images, "objects": int(result.n_gt.sum()), "metrics": row,
        "confidence": result.best_conf, **({"heads": heads} if len(heads) > 1 else {}),
    }  # fmt: skip
    outputs.text("metrics.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    write_classes(outputs.path("per_class.csv"), result)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    counts, names = occurring(result.confusion, result.names)
    writer.writerow(["predicted \\ true", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    outputs.text("confusion.csv", text.getvalue())
