"""What can go wrong in a run's folder, done to one that is healthy: a case for each rule of utils/report/rules.py."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from utils.weights.checkpoint import read_checkpoint, save_checkpoint

HEADS = [f"head_{i}" for i in range(4)]
EPOCHS = 12
Rows = list[dict[str, Any]]


def read(path: Path) -> Rows:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Rows) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def settings(folder: Path, name: str = "run.yaml") -> dict[str, Any]:
    return dict(yaml.safe_load((folder / name).read_text()))


def put(folder: Path, content: dict[str, Any], name: str = "run.yaml") -> None:
    (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))


def edit(path: Path, meta: dict[str, Any], change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Write a checkpoint again with other entries in its description, and perhaps other tensors."""
    content = read_checkpoint(path)
    if change:
        change(content)
    training = {k: v for k, v in content.items() if k not in ("format", "meta", "ema")}
    save_checkpoint(path, state=content["ema"], meta={**content["meta"], **meta}, training=training)


def change(folder: Path, what: Callable[[int, dict[str, Any]], dict[str, Any]], name: str = "results.csv") -> None:
    write(folder / name, [{**row, **what(i, row)} for i, row in enumerate(read(folder / name))])


def rise(folder: Path) -> None:
    change(folder, lambda i, r: {"obj/head_1": 0.1 + 0.01 * i, "mAP": 0.3})


def cross(folder: Path) -> None:
    change(folder, lambda i, r: {"mAP": 0.6 - 0.03 * i, "mAP50": 0.7 - 0.03 * i})


def spread(folder: Path) -> None:
    change(folder, lambda i, r: {k: 0.3 + 0.1 * i for k in r if k.startswith("val_box")})


def nothing(folder: Path) -> None:
    change(folder, lambda i, r: {k: 0 for k in r if k.startswith("mAP")})


def lose_epochs(folder: Path) -> None:
    change(folder, lambda i, r: {"epoch": i if i < 5 else i + 1})


def no_validation(folder: Path) -> None:
    change(folder, lambda i, r: dict.fromkeys([k for k in r if k.startswith(("mAP", "val_", "P", "R", "F1"))], ""))


def infinite(folder: Path) -> None:
    change(folder, lambda i, r: {"box/head_2": "nan" if i == 4 else r["box/head_2"]})


def first_is_best(folder: Path) -> None:
    change(folder, lambda i, r: {"mAP": 0.5 if i == 0 else 0.49, "mAP50": 0.5})


def ends_low(folder: Path) -> None:
    change(folder, lambda i, r: {"mAP": 0.2 if i == EPOCHS - 1 else r["mAP"]})


def one_head(folder: Path) -> None:
    change(folder, lambda i, r: {"mAP50/head_3": 0.1})


def no_class(folder: Path) -> None:
    change(folder, lambda i, r: {"AP50": 0 if i == 2 else r["AP50"], "objects": 3}, "per_class.csv")


def slow_data(folder: Path) -> None:
    change(folder, lambda i, r: {"data_wait": 0.4 if i % 3 else 0.01}, "timing.csv")


def kill(folder: Path) -> None:
    (folder / "result.yaml").unlink()


def damage(folder: Path) -> None:
    file = folder / "weights/last.pt"
    file.write_bytes(file.read_bytes()[:-5000])


def other_tensors(folder: Path) -> None:
    edit(
        folder / "weights/best.pt", {}, lambda c: c["ema"]["model.77.m.0.weight"].add_(1) if 0 else bump(c, "model.60.")
    )


def bump(content: dict[str, Any], prefix: str) -> None:
    """Move the first tensor of floats below a module, in every set of weights of the checkpoint."""
    for part in ("ema", "model"):
        if part in content:
            name = next(k for k, v in content[part].items() if k.startswith(prefix) and v.is_floating_point())
            content[part][name] = content[part][name] + 0.125


def move_frozen(folder: Path) -> None:
    edit(folder / "weights/last.pt", {}, lambda c: bump(c, "model.0."))


def change_data(folder: Path) -> None:
    shutil.copy(folder / "data.csv", folder / "data.until_step_9.csv")


def take_back(folder: Path) -> None:
    content = settings(folder)
    put(folder, {**content, "config": {**content["config"], "guard_drop": 0.01}})
    events = [("opening", "weight/2"), ("back", "halve: weight/2 lr_scale 0.5, opens at epoch 5")]
    write(folder / "guard.csv", [{"epoch": 4, "event": e, "before": 0.5, "now": 0.4, "action": a} for e, a in events])


def begin_higher(folder: Path) -> None:
    start = folder / "weights/start.pt"
    shutil.copy(folder / "weights/best.pt", start)
    edit(start, {"map50": 0.9, "match": "coco"})
    content = settings(folder)
    put(folder, {**content, "start": {"weights": str(start)}})


def loss_jumps(folder: Path) -> None:
    before = folder.parent / "before"
    before.mkdir()
    shutil.copy(folder / "run.yaml", before)
    shutil.copy(folder / "results.csv", before)
    change(before, lambda i, r: {k: 0.01 for k in r if k.split("/")[0] in ("box", "obj", "cls")})
    content = settings(folder)
    put(folder, {**content, "start": {"weights": str(before / "weights/best.pt"), "run": str(before)}})


def lie_at_the_bound(folder: Path) -> None:
    """The last third: for the first epochs the weight was higher."""
    columns = {"grad_norm/detection": 0.01, "grad_norm/image_class": 0.8}
    flags = {"mtl": "gradnorm", "gradnorm_min": 0.1}
    weights = [{"weight/detection": 2 - w, "weight/image_class": w} for w in [1.0] * 8 + [0.1] * (EPOCHS - 8)]
    tell(folder, "weighting", flags, lambda i: {**weights[i], **columns})


def weigh_little(folder: Path) -> None:
    tell(folder, "weighting", {"mtl": "uncertainty"}, lambda i: {"weight/box": 1.9, "weight/cls": 0.02})


CASES = (
    ("a task starves", lie_at_the_bound,
     "image_class lies at its bound 0.1 (--gradnorm-min); its gradients are 80 times as long as the longest other's"),
    ("a task starves", weigh_little, "the weight of cls is 0.02, under 5% of the mean of all tasks"),
    ("a term rises", rise, "obj/head_1 rises by"),
    ("mAP falls while losses fall", cross, "mAP@0.5:0.95 falls by"),
    ("gap grows", spread, "of the training loss, validation loss rising"),
    ("mAP 0", nothing, "in all 12 evaluated epochs"),
    ("missing epochs", lose_epochs, "none for epoch 5"),
    ("validation missing", no_validation, "12 of 12 epochs were not evaluated"),
    ("not a number", infinite, "box/head_2 is nan in epoch 4"),
    ("not better", first_is_best, "no epoch is better than the first one"),
    ("not better", ends_low, "ends at 0.2000, more than a tenth below its best 0.5500"),
    ("weak head", one_head, "head_3 has mAP@0.5 0.1000 in the best epoch, the others 0.6000"),
    ("silent class", no_class, "1 classes with objects have AP@0.5 0: ring"),
    ("data wait", slow_data, "40% of the training pass"),
    ("unfinished", kill, "no result.yaml"),
    ("damaged files", damage, "last.pt"),
    ("another best.pt", other_tensors, "has other tensors than when the run ended"),
    ("frozen tensors moved", move_frozen, "last.pt, average: 1 of "),
    ("data changed", change_data, "data.until_step_9.csv"),
    ("opening taken back", take_back, "after epoch 4 the guard took an opening back: halve: weight/2"),
    ("worse than the start", loss_jumps, "the loss jumped from 0.1200 (last epoch before)"),
    ("worse than the start", begin_higher, "mAP@0.5 fell from 0.9000 to 0.6000"),
)  # fmt: skip


def tell(folder: Path, patch: str, flags: dict[str, Any], columns: Callable[[int], dict[str, Any]]) -> None:
    """Another patch and its columns: loss terms before P, the others at the end."""
    content = settings(folder)
    put(folder, {**content, "patches": {**content["patches"], patch: flags}})
    rows = []
    for i, row in enumerate(read(folder / "results.csv")):
        new = columns(i)
        terms = {k: v for k, v in new.items() if k in ("image_class", "align", "align_box")}
        items = list(row.items())
        cut = [k for k, _ in items].index("P")
        rows.append(
            dict([*items[:cut], *terms.items(), *items[cut:], *((k, v) for k, v in new.items() if k not in terms)])
        )
    write(folder / "results.csv", rows)
