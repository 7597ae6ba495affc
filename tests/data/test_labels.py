"""Label text by hand: boxes, polygons, and each kind of bad line."""

import numpy as np
import pytest

from utils.data.labels import checked, parse, unclear


def test_boxes_and_polygons_by_hand() -> None:
    labels, problems = parse("2 .5 .5 .2 .4\n\n1 .1 .2 .3 .2 .3 .8 .1 .8\n0 0.25 0 .75 0.5 .25 1\n", "a.txt")
    assert problems == []
    expected = [[2, 0.5, 0.5, 0.2, 0.4], [1, 0.2, 0.5, 0.2, 0.6], [0, 0.5, 0.5, 0.5, 1.0]]
    assert np.allclose(labels.boxes, expected, atol=1e-6)
    assert labels.boxes.dtype == np.float32
    assert labels.polygons[0] is None
    assert labels.polygons[1] is not None
    assert np.allclose(labels.polygons[1], [[0.1, 0.2], [0.3, 0.2], [0.3, 0.8], [0.1, 0.8]])
    assert labels.lines.tolist() == [1, 3, 4]


def test_repeated_rows_are_removed_and_counted() -> None:
    labels, _ = parse("1 .5 .5 .2 .2\n0 .5 .5 .2 .2\n1 0.50 0.5 .2 .20\n", "a.txt")
    assert labels.boxes[:, 0].tolist() == [1, 0]
    assert labels.duplicates == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 1.2 .5 .1 .1", "coordinate 1.2 is outside 0..1"),
        ("0 .5 -.1 .1 .1", "coordinate -.1 is outside 0..1"),
        ("0 320 240 100 100", "coordinate 320 is outside 0..1"),
        ("0 .1 .1 .2 .2 1.5 .3", "coordinate 1.5 is outside 0..1"),
        ("-1 .5 .5 .1 .1", "class -1"),
        ("1.5 .5 .5 .1 .1", "class 1.5"),
        ("cat .5 .5 .1 .1", "'cat' is not a number; a line is `class cx cy w h`"),
        ("0 nan .5 .1 .1", "'nan' is not a finite number"),
        ("0 .5 .5 inf .1", "'inf' is not a finite number"),
        ("0 .5 .5 .1", "4 values"),
        ("0 .5 .5 .1 .1 .9", "6 values"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "8 values"),
        ("0 .5 .5 0 .1", "width 0"),
        ("0 .1 .5 .2 .5 .3 .5", "height 0"),
    ],
)
def test_bad_lines_are_named_and_the_others_kept(line: str, words: str) -> None:
    labels, problems = parse(f"0 .5 .5 .1 .1\n{line}\n0 .4 .4 .1 .1\n", "b.txt")
    assert labels.lines.tolist() == [1, 3]
    assert len(problems) == 1
    assert str(problems[0]).startswith("b.txt:2: ")
    assert words in problems[0].message


def test_rounding_beyond_the_edge_is_clipped() -> None:
    labels, problems = parse("0 .5 1.0000005 .2 .2\n", "a.txt")
    assert problems == []
    assert labels.boxes[0, 2] == 1


def test_class_beyond_nc() -> None:
    labels, _ = parse("0 .5 .5 .1 .1\n3 .1 .1 .2 .2 .3 .9\n2 .5 .5 .2 .2\n", "a.txt")
    kept, problems = checked(labels, 3, "a.txt")
    assert kept.boxes[:, 0].tolist() == [0, 2]
    assert kept.polygons == (None, None)
    assert [str(p) for p in problems] == ["a.txt:2: class 3 but there are 3 classes (0..2)"]


def test_empty_text_is_a_background_image() -> None:
    labels, problems = parse("\n \n", "a.txt")
    assert (len(labels), problems, labels.boxes.shape) == (0, [], (0, 5))


@pytest.mark.parametrize(
    "more",
    [
        ".45 .45 .55 .45 .5 .55",  # key points x y
        ".45 .45 1 .55 .45 1 .5 .55 0 0 0 0",  # key points x y v
        ".9 0",  # confidence and a flag
        "0 0",  # two flags
        "0 .5 .3 .1 .1 1 .2 .2 .1 .1",  # further objects, their line ends lost
    ],
)
def test_a_box_with_more_behind_it_is_not_certainly_a_polygon(more: str) -> None:
    labels, problems = parse(f"0 .5 .5 .25 .25 {more}\n", "a.txt")
    assert problems == [] and labels.certain == 0 and len(labels) == 1
    kept, problems = unclear(labels, "a.txt", "")
    assert len(kept) == 0 and "say `labels: polygons`" in problems[0].message and problems[0].line == 1


def test_a_box_and_its_own_outline_on_one_line() -> None:
    _, problems = parse("0 .5 .5 .25 .25 .375 .375 .625 .375 .625 .625 .375 .625\n", "a.txt")
    assert "a box and its own outline" in problems[0].message


def test_what_can_only_be_a_polygon() -> None:
    outlines = [".8 .8 .82 .8 .81 .83 .8 .82", ".1 .2 .3 .2 .3 .8 .1 .8", ".2 .3 .25 .3 .5 .9 .2 .8"]
    labels, problems = parse("".join(f"0 {o}\n" for o in outlines), "a.txt")
    assert problems == [] and labels.certain == 3


def test_a_side_that_vanishes_in_single_precision() -> None:
    _, problems = parse("0 .5 .5 1e-300 .1\n", "a.txt")
    assert "both must be above 0" in problems[0].message
