"""Groupings of classes: values worked out by hand, groups that are there to be found, and COCO's published ones."""

import math

import numpy as np
import pytest
import yaml

from models.class_names import find
from patches.multihead import grouping
from patches.multihead.head_file import read_head_file
from tests.shared import ROOT
from utils.data.labels import parse
from utils.system.errors import UserError

ANTICONFUSION = ROOT / "data/coco_320_1b4h_anticonfusion.yaml"
# Boxes of COCO's train2017 by class; the file's four sums and their total hold them to be right.
TRAIN2017 = [
    262465, 7113, 43867, 8725, 5135, 6069, 4571, 9973, 10759, 12884, 1865, 1983, 1285, 9838, 10806, 4768, 5508, 6587,
    9509, 8147, 5513, 1294, 5303, 5131, 8720, 11431, 12354, 6496, 6192, 2682, 6646, 2685, 6347, 9076, 3276, 3747, 5543,
    6126, 4812, 24342, 7913, 20650, 5479, 7770, 6165, 14358, 9458, 5851, 4373, 6399, 7308, 7852, 2918, 5821, 7179, 6353,
    38491, 5779, 8652, 4192, 15714, 4157, 5805, 4970, 2262, 5703, 2855, 6434, 1673, 3334, 225, 5610, 2637, 24715, 6334,
    6613, 1481, 4793, 198, 1954,
]  # fmt: skip
KEPT_APART = (
    "car-truck bicycle-motorcycle cat-dog sheep-cow fork-knife knife-spoon fork-spoon wine_glass-cup apple-orange "
    "chair-couch mouse-remote cell_phone-remote microwave-oven skis-snowboard backpack-handbag bus-truck car-bus "
    "couch-bed horse-cow"
)


def test_the_published_anticonfusion_groups_come_out() -> None:
    names = yaml.safe_load((ROOT / "data/coco.yaml").read_text())["names"]
    pairs = set()
    for pair in KEPT_APART.split():
        a, b = sorted(c for c in find(pair.split("-"), names) if c is not None)
        pairs.add((a, b))
    published = yaml.safe_load(ANTICONFUSION.read_text())["head_assignments"].values()
    groups = grouping.apart(pairs, TRAIN2017, 4)
    assert len(pairs) == 19 and sum(TRAIN2017) == 860_001
    assert groups == [head["classes"] for head in published]
    assert [sum(TRAIN2017[c] for c in g) for g in groups] == [262465, 199806, 198854, 198876]


def test_the_published_geometry_groups_are_those_of_their_centres() -> None:
    """The classes' own means are not published: here they lie about the published centres, 0.05 apart at most."""
    table = read_head_file(str(ROOT / "data/coco_320_1b4h_geometry.yaml"), 4)
    centres = np.log([0.56, 0.93, 1.26, 1.92])[table.owner]
    aspect = centres + np.random.default_rng(0).uniform(-0.05, 0.05, 80)
    assert grouping.by_value(aspect, 4, 42, "geometry") == [sorted(group) for group in table.groups]


def test_statistics_by_hand() -> None:
    """Two pictures of 100 x 200 pixels (h x w) and 100 x 100; the box of class 2 is 0.8 px high."""
    text = ["0 .5 .5 .2 .2\n0 .5 .5 .1 .4\n1 .5 .5 .5 .5\n2 .5 .5 .5 .008", "0 .5 .5 .3 .1"]
    labels = [parse(one, "x")[0] for one in text]
    found = grouping.statistics(labels, np.array([[100, 200], [100, 100]]), 4)
    assert found.boxes.tolist() == [3, 1, 1, 0]
    assert found.aspect[:2] == pytest.approx([(math.log(2) + math.log(0.5) + math.log(3)) / 3, math.log(2)], abs=1e-6)
    assert found.area[:2] == pytest.approx([(40 * 20 / 200**2 + 20 * 40 / 200**2 + 0.03) / 3, 100 * 50 / 200**2])
    assert np.isnan(found.aspect[2:]).all() and np.isnan(found.area[2:]).all()
    assert found.together[0].tolist() == [1, 0.5, 0.5, 0] and found.together[1].tolist() == [0.5, 1, 1, 0]
    assert found.size[1] == pytest.approx(math.log(math.sqrt(5000) / 200))


def test_likeness_by_hand() -> None:
    assert grouping.likeness(np.array([0.0, 0.5]))[0].tolist() == pytest.approx([1, math.exp(-0.5)])


def test_classes_that_are_alike_are_found() -> None:
    """Spectral clustering of three blocks, whose classes are numbered at random."""
    owner = np.random.default_rng(3).permutation(np.repeat([0, 1, 2], [5, 8, 11]))
    similar = np.where(owner[:, None] == owner[None], 0.6, 0.05)
    groups = grouping.spectral(similar, np.ones(24), 3, 0)
    assert sorted(groups) == sorted(np.flatnonzero(owner == k).tolist() for k in range(3))
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)


def test_ten_starts_agree() -> None:
    """Values without clear clusters, where single starts end in different groups."""
    value = np.random.default_rng(0).normal(size=24)
    first, *others = [grouping.by_value(value, 4, seed, "x") for seed in range(6)]
    assert all(groups == first for groups in others)


def test_too_few_values_are_refused() -> None:
    with pytest.raises(UserError, match="--heads 3: 2 classes have boxes above 1 px"):
        grouping.by_value(np.array([0.0, np.nan, 1.0]), 3, 0, "x")
    with pytest.raises(UserError, match="--heads 3: the classes have 2 different values, too few"):
        grouping.by_value(np.array([0.0, 0.0, 1.0]), 3, 0, "x")


def test_the_most_similar_class_moves() -> None:
    similar = np.eye(6)
    similar[2, 5] = similar[5, 2] = 0.9
    assert grouping.balanced([[0, 1, 2, 3, 4], [5]], similar, 1) == [[0, 1, 3, 4], [2, 5]]
    assert grouping.balanced([[0, 1, 2, 3, 4], [5]], similar, 2) == [[0, 1, 2, 3, 4], [5]]
    assert [len(g) for g in grouping.balanced([list(range(6)), [6], [7]], np.eye(8), 0)] == [3, 3, 2]


def test_where_every_head_has_a_conflict_the_emptiest_is_taken() -> None:
    assert grouping.apart({(0, 2), (1, 2)}, [9, 5, 4, 3], 2) == [[0, 3], [1, 2]]


def test_groups_at_random_are_even_and_of_the_seed() -> None:
    groups = grouping.at_random(14, 4, 5)
    assert sorted(map(len, groups)) == [3, 3, 4, 4] and sorted(c for g in groups for c in g) == list(range(14))
    assert groups == grouping.at_random(14, 4, 5) != grouping.at_random(14, 4, 6)


def test_what_is_left_goes_where_few_are() -> None:
    assert grouping.completed([[0, 4], [2]], 5) == ([[0, 3, 4], [1, 2]], [1, 3])


def test_confused_pairs_by_hand() -> None:
    """Class 0 is taken for 1 twice of 10; 2 for 1 once of 4, which may be chance; the background counts for nothing."""
    counts = np.array([[8, 0, 0, 9], [2, 5, 1, 9], [0, 0, 3, 9], [50, 50, 50, 0]])
    assert grouping.confused(counts, 0.2) == {(0, 1)}
    assert grouping.confused(counts, 0.21) == set()


def test_within_and_between_by_hand() -> None:
    similar = np.array([[1, 0.8, 0.1, 7], [0.8, 1, 0.3, 7], [0.1, 0.3, 1, 7], [7, 7, 7, 7]])
    known = np.array([0, 0, 0, np.nan])
    assert grouping.within_and_between([[0, 1], [2, 3]], similar, known) == (pytest.approx(0.8), pytest.approx(0.2))
    assert all(math.isnan(x) for x in grouping.within_and_between([[0], [1]], similar[:2, :2], np.array([0, np.nan])))
