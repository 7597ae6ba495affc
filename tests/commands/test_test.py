"""test.py: what it takes from the checkpoint, what it writes, and flags that only it has."""

import csv
from pathlib import Path

import pytest
import yaml

import test as evaluation
from tests.toy import trained
from utils.system.errors import UserError


@pytest.fixture(scope="module")
def last(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    trained(small_shapes, runs, "r", "--notest")
    return runs / "r/weights/last.pt"


def words(last: Path, project: Path, *flags: str) -> list[str]:
    return [
        "--weights",
        str(last),
        "--project",
        str(project),
        "--name",
        "t",
        "--device",
        "cpu",
        "--workers",
        "0",
        *flags,
    ]


def test_data_and_size_come_from_the_checkpoint_and_figures_are_written(
    last: Path, small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluation.main(words(last, tmp_path))
    printed = capsys.readouterr().out
    assert f"--data {small_shapes}, as in training" in printed and "--img-size 64, as in training" in printed
    figures = yaml.safe_load((tmp_path / "t/metrics.yaml").read_text())
    assert figures["metrics"]["mAP50"] == pytest.approx(result.map50) and figures["images"] == 8
    assert figures["img_size"] == 64 and figures["data"] == str(small_shapes) and figures["max_det"] == 300
    rows = list(csv.reader((tmp_path / "t/confusion.csv").open()))
    assert [[int(v) for v in row[1:]] for row in rows[1:]] == result.confusion.tolist()
    assert rows[0][1:] == [*result.names, "background"] == [row[0] for row in rows[1:]]
    assert (tmp_path / "t/per_class.csv").read_text().count("\n") == len(result.names) + 1


def test_all_classes_as_one(last: Path, tmp_path: Path) -> None:
    result = evaluation.main(words(last, tmp_path, "--single-cls"))
    assert result.names == ["item"] and all(not len(d) or set(d[:, 5].tolist()) == {0} for d in result.detections)
    assert (tmp_path / "t/metrics.yaml").exists()


def test_at_most_so_many_detections(last: Path, tmp_path: Path) -> None:
    result = evaluation.main(words(last, tmp_path, "--max-det", "3", "--save-txt"))
    assert max(map(len, result.detections)) <= 3
    labels = tmp_path / "t/labels"
    assert labels.is_dir()
    evaluation.main(words(last, tmp_path, "--save-txt", "--conf", "0.999", "--exist-ok"))
    assert not list(labels.iterdir()), "labels of the earlier run are gone"


def test_several_weights_and_smaller_views(last: Path, tmp_path: Path) -> None:
    one = evaluation.main(words(last, tmp_path, "--exist-ok"))
    two = evaluation.main([*words(last, tmp_path, "--exist-ok"), "--weights", str(last), str(last)])
    assert two.map50 == pytest.approx(one.map50, abs=1e-3)
    more = evaluation.main(words(last, tmp_path, "--exist-ok", "--augment"))
    assert [len(d) for d in more.detections] != [len(d) for d in one.detections] or more.map50 != one.map50


def test_doubled_ids_are_refused_before_the_work(
    last: Path, small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    source = next(p for p in small_shapes.parent.rglob("*.png") if "val" in str(p))
    for folder in ("a", "b"):
        (root / "images" / folder).mkdir(parents=True)
        (root / "images" / folder / "x.png").write_bytes(source.read_bytes())
        (root / "labels" / folder).mkdir(parents=True)
        (root / "labels" / folder / "x.txt").write_text("0 .5 .5 .2 .2\n")
    content = yaml.safe_load(small_shapes.read_text())
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images", "val": "images", "names": content["names"]}))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("evaluated"))
    with pytest.raises(UserError, match="would both be image 'x'"):
        evaluation.main(words(last, tmp_path, "--save-json", "--data", str(root / "data.yaml")))
