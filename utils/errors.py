"""The one error type for bad input: entry points print it and exit with code 2, without a traceback."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Says what was wrong, where (file and line, flag, key), and what would be right."""


def fail(message: str) -> NoReturn:
    raise UserError(message)


def run_main(main: Callable[[list[str]], object]) -> None:
    """Run an entry point: a UserError is printed to stderr and becomes exit code 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
