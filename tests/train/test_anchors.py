"""Do the anchors fit the boxes? By hand, and where new ones are better. Those that a model YAML gives by their number
alone are found from the boxes, or it is an error."""

import numpy as np
import pytest
import torch

from models.graph import Detector
from tests.models.test_zoo import spec
from utils.data.labels import parse
from utils.system.errors import UserError
from utils.train.anchors import box_sizes, cluster, fit_anchors, per_level, possible_recall, wanted

NUMBER = {**spec("demo"), "width_multiple": 0.25, "anchors": 2}


def test_sizes_are_those_in_the_networks_input() -> None:
    labels = [parse("0 0.5 0.5 0.5 0.25", "a")[0], parse("", "b")[0]]
    sizes = box_sizes(labels, np.array([[100, 200], [50, 50]]), 64)
    assert sizes.tolist() == [[32, 8]], "200x100 becomes 64x32"
    assert box_sizes(labels[1:], np.array([[50, 50]]), 64).shape == (0, 2)


def test_a_box_is_reached_by_an_anchor_whose_sides_are_less_than_t_times_off() -> None:
    sizes = np.array([[10.0, 10.0], [39.0, 10.0], [41.0, 10.0], [3.0, 3.0]])
    assert possible_recall(sizes, np.array([[10.0, 10.0]]), 4.0) == 0.75
    assert possible_recall(sizes, np.array([[10.0, 10.0], [40.0, 10.0]]), 4.0) == 1


def test_clusters_are_the_groups_there_are_and_repeat() -> None:
    draw = np.random.default_rng(0)
    sizes = np.concatenate([draw.normal(at, 0.1, (50, 2)) for at in (40.0, 5.0, 15.0)])
    found = cluster(sizes, 3, seed=0)
    assert found.mean(1) == pytest.approx([5, 15, 40], abs=0.2)
    assert np.array_equal(found, cluster(sizes, 3, seed=0))


def test_anchors_are_replaced_only_where_that_helps() -> None:
    model = Detector(spec("demo"), 12)
    before = model.head.anchors.clone()
    own = (before * model.head.stride.view(-1, 1, 1)).view(-1, 2).numpy().astype(np.float64)
    fitting = np.repeat(own, 10, 0)
    assert "anchors fit: best possible recall 1.0000" in fit_anchors(model, fitting, 4.0, 0)
    assert "too few" in fit_anchors(model, fitting[:20], 4.0, 0)
    assert torch.equal(model.head.anchors, before)
    assert "anchors replaced: best possible recall" in fit_anchors(model, fitting * [30.0, 0.4], 4.0, 0)
    assert not torch.equal(model.head.anchors, before)


def tiny() -> Detector:
    return Detector(spec("yolov5n"), 2)


def anchors_of(model: Detector) -> np.ndarray:
    return (model.head.anchors * model.head.stride.view(-1, 1, 1)).reshape(-1, 2).numpy()


@pytest.mark.parametrize("side", [0, 1])
def test_boxes_that_share_a_side(side: int) -> None:
    """Fixed-size markers and lines: 40 boxes of one height or width."""
    sizes = np.full((40, 2), 4.0)
    sizes[:, 1 - side] = np.linspace(30, 300, 40)
    model = tiny()
    before = possible_recall(sizes, anchors_of(model), 4.0)
    said = fit_anchors(model, sizes, 4.0, 0)
    found = anchors_of(model)
    assert "anchors replaced" in said
    assert np.allclose(found[:, side], 4.0) and len(np.unique(np.rint(found), axis=0)) == len(found)
    assert possible_recall(sizes, found, 4.0) > max(before, 0.98)


@pytest.mark.parametrize("different", [1, 2, 8])
def test_fewer_sizes_than_anchors_are_said_and_change_nothing(different: int) -> None:
    sizes = np.repeat(np.array([[300.0 - 10 * i, 3.0] for i in range(different)]), 50, axis=0)
    model = tiny()
    before = anchors_of(model)
    said = fit_anchors(model, sizes, 4.0, 0)
    assert f"the boxes have {different} different sizes in pixels, too few for 9 anchors" in said
    assert np.array_equal(anchors_of(model), before)


def test_too_few_boxes_are_said_with_the_small_ones() -> None:
    sizes = np.array([[80.0, 1.4]] * 40 + [[30.0, 30.0]] * 3)
    said = fit_anchors(tiny(), sizes, 4.0, 0)
    assert "3 boxes (40 more have a side below 2 px) are too few to judge 9 anchors by" in said
    assert "0 boxes are too few" in fit_anchors(tiny(), np.zeros((0, 2)), 4.0, 0)


def test_a_number_of_anchors_is_filled_from_the_boxes() -> None:
    model = Detector(NUMBER, 3)
    assert wanted(model, off=False, loaded=True)
    sizes = np.random.default_rng(0).uniform(5, 90, (400, 2))
    assert "anchors found" in fit_anchors(model, sizes, 4.0, seed=0)
    pixels = model.head.anchors * model.stride.view(-1, 1, 1)
    assert pixels.shape == (3, 2, 2) and bool((pixels > 2).all()) and bool((pixels < 100).all())
    area = pixels.prod(-1).flatten()
    assert torch.equal(area, area.sort().values)
    assert torch.allclose(model.state_dict()["model.77.anchor_grid"].flatten(), pixels.flatten())
    assert not wanted(model, off=True, loaded=False)


def test_a_number_of_anchors_that_cannot_be_filled_is_an_error() -> None:
    model = Detector(NUMBER, 3)
    with pytest.raises(UserError, match=r"--noautoanchor.*only the number of anchors"):
        wanted(model, off=True, loaded=False)
    with pytest.raises(UserError, match="3 boxes of 1 sizes are too few to find 6 by"):
        fit_anchors(model, np.full((3, 2), 20.0), 4.0, seed=0)


def test_anchors_of_loaded_weights_and_listed_ones_are_left_alone() -> None:
    model = Detector(spec("demo"), 3)
    assert wanted(model, off=False, loaded=False)
    assert not wanted(model, off=True, loaded=False) and not wanted(model, off=False, loaded=True)


def test_a_head_without_anchors_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no anchors says so by its method; nobody looks for an attribute."""
    model = Detector(spec("demo"), 12)
    monkeypatch.setattr(model.head, "priors", lambda: None)
    del model.head.anchors
    assert not wanted(model, off=False, loaded=False)
    assert "no anchors" in fit_anchors(model, np.ones((500, 2)) * 20, 4.0, 0)


@pytest.mark.parametrize(
    ("asked", "listed", "expected", "said"),
    [
        (0.0, [[1, 2, 3, 4]], [[1, 2, 3, 4]], ""),
        (2.4, [[1, 2, 3, 4]], [[1, 2, 3, 4]], "2.4 asked for, and the model has 2 per level"),
        (3.412, [[1, 2, 3, 4]], 3, "3.412 asked for: 3 per level instead of 2"),
        (3.2, 3, 3, "the model has 3 per level"),
    ],
)
def test_a_hyp_file_may_ask_for_a_number_of_anchors(
    asked: float, listed: object, expected: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """YOLOv5's hyp.VOC.yaml, hyp.Objects365.yaml and all results of --evolve do."""
    assert per_level({"nc": 3, "anchors": listed}, asked) == {"nc": 3, "anchors": expected}
    assert said in capsys.readouterr().out
