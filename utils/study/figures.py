"""Pictures of a comparison: overlaid learning, PR and F1 curves, a grid of confusion matrices, the same images with the
truth and each run's detections. Runs that differ in the seed alone have one colour and differ in the line.
Numbers in, PNG files out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

from utils.evaluation.ap import GRID
from utils.evaluation.matching import occurring
from utils.images.pixels import viewable
from utils.images.read import read_any
from utils.runs.folder import Series
from utils.runs.plots import colour, draw_box, draw_label, draw_matrix, new_figure
from utils.study.compared import Entry, repetitions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES, TILE, GAP = 4, 300, 6  # validation images shown; width of a tile and of what lies between, in pixels
LINES = ("-", "--", ":", "-.")
Styles = Mapping[str, Mapping[str, Any]]


def plot_all(entries: Sequence[Entry], folder: Path) -> list[Path]:
    """Every picture for which there is data; the files that were written."""
    look = styles(entries)
    out = [learning(entries, look, folder / "learning.png")] if any(e.values for e in entries) else []
    measured = [e for e in entries if e.measured and len(e.measured.result.curves.classes)]
    if measured:
        out += [
            curves(measured, look, "PR", folder / "PR.png"),
            curves(measured, look, "F1", folder / "F1.png"),
            confusions(measured, folder / "confusion.png"),
            images(measured, folder / "images.png"),
        ]
    return out


def styles(entries: Sequence[Entry]) -> Styles:
    """{run: how its lines look}."""
    from matplotlib import colormaps

    groups = list(repetitions(entries).values())
    few, many = colormaps["tab10"].colors, colormaps["turbo"]  # type: ignore[attr-defined]
    shades = few if len(groups) <= len(few) else [many(i / (len(groups) - 1)) for i in range(len(groups))]
    return {
        entry.name: {"color": shade, "linestyle": LINES[i % len(LINES)], "label": entry.name}
        for group, shade in zip(groups, shades, strict=False)
        for i, entry in enumerate(group)
    }


def learning(entries: Sequence[Entry], look: Styles, out: Path) -> Path:
    """mAP and summed losses over the epochs."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(13, 9, 2, 2)
    for ax, (column, title) in zip(axes, (("mAP50", "mAP@0.5"), ("mAP", "mAP@0.5:0.95")), strict=False):
        for entry in (e for e in entries if e.values):
            plot_line(ax, entry.run.series(column), look[entry.name])
        ax.set(title=f"{title}, validation")
    for ax, (prefix, title) in zip(axes[2:], (("", "training"), ("val_", "validation")), strict=True):
        for entry in (e for e in entries if e.values):
            plot_line(ax, entry.run.total(prefix), look[entry.name])
        ax.set(title=f"sum of the loss terms, {title}")
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    legend(axes[1])
    figure.savefig(out, dpi=100)
    return out


def plot_line(ax: "Axes", series: Series, style: Mapping[str, Any]) -> None:
    ax.plot([epoch for epoch, _ in series], [value for _, value in series], marker=".", **style)


def legend(ax: "Axes") -> None:
    """Beside the picture, where it hides nothing, its lines long enough to tell dashes."""
    ax.legend(bbox_to_anchor=(1.02, 1), loc="upper left", fontsize=9, handlelength=3.5)


def curves(entries: Sequence[Entry], look: Styles, kind: str, out: Path) -> Path:
    """The mean curve over the classes of each run: precision over recall (PR), or F1 over confidence."""
    figure, (ax,) = new_figure(11, 6.5)
    for entry in entries:
        assert entry.measured
        found = entry.measured.result.curves
        ax.plot(GRID, (found.pr if kind == "PR" else found.f1).mean(0), linewidth=1.3, **look[entry.name])
    x, y = ("recall", "precision") if kind == "PR" else ("confidence", "F1")
    ax.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1), title=f"{y} over {x}, IoU 0.5, mean over classes")
    ax.grid(alpha=0.3)
    legend(ax)
    figure.savefig(out, dpi=100)
    return out


def confusions(entries: Sequence[Entry], out: Path) -> Path:
    """A matrix for each run, columns (true classes) as shares of their sum."""
    columns = min(len(entries), 3)
    rows = -(-len(entries) // columns)
    most = max(len(e.measured.result.names) for e in entries if e.measured)
    side = min(max(4.4, 0.38 * (most + 1) + 1.2), 14)
    figure, axes = new_figure(side * columns + 0.8, side * rows, rows, columns)
    for ax in axes[len(entries) :]:
        ax.set_axis_off()
    for ax, entry in zip(axes, entries, strict=False):
        assert entry.measured
        found = entry.measured.result
        image = draw_matrix(ax, *occurring(found.confusion, found.names), 7 if most < 41 else 4)
        ax.set_title(entry.name)
    figure.colorbar(image, ax=axes, shrink=0.5, label="share of the true class")
    figure.savefig(out, dpi=100)
    return out


def images(entries: Sequence[Entry], out: Path) -> Path:
    """A row for each image: the truth, then each run; boxes from confidence 0.25 on."""
    first = entries[0].measured
    assert first
    shared = [p for p in first.result.paths if all(e.measured and p in e.measured.truth for e in entries)]
    full = sorted(p for p in shared if len(first.truth[p]))
    chosen = [full[i * len(full) // IMAGES] for i in range(IMAGES)] if len(full) > IMAGES else full
    blocks = [row([heading(t) for t in ("truth", *(e.name for e in entries))])]
    for path in chosen:
        tiles = [tile(path, first.truth[path], first.result.names)]
        for entry in entries:
            assert entry.measured
            found = entry.measured.result.detections[entry.measured.result.paths.index(path)].numpy()
            tiles.append(tile(path, found[found[:, 4] >= 0.25], entry.measured.result.names))
        blocks.append(row(tiles))
    out.write_bytes(cv2.imencode(out.suffix, np.concatenate(blocks, 0))[1].tobytes())
    return out


def row(tiles: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Tiles of one height side by side, white between and below them."""
    framed = [cv2.copyMakeBorder(t, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255)) for t in tiles]
    return np.concatenate(framed, 1).astype(np.uint8, copy=False)


def heading(text: str) -> npt.NDArray[np.uint8]:
    """A run's name, in letters small enough to fit."""
    strip = np.full((24, TILE, 3), 255, np.uint8)
    width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]
    scale = 0.5 * min(1.0, (TILE - 8) / width)
    cv2.putText(strip, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
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
    for box in rows:
        draw_box(picture, box[:4] * gain, "", colour(int(box[-1])), 0.5)
    bars: list[tuple[int, int, int, int]] = []
    for box in rows:  # best first, whose label stays at its box
        label = names[int(box[-1])] + (f" {box[4]:.2f}" if len(box) == 6 else "")
        draw_label(picture, round(box[0] * gain), round(box[1] * gain), label, colour(int(box[-1])), 0.45, bars)
    return picture
