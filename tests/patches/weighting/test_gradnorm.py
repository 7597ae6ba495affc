"""Weights of tasks: against double backward passes, hand-computed values, and long random streams."""

import math

import pytest
import torch
from torch import Tensor

from patches.weighting.gradnorm import (
    cosines,
    dwa_weights,
    gradnorm_gradient,
    gradnorm_step,
    norms,
    projected,
    uncertainty_step,
)


def toy_losses(shared: Tensor) -> Tensor:
    """Three losses [3] of one shared layer [4,5]."""
    gen = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 5, generator=gen, dtype=torch.float64), torch.randn(8, 3, generator=gen, dtype=torch.float64)
    heads = torch.randn(3, 4, generator=gen, dtype=torch.float64)
    return ((torch.tanh(x @ shared.T) @ heads.T - y) ** 2).mean(0) * torch.tensor([1.0, 30.0, 0.2])


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_the_cheap_form_is_the_double_backward(alpha: float) -> None:
    shared = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    w = torch.tensor([0.4, 1.9, 0.7], dtype=torch.float64, requires_grad=True)
    losses, first = toy_losses(shared), torch.tensor([1.3, 20.0, 0.5], dtype=torch.float64)

    sizes = torch.stack([torch.autograd.grad(w[i] * losses[i], shared, create_graph=True)[0].norm() for i in range(3)])
    pace = losses.detach() / first
    target = (sizes.mean() * (pace / pace.mean()) ** alpha).detach()
    (slow,) = torch.autograd.grad((sizes - target).abs().sum(), w)

    plain = torch.stack([torch.autograd.grad(loss, shared, retain_graph=True)[0].flatten() for loss in losses])
    with torch.no_grad():
        cheap = gradnorm_gradient(w, norms(plain), pace, alpha, torch.ones(3, dtype=torch.bool))
    assert len(set(slow.sign().tolist())) == 2, "both signs occur"
    torch.testing.assert_close(cheap, slow, rtol=1e-6, atol=0)


def test_a_hand_computed_step() -> None:
    """G = (2, 6), mean 4; r = (1.6, 0.4): alpha 1 wants (6.4, 1.6), so ln w_0 goes up by its share of the mean and ln
    w_1 down."""
    w, n, pace = torch.ones(2).double(), torch.tensor([2.0, 6.0]).double(), torch.tensor([0.8, 0.2]).double()
    gradient = gradnorm_gradient(w, n, pace, 1.0, torch.ones(2, dtype=torch.bool))
    assert gradient.tolist() == [-2.0, 6.0]
    new, velocity = gradnorm_step(
        w, torch.tensor([1.0, 0.0]).double(), gradient, n, lr=0.1, momentum=0.5, low=0.01, high=9
    )
    assert velocity.tolist() == [0.0, 1.5]
    moved = [1.0, math.exp(-0.15)]  # before the sum of 2 is restored
    assert new.tolist() == pytest.approx([2 * v / sum(moved) for v in moved], rel=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_scale_of_the_losses_does_not_count(scale: float) -> None:
    """L_i and L_i(0) times a number, and gradients with them: the same step."""
    w, n, pace = torch.tensor([[0.5, 1.5], [2.0, 6.0], [0.8, 0.2]]).double()
    there, settings = torch.ones(2, dtype=torch.bool), {"lr": 0.1, "momentum": 0.5, "low": 0.01, "high": 9.0}
    steps = [
        gradnorm_step(w, torch.zeros(2).double(), gradnorm_gradient(w, n * s, pace, 1.0, there), n * s, **settings)
        for s in (1.0, scale)
    ]
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-12, atol=0)


def test_a_task_of_large_gradients_comes_to_rest() -> None:
    """Norms of 80 : 1 and weights of 1 : 80 balance them, far below one step of lr n. Once there it stays within
    a step of a few percent; a step of lr n on w itself would throw it to its bounds and back."""
    w, velocity, n = torch.ones(2).double(), torch.zeros(2).double(), torch.tensor([0.01, 0.8]).double()
    seen = []
    for _ in range(600):
        gradient = gradnorm_gradient(w, n, torch.ones(2).double(), 0.0, torch.ones(2, dtype=torch.bool))
        w, velocity = gradnorm_step(w, velocity, gradient, n, lr=0.025, momentum=0.9, low=0.001, high=10)
        seen.append(float(w[1]))
    goal = 2 / 81
    assert max(seen[300:]) < 1.5 * goal and min(seen[300:]) > goal / 1.5


def test_without_a_task_there_is_no_step() -> None:
    w, zero = torch.tensor([0.5, 1.5]), torch.zeros(2)
    new, velocity = gradnorm_step(w, zero, zero, torch.ones(2), lr=0.1, momentum=0.5, low=0.01, high=9)
    assert new.tolist() == pytest.approx([0.5, 1.5]) and velocity.tolist() == [0.0, 0.0]


def test_absent_tasks_count_in_no_mean() -> None:
    there = torch.tensor([True, False, True])
    three = gradnorm_gradient(torch.ones(3), torch.tensor([2.0, 5.0, 6.0]), torch.tensor([0.8, 9.0, 0.2]), 1.0, there)
    assert three.tolist() == [-2.0, 0.0, 6.0]
    alone = gradnorm_gradient(torch.ones(2), torch.tensor([3.0, 0.0]), torch.tensor([7.0, 0.0]), 1.5, three[:2] < 0)
    assert alone.tolist() == [0.0, 0.0]


def test_sum_and_bounds_over_ten_thousand_random_streams() -> None:
    """T = 2, 3, 12 tasks; gradients of all sizes, zeros among them; float32 state as in training."""
    gen = torch.Generator().manual_seed(0)
    for stream in range(10_000):
        t, low, high = (2, 3, 12)[stream % 3], 10 ** -float(torch.randint(0, 5, (), generator=gen)), 10.0
        w, velocity = torch.ones(t), torch.zeros(t)
        for _ in range(2):
            n = torch.exp(6 * torch.randn(t, generator=gen)) * (torch.rand(t, generator=gen) > 0.3)
            losses = torch.rand(t, generator=gen) * (torch.rand(t, generator=gen) > 0.3)
            gradient = gradnorm_gradient(w, n, losses, 1.5, (n > 0) & (losses > 0))
            new, velocity = gradnorm_step(w, velocity, gradient, n, lr=0.5, momentum=0.9, low=low, high=high)
            w = new.float()
            assert abs(float(w.double().sum()) - t) < 1e-6
            assert low * (1 - 1e-6) <= float(w.min()) and float(w.max()) <= high * (1 + 1e-6)


def test_projection_solves_for_one_common_factor() -> None:
    """What meets no bound keeps its ratios; a bound that is met stays met."""
    w = projected(torch.tensor([8.0, 0.4, 0.2, -3.0]), 0.1, 2.5)  # -3 starts again from 0.1
    assert w.tolist() == pytest.approx([2.5, 1.5 * 4 / 7, 1.5 * 2 / 7, 1.5 / 7])
    assert projected(torch.tensor([30.0, 10.0, 0.1]), 0.1, 10.0).tolist() == pytest.approx([2.175, 0.725, 0.1])
    assert projected(torch.tensor([1.0, 3.0]), 1e-3, 10.0).tolist() == pytest.approx([0.5, 1.5])
    assert projected(torch.tensor([5.0, 7.0]), 1.0, 1.0).tolist() == [1.0, 1.0]


def test_gradients_meet_at_equal_size_for_scales_1_and_100() -> None:
    """Two regressions through one layer, the second's loss times 100, trained with alpha 0."""
    gen = torch.Generator().manual_seed(3)
    x, y = torch.randn(64, 6, generator=gen), torch.randn(64, 2, generator=gen)
    shared, heads = torch.randn(5, 6, generator=gen) * 0.4, torch.randn(2, 5, generator=gen) * 0.4
    shared.requires_grad_()
    w, velocity, tail = torch.ones(2), torch.zeros(2), []
    for step in range(1500):
        loss = ((torch.tanh(x @ shared.T) @ heads.T - y) ** 2).mean(0) * torch.tensor([1.0, 100.0])
        grads = torch.stack([torch.autograd.grad(v, shared, retain_graph=True)[0].flatten() for v in loss])
        n = norms(grads)
        gradient = gradnorm_gradient(w, n, loss.detach(), 0.0, torch.ones(2, dtype=torch.bool))
        new, velocity = gradnorm_step(w, velocity, gradient, n, lr=5e-3, momentum=0.0, low=1e-3, high=10)
        w = new.float()
        shared = (shared - 1e-3 * (w @ grads).view_as(shared)).detach().requires_grad_()
        if step >= 1400:
            tail.append(torch.stack((norms(grads), w * norms(grads))))
    plain, weighted = torch.stack(tail).mean(0)
    assert plain[1] > 5 * plain[0], "the scales are still there"
    assert 0.9 < weighted[0] / weighted[1] < 1.1


def test_cosines_and_norms() -> None:
    grads = torch.tensor([[3.0, 4.0], [-6.0, -8.0], [0.0, 0.0], [4.0, -3.0]])
    assert norms(grads).tolist() == [5.0, 10.0, 0.0, 5.0]
    found = cosines(grads)
    assert found[0, 1] == pytest.approx(-1) and found[0, 3] == pytest.approx(0, abs=1e-6)
    assert found[2].isnan().all() and found[:, 2].isnan().all()


def test_uncertainty_settles_where_its_loss_is_lowest() -> None:
    """d/ds (exp(-s) L + s / 2) = 0 at s = ln 2L, so the weight is 1 / 2L; without a loss nothing moves."""
    losses = torch.tensor([0.1, 3.0, 0.0])
    s = torch.zeros(3)
    first = uncertainty_step(s, losses, 0.1)
    torch.testing.assert_close(first, torch.tensor([0.1 * (0.1 - 0.5), 0.1 * (3.0 - 0.5), 0.0]))
    for _ in range(2000):
        s = uncertainty_step(s, losses, 0.1)
    torch.testing.assert_close(torch.exp(-s), torch.tensor([5.0, 1 / 6, 1.0]), rtol=1e-4, atol=0)


def test_dwa_by_hand() -> None:
    """q = (0.5, 1): w = 2 softmax(0.25, 0.5)."""
    w = dwa_weights(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0]))
    high = math.exp(0.5) / (math.exp(0.25) + math.exp(0.5))
    assert w.tolist() == pytest.approx([2 * (1 - high), 2 * high])
    assert dwa_weights(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 5.0])).tolist() == [1.0, 1.0]
