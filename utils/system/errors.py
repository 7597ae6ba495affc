"""The one error type for bad input: entry points print it and exit with code 2, without a traceback."""

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(ValueError):
    """Says what was wrong, where (file and line, flag, key), and what would be right."""


def fail(message: str) -> NoReturn:
    raise UserError(message)


def run_main(main: Callable[[list[str]], object]) -> None:
    """Run an entry point: a UserError is printed to stderr and becomes exit code 2."""
    code: object = 0
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except SystemExit as asked:
        code = asked.code
    if os.environ.get("WORLD_SIZE", "1") == "1":
        raise SystemExit(code)
    # One of several ranks: threads of gloo sometimes outlive the interpreter and abort the process when everything is
    # done, which torchrun would call a failure. So the last steps of Python's own way out are left out.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
