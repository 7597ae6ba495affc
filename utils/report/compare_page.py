"""Tables and pictures as one self-contained HTML page: no other file, no script, nothing from the network."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1300px; padding: 0 1em; color: #222 }
.wide { overflow-x: auto; margin: 1em 0 } table { border-collapse: collapse }
th, td { border: 1px solid #ccc; padding: 3px 8px; text-align: right; white-space: nowrap }
th { background: #f3f3f3 } th:first-child, td:first-child { text-align: left; position: sticky; left: 0 }
td:first-child { background: #fff } .warning { background: #fff0e0; border-left: 4px solid #d60; padding: 4px 8px }
.missing { color: #a00; font-style: italic } dt { font-weight: 600 } dd { margin: 0 0 .4em 1.5em }
"""
CAPTIONS = {
    "learning": "Learning curves: one colour for each setting, one line style for each seed",
    "PR": "Precision over recall at IoU 0.5, mean over the classes, best.pt",
    "F1": "F1 over confidence at IoU 0.5, mean over the classes, best.pt",
    "confusion": "Confusion matrices of best.pt, each column (true class) as shares of its sum; confidence above 0.25, "
    "IoU above 0.45; the column background holds detections without an object",
    "images": "The same validation images: truth, then each run's best.pt, detections of confidence 0.25 and more",
}
WORDS = ("missing", "not measured")


def write_page(
    out: Path,
    table: Sequence[Sequence[str]],
    seeds: Sequence[Sequence[str]],
    classes: Sequence[Sequence[str]],
    pictures: Sequence[Path],
    warnings: Sequence[str],
    meanings: Mapping[str, str],
) -> None:
    """table: head, a row for each run; on the page runs stand side by side. seeds: rows of means. classes: rows
    (figure, class, cells), head first; a table for each figure. meanings: {column: what it is}."""
    parts = ["<h1>Comparison of runs</h1>"]
    parts += [f'<p class="warning">{html.escape(text)}</p>' for text in warnings]
    if seeds:
        parts += ["<h2>Means over seeds</h2>", html_table(list(zip(table[0], *seeds, strict=True)))]
    parts += ["<h2>Runs</h2>", html_table(list(zip(*table, strict=True)))]
    parts += ["<dl>", *(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in meanings.items()), "</dl>"]
    for figure in dict.fromkeys(row[0] for row in classes[1:]):
        rows = [classes[0], *(row for row in classes[1:] if row[0] == figure)]
        parts += [f"<h2>{html.escape(figure)} per class</h2>", html_table([row[1:] for row in rows])]
    for picture in pictures:
        content, text = base64.b64encode(picture.read_bytes()).decode(), html.escape(CAPTIONS[picture.stem])
        image = f'<img alt="{text}" src="data:image/png;base64,{content}">'
        parts.append(f'<h2>{picture.stem}</h2><p>{text}</p><div class="wide">{image}</div>')
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>{STYLE}</style>'
    out.write_text(page + "".join(parts) + "</html>", encoding="utf-8")


def html_table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{mark(c)}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    def mark(cell: str) -> str:
        return ' class="missing"' if cell in WORDS else ""

    body = line(rows[0], "th") + "".join(line(r, "td") for r in rows[1:])
    return f'<div class="wide"><table>{body}</table></div>'
