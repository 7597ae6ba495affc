"""Plain values against declared types."""

from typing import Annotated, Any, TypedDict

import pytest

from utils.system.errors import UserError
from utils.system.schema import Count, check


class Inner(TypedDict):
    name: str
    parts: list[Count]


class Outer(TypedDict, total=False):
    rate: float
    inner: Inner | None
    table: dict[str, dict[str, Any]]
    size: Annotated[int, (1, 8)]


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"rate": 3, "inner": {"name": "a", "parts": [0, 2]}},
        {"inner": None, "table": {"x": {"y": [1]}}, "unknown": object()},
        {"size": 8, "rate": float("nan")},
    ],
)
def test_what_fits_passes(value: dict[str, Any]) -> None:
    check(value, Outer, "f")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"f: expected key: value pairs, found \[\]"),
        ({"rate": True}, "f: rate: expected a number, found True"),
        ({"rate": "1"}, "f: rate: expected a number, found '1'"),
        ({"size": 9}, "f: size: expected a number from 1 to 8, found 9"),
        ({"size": 2.0}, "f: size: expected a whole number, found 2.0"),
        ({"table": {"x": 1}}, "f: table: 'x': expected key: value pairs, found 1"),
        ({"table": {1: {}}}, "f: table: expected text, found 1"),
        ({"inner": {"name": "a", "parts": [-1]}}, "f: inner: expected key: value pairs or nothing"),
    ],
)
def test_what_does_not_fit_is_named(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(value, Outer, "f")


def test_what_is_needed_is_missed() -> None:
    with pytest.raises(UserError, match="f: name, parts missing"):
        check({}, Inner, "f")


def test_a_huge_value_is_not_written_out() -> None:
    with pytest.raises(UserError) as error:
        check({"rate": [["x" * 10_000] * 1000] * 1000}, Outer, "f")
    assert len(str(error.value)) < 1000
