"""python -m tests.conformance [--shared PATH] [--out docs/conformance.md]: ours against the reference, as a table.

PATH holds `golden/`, the values computed with the original YOLOv7, YOLOv5 and 1B4H programs (its README says how).
Every number of the table is computed by the run that writes it; what is absent says so. The exit code is 1 where a row
differs by more than its tolerance, 2 on bad input. What a difference is: see utils.checks.
"""

import argparse
import os
import platform
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.conformance import checks, checks_data
from tests.conformance.checks import Found
from tests.conformance.reference import ROOT, Absent, Reference
from utils.system.errors import UserError, fail
from utils.system.processes.program import run_main

RELATIVE, ABSOLUTE, IDENTICAL = "relative", "absolute", "elements that differ"
ABSENT, PASS, FAIL = "not present", "pass", "FAIL"
FAMILIES = {"yolov7": "YOLOv7", "yolov5": "YOLOv5"}
MODELS = {
    "yolov7-tiny": "YOLOv7-tiny", "yolov7-tiny-nc3": "YOLOv7-tiny of 3 classes", "yolov7": "YOLOv7",
    "yolov5n": "YOLOv5n", "yolov7-tiny-1b4h-standard": "1B4H standard", "yolov7-tiny-1b4h-geometry": "1B4H geometry",
    "yolov7-tiny-1b4h-attn-standard": "1B4H attention", "yolov7-tiny-1b4h-standard-fullhead": "1B4H full heads",
}  # fmt: skip
TRAINED = ("yolov7-tiny", "yolov5n", "yolov7-tiny-1b4h-standard")  # also run in train mode by the reference
CHECKPOINTS = ("yolov7-tiny-w025-nc3", "yolov5n-w0625-nc3", "yolov7-tiny-1b4h-w025-geometry")

FAULTS = """\
| in the originals | here by default | to reproduce it |
|---|---|---|
| YOLOv7's OTA scales boxes by the image height on both axes | by height and width | `--compat v7` |
| warm-up of at least 1,000 (YOLOv7) or 100 (YOLOv5) steps, however short the run | a limited share of the run | \
`--compat v7`, `--compat v5` |
| the bias rate starts its warm-up far above the rate of a run that begins from weights | capped at the run's rate | \
`--compat v7`, `--compat v5` |
| after warm-up the rates lag one epoch | rates of the epoch itself | `--compat v7`, `--compat v5` |
| BatchNorm statistics of frozen layers drift | frozen layers stay as they are | `--freeze-bn train` |
| 1B4H adds up the losses of its heads | weighted mean over the heads | `--head-loss sum` |
| matching of predictions to boxes, and evaluation batches, by the program's own rules | COCO's rule | \
`--match v7`, `--match v5` |
| objectness balance that adapts during training (`autobalance`, off by default there) | not offered | none |
"""


class Check(NamedTuple):
    quantity: str
    kind: str
    tolerance: float
    run: Callable[[Reference], Found]


class Row(NamedTuple):
    quantity: str
    kind: str
    tolerance: float
    cases: int
    worst: float
    where: str  # the case with the worst difference
    note: str  # why there is no comparison

    @property
    def verdict(self) -> str:
        if self.note:
            return ABSENT
        return PASS if self.worst <= self.tolerance else FAIL

    def line(self) -> str:
        if self.note:
            return f"| {self.quantity} | - | - | - | {ABSENT}: {self.note.removesuffix(' not present')} |"
        worst = f"{self.worst:.0f}" if self.kind == IDENTICAL and self.worst < 1e9 else f"{self.worst:.1e}"
        worst = "0" if not self.worst else worst
        limit = f"{self.tolerance:g}"
        failed = f" ({self.where})" if self.verdict == FAIL else ""
        return f"| {self.quantity} | {self.cases} | {worst} {self.kind} | {limit} | {self.verdict}{failed} |"


def model_checks() -> list[Check]:
    rows = []
    for family, name in {**FAMILIES, "1b4h": "1B4H"}.items():
        label = f"{name}: shipped models,"
        rows.append(
            Check(f"{label} numbers of parameters and tensors", IDENTICAL, 0, partial(checks.counts, family=family))
        )
        rows.append(
            Check(f"{label} state keys, shapes, types", IDENTICAL, 0, partial(checks.state_keys, family=family))
        )
    for model, name in MODELS.items():
        rows += [
            Check(f"{name}: raw outputs", RELATIVE, 1e-4, partial(checks.forward, name=model, what="raw")),
            Check(f"{name}: decoded outputs", RELATIVE, 1e-4, partial(checks.forward, name=model, what="decoded")),
            Check(f"{name}: fused against unfused", RELATIVE, 1e-4, partial(checks.fused, name=model)),
        ]
    for model in TRAINED:
        for what, title, tolerance in (("raw", "raw outputs", 2e-4), ("after", "BatchNorm statistics after", 1e-4)):
            run = partial(checks.batch_statistics, name=model, what=what)
            rows.append(Check(f"{MODELS[model]}, train mode: {title}", RELATIVE, tolerance, run))
    return rows + [
        Check(f"checkpoint {name}: decoded outputs", RELATIVE, 1e-4, partial(checks.checkpoint, name=name))
        for name in CHECKPOINTS
    ]


def loss_checks() -> list[Check]:
    rows = []
    for family, name in FAMILIES.items():
        rows += [
            Check(f"{name} loss: built targets", IDENTICAL, 0, partial(checks.built_rows, family=family)),
            Check(f"{name} loss: box, obj, cls", RELATIVE, 1e-4, partial(checks.losses, family=family, what="items")),
            Check(
                f"{name} loss: gradient norm per level",
                RELATIVE,
                1e-4,
                partial(checks.losses, family=family, what="grad"),
            ),
        ]
    return [
        *rows,
        Check(
            "OTA, `--compat v7`: box, obj, cls, cases without ties", RELATIVE, 1e-4, partial(checks.ota, group="free")
        ),
        Check(
            "OTA, `--compat v7`: gradient norm per level",
            RELATIVE,
            1e-4,
            partial(checks.ota, group="free", what="gradients"),
        ),
        Check(
            "OTA, `--compat v7`: box, obj, cls, tied cases by the rule",
            RELATIVE,
            1e-4,
            partial(checks.ota, group="tied"),
        ),
        Check(
            "OTA, `--compat v7`: box, tied focal cases by the rule", RELATIVE, 1e-4, partial(checks.ota, group="open")
        ),
        Check("1B4H, `--head-loss sum`: box, obj, cls", RELATIVE, 1e-4, partial(checks.router, what="items")),
        Check(
            "1B4H, `--head-loss sum`: gradient norm per head and level",
            RELATIVE,
            1e-4,
            partial(checks.router, what="gradients"),
        ),
    ]


def data_checks() -> list[Check]:
    data, rows = checks_data, []
    for family, name in FAMILIES.items():
        rows += [
            Check(
                f"{name}: IoU, GIoU, DIoU, CIoU", ABSOLUTE, 1e-6, partial(data.iou_family, family=family, what="values")
            ),
            Check(
                f"{name}: gradients of these", ABSOLUTE, 1e-5, partial(data.iou_family, family=family, what="gradients")
            ),
            Check(f"{name}: letterbox", IDENTICAL, 0, partial(data.letterboxes, family=family)),
            Check(f"{name}: box conversions and scaling", IDENTICAL, 0, partial(data.conversions, family=family)),
            Check(f"{name}: boxes kept by NMS, in order", IDENTICAL, 0, partial(data.kept_boxes, family=family)),
        ]
    for rule in ("v7", "v5"):
        label = f"`--match {rule}`:"
        rows.append(Check(f"{label} true positives", IDENTICAL, 0, partial(data.metrics, rule=rule, what="tp")))
        for what, title in {"ap": "AP per class and threshold", "p": "P", "r": "R", "f1": "F1"}.items():
            rows.append(Check(f"{label} {title}", ABSOLUTE, 1e-6, partial(data.metrics, rule=rule, what=what)))
        rows.append(
            Check(f"{label} confusion matrix", IDENTICAL, 0, partial(data.metrics, rule=rule, what="confusion"))
        )
    rows += [
        Check("default rule: AP against pycocotools", ABSOLUTE, 1e-6, data.default_rule),
        Check("twelve COCO figures against pycocotools", ABSOLUTE, 1e-6, data.twelve_figures),
    ]
    for title, columns in {
        "learning rates": ("lr0", "lr1", "lr2"), "momentum": ("momentum",), "accumulation": ("accumulate",),
        "steps taken": ("did_step",),
    }.items():  # fmt: skip
        rows.append(
            Check(f"`--compat`: {title}, step by step", RELATIVE, 1e-12, partial(data.schedule, columns=columns))
        )
    return [
        *rows,
        Check("weight decay and accumulation by batch size", RELATIVE, 1e-12, data.weight_decay),
        Check("EMA decay by update", RELATIVE, 1e-12, data.average_decay),
        Check("EMA values, update by update", ABSOLUTE, 1e-6, data.averages),
    ]


def compare(check: Check, ref: Reference) -> Row:
    found: list[tuple[str, float]] = []
    try:
        for item in check.run(ref):
            found.append(item)
    except Absent as absent:
        return Row(*check[:3], 0, 0.0, "", str(absent))
    except UserError as error:  # an unreadable checkpoint
        return Row(*check[:3], len(found), float("inf"), str(error), "")
    except (KeyError, ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        return Row(*check[:3], len(found), float("inf"), f"reference not understood: {error}", "")
    if not found:
        return Row(*check[:3], 0, 0.0, "", "no case")
    where, worst = max(found, key=lambda item: item[1])
    return Row(*check[:3], len(found), worst, where, "")


def exceptions(ref: Reference) -> list[str]:
    """What the table compares in another form, by name."""
    lines = []
    try:
        groups = checks.ota_groups(ref)
        total, tied = sum(map(len, groups.values())), groups["tied"] + groups["open"]
        names = ", ".join(f"`{name.removeprefix('ota/')}`" for name in tied)
        lines.append(
            f"OTA's exact ties: in {len(tied)} of {total} cases ({len(tied) / total:.1%}) candidates of equal cost "
            "meet and the choice changes the loss. YOLOv7 takes what `torch.topk` happens to return. Here: the lowest "
            f"cost, then the earlier candidate; these cases are compared with the value by that rule: {names}. For "
            f"{len(groups['open'])} of them (focal) the reference has no such value; their box term, which does not "
            "depend on the exponent, is compared with that of the base case."
        )
    except Absent as absent:
        lines.append(f"OTA's exact ties: {absent}.")
    noise = []
    for model in TRAINED:
        try:
            ours, theirs = checks.float32_noise(ref, model)
            noise.append(f"{MODELS[model]} our float32 {ours:.1e}, the reference {theirs:.1e}")
        except Absent:
            continue
    lines.append(
        "Train mode is compared in float64 on our side, with the tolerance 2e-4, not 1e-4: batch statistics multiply "
        "rounding errors, and the reference is float32. Largest distance of raw outputs from our float64 ones, in the "
        f"measure of the table: {'; '.join(noise) or ABSENT}."
    )
    try:
        values = {
            name: checks_data.evaluate(ref, *how).ap.ap.mean()
            for name, how in {
                "`--match v7`": ("v7",), "`--match v7 --v5-metric`": ("v7", True), "`--match v5`": ("v5",),
                "default": ("coco",),
            }.items()
        }  # fmt: skip
        lines.append(
            "One set of decoded predictions, evaluated by the three rules, mAP@.5:.95: "
            + ", ".join(f"{name} {v:.4f}" for name, v in values.items())
            + ". A mAP is comparable only with one of the same rule."
        )
    except Absent as absent:
        lines.append(f"The three matching rules on one set of predictions: {absent}.")
    return lines


def document(rows: list[Row], ref: Reference) -> str:
    count = {v: sum(r.verdict == v for r in rows) for v in (PASS, FAIL, ABSENT)}
    lines = [
        "# Conformance",
        "",
        "Ours against values computed with the original programs. Made by `python -m tests.conformance`; every number "
        f"below is of that run (torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}, "
        "CPU, one thread, float32).",
        "",
        f"{count[PASS]} quantities pass, {count[FAIL]} fail, {count[ABSENT]} are not present in the reference at hand.",
        "",
        "Relative: abs(ours - reference) / abs(reference); for outputs and statistics of networks the divisor is "
        "abs(reference) + standard deviation of that output (pixels and probabilities apart), because values near 0 "
        "have no relative size. Worst: over all elements of all cases; for `elements that differ`, of one case.",
        "",
        "| quantity | cases | worst difference | tolerance | verdict |",
        "|---|---|---|---|---|",
        *(row.line() for row in rows),
        "",
        "## Exceptions",
        "",
        *(f"- {line}" for line in exceptions(ref)),
        "",
        "## Faults of the originals that are not copied",
        "",
        FAULTS,
        "mAP of published weights on real images is a test of its own: "
        "`pytest -m slow tests/commands/test_published_map.py`.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__, allow_abbrev=False)
    home = Path(os.environ.get("THAW_SHARED", ROOT.parent / "shared"))
    parser.add_argument(
        "--shared", type=Path, default=home, help="folder that holds golden/ (default: beside the checkout)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs/conformance.md", help="Markdown file to write")
    options: Any = parser.parse_args(argv)
    if not options.out.parent.is_dir():
        fail(f"--out {options.out}: there is no folder {options.out.parent}")
    if not options.shared.is_dir():
        fail(f"--shared {options.shared}: there is no such folder")
    ref = Reference(options.shared / "golden")
    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and so the last digits, would follow the number of cores
    try:
        for check in [*model_checks(), *loss_checks(), *data_checks()]:
            rows.append(compare(check, ref))
            print(rows[-1].line(), flush=True)
        options.out.write_text(document(rows, ref))
    finally:
        torch.set_num_threads(threads)
    print(f"wrote {options.out}")
    if any(row.verdict == FAIL for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
