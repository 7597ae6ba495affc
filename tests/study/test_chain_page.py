"""The table and the picture of a chain, from run folders written by hand."""

from pathlib import Path

import pytest

from tests.study.test_compare import ROWS, write_run
from utils.runs.folder import Facts
from utils.runs.record import read_rows
from utils.study import chain_page
from utils.study.chain_page import Told

PAINTED = True
BETTER = [[*row[:6], row[6] + 0.1, *row[7:]] for row in ROWS]  # mAP50 of row 6


def test_changes_by_hand(tmp_path: Path) -> None:
    """mAP50 0.62, then 0.72; the third on other data, which is compared with nobody."""
    one, two = write_run(tmp_path / "one", ROWS), write_run(tmp_path / "two", BETTER)
    other = write_run(tmp_path / "three", ROWS, data="99887766")
    told = [Told("a", one, "finished"), Told("b", two, "finished", "fell"), Told("c", other, "stopped")]
    text = chain_page.write([*told, Told("d", tmp_path / "none", "not begun")], tmp_path)
    a, b, c, d = read_rows(tmp_path / "chain.csv")
    assert [float(row["mAP50"]) for row in (a, b, c)] == pytest.approx([0.62, 0.72, 0.62])
    assert a["mAP50 since before"] == "" and float(b["mAP50 since before"]) == pytest.approx(0.1)
    assert c["mAP50 since before"] == c["mAP50 since start"] == ""
    assert [row["epochs so far"] for row in (a, b, c, d)] == ["4", "8", "12", ""]
    assert b["check"] == "fell" and d["state"] == "not begun" and "+0.1000" in text
    assert (tmp_path / "chain.md").read_text() == text + "\n"


def test_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel for mAP, heads and losses; borders at the first epochs, openings within the second stage."""
    seen = []
    monkeypatch.setattr(chain_page, "openings", lambda run: [{"epoch": 0}, {"epoch": 2}] if run.name == "two" else [])
    make = chain_page.new_figure
    monkeypatch.setattr(chain_page, "new_figure", lambda *size: seen.append(made := make(*size)) or made)
    runs = [Facts(write_run(tmp_path / name, ROWS)) for name in ("one", "two")]
    chain_page.plot([*runs, Facts(tmp_path / "none")], ["one", "two", "none"], tmp_path / "chain.png")
    assert (tmp_path / "chain.png").stat().st_size > 10_000
    ((_, axes),) = seen
    assert [ax.get_title() for ax in axes] == ["mAP", "mAP@0.5 per head", "loss"]
    upright = [line for line in axes[0].lines if len(line.get_xdata()) == 2]
    lines = {
        colour: [line.get_xdata()[0] for line in upright if line.get_color() == colour] for colour in ("black", "C3")
    }
    assert lines == {"black": [-0.5, 3.5], "C3": [5.5]}
    assert [t.get_text() for t in axes[0].texts] == ["one", "two"]
    assert max(max(line.get_xdata()) for line in axes[2].lines) == 7


def test_nothing_trained_draws_nothing(tmp_path: Path) -> None:
    assert chain_page.write([Told("a", tmp_path / "none", "not begun")], tmp_path)
    assert not (tmp_path / "chain.png").exists()
