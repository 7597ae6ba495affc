"""The checks between stages: what is compared, what is refused by name, from where on a stage is worse."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.study.test_compare import ROWS, write_run
from utils.runs.chain import judge, main, outcome, stage_table
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
    assert found.faults == found.compared == [] and says in found.refused[0]


@pytest.mark.parametrize("config", [{"data": "9988"}, {"loss_ota": 1.0}, {"mosaic": 0.5}, {"img_size": [96, 96]}])
def test_losses_made_otherwise_are_not_compared(tmp_path: Path, config: dict[str, Any]) -> None:
    jump = [[row[0], 9.0, *row[2:]] for row in ROWS]
    then, now = stages(tmp_path, ROWS, jump)
    assert "the loss jumped from 1.5000 (last epoch before) to 10.0000" in judge(START, then, now).faults[0]
    found = judge(START, then, Facts(write_run(tmp_path / "other", jump, **config)))
    assert found.faults == [] and any(text.startswith("the loss (other ") for text in found.refused)


@pytest.mark.parametrize(
    ("rows", "says"), [(MIDDLE, ""), (LOW, "head_0 fell from 0.2070 to 0.1080 (more than 30% of it)")]
)
def test_a_head_may_lose_a_share_of_what_it_was(tmp_path: Path, rows: list[list[Any]], says: str) -> None:
    """Below 0.1 the absolute limit can never see a collapse."""
    found = judge(START, *stages(tmp_path, HIGH, rows))
    assert [fault for fault in found.faults if "loss" not in fault] == ([says] if says else [])


def test_nothing_compared_is_not_nothing_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = write_run(tmp_path / "now", ROWS)
    assert outcome(judge({}, None, Facts(now))) == (
        "nothing could be compared: mAP@0.5 (the start states none); the loss and the heads (the run before is not "
        "there)"
    )
    save_checkpoint(tmp_path / "w.pt", state={"x": torch.zeros(1)}, meta={})
    main(["check", str(tmp_path / "w.pt"), str(now)])
    assert capsys.readouterr().out.startswith("now: nothing could be compared: ")
    nought = judge({**START, "map50": 0.0}, None, Facts(write_run(tmp_path / "zero", ZERO)))
    assert nought.compared == [] and "nothing was learned yet" in nought.refused[0]


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
