"""Classes of whole images: a head on features, its loss, and figures that come from answers alone.

    features [B,c,h,w] -> mean over h,w -> LayerNorm -> dropout -> linear -> logits [B,C]

LayerNorm, not BatchNorm: pooled features of a batch of one have no variance to divide by. A `trunk` in front makes the
head a network of its own, which reads the image.

Loss: sum over images of known class of weight[class] * cross-entropy, over their number; unknown images (-1) count
nothing. Dividing by the sum of weights instead would cancel them in a batch of one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNKNOWN = -1
Draw = Callable[[int, tuple[int, int]], Tensor]  # (step, shape) -> float [shape], uniform in 0..1, on the CPU


class Dropout(nn.Module):
    """[B,c] -> each number 0 with probability p, else / (1 - p); only in training. The mask is a function of the step,
    which advances with every training pass; `draw` and `step` are set from outside."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.step = p, 0
        self.draw: Draw | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x) if self.training and self.p else x

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # a step that counts would be compiled anew at every value
    def mask(self, x: Tensor) -> Tensor:
        if self.draw is None:
            raise RuntimeError("dropout has no source of random numbers: set `draw`")
        keep = self.draw(self.step, (x.shape[0], x.shape[1])) >= self.p
        self.step += 1
        return (keep / (1 - self.p)).to(x)


class ImageHead(nn.Module):
    """See the module's docstring. names: of the C classes, in the order of the logits; trunk: image -> features."""

    def __init__(self, channels: int, names: Sequence[str], dropout: float, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.names = tuple(names)
        self.trunk = trunk or nn.Identity()
        self.norm = nn.LayerNorm(channels)
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(channels, len(self.names))
        nn.init.normal_(self.linear.weight, std=0.01)  # the loss starts at ln C
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.trunk(x).mean((2, 3))  # [B,c]
        return torch.as_tensor(self.linear(self.dropout(self.norm(pooled))))


def image_loss(logits: Tensor, target: Tensor, weights: Tensor | None, known: Tensor) -> Tensor:
    """logits [B,C], target int64 [B] with -1 = unknown, weights [C] or None -> scalar: the sum over known images of
    their weighted cross-entropy / known (their number, which may count other ranks' images too). 0, with a graph, where
    none is known."""
    each = F.cross_entropy(logits.float(), target, weights, ignore_index=UNKNOWN, reduction="none")  # [B]
    return each.sum() / known.clamp(min=1)


def balanced_weights(counts: Tensor) -> Tensor:
    """counts int [C] of known images per class -> float [C]: images / (classes seen * count), mean 1 over the images;
    0 for a class that has none."""
    seen = counts > 0
    return torch.where(seen, counts.sum() / (seen.sum().clamp(min=1) * counts.clamp(min=1)), 0.0).float()


class Figures(NamedTuple):
    """How good answers are; shares in 0..1, nan where no image is known."""

    acc: float  # share of right answers
    bacc: float  # mean over the classes that occur of their recall
    f1: float  # mean over the classes that occur or were answered of 2 right / (occur + answered)
    ce: float  # cross-entropy, nats; ln C = knows nothing
    known: float  # images of known class; only these count
    chance: float  # 1 / C: accuracy of guessing
    majority: float  # accuracy of always answering the class that is most frequent among them


def confusion(logits: Tensor, target: Tensor) -> Tensor:
    """logits [n,C], target int64 [n], -1 = unknown, left out -> int64 [C,C] answered x true."""
    c, known = logits.shape[1], target >= 0
    answers = logits.argmax(1)
    return torch.bincount(answers[known] * c + target[known], minlength=c * c).view(c, c)


def figures(logits: Tensor, target: Tensor) -> Figures:
    """logits [n,C], target int64 [n] with -1 = unknown."""
    table, known = confusion(logits, target).double(), target >= 0
    total, right, true, answered = table.sum(), table.diag(), table.sum(0), table.sum(1)
    ce = F.cross_entropy(logits[known].double(), target[known])  # nan where there is none
    return Figures(
        acc=float(right.sum() / total),
        bacc=float((right / true)[true > 0].mean()),
        f1=float((2 * right / (true + answered))[true + answered > 0].mean()),
        ce=float(ce),
        known=float(total),
        chance=1 / len(table),
        majority=float(true.max() / total),
    )
