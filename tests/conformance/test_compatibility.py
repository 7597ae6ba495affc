"""The page and the README say what happens: every row is tried again, and nothing that users bring is unknown."""

from functools import cache

import pytest

from tests.conformance.compatibility import (
    FAILS,
    README,
    REFUSED,
    SAID,
    UNTRIED,
    WORKS,
    Row,
    page,
    read_page,
    rows,
    summary,
    tried,
    with_summary,
)  # fmt: skip
from tests.shared import ROOT, SHARED
from utils.system.errors import UserError

AGAIN = "make it anew: python -m tests.conformance.compatibility"


@cache
def found() -> list[Row]:
    return rows(SHARED)


@cache
def written() -> list[Row]:
    return read_page((ROOT / "docs/compatibility.md").read_text())


def test_the_page_says_what_happens() -> None:
    assert [(row.part, row.what) for row in found()] == [(row.part, row.what) for row in written()], AGAIN
    differ = [
        (now, then) for now, then in zip(found(), written(), strict=True) if now.outcome != UNTRIED != now != then
    ]
    assert differ == [], AGAIN


def test_the_page_is_whole_and_has_no_row_untried() -> None:
    assert page(written()) == (ROOT / "docs/compatibility.md").read_text()
    assert [row for row in written() if row.outcome not in (WORKS, SAID, REFUSED)] == []


def test_the_readme_has_the_summary_of_the_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert with_summary(readme, written()) == readme, AGAIN
    assert summary(written()) in readme and readme.count(README[0]) == 1


def test_no_form_is_read_otherwise_than_it_means() -> None:
    assert [row for row in found() if "OTHER BOXES" in row.said] == []
    counts = [row.said.partition(" tensors")[0].split(" of ") for row in found() if row.said.endswith(" tensors")]
    assert len(counts) > 5 and all(taken == there for taken, there in counts)


def test_every_flag_of_the_originals_is_answered_by_name() -> None:
    """A flag that is refused is known, and the message says what is right instead."""
    flags = [row for row in found() if ": flags of " in row.part]
    assert len(flags) > 100
    vague = ("did you mean", "see --help")
    assert [row for row in flags if row.outcome == REFUSED and any(word in row.said for word in vague)] == []


@pytest.mark.parametrize(
    ("error", "outcome", "said"),
    [
        (None, WORKS, "found"),
        (UserError("data.yaml: wrong |"), REFUSED, "data.yaml: wrong \\|"),
        (KeyError("x"), FAILS, "KeyError: 'x'"),
    ],
)
def test_what_a_trial_makes_of_an_outcome(error: Exception | None, outcome: str, said: str) -> None:
    def run(_: object) -> str:
        if error:
            raise error
        return "found"

    row = tried("part", "what", run)
    assert row == Row("part", "what", outcome, said)
    assert read_page(page([row])) == [row]


def test_what_is_printed_is_what_was_said() -> None:
    def run(folder: object) -> str:
        print(f"{folder}/a.txt\n  is odd")
        return "1 image"

    assert tried("p", "w", run) == Row("p", "w", SAID, "1 image. a.txt is odd")
