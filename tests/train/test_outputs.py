"""The start of a stage, measured before its first epoch: what is written, that training does not know of it, that it
is what test.py finds."""

import csv
from pathlib import Path

import pytest

import test as evaluation
from tests.toy import FOUR_HEADS, contents, cut, equal, resumed, same, trained
from utils.runs.folder import Facts
from utils.runs.record import read_rows
from utils.train.outputs import draw_progress

FILES = ("start.csv", "start_per_class.csv")


@pytest.fixture(scope="module")
def base(rich: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(rich, tmp_path_factory.mktemp("start"), "base", epochs=2).dir / "weights/best.pt"


@pytest.mark.parametrize(
    "flags",
    [
        "--image-weights --workers 1",
        "--heads 4 --transfer-weights --freeze 50 --audit",
        "--align --align-bank 16 --classify --mosaic 0 --audit --mtl gradnorm "
        "--mtl-tasks box+obj+cls image_class align+align_box+align_bank",
        "--teacher {base} --noautoanchor --compat v7 --sync-bn",
    ],
)
def test_training_does_not_know_of_it(flags: str, base: Path, rich: Path, tmp_path: Path) -> None:
    """Every tensor and table of the run, the rows of its epochs included, is the same to the bit."""
    words = [*flags.format(base=base).split(), "--weights", str(base), "--save-steps", "2"]
    words += [w for w in FOUR_HEADS if w not in words] if "--heads" in words else []
    with_it = trained(rich, tmp_path, "with", *words, epochs=2).dir
    without = trained(rich, tmp_path, "without", *words, "--no-measure-start", epochs=2).dir
    one, two = contents(with_it), contents(without)
    assert {n for n in one.keys() | two.keys() if n not in one or n not in two or not equal(one[n], two[n])} == {*FILES}
    assert len(read_rows(with_it / "results.csv")) == 2


def test_it_is_what_test_py_finds_and_stays_through_a_resume(base: Path, rich: Path, tmp_path: Path) -> None:
    """Means, loss terms, figures of patches, heads and classes, under the columns of an evaluation."""
    words = ["--weights", str(base), "--transfer-weights", *FOUR_HEADS, "--classify"]
    run = trained(rich, tmp_path, "run", *words, epochs=2).dir
    with open(run / "start.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    epoch = read_rows(run / "results.csv")[0]
    assert row["epoch"] == "start" and row["step"] == "0"
    assert list(row) == [c for c in epoch if c in row] and all(row.values())
    assert {"val_box/head_0", "mAP50/head_3", "image_acc", "F1", "match"} <= row.keys()
    assert row["val_box/head_0"] != epoch["val_box/head_0"]  # as the average was
    same_place = ["--img", "64", "--batch", "8", "--workers", "0", "--device", "cpu", "--project", str(tmp_path)]
    found = evaluation.main(["--weights", str(base), "--data", str(rich), *same_place])
    assert float(row["mAP50"]) == pytest.approx(found.map50, abs=1e-9) and found.map50 > 0  # sliced, not yet trained
    classes = {r["class"]: float(r["AP"]) for r in Facts(run).start_classes if r["AP"]}
    assert classes == pytest.approx({n: float(v) for n, v in zip(found.names, found.ap, strict=True) if v == v})
    half = cut(rich, tmp_path, "half", *words, epochs=2, step=2)
    before = [(half / name).read_text() for name in FILES]
    resumed(half)
    assert [(half / name).read_text() for name in FILES] == before
    same(run, half)


def test_where_nothing_is_measured_nothing_is_said(base: Path, rich: Path, tmp_path: Path) -> None:
    """From scratch, where it was declined, and where the folder of a run with a start is taken by one without."""
    words = ["--weights", str(base), "--exist-ok"]
    run = trained(rich, tmp_path, "run", *words).dir
    assert Facts(run).began["mAP50"] == float(Facts(run).start_row["mAP50"])
    trained(rich, tmp_path, "run", *words, "--no-measure-start")
    assert not [name for name in FILES if (run / name).exists()] and Facts(run).start_row == {}
    assert Facts(trained(rich, tmp_path, "scratch").dir).began == {}


def test_progress_is_drawn_now_and_then_and_on_demand(rich: Path, tmp_path: Path) -> None:
    run = trained(rich, tmp_path, "run")
    picture = run.dir / "results.png"
    for due, now, drawn in ((1e12, False, False), (1e12, True, True), (0.0, False, True)):
        picture.unlink(missing_ok=True)
        run.draw_at = due
        draw_progress(run, now)
        assert picture.is_file() == drawn
    assert run.draw_at > 0, "and not again at once"
