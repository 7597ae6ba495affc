"""A report as plain data (sections of blocks), and its two forms: one HTML page that needs no other file, and Markdown.

Everything that comes from a run's files is escaped; pictures lie in the page as data, curves as inline SVG.
"""

import base64
import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.report.compare_page import STYLE, WORDS

OWN_STYLE = """
.summary { border: 2px solid #357; padding: .4em 1em; margin: 1em 0 } .summary li { margin: .25em 0 }
pre { background: #f5f5f5; padding: .6em; white-space: pre-wrap; overflow-wrap: anywhere } img { max-width: 100% }
td { max-width: 60em; overflow-wrap: anywhere } td.text { text-align: left; white-space: normal }
svg { display: block } summary { cursor: pointer; font-weight: 600; margin: .5em 0 } h2 { margin-top: 1.6em }
"""
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
WRONG = ("looks wrong", "something looks wrong", "unfinished")  # lines of the summary that begin so stand out
WIDTH, HEIGHT = 150, 26  # of a curve, pixels


@dataclass(frozen=True)
class Text:
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """rows: head first. curves: for each row below the head the values over the epochs, drawn beside it."""

    rows: Sequence[Sequence[str]]
    curves: Sequence[Sequence[float]] = ()


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Picture:
    path: Path
    text: str


Block = Text | Table | Code | Picture


@dataclass(frozen=True)
class Section:
    """folded: its blocks are shown on a click (HTML), or at the end of the section as they are (Markdown)."""

    title: str
    blocks: Sequence[Block]
    folded: Sequence[Block] = field(default=())
    fold_title: str = ""


def as_html(title: str, summary: Sequence[str], sections: Sequence[Section]) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>", '<ul class="summary">']
    parts += [f"<li{warned(text)}>{html.escape(text)}</li>" for text in summary]
    parts.append("</ul>")
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [html_block(b) for b in section.blocks]
        if section.folded:
            inner = "".join(html_block(b) for b in section.folded)
            parts.append(f"<details><summary>{html.escape(section.fold_title)}</summary>{inner}</details>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{head}<style>{STYLE}{OWN_STYLE}</style>{''.join(parts)}</html>\n"


def warned(text: str) -> str:
    return ' class="warning"' if text.startswith(WRONG) else ""


def html_block(block: Block) -> str:
    if isinstance(block, Text):
        mark = ' class="warning"' if block.warning else ""
        return f"<p{mark}>{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text)}</pre>"
    if isinstance(block, Table):
        return html_table(block)
    content = base64.b64encode(block.path.read_bytes()).decode()
    kind, text = PICTURES[block.path.suffix.lower()], html.escape(block.text)
    return f'<h3>{text}</h3><div class="wide"><img alt="{text}" src="data:{kind};base64,{content}"></div>'


def html_table(table: Table) -> str:
    head, *rows = table.rows
    lines = ["".join(f"<th>{html.escape(c)}</th>" for c in (*head, *(["over the epochs"] if table.curves else [])))]
    for i, row in enumerate(rows):
        cells = [f"<td{mark(cell)}>{html.escape(cell)}</td>" for cell in row]
        lines.append("".join(cells) + (f"<td>{curve(table.curves[i])}</td>" if table.curves else ""))
    body = "".join(f"<tr>{text}</tr>" for text in lines)
    return f'<div class="wide"><table>{body}</table></div>'


def mark(cell: str) -> str:
    if cell in WORDS or cell.startswith("not measured"):
        return ' class="missing"'
    return "" if re.fullmatch(r"[-+]?[\d.,]*(e[-+]?\d+)?%?|nan", cell) else ' class="text"'


def curve(values: Sequence[float]) -> str:
    """A line from the lowest to the highest value; nothing for fewer than two."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = high - low or 1.0
    points = " ".join(
        f"{2 + i * (WIDTH - 4) / (len(values) - 1):.1f},{HEIGHT - 3 - (v - low) / span * (HEIGHT - 6):.1f}"
        for i, v in enumerate(values)
    )
    line = f'<polyline points="{points}" fill="none" stroke="#357" stroke-width="1.3"/>'
    return f'<svg width="{WIDTH}" height="{HEIGHT}">{line}</svg>'


def as_markdown(title: str, summary: Sequence[str], sections: Sequence[Section], out: Path) -> str:
    """out: the folder that the pictures' paths are relative to."""
    parts = [f"# {plain(title)}", "\n".join(f"- {plain(text)}" for text in summary)]
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
