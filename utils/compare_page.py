"""Tables and pictures as one self-contained HTML page: no other file, no script, nothing from the network."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1em 0 }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { background: #f3f3f3 } img { max-width: 100% }
"""


def write_page(
    out: Path, tables: Mapping[str, Sequence[Sequence[str]]], pictures: Sequence[Path], notes: Sequence[str]
) -> None:
    """tables: {title: rows, head first}; each is turned so that runs stand side by side."""
    parts = ["<h1>Comparison</h1>", *(f"<p>{html.escape(note)}</p>" for note in notes)]
    for title, rows in tables.items():
        if rows:
            turned = list(zip(*rows, strict=True)) if title.startswith("comparison") else rows
            parts += [f"<h2>{html.escape(title.removesuffix('.csv'))}</h2>", html_table(turned)]
    for picture in pictures:
        content = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f'<h2>{html.escape(picture.stem)}</h2><img alt="" src="data:image/png;base64,{content}">')
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>{STYLE}</style>'
    out.write_text(page + "".join(parts) + "</html>", encoding="utf-8")


def html_table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + line(rows[0], "th") + "".join(line(r, "td") for r in rows[1:]) + "</table>"
