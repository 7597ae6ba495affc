"""The checks between stages: what is compared, what is refused by name, from where on a stage is worse."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.study.test_compare import ROWS, write_run
from utils.runs.chain import UNKNOWN, judge, main, outcome, stage_table
from utils.runs.folder import Facts
from utils.system.errors import UserError
from utils.weights.checkpoint import save_checkpoint

START = {"map50": 0.62, "map": 0.5, "match": "coco", "data": {"fingerprint": "abcdef0123"}, "config": {}}
HIGH, MIDDLE, LOW, ZERO = (
    [[*row[:6], mean, *row[7:11], head, *row[12:]] for row in ROWS]
    for mean, head in ((0.62, 0.207), (0.615, 0.15), (0.615, 0.108), (0.0, 0.0))
)


def stages(tmp_path: Path, then: list[list[Any]], now: list[list[Any]], **config: Any) -> tuple[Facts, Facts]:
    return Facts(write_run(tmp_path / "then", then)), Facts(write_run(tmp_path / "now", now, **config))


@pytest.mark.parametrize(
    ("other", "config", "says"),
    [
        ({}, {"data": "99887766"}, "other data: abcdef0123 before, 99887766 now"),
        ({"config": {"img_size": [160, 160]}}, {"img_size": [96, 96]}, "other image size: 160 before, 96 now"),
        ({"match": "v7"}, {}, "other matching rule: v7 before, coco now"),
        ({"data": {}}, {}, "other data: not stated before, abcdef0123 now"),
    ],
)
def test_a_start_measured_otherwise_is_not_compared(
    tmp_path: Path, other: dict[str, Any], config: dict[str, Any], says: str
) -> None:
    """The same figures on the same data are a fall; on other data, at another size or by another rule they are none."""
    now = Facts(write_run(tmp_path / "same", ROWS))
    assert judge({**START, "map50": 0.9}, None, now).faults == ["mAP@0.5 fell from 0.9000 to 0.6200 (more than 0.01)"]
    found = judge({**START, "map50": 0.9, **other}, None, Facts(write_run(tmp_path / "now", ROWS, **config)))
    assert found.faults == found.compared == [] and says in found.refused[0] and found.code == UNKNOWN


@pytest.mark.parametrize("config", [{"data": "9988"}, {"loss_ota": 1.0}, {"hsv_v": 0.5}, {"img_size": [96, 96]}])
def test_losses_made_otherwise_are_not_compared(tmp_path: Path, config: dict[str, Any]) -> None:
    jump = [[row[0], 9.0, *row[2:]] for row in ROWS]
    then, now = stages(tmp_path, ROWS, jump)
    assert "the loss jumped from 1.5000 (last epoch before) to 10.0000 (epoch 0; " in judge(START, then, now).faults[0]
    found = judge(START, then, Facts(write_run(tmp_path / "other", jump, **config)))
    assert found.faults == [] and any(text.startswith("the loss with the run before (other ") for text in found.refused)


@pytest.mark.parametrize(
    ("rows", "says"), [(MIDDLE, ""), (LOW, "head_0 fell from 0.2070 to 0.1080 (more than 30% of it)")]
)
def test_a_head_may_lose_a_share_of_what_it_was(tmp_path: Path, rows: list[list[Any]], says: str) -> None:
    """Below 0.1 the absolute limit can never see a collapse."""
    found = judge(START, *stages(tmp_path, HIGH, rows))
    assert [fault for fault in found.faults if "loss" not in fault] == ([says] if says else [])


def measured(folder: Path, mean: float, head: float, loss: float = 2.0, classes: str = "") -> Facts:
    """With a start that was measured, and AP@0.5 of classes: `name objects before now`, ..."""
    cells = ["start", 0, mean, mean / 2, loss / 2, loss / 2, head, "coco"]
    head_line = "epoch,step,mAP50,mAP,val_box,val_obj/head_0,mAP50/head_0,match"
    (folder / "start.csv").write_text(head_line + "\n" + ",".join(map(str, cells)) + "\n")
    rows = [line.split() for line in classes.split(", ") if line]
    for name, at in (("start_per_class.csv", 2), ("per_class.csv", 3)) if rows else ():
        lines = ["class,objects,AP50", *(f"{row[0]},{row[1]},{row[at]}" for row in rows)]
        (folder / name).write_text("\n".join(lines) + "\n")
    return Facts(folder)


@pytest.mark.parametrize(
    ("mean", "head", "loss", "classes", "says"),
    [
        (0.61, 0.1, 2.0, "a 9 .3 .29", []),
        (0.64, 0.1, 2.0, "", ["mAP@0.5 fell from 0.6400 to 0.6200 (more than 0.01)"]),
        (0.61, 0.9, 2.0, "", ["head_0 fell from 0.9000 to 0.7000 (more than 0.1)"]),
        (0.61, 0.1, 1.9, "", ["the validation loss jumped from 1.9000 (at the start) to 3.0000 (epoch 0; more than 1.5"
                              " times)"]),
        (0.61, 0.1, 2.0, "a 9 .3 .14, b 9 .9 .69, c 4 .9 0, d 9 .01 0, e 9 .3 .16",
         ["a fell from 0.3000 to 0.1400 (more than 50% of it)", "b fell from 0.9000 to 0.6900 (more than 0.2)"]),
    ],
)  # fmt: skip
def test_a_stage_is_held_against_what_it_measured_before_its_first_epoch(
    tmp_path: Path, mean: float, head: float, loss: float, classes: str, says: list[str]
) -> None:
    """Whatever its checkpoint states of other data. Few objects and next to nothing before are chance."""
    rows = [[*row[:8], 2.0, *row[9:]] for row in ROWS]
    now = measured(write_run(tmp_path / "now", rows), mean, head, loss, classes)
    found = judge({**START, "map50": 0.9, "data": {}}, None, now)
    assert found.faults == says and found.code == (1 if says else 0)
    assert any(text.startswith("each class's AP@0.5 (") for text in found.refused) != bool(classes)


@pytest.mark.parametrize(("old", "new", "halved"), [(0.05, 0.02, True), (0.02, 0.009, True), (0.004, 0.0, False)])
def test_small_heads_and_means_can_be_seen_to_halve(tmp_path: Path, old: float, new: float, halved: bool) -> None:
    rows = [[*row[:6], new, *row[7:11], new, *row[12:]] for row in ROWS]
    faults = judge({}, None, measured(write_run(tmp_path / "now", rows), old, old, 3.0)).faults
    assert len(faults) == (2 if halved else 0), faults


def test_a_jump_within_a_stage_is_seen_but_where_it_was_planned(tmp_path: Path) -> None:
    rows = [[*row[:1], 9.0 if row[0] == 2 else 1.0, *row[2:]] for row in ROWS]
    now = Facts(write_run(tmp_path / "now", rows))
    says = "the loss jumped from 2.0000 (epoch 1) to 10.0000 (epoch 2; more than 1.5 times)"
    assert judge({}, None, now).faults == [says]
    planned = Facts(write_run(tmp_path / "planned", rows, epochs=4, close_mosaic=2))
    assert judge({}, None, planned).faults == []


def test_nothing_compared_is_not_nothing_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = write_run(tmp_path / "now", ROWS)
    assert outcome(judge({}, None, Facts(now))) == (
        "nothing could be compared: mAP@0.5 (the start states none); the loss with the run before (which is not "
        "there); each head's mAP@0.5 (the start was not measured); each class's AP@0.5 (the start was not measured)"
    )
    save_checkpoint(tmp_path / "w.pt", state={"x": torch.zeros(1)}, meta={})
    with pytest.raises(SystemExit) as ended:
        main(["check", str(tmp_path / "w.pt"), str(now)])
    assert ended.value.code == UNKNOWN and capsys.readouterr().out.startswith("now: nothing could be compared: ")


def test_nothing_learned_is_not_nothing_wrong(tmp_path: Path) -> None:
    """Zero from the start to the end, whatever the loss does."""
    nought = judge({}, None, measured(write_run(tmp_path / "zero", ZERO), 0.0, 0.0))
    assert nought.faults == [] and nought.code == UNKNOWN and "validation loss 2.0000 -> 3.0000" in nought.compared
    assert outcome(nought).startswith("nothing was learned: mAP@0.5 is 0 in every epoch, as at the start; not compared")
    assert "head_0 (0 at the start and now)" in nought.refused


def test_damaged_stages_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "now", ROWS)
    (run / "run.yaml").write_bytes(b"config: [\xff")
    (run / "timing.csv").write_text("epoch,seconds\n0,x\n")
    rows, note = stage_table([Facts(run), Facts(tmp_path / "gone")])
    assert rows[1][:4] == ["now", "missing", "missing", "4"] and rows[2] == ["gone", *["missing"] * 7]
    assert "run.yaml" in note and "timing.csv:2: damaged row left out" in note
    (run / "results.csv").write_bytes(b"\xff\xfe")
    save_checkpoint(tmp_path / "w.pt", state={"x": torch.zeros(1)}, meta={})
    with pytest.raises(UserError, match=r"results\.csv"):
        main(["check", str(tmp_path / "w.pt"), str(run)])
