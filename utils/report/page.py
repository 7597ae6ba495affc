"""A page as plain data (sections of blocks), and its two forms: one HTML file that needs no other, and Markdown.

The HTML is page.html, filled by Jinja2, which escapes everything that comes from a run's files; pictures lie in the
page as data, curves as inline SVG. Reports and comparisons are such pages.
"""

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, StrictUndefined

PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( ?%)?( ± [\d.,]+)?|nan")
WIDTH, HEIGHT = 150, 26  # of a curve, pixels


@dataclass(frozen=True)
class Text:
    text: str
    warning: bool = False
    kind = "text"


@dataclass(frozen=True)
class Table:
    """rows: head first. curves: for each row below the head the values over the epochs, drawn beside it."""

    rows: Sequence[Sequence[str]]
    curves: Sequence[Sequence[float]] = ()
    kind = "table"

    @property
    def head(self) -> list[str]:
        return [*self.rows[0], *(["over the epochs"] if self.curves else [])]

    @property
    def body(self) -> Sequence[Sequence[str]]:
        return self.rows[1:]

    @property
    def sides(self) -> list[str]:
        """Of each column: `right` where most of what it holds are numbers."""
        found = []
        for i in range(len(self.rows[0])):
            cells = [row[i] for row in self.body if row[i] and not lacking(row[i])]
            numbers = sum(bool(NUMBER.fullmatch(cell)) for cell in cells)
            found.append("right" if i and 2 * numbers > len(cells) else "left")
        return [*found, "left"]


@dataclass(frozen=True)
class Code:
    text: str
    kind = "code"


@dataclass(frozen=True)
class Picture:
    path: Path
    text: str
    kind = "picture"

    @property
    def content(self) -> str:
        data = base64.b64encode(self.path.read_bytes()).decode()
        return f"data:{PICTURES[self.path.suffix.lower()]};base64,{data}"


Block = Text | Table | Code | Picture


@dataclass(frozen=True)
class Section:
    """folded: its blocks are shown on a click (HTML), or at the end of the section as they are (Markdown)."""

    title: str
    blocks: Sequence[Block]
    folded: Sequence[Block] = field(default=())
    fold_title: str = ""


def lacking(cell: str) -> bool:
    """Whether a cell says that there is no value."""
    return cell.startswith(("missing", "not measured", "not comparable", "no such objects"))


def points(values: Sequence[float]) -> str:
    """Of a line from the lowest to the highest value."""
    low, span = min(values), (max(values) - min(values)) or 1.0
    return " ".join(
        f"{2 + i * (WIDTH - 4) / (len(values) - 1):.1f},{HEIGHT - 3 - (v - low) / span * (HEIGHT - 6):.1f}"
        for i, v in enumerate(values)
    )


def as_html(title: str, summary: Sequence[Text], sections: Sequence[Section]) -> str:
    pages = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    pages.filters["points"] = points
    pages.tests["lacking"] = lacking
    template = pages.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.render(title=title, summary=summary, sections=sections)


def as_markdown(title: str, summary: Sequence[Text], sections: Sequence[Section], out: Path) -> str:
    """out: the folder that the pictures' paths are relative to."""
    parts = [f"# {plain(title)}", "\n".join(f"- {plain(text.text)}" for text in summary)]
    for section in sections:
        parts.append(f"## {plain(section.title)}")
        parts += [markdown_block(b, out) for b in section.blocks]
        if section.folded:
            parts.append(f"### {plain(section.fold_title)}")
            parts += [markdown_block(b, out) for b in section.folded]
    return "\n\n".join(parts) + "\n"


def markdown_block(block: Block, out: Path) -> str:
    if isinstance(block, Text):
        return f"**{plain(block.text)}**" if block.warning else plain(block.text)
    if isinstance(block, Code):
        return "\n".join(f"    {text}" for text in block.text.splitlines())
    if isinstance(block, Picture):
        where = os.path.relpath(block.path, out).replace(" ", "%20")
        return f"![{plain(block.text)}]({where})"
    head, *rows = [[plain(cell).replace("|", "\\|") for cell in row] for row in block.rows]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def plain(text: str) -> str:
    """On one line, with nothing that Markdown would take for a tag."""
    return " ".join(text.split()).replace("<", "&lt;")
