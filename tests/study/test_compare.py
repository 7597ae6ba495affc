"""Comparison of runs: figures from the runs' files, means over seeds, what is missing."""

import csv
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from utils.study import compare, compared
from utils.study.measure import Measured, measure
from utils.system.errors import UserError
from utils.weights.checkpoint import save_checkpoint

PAINTED = True

COLUMNS = ["epoch", "box", "obj/head_0", "lr_bias", "P", "R", "mAP50", "mAP", "val_box", "val_obj/head_0", "match"]
COLUMNS += ["mAP50/head_0", "mAP/head_0"]


def write_run(folder: Path, rows: list[list[Any]], seed: int = 0, data: str = "abcdef0123", **config: Any) -> Path:
    """A run folder as train.py leaves it, without weights. config: `start` is a section of its own."""
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {"start": config.pop("start", {}), "patches": {}, "data": {"fingerprint": data}}
    settings["config"] = {"seed": seed, "name": folder.name, "lr0": 0.01, "match": "coco", **config}
    settings |= {"parameters": {"trainable_params": 1234}, "device": {"type": "cpu", "gpu": None}}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    lines = [",".join(COLUMNS), *(",".join(str(v) for v in row) for row in rows)]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    timing = [f"{i},{s},{m}" for i, (s, m) in enumerate([(9.0, 0.5), (3.0, 1.5), (5.0, 1.0), (4.0, 1.0)])]
    (folder / "timing.csv").write_text("\n".join(["epoch,seconds,memory_gib", *timing]) + "\n")
    return folder


ROWS = [
    [0, 3.0, 1.0, 0.1, 0.2, 0.1, 0.30, 0.10, 2.0, 1.0, "coco", 0.1, 0.1],
    [1, 2.0, 1.0, 0.1, 0.3, 0.2, 0.60, 0.37, 2.0, 1.0, "coco", 0.2, 0.2],
    [2, 1.5, 1.0, 0.1, 0.5, 0.4, 0.62, 0.50, 1.5, 1.0, "coco", 0.7, 0.3],
    [3, 1.0, 0.5, 0.1, 0.4, 0.3, 0.61, 0.40, 1.6, 1.0, "coco", 0.4, 0.4],
]


@pytest.fixture(autouse=True)
def without_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """These runs have no data set; measuring is tested with real runs in tests/commands/test_ablate.py."""

    def missing(folder: Path, *_: object) -> None:
        raise UserError(f"there is no {folder / 'weights/best.pt'}")

    monkeypatch.setattr(compared, "measure", missing)


def test_figures_by_hand(tmp_path: Path) -> None:
    values = compared.read_entry(write_run(tmp_path / "a", ROWS), "a", "cpu").values
    assert values == {
        "frozen layers": "0",
        "epochs": 4,
        "best.pt by": "fitness",
        "best epoch": 2,
        "best mAP@0.5": 0.62,
        "best mAP@0.5:0.95": 0.5,
        "best P": 0.5,
        "best R": 0.4,
        "final mAP@0.5": 0.61,
        "final mAP@0.5:0.95": 0.4,
        "final P": 0.4,
        "final R": 0.3,
        "first epoch with 90 % of final mAP@0.5:0.95": 1,
        "train-validation gap of the loss": pytest.approx(2.6 - 1.5),
        "seconds per epoch": 4.5,
        "peak memory, GiB": 1.5,
        "device": "cpu",
        "trainable parameters": 1234,
        "mAP@0.5 of head_0": 0.7,
        "mAP@0.5:0.95 of head_0": 0.3,
        "data": "abcdef01",
        "matching rule": "coco",
    }


def test_what_best_pt_measures_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and the patches' own metrics become columns, classes a table; another mAP than in training is said."""
    result = SimpleNamespace(map=0.5, figures={"accuracy": 0.75}, names=["x", "y"], n_gt=np.array([3, 0]),
        ap50=np.array([0.6, np.nan]), ap=np.array([0.5, np.nan]), f1_per_class=np.array([0.34, np.nan]),
        p=np.array([0.4, np.nan]), r=np.array([0.3, np.nan]),
    )  # fmt: skip
    found = Measured(result, {"small": 0.25, "large": -1.0}, {})  # type: ignore[arg-type]
    monkeypatch.setattr(compared, "measure", lambda *_: found)
    runs = [write_run(tmp_path / f"a_seed{i}", ROWS, seed=i) for i in range(2)]
    entries = compared.read_entries(runs, "cpu")
    assert [e.notes for e in entries] == [(), ()]
    values = entries[0].values
    assert values["accuracy"] == 0.75 and values["AP@0.5:0.95 of small objects"] == 0.25
    assert values["AP@0.5:0.95 of large objects"] == "no such objects"
    assert compare.class_rows(entries) == [
        ["figure", "class", "a_seed0", "a_seed1", "a, mean", "a, standard deviation"],
        *([figure, "x", v, v, v, 0.0] for figure, v in
          (("AP@0.5", 0.6), ("AP@0.5:0.95", 0.5), ("F1", 0.34), ("P", 0.4), ("R", 0.3))),
    ]  # fmt: skip
    result.map = 0.49
    assert "best.pt reaches mAP@0.5:0.95 0.4900 now, 0.5000 while" in compared.read_entries(runs, "cpu")[0].notes[0]


def test_what_is_missing_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a", ROWS), tmp_path / "gone", write_run(tmp_path / "empty", [])]
    runs.append(write_run(tmp_path / "c", ROWS, data="99887766aa"))
    (tmp_path / "a/timing.csv").write_text("epoch,seconds,memory_gib\n0,2.5,0.000\n")
    compare.compare(runs, tmp_path / "out")
    with open(tmp_path / "out/comparison.csv", newline="") as f:
        table = {row["run"]: row for row in csv.DictReader(f)}
    assert list(table) == ["a", "gone", "empty", "c"]
    assert {v for name in ("gone", "empty") for k, v in table[name].items() if k != "run"} == {""}
    assert table["a"]["peak memory, GiB"] == "" and table["a"]["seconds per epoch"] == "2.5"
    said = capsys.readouterr().out
    assert "gone holds no finished epoch" in said and "a: best.pt could not be evaluated: there is no" in said
    page = (tmp_path / "out/comparison.html").read_text()
    assert 'missing">missing</td>' in page and "data:image/png;base64," in page
    assert "NOT COMPARABLE, different data" in page and "train-validation gap" in page
    assert "http" not in page and "<script" not in page and "src=" in page
    assert re.findall('src="(?!data:)', page) == []


def test_a_run_of_another_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a/run\.yaml: config: unknown settings .*'gone'"):
        measure(tmp_path / "a", {"config": {"gone": 1}}, "cpu")


@pytest.mark.parametrize("name", ["run.yaml", "results.csv", "timing.csv", "data.csv", "result.yaml"])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00: [", b"", b"a,b\n1,2\n", b"config: {epochs: x, seed: []}\n"])
def test_damage_is_named_and_stops_no_comparison(
    tmp_path: Path, name: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / "a", ROWS), write_run(tmp_path / "b", ROWS, seed=1)]
    (runs[1] / name).write_bytes(content)
    compare.compare(runs, tmp_path / "out")
    said, unread = (
        capsys.readouterr().out,
        name in ("data.csv", "result.yaml") or (name == "timing.csv" and not content),
    )
    assert unread or f"b: {tmp_path / 'b'}" in said, said


def test_shuffled_rows_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head in the midst of the rows."""
    run = write_run(tmp_path / "a", ROWS)
    lines = (run / "results.csv").read_text().splitlines(keepends=True)
    (run / "results.csv").write_text("".join([lines[2], lines[0], lines[1]]))
    compare.compare([run], tmp_path / "out")
    assert "its first column is '1', not 'epoch'" in capsys.readouterr().out


def test_the_start_stands_beside_and_a_fall_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a start on the same data, at the same size and by the same rule."""
    for data, said in (("abcdef0123", True), ("99", False)):
        meta = {"map50": 0.9, "map": 0.8, "match": "coco", "data": {"yaml": "d.yaml", "fingerprint": data}}
        save_checkpoint(tmp_path / f"{data}.pt", state={"x": torch.zeros(1)}, meta=meta)
        run = write_run(tmp_path / f"from_{data}", ROWS, weights=str(tmp_path / f"{data}.pt"))
        compare.compare([run], tmp_path / "out")
        assert ("training made it worse: it started from mAP@0.5:0.95 0.8000" in capsys.readouterr().out) == said
        with open(tmp_path / "out/comparison.csv", newline="") as f:
            (row,) = csv.DictReader(f)
        assert row.get("start mAP@0.5:0.95") == ("0.8" if said else None)


def test_change_against_the_start_and_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The start as it was measured; the baseline is the first run, or the one that is named, of like data."""
    higher = [[*row[:7], row[7] + 0.2, *row[8:]] for row in ROWS]
    runs = [
        write_run(tmp_path / "a", ROWS),
        write_run(tmp_path / "b", higher),
        write_run(tmp_path / "c", ROWS, 0, "99"),
    ]
    (runs[1] / "start.csv").write_text("epoch,step,mAP50,mAP,match\nstart,0,0.64,0.75,coco\n")

    def table(*baseline: str) -> dict[str, dict[str, str]]:
        compare.main([*map(str, runs), "--out", str(tmp_path / "out"), *baseline])
        with open(tmp_path / "out/comparison.csv", newline="") as f:
            return {row["run"]: row for row in csv.DictReader(f)}

    column = "mAP@0.5:0.95 above the baseline"
    found = table()
    assert "a (baseline)" in capsys.readouterr().out
    assert [found[n][column] for n in "ac"] == ["0.0", ""] and float(found["b"][column]) == pytest.approx(0.2)
    assert float(found["b"]["mAP@0.5:0.95 above the start"]) == pytest.approx(-0.05)
    assert found["a"]["mAP@0.5:0.95 above the start"] == ""
    found = table("--baseline", "b")
    assert float(found["a"][column]) == pytest.approx(-0.2)
    with pytest.raises(UserError, match="--baseline d: no such run; there are: a, b, c"):
        table("--baseline", "d")
