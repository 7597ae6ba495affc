"""Pictures of a run: results over epochs, curves over confidence, confusion matrix, label statistics, labelled batches.

Pure functions: numbers in, one PNG or JPG out. matplotlib is imported on first use and drives no window or global
state.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from utils.evaluation.ap import GRID
from utils.evaluation.evaluate import Result
from utils.evaluation.matching import occurring
from utils.images.pixels import viewable
from utils.runs.folder import Facts, Series
from utils.seams import Annotations, Collated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

FEW_LINES = 8  # that a legend in a small panel holds in one column
FEW = 20  # classes up to which each gets a line or a label of its own
NAMED = 200  # classes up to which a matrix names its rows
Image = npt.NDArray[np.uint8]


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(np.asarray(figure.subplots(rows, columns))).ravel())


def plot_results(run: Facts, out: Path) -> None:
    """Loss terms (training and validation), P, R, mAP, rates and what patches measured over the epochs; a panel for
    each kind of quantity that the run has."""
    if not run.rows:
        return
    panels: dict[str, dict[str, Series]] = {
        f"{kind} loss": {"training": run.total(kind=kind), "validation": run.total("val_", kind)} for kind in run.kinds
    }
    of_patches = [term for term in run.terms if term.split("/")[0] not in run.kinds]
    panels |= {f"{term} loss": {"training": run.series(term)} for term in of_patches}
    panels["precision, recall, F1"] = {name: run.series(name) for name in ("P", "R", "F1")}
    rule = run.scored[-1].get("match") if run.scored else ""
    panels[f"mAP ({rule or 'no'} matching)"] = {name: run.series(name) for name in ("mAP50", "mAP")}
    panels["mAP@0.5 per head"] = {head: run.series(f"mAP50/{head}") for head in run.heads}
    panels["learning rate"] = one_line_each({name.removeprefix("lr_"): run.series(name) for name in run.rates})
    shares = [name for name in run.extras if (s := run.series(name)) and all(-1 <= value <= 1 for _, value in s)]
    for family in dict.fromkeys(re.split("[/_]", name)[0] for name in shares):
        mine = [name for name in shares if re.split("[/_]", name)[0] == family]
        panels[family] = {name: run.series(name) for name in mine}
    drawn = {title: lines for title, each in panels.items() if (lines := {k: v for k, v in each.items() if v})}
    figure, axes = new_figure(13, 3.25 * -(-len(drawn) // 3), -(-len(drawn) // 3), 3)
    for ax, (title, lines) in zip(axes, drawn.items(), strict=False):
        for label, points in lines.items():
            ax.plot([epoch for epoch, _ in points], [value for _, value in points], ".-", label=label)
        if run.best and not title.endswith(("loss", "rate")):
            ax.axvline(int(run.best["epoch"]), color="grey", linewidth=1, linestyle=":", label="best.pt")
        ax.set(title=title, xlabel="epoch")
        ax.locator_params(axis="x", integer=True)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8 if len(lines) <= FEW_LINES else 6, ncols=-(-len(lines) // FEW_LINES))
    for ax in axes[len(drawn) :]:
        ax.set_axis_off()
    figure.savefig(out, dpi=100)


def one_line_each(lines: Mapping[str, Series]) -> dict[str, Series]:
    """Equal curves drawn once, under the first of their names and how many more there are."""
    names: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for name, points in lines.items():
        names.setdefault(tuple(points), []).append(name)
    return {f"{n[0]} and {len(n) - 1} more" if n[1:] else n[0]: list(points) for points, n in names.items()}


def plot_evaluation(result: Result, folder: Path) -> None:
    """PR_curve, F1_curve, P_curve, R_curve and confusion_matrix PNGs of an evaluation."""
    curves = result.curves
    if not len(curves.classes):
        return
    plot_curve(folder / "PR_curve.png", curves.pr, "recall", "precision", result, f"mAP@0.5 {result.map50:.3f}")
    best = GRID[curves.best]
    for name, values in (("F1", curves.f1), ("P", curves.p), ("R", curves.r)):
        at = f"{values[:, curves.best].mean():.2f} at confidence {best:.3f}"
        plot_curve(folder / f"{name}_curve.png", values, "confidence", name, result, at)
    plot_confusion(result.confusion, result.names, folder / "confusion_matrix.png")


def plot_curve(out: Path, values: npt.NDArray[np.float64], x: str, y: str, result: Result, summary: str) -> None:
    """values [K,G] over GRID, one line per class and the mean."""
    from matplotlib import colormaps

    figure, (ax,) = new_figure(8, 5.5)
    few = len(values) <= FEW
    ax.set_prop_cycle(color=colormaps["tab20"].colors)  # type: ignore[attr-defined]
    for c, line in zip(result.curves.classes, values, strict=True):
        label = f"{result.names[c]} {result.ap50[c]:.3f}" if y == "precision" else result.names[c]
        ax.plot(
            GRID,
            line,
            linewidth=1,
            color=None if few else "grey",
            alpha=1 if few else 0.3,
            label=label if few else None,
        )
    ax.plot(GRID, values.mean(0), linewidth=3, color="blue", label=f"all classes, {summary}")
    ax.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1), title=f"{y} over {x}, IoU 0.5, {result.rule}")
    ax.legend(bbox_to_anchor=(1.02, 1), loc="upper left", fontsize=8)
    figure.savefig(out, dpi=110)


def plot_confusion(counts: npt.NDArray[np.int64], names: Sequence[str], out: Path) -> None:
    """counts [nc+1,nc+1] predicted x true, last = background."""
    title = "confusion matrix (confidence 0.25, IoU 0.45), columns normalised"
    plot_matrix(*occurring(counts, names), out, title)


def plot_matrix(counts: npt.NDArray[np.int64], labels: Sequence[str], out: Path, title: str) -> None:
    """counts [n,n] predicted x true. Each column (true class) is shown as shares of its sum."""
    side = max(6.0, 0.32 * min(len(labels), NAMED) + 2)
    figure, (ax,) = new_figure(side + 1, side)
    figure.colorbar(draw_matrix(ax, counts, labels, 8), ax=ax, shrink=0.7)
    ax.set_title(title)
    figure.savefig(out, dpi=100)


def draw_matrix(ax: "Axes", counts: npt.NDArray[np.int64], labels: Sequence[str], size: float) -> "AxesImage":
    """As shares of the columns, with figures where there are few; names of `size` points."""
    share = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= 2 * FEW:
        for i, j in zip(*np.nonzero(share >= 0.005), strict=True):
            shade = "white" if share[i, j] > 0.5 else "black"
            ax.text(j, i, f"{share[i, j]:.2f}", ha="center", va="center", fontsize=size - 1, color=shade)
    if len(labels) <= NAMED:
        ax.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
        ax.set_yticks(range(len(labels)), labels, fontsize=size)
    ax.set(xlabel="true", ylabel="predicted")
    return image


def plot_labels(labels: Sequence[Annotations], names: Sequence[str], out: Path) -> None:
    """Boxes per class, where their centres lie, and how large they are."""
    boxes = np.concatenate([np.zeros((0, 5), np.float32), *(x.boxes for x in labels)])
    figure, (count, centre, size) = new_figure(13, 4.2, 1, 3)
    per_class = np.bincount(boxes[:, 0].astype(int), minlength=len(names))
    if len(names) <= 2 * FEW:
        count.bar(range(len(names)), per_class)
        count.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    else:
        count.stairs(per_class, np.arange(len(names) + 1) - 0.5, fill=True)
    count.set(title="boxes per class", ylabel="boxes")
    bins = [np.linspace(0, 1, 51)] * 2
    centre.hist2d(boxes[:, 1], boxes[:, 2], bins=bins, cmap="Blues")
    centre.invert_yaxis()  # as in an image
    centre.set(title="box centres", xlabel="x, share of the image", ylabel="y, share of the image")
    size.hist2d(boxes[:, 3], boxes[:, 4], bins=bins, cmap="Blues")
    size.set(title="box sizes", xlabel="width, share of the image", ylabel="height")
    figure.savefig(out, dpi=100)


def colour(index: int) -> tuple[int, int, int]:
    """A colour (B,G,R) per class, neighbouring classes far apart in hue."""
    hue = int(index * 0.61803 * 180) % 180
    b, g, r = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return b, g, r


def draw_box(
    image: Image, corners: Sequence[float], label: str, shade: tuple[int, int, int], scale: float = 0.4
) -> None:
    """In place on a BGR image: a rectangle (x0,y0,x1,y1 in pixels) with its label on a bar that stays inside the
    image."""
    x0, y0, x1, y1 = (round(float(v)) for v in corners)
    width = max(round(scale * 3), 1)
    cv2.rectangle(image, (x0, y0), (x1, y1), shade, width)
    if label:
        draw_label(image, x0, y0, label, shade, scale)


def draw_label(
    image: Image,
    x0: int,
    y0: int,
    label: str,
    shade: tuple[int, int, int],
    scale: float,
    taken: list[tuple[int, int, int, int]] | None = None,
) -> None:
    """In place: text on a bar above the point (x0,y0) in pixels, moved to where it stays inside the image. taken: bars
    (x0,y0,x1,y1) drawn so far, below which it moves where there is room; its own is added."""
    (w, h), base = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x, top = min(max(x0, 0), max(image.shape[1] - w, 0)), max(y0 - h - base, 0)
    free = top
    for bar in sorted(taken or (), key=lambda bar: bar[1]):
        if bar[0] < x + w and x < bar[2] and bar[1] < free + h + base and free < bar[3]:
            free = bar[3]
    top = free if free + h + base <= image.shape[0] else top
    if taken is not None:
        taken.append((x, top, x + w, top + h + base))
    cv2.rectangle(image, (x, top), (x + w, top + h + base), shade, -1)
    cv2.putText(image, label, (x, top + h), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)


def plot_batch(
    images: Tensor, rows: Sequence[npt.ArrayLike], names: Sequence[str], out: Path, most: int = 16, tile: int = 320
) -> None:
    """A square of tiles. images [B,C,H,W] uint8 or uint16, shown as `viewable` says; rows[i] [n,5 or 6]: x0,y0,x1,y1
    in pixels of the tile's image, (confidence,) class; boxes below confidence 0.25 are not drawn."""
    count = min(len(images), most)
    side = int(np.ceil(np.sqrt(count)))
    height, width = images.shape[2:]
    gain = max(tile / max(height, width), 1e-6)
    h, w = round(height * gain), round(width * gain)
    canvas = np.full((side * h, side * w, 3), 255, np.uint8)
    for i in range(count):
        picture = np.ascontiguousarray(viewable(images[i].permute(1, 2, 0).numpy())[:, :, ::-1])
        method = cv2.INTER_AREA if gain < 1 else cv2.INTER_LINEAR
        picture = cv2.resize(picture, (w, h), interpolation=method).astype(np.uint8, copy=False)
        for row in np.asarray(rows[i], dtype=np.float64)[::-1]:  # best first in the list, so drawn last, on top
            confident = len(row) == 6
            if confident and row[4] < 0.25:
                continue
            c = int(row[-1])
            label = f"{names[c]} {row[4]:.2f}" if confident else names[c]
            draw_box(picture, row[:4] * gain, label, colour(c))
        y, x = divmod(i, side)
        canvas[y * h : (y + 1) * h, x * w : (x + 1) * w] = picture
        cv2.rectangle(canvas, (x * w, y * h), ((x + 1) * w - 1, (y + 1) * h - 1), (255, 255, 255), 1)
    out.write_bytes(cv2.imencode(out.suffix, canvas)[1].tobytes())  # unlike imwrite this tells of a full disk


def plot_found(batch: Collated, found: Sequence[Tensor], names: Sequence[str], folder: Path) -> None:
    """val_batch0_labels.jpg and val_batch0_pred.jpg: a batch as loaded, and its detections per image [n,6] in input
    pixels."""
    images = batch["image"]
    plot_batch(
        images, target_rows(batch["target"], len(images), *images.shape[2:]), names, folder / "val_batch0_labels.jpg"
    )
    plot_batch(images, [d.numpy() for d in found], names, folder / "val_batch0_pred.jpg")


def target_rows(target: Tensor, count: int, height: int, width: int) -> list[npt.NDArray[np.float64]]:
    """Batch target [N,6] image,class,cx,cy,w,h in 0..1 -> per image [n,5] x0,y0,x1,y1 in pixels, class."""
    t = target.numpy().astype(np.float64)
    centre, half = t[:, 2:4] * [width, height], t[:, 4:6] * [width, height] / 2
    rows = np.concatenate([centre - half, centre + half, t[:, 1:2]], 1)
    return [rows[t[:, 0] == i] for i in range(count)]
