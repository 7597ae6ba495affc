"""Detection by a model of two pictures while one of them is missing: grey, as the margins of every picture are."""

from functools import partial
from pathlib import Path

from torch import Tensor

from utils.evaluation.tables import number
from utils.images.pixels import GREY
from utils.seams import Batch, Measure, Measured
from utils.system import dist
from utils.system.files import write_text
from utils.system.table import aligned

MODALITIES = ("visible", "infrared")
COLUMNS = ("P", "R", "F1", "mAP50", "mAP")


def without(batch: Batch, missing: str) -> Batch:
    """The batch as loaded, image [B,2C,H,W], with one of the two pictures grey."""
    image: Tensor = batch["image"].clone()
    first, second = image.chunk(2, 1)
    (first if missing == "visible" else second).fill_(GREY * (1 if image.element_size() == 1 else 257))
    return {**batch, "image": image}


def report(both: Measured, measure: Measure, file: Path) -> None:
    """What a model finds with both pictures (given) and with either alone (by `measure`), as a table on the screen and
    as CSV: given, the figures, match (their rule)."""
    visible, infrared = (measure(change=partial(without, missing=missing)) for missing in reversed(MODALITIES))
    found = {"both": both, "visible alone": visible, "infrared alone": infrared}
    if not dist.main():
        return
    print(
        aligned([("given", *COLUMNS), *((given, *(number(r.row[c]) for c in COLUMNS)) for given, r in found.items())])
    )
    print(f"a missing picture is grey; {both.rule}")
    lines = [",".join(("given", *COLUMNS, "match"))]
    lines += [",".join([given, *(str(r.row[c]) for c in COLUMNS), r.match]) for given, r in found.items()]
    write_text(file, "\n".join(lines) + "\n")
