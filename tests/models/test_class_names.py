"""Which names are one, which are none, and where each wanted class is found."""

import pytest

from models.class_names import differences, find, nameless


@pytest.mark.parametrize(
    ("wanted", "names", "columns"),
    [
        (["blue", "red"], ["red", "green", "blue"], (2, 0)),
        (["traffic light", "PottedPlant"], ["Potted plant", "Traffic_Light"], (1, 0)),
        (["a-b", "a_b"], ["a_b", "A-B", "a-b"], (2, 0)),  # two names by their spelling alone: only equal ones are one
        (["person", "heron"], ["person"], (0, None)),
        (["-", "_"], ["_", "-"], (1, 0)),
        (["ﬁre"], ["fire"], (0,)),
    ],
)  # fmt: skip
def test_where_each_class_is(wanted: list[str], names: list[str], columns: tuple[int | None, ...]) -> None:
    assert find(wanted, names) == columns


@pytest.mark.parametrize("names", [None, [], ["0", "1", "2"], ["class0", "class1"], ["Class_1", "Class_2"], ["item"]])
def test_made_up_names_are_none(names: list[str] | None) -> None:
    assert nameless(names)


@pytest.mark.parametrize("names", [["person"], ["1", "0"], ["item", "thing"], ["class0", "ring"], ["2", "3"]])
def test_real_names(names: list[str]) -> None:
    assert not nameless(names)


def test_the_first_differences_are_named() -> None:
    assert differences(["red", "blue"], ["red", "green", "ring"]) == "1 green, here blue; 2 ring, here none"
    assert differences([str(i) for i in range(20)], []).endswith("4 none, here 4; ...")
