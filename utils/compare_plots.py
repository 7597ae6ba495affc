"""Pictures of a comparison: overlaid learning, PR and F1 curves, a grid of confusion matrices, the same images with the
truth and each run's detections. Numbers in, PNG files out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from utils.ap import GRID
from utils.images import read_any
from utils.pixels import viewable
from utils.plots import colour, draw_box, new_figure

if TYPE_CHECKING:
    from utils.compare import Entry

IMAGES, TILE = 4, 260  # validation images shown, and the width of a tile in pixels


def plot_all(entries: Sequence["Entry"], folder: Path) -> list[Path]:
    """Every picture for which there is data; the files that were written."""
    out = [learning(entries, folder / "learning.png")] if any(e.stage.rows for e in entries) else []
    measured = [e for e in entries if e.measured and len(e.measured.result.curves.classes)]
    if measured:
        out += [
            curves(measured, "PR", folder / "PR.png"),
            curves(measured, "F1", folder / "F1.png"),
            confusions(measured, folder / "confusion.png"),
            images(measured, folder / "images.png"),
        ]
    return out


def learning(entries: Sequence["Entry"], out: Path) -> Path:
    """mAP over the epochs."""
    figure, axes = new_figure(13, 5, 1, 2)
    for ax, (column, title) in zip(axes, (("mAP50", "mAP@0.5"), ("mAP", "mAP@0.5:0.95")), strict=True):
        for entry in (e for e in entries if e.stage.rows):
            rows = [r for r in entry.stage.rows if r.get(column)]
            ax.plot([int(r["epoch"]) + 1 for r in rows], [float(r[column]) for r in rows], ".-", label=entry.name)
        ax.set(title=title, xlabel="epoch")
    axes[1].legend(bbox_to_anchor=(1.02, 1), loc="upper left", fontsize=8)
    figure.savefig(out, dpi=100)
    return out


def curves(entries: Sequence["Entry"], kind: str, out: Path) -> Path:
    """The mean curve over the classes of each run: precision over recall (PR), or F1 over confidence."""
    figure, (ax,) = new_figure(9, 5.5)
    for entry in entries:
        assert entry.measured
        found = entry.measured.result.curves
        values = (found.pr if kind == "PR" else found.f1).mean(0)
        ax.plot(GRID, values, label=entry.name)
    x, y = ("recall", "precision") if kind == "PR" else ("confidence", "F1")
    ax.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1), title=f"{y} over {x}, IoU 0.5, mean over classes")
    ax.legend(bbox_to_anchor=(1.02, 1), loc="upper left", fontsize=8)
    figure.savefig(out, dpi=100)
    return out


def confusions(entries: Sequence["Entry"], out: Path) -> Path:
    """A matrix for each run, columns (true classes) as shares of their sum."""
    columns = min(len(entries), 3)
    rows = -(-len(entries) // columns)
    figure, axes = new_figure(4.6 * columns, 4.4 * rows, rows, columns)
    for ax in axes[len(entries) :]:
        ax.set_axis_off()
    for ax, entry in zip(axes, entries, strict=False):
        assert entry.measured
        counts, names = entry.measured.result.confusion, [*entry.measured.result.names, "background"]
        ax.imshow(counts / np.maximum(counts.sum(0, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
        ax.set(title=entry.name, xlabel="true", ylabel="predicted")
        if len(names) <= 41:
            ax.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
            ax.set_yticks(range(len(names)), names, fontsize=6)
    figure.savefig(out, dpi=100)
    return out


def images(entries: Sequence["Entry"], out: Path) -> Path:
    """A row for each image: the truth, then each run; boxes from confidence 0.25 on."""
    first = entries[0].measured
    assert first
    shared = [p for p in first.result.paths if all(e.measured and p in e.measured.truth for e in entries)]
    chosen = sorted(shared, key=lambda p: (len(first.truth[p]) == 0, p))[:IMAGES]
    titles = ["truth", *(e.name for e in entries)]
    blocks = [np.concatenate([heading(t) for t in titles], 1)]
    for path in chosen:
        tiles = [tile(path, first.truth[path], first.result.names)]
        for entry in entries:
            assert entry.measured
            found = entry.measured.result.detections[entry.measured.result.paths.index(path)].numpy()
            tiles.append(tile(path, found[found[:, 4] >= 0.25], entry.measured.result.names))
        blocks.append(np.concatenate(tiles, 1))
    cv2.imwrite(str(out), np.concatenate(blocks, 0))
    return out


def heading(text: str) -> npt.NDArray[np.uint8]:
    strip = np.full((24, TILE, 3), 255, np.uint8)
    cv2.putText(strip, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


def tile(path: str, rows: npt.NDArray[np.float64], names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """The image TILE wide with boxes [n,5 or 6]: x0,y0,x1,y1 native pixels, (confidence,) class."""
    found = read_any(Path(path))
    if found is None:
        return np.full((TILE, TILE, 3), 128, np.uint8)
    image = viewable(found)
    gain = TILE / image.shape[1]
    size = (TILE, max(round(image.shape[0] * gain), 1))
    picture = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA)[:, :, ::-1]).astype(np.uint8)
    for row in rows[::-1]:
        label = names[int(row[-1])] + (f" {row[4]:.2f}" if len(row) == 6 else "")
        draw_box(picture, row[:4] * gain, label, colour(int(row[-1])), 0.35)
    return picture
