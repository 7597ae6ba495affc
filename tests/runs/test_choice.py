"""The figure that chooses best.pt: names, directions, sums, and runs that are chosen by it to their end."""

import dataclasses
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from tests.toy import cut, resumed, same, trained
from utils import seams
from utils.evaluation.evaluate import Result
from utils.report.report import report
from utils.runs.choice import Choice, of_run, recorded
from utils.runs.folder import Facts
from utils.system.errors import UserError
from utils.system.notes import read_notes
from utils.train import outputs
from utils.weights.checkpoint import read_checkpoint

ROW = {"box": 1, "obj": "2", "align": 4, "val_box": 0.5, "val_obj": "0.25", "mAP50": 0.4, "mAP": "0.2", "P": "",
       "mAP50/a": 0.3, "align_top1_visible": 0.5, "align_top1_infrared": 0.7, "image_ce": 1.5}  # fmt: skip


class Judged(seams.Patch[None]):
    judged = MappingProxyType({"align_top1_visible": False, "align_top1_infrared": False, "image_ce": True})


def choice(name: str) -> Choice:
    patches = seams.Patches({"a": Judged(None)})
    return of_run(name, ("box", "obj"), ("box", "obj", "align"), ("a", "b"), patches)


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("fitness", 0.1 * 0.4 + 0.9 * 0.2), ("mAP50", 0.4), ("mAP50-95", 0.2), ("mAP", 0.2), ("map@0.5", 0.4),
        ("mAP50/a", 0.3), ("val_loss", -0.75), ("val_box", -0.5), ("loss", -7), ("align", -4),
        ("align_top1", 0.6), ("align_top1_visible", 0.5), ("image_ce", -1.5), ("P", math.nan),
    ],
)  # fmt: skip
def test_higher_is_better_whatever_the_figure(name: str, score: float) -> None:
    assert choice(name).score(ROW) == pytest.approx(score, nan_ok=True)
    assert recorded(yaml.safe_load(yaml.safe_dump(choice(name).record()))) == choice(name)
    assert choice(name).value(choice(name).score(ROW)) == pytest.approx(abs(score), nan_ok=True)


@pytest.mark.parametrize("name", ["", "mAP75", "align_probe", "lr_bias", "epoch"])
def test_a_figure_without_a_direction_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--best-by {name}: no such figure .*fitness, .*val_loss.*align_top1_visible"):
        choice(name)


def test_a_run_is_chosen_by_it_to_its_end(small_shapes: Path, tmp_path: Path) -> None:
    """best.pt, patience, the report; a resumed run keeps it; an unknown name trains nothing."""
    words = ["--best-by", "val_loss", "--patience", "2"]
    run = trained(small_shapes, tmp_path, "a", *words, epochs=3).dir
    facts = Facts(run)
    totals = dict(facts.total("val_"))
    lowest = min(totals, key=lambda epoch: totals[epoch])
    assert lowest > 0 and int(facts.best["epoch"]) == lowest
    assert read_checkpoint(run / "weights/best.pt")["meta"]["epoch"] == lowest
    assert "lowest val_loss (--best-by)" in report(run)[2]
    half = cut(small_shapes, tmp_path, "half", *words, epochs=3, step=4)
    resumed(half)
    same(run, half)
    with pytest.raises(UserError, match="--best-by mAP75"):
        trained(small_shapes, tmp_path, "wrong", "--best-by", "mAP75")
    assert not (tmp_path / "wrong/run.yaml").exists()


def test_that_no_epoch_was_better_is_said(small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found, ever: best.pt is the first epoch by no merit."""
    measured = outputs.evaluate

    def nothing(*args: Any, **kwargs: Any) -> Result:
        return dataclasses.replace(measured(*args, **kwargs), map50=0.0, map=0.0)

    monkeypatch.setattr(outputs, "evaluate", nothing)
    run = trained(small_shapes, tmp_path, "a", epochs=2)
    (said,) = [row["text"] for row in read_notes(run.dir) if row["kind"] == "equal epochs"]
    assert said.startswith("all 2 evaluated epochs have the same fitness 0: best.pt is the first of them")
