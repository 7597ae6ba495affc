"""Contrastive loss and bank: values at chance and at perfection, what a query may meet, gradients."""

import math

import pytest
import torch
from torch import Tensor

from patches.align.contrast import Bank, Projector, bank_loss, pair_loss, scale_of


def units(n: int, d: int = 256, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("n", [2, 8, 64])
def test_random_embeddings_are_at_chance(n: int) -> None:
    values = [float(pair_loss(units(n, seed=2 * i), units(n, seed=2 * i + 1), 1.0)) for i in range(50)]
    assert sum(values) / 50 == pytest.approx(math.log(n), abs=0.05)


def test_identical_pairs_at_the_largest_scale_cost_nothing() -> None:
    a = units(64)
    assert float(pair_loss(a, a, 100.0)) < 0.01


def test_a_single_pair_is_exactly_zero_with_a_graph() -> None:
    a = units(1).requires_grad_()
    loss = pair_loss(a, units(1, seed=1), 10.0)
    loss.backward()
    assert float(loss.detach()) == 0 and a.grad is not None and not a.grad.any()


def test_by_hand() -> None:
    """Two pairs: cosines 1, 0 / 0, 1 with scale ln 3: rows and columns are ln(1 + 1/3)."""
    eye = torch.eye(2)
    assert float(pair_loss(eye, eye, math.log(3))) == pytest.approx(math.log(4 / 3))
    mixed = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # S = s [[1, 1], [0, 0]]
    rows = (math.log(2) + math.log(2)) / 2
    columns = (math.log(4 / 3) + math.log(4)) / 2
    assert float(pair_loss(eye, mixed, math.log(3))) == pytest.approx((rows + columns) / 2)


def test_symmetric_and_clamped() -> None:
    a, b = units(8), units(8, seed=1)
    assert float(pair_loss(a, b, 7.0)) == pytest.approx(float(pair_loss(b, a, 7.0)))
    assert [float(scale_of(torch.tensor(v))) for v in (-3.0, 0.0, 9.0)] == pytest.approx([1, 1, 100])


def test_the_projector_takes_one_row_and_keeps_rows_apart() -> None:
    project, x = Projector(12, 16).train(), torch.randn(5, 12)
    assert torch.allclose(project(x)[:1], project(x[:1]), atol=1e-6)
    assert torch.allclose(project(x).norm(dim=1), torch.ones(5))


def test_no_query_meets_its_own_image_and_nothing_is_filled_in() -> None:
    bank, keys = Bank(6, 256), units(4)
    images = torch.tensor([0, 0, 1, 2])
    assert torch.isneginf(bank.hardest(keys, images, 3)).all()
    bank.add(keys, images)
    found = bank.hardest(keys, images, 6)
    assert torch.isfinite(found).sum(1).tolist() == [2, 2, 3, 3]
    cosine = keys @ keys.T
    assert found[0, :2].tolist() == pytest.approx(sorted(cosine[0, 2:].tolist(), reverse=True))
    assert found[2, 0] == pytest.approx(max(float(cosine[2, j]) for j in (0, 1, 3)))


def test_the_oldest_make_room() -> None:
    bank, keys = Bank(3, 256), units(10)
    for i in range(5):
        bank.add(keys[i : i + 1], torch.tensor([i]))
    assert sorted(bank.images.tolist()) == [2, 3, 4] and int(bank.filled) == 3
    bank.add(keys[:7], torch.arange(7))
    assert sorted(bank.images.tolist()) == [4, 5, 6]
    assert all(torch.equal(bank.keys[bank.images == i][0], keys[i]) for i in (4, 5, 6))


def test_bank_loss_by_hand_and_zero_while_empty() -> None:
    queries = units(2).requires_grad_()
    bank, images = Bank(4, 256), torch.tensor([5, 6])
    assert float(bank_loss(queries, queries.detach(), images, bank, 10.0, 2)) == 0
    bank.add(units(2, seed=3), torch.tensor([6, 7]))
    with torch.no_grad():
        cosine = queries @ bank.keys[:2].T
        first = torch.log(1 + ((cosine[0] - 1) * 10).exp().sum())  # image 5 meets both keys, image 6 the second alone
        second = torch.log(1 + ((cosine[1, 1] - 1) * 10).exp())
    scale = torch.tensor(10.0, requires_grad=True)
    loss = bank_loss(queries, queries.detach(), images, bank, scale, 2)
    assert float(loss) == pytest.approx(float(first + second) / 2, rel=1e-5)
    loss.backward()
    assert queries.grad is not None and torch.isfinite(queries.grad).all()
    assert scale.grad is not None and torch.isfinite(scale.grad)
