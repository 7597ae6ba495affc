"""Tables of a study from run folders written by hand; words on the command line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.study.test_compare import ROWS, write_run
from utils.study import study
from utils.system.errors import UserError
from utils.weights.checkpoint import save_checkpoint

START = {"map50": 0.5, "map": 0.25, "match": "coco", "data": {"yaml": "d.yaml", "fingerprint": "abcdef0123"}}


def jobs_of(tmp_path: Path) -> list[study.Job]:
    """Arm a: two runs from a checkpoint with mAP50 0.5, arm b: one run from scratch and one that is missing."""
    tmp_path.mkdir(exist_ok=True)
    save_checkpoint(tmp_path / "w.pt", state={"x": torch.zeros(1)}, meta=START)
    later = [[*row[:6], value, *row[7:]] for row, value in zip(ROWS, (0.4, 0.2, 0.1, 0.31), strict=True)]
    write_run(tmp_path / "a_seed0", ROWS, seed=0, weights=str(tmp_path / "w.pt"))
    write_run(tmp_path / "a_seed1", later, seed=1, weights=str(tmp_path / "w.pt"))
    write_run(tmp_path / "b_seed0", ROWS, seed=0, weights="")
    return [study.Job(arm, seed, tmp_path / f"{arm}_seed{seed}", ()) for seed in (0, 1) for arm in "ab"]


def test_table_by_hand(tmp_path: Path) -> None:
    head, a, b = study.tables(jobs_of(tmp_path), "mAP50")
    assert head == ["arm", "runs", "start", "lowest", "final", "best", "above start", "above baseline"]
    assert a[:6] == [
        "a (baseline)", "2 of 2", "0.5000 ± 0.0000", "0.2000 ± 0.1414", "0.4600 ± 0.2121", "0.5100 ± 0.1556"
    ]  # fmt: skip
    assert a[6:] == ["0.0100 ± 0.1556", "-"]
    assert b == ["b", "1 of 2", "missing", "0.3000", "0.6100", "0.6200", "missing", "0.0000"]
    assert study.tables(jobs_of(tmp_path / "again"), "mAP50", "b")[1][7] == "0.0000", "only of the seed that both have"


def test_cost_by_hand(tmp_path: Path) -> None:
    """Median of 9, 3, 5 and 4 seconds, the same in both runs of arm a."""
    head, a, b = study.costs(jobs_of(tmp_path))
    assert head == ["arm", "parameters", "seconds per epoch"]
    assert (a, b) == (["a", "1,234", "4.5000 ± 0.0000"], ["b", "1,234", "4.5000"])
    assert study.costs([study.Job("c", 0, tmp_path / "none", ())])[1] == ["c", "missing", "missing"]


@pytest.mark.parametrize(
    "other",
    [
        {"match": "v7"},
        {"data": {"yaml": "d.yaml", "fingerprint": "99"}},
        {"config": {"img_size": [96, 96]}},
        {"data": {"yaml": "d.yaml", "fingerprint": ""}},
    ],
)
def test_a_start_on_other_data_at_another_size_or_by_another_rule_is_no_start(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    jobs = jobs_of(tmp_path)
    assert study.figures(jobs[0], "mAP")["start"] == 0.25
    save_checkpoint(tmp_path / "w.pt", state={"x": torch.zeros(1)}, meta={**START, **other})
    assert set(study.figures(jobs[2], "mAP50")) == {"lowest", "final", "best"}
    assert study.figures(jobs[3], "mAP50") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sudden", "expected `NAME: FLAGS`"),
        ("a/b: --lr0 1", "expected `NAME: FLAGS`"),
        ("a: --lr0 '1", "No closing quotation"),
        ("a: --seed=3", "--seed: set for each run, take it out of --arm a"),
        ("a: --exist_ok", "--exist-ok: set for each run"),
    ],
)
def test_arms_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        study.read_arm(text)


def test_an_arm(tmp_path: Path) -> None:
    assert study.read_arm("low rate: --lr0 0.1 --cfg 'a b.yaml'") == ("low rate", ["--lr0", "0.1", "--cfg", "a b.yaml"])
    assert study.read_arm("plain:") == ("plain", [])
    with pytest.raises(UserError, match="--baseline b: no such arm; there are: a"):
        study.main(["--project", str(tmp_path), "--arm", "a:", "--baseline", "b", "--", "--adam"])
    with pytest.raises(UserError, match="flags after `--`"):
        study.main(["--project", str(tmp_path), "--arm", "a:"])
    with pytest.raises(UserError, match="two arms have the same name"):
        study.main(["--project", str(tmp_path), "--arm", "a b:", "--arm", "a_b: --lr0 1", "--", "--adam"])
    with pytest.raises(UserError, match="--project: set for each run, take it out after `--`"):
        study.main(["--project", str(tmp_path), "--arm", "a:", "--", "--project=x"])
