"""One way to set a table."""

from utils.system.table import aligned, few, markdown

ROWS = [["name", "count", "share", "note"], ["a", "1,234", "12.5%", "1 of 2"], ["long name", "-", "", "-"]]


def test_text_to_the_left_and_numbers_to_the_right() -> None:
    assert aligned(ROWS).splitlines() == [
        "name       count  share  note",
        "a          1,234  12.5%  1 of 2",
        "long name      -         -",
    ]


def test_markdown() -> None:
    assert markdown([["a", "long"], ["xyz", "1"]]) == "| a   | long |\n|-----|------|\n| xyz |    1 |"


def test_a_head_alone_and_cells_with_bars() -> None:
    assert aligned([["a", "b"]]) == "a  b"
    assert markdown([["a"], ["-1.5e-3"], ["2"]]).splitlines()[1] == "|---------|"


def test_a_few_words_of_many() -> None:
    assert few("abc") == "a, b, c" and few("abcde") == "a, b, c, and 2 more" and few([]) == ""
    assert few("abcd", 2, "; ") == "a; b; and 2 more"
