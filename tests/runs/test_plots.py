"""Pictures: what is drawn where, from figures caught before they are written and from pixels of written batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import matplotlib.figure
import numpy as np
import pytest
import torch

from tests.evaluation.test_evaluate import CPU, NAMES, TARGETS, Told, answer, batches
from utils.config.settings import EvalSettings
from utils.data.labels import Labels
from utils.evaluation.evaluate import Result, evaluate
from utils.runs import plots
from utils.runs.folder import Facts

PAINTED = True


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Figures by file name, as they were written."""
    figures: dict[str, Any] = {}
    write = matplotlib.figure.Figure.savefig

    def savefig(self: Any, path: Path, **options: Any) -> None:
        figures[Path(path).name] = self
        write(self, path, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    yield figures


def result(match: str = "coco") -> Result:
    ids = list(range(5))
    model = Told([[answer(t, ids, score=0.6) for t in TARGETS]], [ids])
    return evaluate(model, batches(TARGETS), CPU, EvalSettings(names=NAMES, match=match, progress=False))  # type: ignore[arg-type]


def labels(boxes: np.ndarray[Any, Any]) -> Labels:
    return Labels(boxes, (None,) * len(boxes), np.arange(len(boxes), dtype=np.int32))


def readable(path: Path) -> bool:
    picture = cv2.imread(str(path))
    return picture is not None and min(picture.shape[:2]) > 200 and picture.std() > 5


@pytest.mark.parametrize(("match", "says"), [("coco", "COCO"), ("v5", "YOLOv5"), ("v7", "YOLOv7")])
def test_curves_and_confusion(match: str, says: str, tmp_path: Path, caught: dict[str, Any]) -> None:
    plots.plot_evaluation(result(match), tmp_path)
    names = {"PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png"}
    assert {p.name for p in tmp_path.iterdir()} == names == set(caught)
    assert all(readable(p) for p in tmp_path.iterdir())
    for name in names - {"confusion_matrix.png"}:
        (ax,) = caught[name].axes
        assert says in ax.get_title(), "every mAP says by which rule"
        assert len(ax.lines) == 4 + 1, "one line per class with objects, and the mean"
    recall = caught["R_curve.png"].axes[0].lines[-1].get_xydata()
    assert recall[recall[:, 0] < 0.59][:, 1].min() == pytest.approx(1), "all are found below their confidence of 0.6"
    assert recall[recall[:, 0] > 0.61][:, 1].max() == 0


def test_confusion_columns_are_shares_of_the_true_class(tmp_path: Path, caught: dict[str, Any]) -> None:
    counts = np.array([[6, 1, 2], [2, 0, 0], [2, 3, 0]])
    plots.plot_confusion(counts, ["cat", "dog"], tmp_path / "c.png")
    ax = caught["c.png"].axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.6, 0.25, 1], [0.2, 0, 0], [0.2, 0.75, 0]])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cat", "dog", "background"]
    assert {t.get_text() for t in ax.texts} == {"0.60", "0.25", "1.00", "0.20", "0.75"}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("true", "predicted")


def test_eighty_classes_are_readable(tmp_path: Path, caught: dict[str, Any]) -> None:
    plots.plot_confusion(np.eye(81, dtype=np.int64), [f"class {i}" for i in range(80)], tmp_path / "c.png")
    figure = caught["c.png"]
    assert not figure.axes[0].texts and len(figure.axes[0].get_xticklabels()) == 81
    assert figure.get_size_inches()[0] / 81 * 72 > 8 * 1.2, "a row is higher than its 8-point label"


def test_no_objects_draw_nothing(tmp_path: Path) -> None:
    ids = list(range(5))
    model = Told([[answer(t, ids) for t in TARGETS]], [ids])
    empty = evaluate(model, batches([[], []]), CPU, EvalSettings(names=NAMES, progress=False))  # type: ignore[arg-type]
    plots.plot_evaluation(empty, tmp_path)
    assert not list(tmp_path.iterdir())
    plots.plot_results(Facts(tmp_path), tmp_path / "results.png")
    assert not list(tmp_path.iterdir())


def test_results_over_epochs(tmp_path: Path, caught: dict[str, Any]) -> None:
    """Two epochs, two heads; the first was not evaluated."""
    (tmp_path / "results.csv").write_text(
        "epoch,step,lr_weight/1,lr_bias,box/h0,box/h1,obj,cls,align,P,R,mAP50,mAP,val_box/h0,val_box/h1,val_obj,val_cls,"
        "mAP50/h0,mAP50/h1,align_top1,align_pairs,match\n"
        "0,4,.01,.1,1.0,0.5,2.0,3.0,.7,,,,,,,,,,,.2,30,\n"
        "1,8,.01,.1,0.5,0.5,1.0,2.0,.6,.4,.5,.6,.3,1.0,0.5,2.5,3.5,.7,.5,.3,31,coco\n"
    )
    plots.plot_results(Facts(tmp_path), tmp_path / "results.png")
    assert readable(tmp_path / "results.png")
    box, obj, _, align, shares, mean, heads, rates, measured, *_ = caught["results.png"].axes
    np.testing.assert_allclose(box.lines[0].get_xydata(), [[0, 1.5], [1, 1.0]], err_msg="epochs count from 0")
    np.testing.assert_allclose(box.lines[1].get_xydata(), [[1, 1.5]])
    np.testing.assert_allclose(obj.lines[0].get_ydata(), [2, 1])
    np.testing.assert_allclose(align.lines[0].get_ydata(), [0.7, 0.6])
    np.testing.assert_allclose(shares.lines[0].get_xydata(), [[1, 0.4]])
    np.testing.assert_allclose([line.get_ydata()[0] for line in mean.lines[:2]], [0.6, 0.3])
    assert "coco" in mean.get_title()
    assert [(line.get_label(), line.get_ydata()[0]) for line in heads.lines[:2]] == [("h0", 0.7), ("h1", 0.5)]
    assert [line.get_label() for line in rates.lines] == ["weight/1", "bias"] and rates.get_title() == "learning rate"
    assert [line.get_label() for line in measured.lines[:1]] == ["align_top1"], "a count is no share: not drawn here"


def test_label_statistics(tmp_path: Path, caught: dict[str, Any]) -> None:
    rows = np.array([[0, 0.25, 0.1, 0.2, 0.1], [2, 0.5, 0.5, 0.5, 0.9], [2, 0.5, 0.5, 0.5, 0.9]], np.float32)
    plots.plot_labels([labels(rows[:1]), labels(rows[1:]), labels(rows[:0])], ["a", "b", "c"], tmp_path / "l.png")
    assert readable(tmp_path / "l.png")
    count, centre, _ = caught["l.png"].axes
    assert [bar.get_height() for bar in count.patches] == [1, 0, 2]
    assert centre.collections[0].get_array().sum() == 3
    plots.plot_labels([labels(rows[:0])], ["a"], tmp_path / "none.png")
    assert (tmp_path / "none.png").exists()


def test_batch_tiles_show_their_boxes(tmp_path: Path) -> None:
    """Two black images of 160 x 160, drawn at twice the size: the boxes lie where they should, faint ones do not."""
    images = torch.zeros(2, 3, 160, 160, dtype=torch.uint8)
    images[1, 0] = 255  # red
    rows = [np.array([[20, 30, 120, 130, 0.9, 1], [40, 140, 60, 150, 0.2, 0]]), np.zeros((0, 6))]
    plots.plot_batch(images, rows, ["a", "b"], tmp_path / "b.png")
    picture = cv2.imread(str(tmp_path / "b.png")).astype(int)
    assert picture.shape == (640, 640, 3), "two images in a square of four tiles"
    shade = np.array(plots.colour(1))
    for y, x in ((60 + 100, 40), (60 + 100, 240), (260, 140)):
        assert np.abs(picture[y, x] - shade).max() < 8, "left, right and lower side"
    assert picture[160, 140].max() == 0 and picture[270:318, 4:316].max() == 0
    assert picture[100, 400].tolist() == [0, 0, 255], "RGB in, BGR on disk"


def test_found_and_labels_of_a_batch_agree(tmp_path: Path) -> None:
    """A perfect detector: both pictures show the same boxes, apart from the confidence in the label."""
    ids = list(range(5))
    model = Told([[answer(t, ids) for t in TARGETS]], [ids])

    def sink(batch: dict[str, Any], found: list[torch.Tensor]) -> None:
        plots.plot_found(batch, found, NAMES, tmp_path)

    evaluate(model, batches(TARGETS), CPU, EvalSettings(names=NAMES, progress=False), first_batch_sink=sink)  # type: ignore[arg-type]
    want, got = (cv2.imread(str(tmp_path / f"val_batch0_{kind}.jpg")).astype(int) for kind in ("labels", "pred"))
    assert want.shape == got.shape and want.std() > 5
    rows = plots.target_rows(batches(TARGETS)[0]["target"], 2, 100, 100)
    for tile, boxes in enumerate(rows):
        for x0, _, x1, y1, c in boxes:
            at = (round(y1 * 3.2), tile * 320 + round((x0 + x1) / 2 * 3.2))
            for picture in (want, got):
                off = np.abs(picture[at] - plots.colour(int(c))).max()
                assert off < 120, "the lower side; JPEG halves the resolution of colours"


def test_colours_of_neighbours_differ() -> None:
    colours = np.array([plots.colour(i) for i in range(80)])
    assert np.abs(np.diff(colours, axis=0)).sum(1).min() > 100


def test_labels_move_out_of_each_others_way() -> None:
    """Three labels at one point stand below each other; one without room stays where it is."""
    image = np.zeros((50, 200, 3), np.uint8)
    taken: list[tuple[int, int, int, int]] = []
    for _ in range(4):
        plots.draw_label(image, 10, 5, "label", (255, 255, 255), 0.5, taken)
    tops = [bar[1] for bar in taken]
    height = taken[0][3] - taken[0][1]
    assert tops == [0, height, 2 * height, 0] and 3 * height <= 50 < 4 * height
    plots.draw_label(image, 120, 5, "label", (255, 255, 255), 0.5, taken)
    assert taken[-1][1] == 0
