"""The one reader of a run folder: figures by hand, epochs from 0, damage named and nothing made up."""

from pathlib import Path

import pytest

from tests.study.test_compare import ROWS, write_run
from utils.runs.folder import Facts


def test_figures_by_hand(tmp_path: Path) -> None:
    run = Facts(write_run(tmp_path / "a", ROWS))
    assert run.best["epoch"] == "2" and run.epochs == 4 and len(run.scored) == 4
    assert run.terms == ["box", "obj/head_0"] and run.kinds == {"box": ["box"], "obj": ["obj/head_0"]}
    assert run.total() == [(0, 4.0), (1, 3.0), (2, 2.5), (3, 1.5)] and run.total("val_")[-1] == (3, 2.6)
    assert run.total(kind="obj") == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 0.5)] and run.total(kind="align") == []
    assert run.heads == ["head_0"] and run.of_heads() == {"head_0": 0.7} and run.of_heads("mAP") == {"head_0": 0.3}
    assert run.series("mAP50")[0] == (0, 0.3) and run.rates == ["lr_bias"] and run.gaps == []


def test_a_term_that_validation_does_not_measure_is_in_no_total(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", ROWS)
    text = (folder / "results.csv").read_text().replace("box,", "box,align,", 1).replace(",3.0,", ",3.0,9,", 1)
    (folder / "results.csv").write_text("".join(text.splitlines(keepends=True)[:2]))
    run = Facts(folder)
    assert run.terms == ["box", "align", "obj/head_0"] and run.total() == [(0, 4.0)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("results.csv", b"\xff\xfe\x00,1\n", "results.csv"),
        ("results.csv", b"box,epoch\n1,2\n", "its first column is 'box'"),
        ("timing.csv", b"epoch,seconds\n0,1\n1,x\n2,3\n", "timing.csv:3: damaged row left out"),
        ("timing.csv", b"epoch,seconds\n0,1\n1,2", "cut short"),
        ("run.yaml", b"config: [1, 2\n", "run.yaml"),
        ("run.yaml", b"config: {epochs: many}\n", "config: epochs: expected a number, got 'many'"),
        ("run.yaml", b"patches: 3\n", "patches: expected `key: value` lines"),
        ("run.yaml", b"patches: {freeze: 3}\n", "patches: expected settings for each"),
    ],
)
def test_damage_is_named_once_and_the_rest_is_read(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    folder = write_run(tmp_path / "a", ROWS)
    (folder / name).write_bytes(content)
    run = Facts(folder)
    named = [gap for gap in run.damage if str(folder / name) in gap]
    assert len(named) == 1 and says in named[0], run.gaps
    assert run.damage is run.gaps and run.damage.count(named[0]) == 1
    assert run.planned == 0 and isinstance(run.frozen, str) and isinstance(run.likeness, str)


def test_a_name_that_no_folder_can_have_is_a_gap() -> None:
    run = Facts(Path("a" * 300))
    assert not run.rows and "results.csv cannot be read: " in run.gaps[0] and "File name too long" in run.gaps[0]
