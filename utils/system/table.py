"""Tables of text, head first, for the screen and for Markdown: text to the left, numbers to the right."""

import re
from collections.abc import Sequence

NUMBER = re.compile(r"-|[-+]?[\d,]*\.?\d+(e[-+]?\d+)?%?")  # - where nothing was measured


def padded(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """The cells, each column as wide as its widest one."""
    columns = []
    for head, *cells in zip(*rows, strict=True):
        width = max(map(len, (head, *cells)))
        right = any(map(NUMBER.fullmatch, cells)) and all(NUMBER.fullmatch(c) or not c for c in cells)
        columns.append([c.rjust(width) if right else c.ljust(width) for c in (head, *cells)])
    return [list(row) for row in zip(*columns, strict=True)]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("  ".join(cells).rstrip() for cells in padded(rows))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *lines = (f"| {' | '.join(cells)} |" for cells in padded(rows))
    return "\n".join([head, re.sub(r"[^|]", "-", head), *lines])


def few(words: Sequence[str], most: int = 3, sep: str = ", ") -> str:
    """The first ones, and how many more there are."""
    return sep.join(words[:most]) + (f"{sep.strip()} and {len(words) - most} more" if len(words) > most else "")
