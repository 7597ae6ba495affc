"""Runs beside each other: which are alike, which cannot be compared."""

from pathlib import Path

import pytest

from tests.study.test_compare import ROWS, without_weights, write_run  # noqa: F401
from utils.study import compare, compared


def test_means_over_seeds_of_like_runs_only(tmp_path: Path) -> None:
    """Alike: runs that differ in the seed, themselves and the runs they started from. Neither other settings, nor other
    data, nor a second run of one seed."""
    other = [[*row[:7], row[7] + 0.1, *row[8:]] for row in ROWS]
    bases = [write_run(tmp_path / f"base_seed{i}", ROWS, seed=i) for i in range(2)]
    runs = [
        *(write_run(tmp_path / f"a_seed{i}", r, i, start={"run": str(bases[i])}) for i, r in enumerate((ROWS, other))),
        write_run(tmp_path / "rate", ROWS, seed=2, lr0=0.02, start={"run": str(bases[0])}),
        write_run(tmp_path / "data", ROWS, seed=2, data="0123", start={"run": str(bases[0])}),
        write_run(tmp_path / "scratch", ROWS, seed=2),
        write_run(tmp_path / "again", ROWS, seed=1, start={"run": str(bases[1])}),
    ]
    entries = compared.read_entries(runs, "cpu")
    ((name, (count, spread)),) = compared.means(entries).items()
    assert (name, count) == ("a", 2)
    assert spread["best mAP@0.5:0.95"] == pytest.approx((0.55, 0.0707107))
    assert spread["best P"] == (0.5, 0.0)
    assert "matching rule" not in spread
    (row,) = compare.mean_rows(entries, ["best mAP@0.5:0.95", "epochs", "trainable parameters", "data"])
    assert row == ["a, mean of 2 seeds", "0.5500 ± 0.0707", "4 ± 0", "1,234 ± 0", ""]


def test_runs_that_are_not_comparable_are_named(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", ROWS), write_run(tmp_path / "b", ROWS, lr0=1.0)]
    assert compared.conflicts(compared.read_entries([*runs, tmp_path / "gone"], "cpu")) == []
    by_v7 = [["v7" if cell == "coco" else cell for cell in row] for row in ROWS]
    runs += [write_run(tmp_path / "c", ROWS, data="99887766aa"), write_run(tmp_path / "d", by_v7, match="v7")]
    data, rule = compared.conflicts(compared.read_entries(runs, "cpu"))
    assert data == "NOT COMPARABLE, different data (abcdef01: a, b, d; 99887766: c)"
    assert rule == "NOT COMPARABLE, different matching rules of mAP (coco: a, b, c; v7: d)"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / a / b, ROWS) for a, b in (("x", "exp"), ("y", "exp"), ("y", "other"))]
    assert [e.name for e in compared.read_entries(runs, "cpu")] == ["x/exp", "y/exp", "other"]
