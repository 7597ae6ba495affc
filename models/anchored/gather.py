"""Reading predictions at rows of cells, with a gradient that is summed in one order and written once.

Several rows may read one cell; their gradients must be added, and how an unordered device adds them differs from run
to run. Here rows are sorted by cell first, so that each cell's rows are a run, and runs are added front to back.
Traced by torch.compile of torch 2.11 the objectness loses its gradient, with 2.14 it does not: --compile is for the
model alone.
The gradient of a level is laid out in memory as the level itself, not as its view, and holds both what rows and what
the objectness of all cells contribute: the largest tensor of the loss exists once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.anchored.assign import Rows, level_sizes, take


class Runs(NamedTuple):
    """Of rows sorted by cell, all [R]."""

    first: Tensor  # long, position of the first row of the same cell, counted within the level
    length: Tensor  # long, at a cell's first row: how many there are; elsewhere 0
    decides: Tensor  # bool: the last row that counts of its cell (and part) sets the objectness target


def by_cell(rows: Rows, raws: Sequence[Tensor], part: Tensor | None = None, parts: int = 1) -> tuple[Rows, Runs]:
    """Rows sorted by level and cell, rows of one cell in the order they had.

    part [R] long in 0..parts-1: what several rows of a cell share only if it is equal (their head). Rows of weight 0
    go to the front of their cell's run.
    """
    height, width = (max(raw.shape[i] for raw in raws) for i in (2, 3))
    place = (rows.level * raws[0].shape[0] + rows.image) * raws[0].shape[1] + rows.anchor
    place = (place * height + rows.gy) * width + rows.gx
    key = place if part is None else place * parts + part
    key = key * 2 + (rows.weight > 0)
    order = key.argsort(stable=True)
    key, place, rows = key[order] // 2, place[order], take(rows, order)
    edge = torch.ones_like(key[:1], dtype=torch.bool)
    starts = torch.cat((edge, place[1:] != place[:-1]))[: len(place)]
    ends = torch.cat((key[1:] != key[:-1], edge))[: len(key)]
    first = torch.searchsorted(place, place)
    length = (torch.searchsorted(place, place, right=True) - first) * starts
    before = torch.searchsorted(rows.level, rows.level)  # rows of finer levels
    return rows, Runs(first - before, length, ends & (rows.weight > 0))


def look(raws: Sequence[Tensor], rows: Rows) -> Tensor:
    """Raw predictions [R,C] at the rows, float32, without a gradient."""
    sizes = level_sizes(rows, len(raws))
    cells = zip(*(column.split(sizes) for column in rows[1:5]), strict=True)
    return torch.cat([raw.detach()[cell] for raw, cell in zip(raws, cells, strict=True)]).float()


def read(
    raws: Sequence[Tensor], rows: Rows, runs: Runs, objectness: Sequence[int], columns: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Predictions [R,C] at rows sorted by cell, in float32, and for each level the objectness of all cells
    [K,B,A,H,W].

    raws: [B,A,H,W,P] per level. objectness: its K columns. columns: which to read of P, each once (default all).
    """
    sizes = level_sizes(rows, len(raws))
    tables = zip(*(column.split(sizes) for column in (*rows[1:5], *runs[:2])), strict=True)
    pairs = [Read.apply(raw, *t, tuple(objectness), columns) for raw, t in zip(raws, tables, strict=True)]
    return torch.cat([rows_ for rows_, _ in pairs]), [dense for _, dense in pairs]


class Read(torch.autograd.Function):
    """One level of `read`."""

    @staticmethod
    def forward(
        raw: Tensor,
        image: Tensor,
        anchor: Tensor,
        gy: Tensor,
        gx: Tensor,
        first: Tensor,
        length: Tensor,
        objectness: tuple[int, ...],
        columns: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        rows = raw[image, anchor, gy, gx]
        rows = rows if columns is None else rows[:, columns]
        return rows.float(), torch.stack([raw[..., c] for c in objectness]).float()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        raw, *index, objectness, columns = inputs
        ctx.save_for_backward(*index, columns)
        ctx.objectness, ctx.shape, ctx.dtype = objectness, raw.shape, raw.dtype
        ctx.stride = torch.empty_like(raw, device="meta").stride()

    @staticmethod
    def backward(ctx: Any, by_rows: Tensor, by_cells: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *cell, first, length, columns = ctx.saved_tensors
        grad = by_rows.new_zeros(ctx.shape.numel(), dtype=ctx.dtype).as_strided(ctx.shape, ctx.stride)
        for column, value in zip(ctx.objectness, by_cells.unbind(), strict=True):
            grad[..., column] = value
        if len(first):
            total = torch.segment_reduce(by_rows.contiguous(), "sum", lengths=length, axis=0, unsafe=True)[first]
            if columns is not None:
                wide = total.new_zeros(len(total), ctx.shape[-1])
                wide[:, columns] = total
                total = wide
            # rows of one cell all write the same sum, whatever their order
            here = tuple(cell)
            grad[here] = grad[here] + total.to(ctx.dtype)
        return grad, *[None] * 8
