"""Plain assignment: built targets of the original programs, boxes placed by hand, extremes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.anchored.assign import Rows, box_targets, drop_idle, plain_rows
from models.anchored.gather import by_cell, read
from tests.conformance.reference import Reference, loss_case
from tests.golden import golden, keys

ANCHORS = torch.tensor([[1.25, 1.625], [2.0, 3.75], [4.125, 2.875]])  # YOLOv5's first level at stride 8


def target(*boxes: tuple[float, ...]) -> Tensor:
    """(class, cx, cy, w, h) in 0..1, all in image 0."""
    return torch.tensor([(0.0, *box) for box in boxes]).view(-1, 6)


def cells(rows: Rows) -> list[tuple[int, int, int]]:
    """(anchor, gy, gx), in order."""
    return list(zip(rows.anchor.tolist(), rows.gy.tolist(), rows.gx.tolist(), strict=True))


def built(ref: Reference, family: str, key: str) -> tuple[list[Rows], Any]:
    case = loss_case(ref, family, key)
    loss: Any = case.criterion
    levels = [
        drop_idle(plain_rows(case.target, loss.anchors[i : i + 1], [tuple(raw.shape[2:4])], loss.settings.anchor_t))
        for i, raw in enumerate(case.det)
    ]
    return levels, case


@pytest.mark.parametrize("family", ["yolov7", "yolov5"])
def test_built_targets_equal_the_original_row_by_row(family: str) -> None:
    ref = golden()
    arrays, seen, most = ref.npz(f"loss/{family}.npz"), 0, 0
    files = set(arrays.files)
    for key in keys(f"loss/{family}.json", "results"):
        if key.startswith("ota/") or f"{key}/idx0" not in files:
            continue
        levels, case = built(ref, family, key)
        for i, (rows, raw) in enumerate(zip(levels, case.det, strict=True)):
            classes = case.target[rows.target, 1].long()
            index = torch.stack((rows.image, rows.anchor, rows.gy, rows.gx, classes), 1)
            np.testing.assert_array_equal(index, arrays[f"{key}/idx{i}"], err_msg=f"{key} level {i}")
            box = box_targets(rows, case.target, [raw.shape[2:4]])
            np.testing.assert_allclose(box, arrays[f"{key}/tbox{i}"], rtol=1e-6, atol=1e-6, err_msg=f"{key} {i}")
            anchors = case.criterion.anchors[i][rows.anchor]
            np.testing.assert_array_equal(anchors, arrays[f"{key}/anch{i}"], err_msg=f"{key} level {i}")
            seen, most = seen + 1, max(most, len(rows.image))
    assert seen >= 120 and most > 1000


def test_a_box_in_a_known_cell() -> None:
    """Centre (5.25, 3.75) in cells: its cell, the left one (x part below a half), the one below (y part above)."""
    rows = drop_idle(plain_rows(target((2, 5.25 / 16, 3.75 / 8, 2 / 16, 2 / 8)), ANCHORS[None], [(8, 16)], 4.0))
    assert cells(rows) == [(a, gy, gx) for gy, gx in ((3, 5), (3, 4), (4, 5)) for a in range(3)]
    assert rows.image.unique().tolist() == [0] and (rows.weight == 1).all()
    box = box_targets(rows, target((2, 5.25 / 16, 3.75 / 8, 2 / 16, 2 / 8)), [(8, 16)])
    want = {(3, 5): (0.25, 0.75), (3, 4): (1.25, 0.75), (4, 5): (0.25, -0.25)}
    for (_, gy, gx), row in zip(cells(rows), box.tolist(), strict=True):
        assert row == pytest.approx([*want[gy, gx], 2.0, 2.0], abs=1e-5)


@pytest.mark.parametrize(
    ("size", "anchors"),
    [
        ((2.0, 2.0), [0, 1, 2]),
        ((0.4, 0.5), [0]),  # 3.1, 5 and 10 times smaller
        ((0.3125, 1.0), []),  # exactly 4 times narrower than anchor 0
        ((16.0, 11.0), [2]),
        ((1.25, 6.4), [0, 1, 2]),
    ],
)
def test_anchors_by_side_ratio(size: tuple[float, float], anchors: list[int]) -> None:
    rows = drop_idle(plain_rows(target((0, 0.5, 0.5, size[0] / 16, size[1] / 16)), ANCHORS[None], [(16, 16)], 4.0))
    assert sorted(set(rows.anchor.tolist())) == anchors


@pytest.mark.parametrize(
    ("centre", "expected"),
    [
        # on a grid line both sides count as near, and the own cell comes again for the far ones (so in the originals)
        ((0.0, 0.0), [(0, 0)] * 3),  # the corner: nothing outside, right and down round back to it
        ((1.0, 1.0), [(7, 15)] * 3),  # the far corner, clamped
        ((0.9 / 16, 0.9 / 8), [(0, 0), (0, 1), (1, 0)]),
        ((15.2 / 16, 7.2 / 8), [(7, 15), (7, 14), (6, 15)]),
        ((0.3 / 16, 4.4 / 8), [(4, 0), (3, 0)]),  # at the left border: only the upper neighbour is inside
        ((4 / 16, 4 / 8), [(4, 4), (4, 3), (3, 4), (4, 4), (4, 4)]),
        ((4.5 / 16, 4.5 / 8), [(4, 4)]),  # in the middle of a cell: none
    ],
)
def test_cells_at_borders_and_grid_lines(centre: tuple[float, float], expected: list[tuple[int, int]]) -> None:
    rows = drop_idle(plain_rows(target((0, *centre, 2 / 16, 3 / 8)), ANCHORS[None, 1:2], [(8, 16)], 4.0))
    assert [(gy, gx) for _, gy, gx in cells(rows)] == expected


def test_a_border_box_keeps_its_true_distance_from_the_clamped_cell() -> None:
    edge = target((0, 1.0, 1.0, 2 / 16, 3 / 8))
    rows = drop_idle(plain_rows(edge, ANCHORS[None, 1:2], [(8, 16)], 4.0))
    assert box_targets(rows, edge, [(8, 16)])[0].tolist() == pytest.approx([1.0, 1.0, 2.0, 3.0])


def test_order_is_offset_then_anchor_then_target() -> None:
    two = target((0, 5.25 / 16, 5.25 / 16, 2 / 16, 2 / 16), (1, 9.25 / 16, 9.25 / 16, 2 / 16, 2 / 16))
    rows = drop_idle(plain_rows(two, ANCHORS[None], [(16, 16)], 4.0))
    assert rows.target.tolist() == [0, 1] * 9
    assert rows.anchor.tolist() == [0, 0, 1, 1, 2, 2] * 3
    assert [gx for _, _, gx in cells(rows)][::6] == [5, 4, 5]


def test_nothing_to_assign_and_thousands() -> None:
    none = plain_rows(torch.zeros(0, 6), ANCHORS[None], [(8, 16)], 4.0)
    assert all(len(column) == 0 for column in none)
    g = torch.Generator().manual_seed(0)
    many = torch.cat(
        (torch.zeros(5000, 2), torch.rand(5000, 2, generator=g), torch.rand(5000, 2, generator=g) * 0.1), 1
    )
    rows = plain_rows(many, ANCHORS[None], [(40, 64)], 4.0)
    assert len(rows.image) == 5 * 3 * 5000
    kept = drop_idle(rows)
    assert 10_000 < len(kept.image) < len(rows.image)
    assert (rows.gx >= 0).all() and (rows.gx < 64).all() and (rows.gy >= 0).all() and (rows.gy < 40).all()


def table(*columns: list[float]) -> Rows:
    """Rows from (level, image, anchor, gy, gx, target, weight), each one row."""
    values = list(zip(*columns, strict=True))
    return Rows(*(torch.tensor(v, dtype=torch.long) for v in values[:6]), torch.tensor(values[6], dtype=torch.float32))


def test_rows_of_a_cell_are_a_run_and_its_last_that_counts_decides() -> None:
    raws = [torch.zeros(2, 3, 4, 4, 6), torch.zeros(2, 3, 2, 2, 6)]
    rows = table(
        [0, 1, 2, 3, 3, 0, 1], [0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3, 3, 2, 0], [0, 1, 2, 3, 3, 3, 1],
        [1, 1, 0, 0, 0, 0, 1], [1, 0, 0, 1, 1, 4, 0], [1, 1, 0, 0, 0, 5, 1],
    )  # fmt: skip
    found, runs = by_cell(rows, raws)
    assert found.target.tolist() == [1, 2, 0, 3, 4, 0, 5], "idle rows at the front of their cell's run"
    assert found.level.tolist() == [0] * 4 + [1] * 3
    assert runs.first.tolist() == [0, 1, 1, 1, 0, 1, 1], "counted within the level"
    assert runs.length.tolist() == [1, 3, 0, 0, 1, 2, 0]
    assert runs.decides.tolist() == [True, False, False, True, False, False, True]
    _, by_part = by_cell(rows, raws, torch.tensor([0, 0, 0, 1, 0, 0, 0]), 2)
    assert by_part.decides.tolist() == [True, False, True, True, False, False, True], "each part has its own"
    assert by_part.length.tolist() == runs.length.tolist()


def test_the_gradient_of_rows_that_share_a_cell_is_their_sum() -> None:
    """Against plain indexing; in the memory layout of the level, not of its view."""
    g = torch.Generator().manual_seed(0)
    leaf = torch.randn(2, 3 * 6, 2, 2, generator=g, dtype=torch.float64)
    index = torch.randint(2, (40, 4), generator=g)
    rows = Rows(torch.zeros(40, dtype=torch.long), *index.T, torch.arange(40), torch.ones(40))
    rows, runs = by_cell(rows, [leaf.unflatten(1, (3, 6)).permute(0, 1, 3, 4, 2)])
    factor, dense = torch.randn(40, 6, generator=g), torch.randn(2, 2, 3, 2, 2, generator=g)
    for columns in (None, torch.tensor([4, 0, 5])):
        grads = []
        for direct in (True, False):
            x = leaf.clone().requires_grad_()
            raw = x.unflatten(1, (3, 6)).permute(0, 1, 3, 4, 2)
            strides: list[Any] = []
            raw.register_hook(lambda grad, strides=strides: strides.append(grad.stride()))
            if direct:
                picked = raw[rows.image, rows.anchor, rows.gy, rows.gx]
                picked = picked if columns is None else picked[:, columns]
                cells = torch.stack((raw[..., 4], raw[..., 1]))
            else:
                picked, (cells,) = read([raw], rows, runs, [4, 1], columns)
            ((picked * factor[:, : picked.shape[1]]).sum() + (cells * dense).sum()).backward()
            assert x.grad is not None
            grads.append(x.grad)
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)
        assert strides == [raw.stride()]
