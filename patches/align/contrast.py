"""Contrastive alignment of two views of the same things: projector, symmetric loss, bank of hard negatives.

InfoNCE (van den Oord et al. 2018, arXiv:1807.03748) in the symmetric form with a learnt temperature (CLIP, Radford et
al. 2021): row i of `a` [N,D] and row i of `b` [N,D], unit vectors, are partners. With s = exp(log_scale) and
S = s a b^T the loss is the mean of the cross-entropies of S's rows and of its columns against the diagonal. Its value
at chance is ln N; with a single pair and no negatives it is exactly 0.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

START_SCALE = math.log(1 / 0.07)
LARGEST_SCALE = math.log(100)


class Projector(nn.Module):
    """[N,C] -> unit vectors [N,D]. LayerNorm and no BatchNorm: a single row must do, and rows must not see each
    other."""

    def __init__(self, c1: int, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(c1, size), nn.LayerNorm(size), nn.SiLU(), nn.Linear(size, size))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(x), dim=1)


def scale_of(log_scale: Tensor) -> Tensor:
    """The factor on cosines, between 1 and 100."""
    return log_scale.clamp(0, LARGEST_SCALE).exp()


def pair_loss(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric cross-entropy of partners [N,D] and [N,D] among all rows; 0 (with a graph) for N < 2."""
    if len(a) < 2:
        return (a.sum() + b.sum()) * 0.0
    logits = scale * a @ b.T  # [N,N]
    same = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


class Bank(nn.Module):
    """The latest keys of one view, as negatives for the other: a ring of `size` unit vectors and the images they came
    from. It starts empty and counts what it holds; nothing is filled in."""

    keys: Tensor  # [size,D]
    images: Tensor  # [size] number of the image
    filled: Tensor  # [] rows that hold a key
    cursor: Tensor  # [] next row to write

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.register_buffer("images", torch.full((size,), -1))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, keys: Tensor, images: Tensor) -> None:
        """Enqueue [N,D] keys of images [N], the oldest make room; of more than `size` the last ones are kept."""
        size = len(self.keys)
        keys, images = keys[-size:].to(self.keys), images[-size:]
        rows = (self.cursor + torch.arange(len(keys), device=self.keys.device)) % size
        self.keys[rows], self.images[rows] = keys, images
        self.cursor.copy_((self.cursor + len(keys)) % size)
        self.filled.copy_((self.filled + len(keys)).clamp(max=size))

    def hardest(self, queries: Tensor, images: Tensor, top: int) -> Tensor:
        """Cosines [N,k] of each query [N,D] with the most similar keys of other images, -inf where there are fewer
        than k = min(top, size). A query of image i never meets a key of image i, so neither its own partner."""
        cosine = queries @ self.keys.T  # [N,size]
        empty = torch.arange(len(self.keys), device=queries.device) >= self.filled
        cosine = cosine.masked_fill(empty | (images[:, None] == self.images), -torch.inf)
        return cosine.topk(min(top, len(self.keys)), dim=1).values


def bank_loss(queries: Tensor, partners: Tensor, images: Tensor, bank: Bank, scale: Tensor | float, top: int) -> Tensor:
    """Mean cross-entropy of each query's partner against the hardest keys of the bank; [N,D], [N,D], [N] -> scalar. A
    query for which the bank holds nothing counts 0."""
    if not len(queries):
        return queries.sum() * 0.0
    own = (queries * partners).sum(1, keepdim=True)  # [N,1]
    cosine = torch.cat([own, bank.hardest(queries, images, top)], 1)
    absent = torch.isneginf(cosine)  # masked after scaling, as the scale's gradient must not meet infinity
    logits = (scale * cosine.masked_fill(absent, 0)).masked_fill(absent, -torch.inf)
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device))
