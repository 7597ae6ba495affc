"""Weights of several tasks' losses, as mathematics: L = sum_i w_i L_i over T tasks. Tensors in, tensors out.

GradNorm (Chen et al., ICML 2018, arXiv:1711.02257). With n_i = ||grad_W L_i|| at the last shared layer W:
  G_i = w_i n_i,  Gbar their mean,  r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)),  L_grad = sum_i |G_i - Gbar r_i^alpha|
The target Gbar r_i^alpha is a constant and n_i does not depend on w, so dL_grad/dw_i = sign(G_i - target_i) n_i: no
second backward pass. A step of gradient descent on ln w alone, L_grad in units of Gbar, so that it is a share of each
weight whatever the scale of the losses; then w is brought back to sum T within its bounds.
Uncertainty (Kendall et al., CVPR 2018, arXiv:1705.07115) as L = sum_i exp(-s_i) L_i + s_i / 2, s_i = ln sigma_i^2.
DWA (Liu et al., CVPR 2019, arXiv:1803.10704): w_i = T softmax_i(q_i / 2), q_i = L_i(t-1) / L_i(t-2), epochs t.
"""

import torch
from torch import Tensor


def exact(x: Tensor) -> Tensor:
    """In float64 where the device has it."""
    return x.float() if x.device.type == "mps" else x.double()


def norms(grads: Tensor) -> Tensor:
    """[T,n] gradients, a row for each task -> [T] lengths."""
    lengths: Tensor = torch.linalg.vector_norm(grads, dim=1)
    return lengths


def cosines(grads: Tensor) -> Tensor:
    """[T,n] gradients -> [T,T] cosines of their angles: 1 agree, 0 do not meet, below 0 disturb each other. NaN where a
    gradient is 0."""
    unit = grads / norms(grads)[:, None]
    return unit @ unit.T


def gradnorm_gradient(w: Tensor, n: Tensor, pace: Tensor, alpha: float, present: Tensor) -> Tensor:
    """dL_grad/dw [T]. w, n [T] as above; pace [T]: L_i / L_i(0); present [T] bool: tasks that take part, the others get
    0 and count in no mean."""
    count = present.sum().clamp(min=1)
    size = torch.where(present, w * n, 0)  # G
    pace = torch.where(present, pace, 0)
    rate = pace / (pace.sum() / count)  # r
    target = size.sum() / count * rate**alpha
    return torch.where(present, (size - target).sign() * n, 0)


def gradnorm_step(
    w: Tensor, velocity: Tensor, gradient: Tensor, n: Tensor, *, lr: float, momentum: float, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """(w, velocity) [T] after one step of gradient descent on ln w with momentum; w keeps to its bounds and the sum T.
    gradient: of `gradnorm_gradient`, for norms n.

    d(L_grad / Gbar)/d ln w_i = sign(G_i - target_i) G_i / Gbar. A step on w itself, lr n_i, is many times a weight
    that balances a large n_i, which then jumps between its bounds and never settles.
    """
    present = gradient != 0
    mean = torch.where(present, w * n, 0).sum() / present.sum()  # Gbar; without a task there is no step
    velocity = momentum * velocity + torch.where(present, w * gradient / mean, 0)
    return projected(w * torch.exp((-lr * velocity).clamp(-30, 30)), low, high), velocity


def projected(w: Tensor, low: float, high: float) -> Tensor:
    """Any [T] -> c w clipped to [low, high], c such that the sum is T. 0 < low <= 1 <= high.

    Clipping after scaling would break the sum, scaling after clipping the bounds; so c is solved for: the clipped sum
    is piecewise linear in c, with bends where an entry leaves one bound or meets the other.
    """
    w = exact(w).clamp(min=low)
    total = float(len(w))
    bends = torch.cat((low / w, high / w)).sort().values  # [2T]
    sums = (bends[:, None] * w).clamp(low, high).sum(1)  # [2T], rising from T low to T high
    after = torch.searchsorted(sums, sums.new_full((1,), total)).clamp(1, len(bends) - 1)
    before = after - 1
    span = sums[after] - sums[before]
    share = torch.where(span > 0, (total - sums[before]) / span, 0)
    c = bends[before] + share * (bends[after] - bends[before])
    return (c * w).clamp(low, high)


def uncertainty_step(s: Tensor, losses: Tensor, lr: float) -> Tensor:
    """s [T] after one step down d/ds (exp(-s) L + s / 2). A task without a loss (0: none of its labels was there) keeps
    its s. The weights are exp(-s)."""
    return torch.where(losses > 0, s - lr * (0.5 - torch.exp(-s) * losses), s)


def dwa_weights(last: Tensor, before: Tensor, temperature: float = 2.0) -> Tensor:
    """Weights [T], sum T, from the mean losses [T] of the last epoch and of the one before it. A task without a loss in
    either counts as one that stands still."""
    known = (last > 0) & (before > 0)
    rate = torch.where(known, exact(last) / exact(before), 1)
    return len(last) * torch.softmax(rate / temperature, 0)
