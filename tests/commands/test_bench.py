"""bench.py at toy size: every section runs and says what it promises. No figure is asserted."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import bench
from tests.conftest import ROOT
from utils.bench import page as bench_page
from utils.bench.sections import SECTIONS
from utils.system.errors import UserError

STEP = {"data", "forward", "loss", "backward", "optimizer", "EMA", "step", "CPU time"}
EVALUATION = {"inference", "nms", "matching", "whole", "CPU time"}
PARTS = {
    "step": STEP, "freeze": STEP, "settings": STEP, "loss": {"loss", "backward", "CPU time"}, "loader": {"epoch"},
    "wait": set(), "evaluation": EVALUATION, "coco": {"figures"}, "startup": {"seconds", "CPU time"},
}  # fmt: skip


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Figures of the sections that start no process of their own."""
    out = tmp_path_factory.mktemp("bench") / "quick.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        sections = [k for k in PARTS if k not in ("loader", "wait", "startup")]
        bench.main([*sections, "--quick", "--device", "cpu", "--out", str(out)])
    return out


def check(name: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert set(row["parts"]) == PARTS[name], (name, row["name"])
        for value in [*row["parts"].values(), row.get("ratio", row.get("share"))]:
            assert 0 <= value["min"] <= value["median"] <= value["max"] < math.inf


@pytest.mark.slow
def test_every_section_has_its_rows_and_parts(quick: Path) -> None:
    found = json.loads(quick.read_text())["sections"]
    for name, rows in found.items():
        check(name, rows)
    assert [r["name"] for r in found["step"]] == ["1B1H, plain", "1B1H, OTA", "1B4H, plain", "1B4H, OTA"]
    assert len(found["freeze"]) >= 5 and len(found["loss"]) == 4
    assert all(r["memory"] > 0 and r["images_per_second"]["min"] > 0 for r in found["step"] + found["evaluation"])
    assert all(rows[0]["ratio"]["median"] == 1 for rows in found.values()), "the first row is its own base"


def test_the_parts_add_up(quick: Path) -> None:
    for row in json.loads(quick.read_text())["sections"]["step"]:
        parts = {k: v["median"] for k, v in row["parts"].items()}
        inside = [parts[k] for k in STEP - {"data", "step", "CPU time"}]
        assert sum(inside) == pytest.approx(parts["step"], rel=1e-9)


@pytest.mark.slow
def test_sections_with_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = bench.main(["loader", "wait", "startup", "--quick", "--device", "cpu"])
    assert found is not None
    for name, rows in found["sections"].items():
        check(name, rows)


def test_the_page_says_what_was_not_measured_and_what_fell_short(quick: Path) -> None:
    result = json.loads(quick.read_text())
    row = result["sections"]["step"][2]
    row["ratio of CPU time"] = {"median": 1.5, "min": 1.4, "max": 1.6}
    text = bench_page.page([result])
    assert set(bench_page.SECTIONS) == set(SECTIONS)
    assert text.count("CUDA: not measured.") == len(SECTIONS) + 1 and "none of its targets is known" in text
    assert str(quick) not in text and "coco --quick --device cpu`" in text
    assert f"- CPU, A training step, {row['name']}: aimed at 1.10 or less, missed" in text
    cuda = bench_page.page([result | {"device": "cuda"}])
    assert cuda.count("CPU: not measured.") == len(SECTIONS) and "0.60 or less" in cuda and "0.48 or less" not in cuda
    assert result["versions"]["torch"] in text and result["date"] in text and "python -m bench" in text


def test_an_earlier_state_is_set_beside_this_one(quick: Path) -> None:
    after, before = (json.loads(quick.read_text()) for _ in range(2))
    row = before["sections"]["loss"][0]
    row["parts"]["CPU time"]["median"] = 4 * after["sections"]["loss"][0]["parts"]["CPU time"]["median"]
    del before["sections"]["coco"]
    lines = bench_page.compared(before, after).splitlines()
    assert [line.split(" | ")[4] for line in lines if f"| {row['name']} |" in line] == ["0.25"]
    assert not any(line.startswith("| coco") for line in lines)


def test_features_that_follow_the_epochs_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is train.py's own: what a patch prepares at an epoch's start is there."""
    monkeypatch.chdir(ROOT)
    mtl = ["--mtl", "fixed", "--mtl-tasks", "box", "obj", "cls", "--batch", "4", "--audit"]
    found = bench.main(["step", "--quick", "--device", "cpu", "--", *mtl])
    assert found is not None
    check("step", found["sections"]["step"])


def test_unknown_sections_are_named() -> None:
    with pytest.raises(UserError, match=r"SECTIONS must be one of step, freeze, .*, got 'steps'"):
        bench.main(["steps"])
