"""Messages of errors: short, and with the file that a parser choked on."""

import pytest

from utils.system.errors import UserError, parsing


def test_whatever_a_parser_raises_names_the_file_on_one_short_line() -> None:
    for error, said in (
        (RecursionError("deep"), "a.yaml: deep"),
        (ValueError("two\n  lines"), "a.yaml: two lines"),
        (MemoryError(), "a.yaml: MemoryError"),
        (OSError(13, "Permission denied"), "a.yaml: Permission denied"),
        (UserError("a.yaml:3: said already"), "a.yaml:3: said already"),
        (ValueError("x" * 100_000), "a.yaml: " + "x" * 300),
    ):
        with pytest.raises(UserError) as found, parsing("a.yaml"):
            raise error
        assert str(found.value) == said
