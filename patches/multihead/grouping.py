"""Which classes share a head: groupings of classes by their boxes, by the images they share, by what is mistaken for
what, and how a grouping does by each of these.

Numbers in, lists of class numbers out; everything drawn is a function of the seed. A class without boxes has no mean:
it is placed last, in the head with the fewest classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from utils.seams import Annotations
from utils.system.errors import UserError
from utils.system.rng import rng

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Groups = list[list[int]]  # class numbers of each head, ascending
Pairs = set[tuple[int, int]]  # of classes, the lower number first
STARTS = 10  # of k-means
SMALLEST = 1.0  # pixels: boxes with a side of no more tell nothing about the shape of a class
NOISE = 2  # objects; one that is mistaken is no confusion of classes


@dataclass(frozen=True)
class Statistics:
    """Of each class of a data set. A mean is nan where the class has no box with sides above SMALLEST."""

    boxes: Ints  # [nc]
    aspect: Floats  # [nc] mean of ln(w/h), native pixels
    area: Floats  # [nc] mean box area, as a share of the square of the image's longer side
    together: Floats  # [nc,nc] Jaccard index of the sets of images that show the classes

    @property
    def size(self) -> Floats:
        """[nc] ln of the side of a square of the mean area."""
        return np.log(self.area) / 2


def statistics(labels: Sequence[Annotations], native: Ints, nc: int) -> Statistics:
    """native [n,2]: (h, w) of the images in pixels."""
    boxes = np.concatenate([np.zeros((0, 5)), *(one.boxes for one in labels)])
    image = np.repeat(np.arange(len(labels)), [len(one) for one in labels])
    cls, sides = boxes[:, 0].astype(np.int64), boxes[:, 3:5] * native[image][:, ::-1]
    shows = np.zeros((len(labels), nc))
    shows[image, cls] = 1
    both, each = shows.T @ shows, shows.sum(0)
    plain = (sides > SMALLEST).all(1)
    kind, (w, h), longer = cls[plain], sides[plain].T, native[image[plain]].max(1)
    counted = np.bincount(kind, minlength=nc)
    counts = np.where(counted > 0, counted, np.nan)
    return Statistics(
        np.bincount(cls, minlength=nc),
        np.bincount(kind, np.log(w / h), nc) / counts,
        np.bincount(kind, w * h / longer**2, nc) / counts,
        both / np.maximum(each[:, None] + each[None] - both, 1),
    )


def likeness(aspect: Floats) -> Floats:
    """Means of ln(w/h) [n] -> [n,n] exp(-2 d^2) of their differences d."""
    return np.exp(-2 * (aspect[:, None] - aspect[None]) ** 2)


def k_means(points: Floats, count: int, seed: int, purpose: str) -> Ints:
    """points [n,d] -> cluster of each [n]: of ten starts the one with the least sum of squared distances."""
    from scipy.cluster.vq import ClusterError, kmeans2  # imported on first use: its import takes long

    if (different := len(np.unique(points, axis=0))) < count:
        raise UserError(f"--heads {count}: the classes have {different} different values, too few for k-means")
    best: Ints | None = None
    least = np.inf
    for start in range(STARTS):
        try:
            centres, of = kmeans2(
                points, count, minit="++", rng=rng(seed, purpose, 0, start), iter=100, missing="raise"
            )
        except ClusterError:  # a cluster ran empty
            continue
        cost = float(((points - centres[of]) ** 2).sum())
        if cost < least:
            best, least = of.astype(np.int64), cost
    if best is None:
        raise UserError(
            f"--heads {count}: k-means left a head empty in all of {STARTS} starts; try another --seed or fewer heads"
        )
    return np.asarray(best, np.int64)


def listed(of: Ints, classes: Ints, heads: int) -> Groups:
    return [sorted(classes[of == head].tolist()) for head in range(heads)]


def by_value(value: Floats, heads: int, seed: int, purpose: str) -> Groups:
    """k-means of one value per class [nc], heads by ascending centre. Classes whose value is nan are left out."""
    classes = enough(value, heads)
    groups = listed(k_means(value[classes, None], heads, seed, f"group/{purpose}"), classes, heads)
    return sorted(groups, key=lambda group: float(value[group].mean()))


def spectral(similarity: Floats, known: Floats, heads: int, seed: int) -> Groups:
    """Normalised spectral clustering (Shi and Malik 2000): k-means on the `heads` lowest eigenvectors of the random
    walk's Laplacian. similarity [nc,nc] not below 0, symmetric; classes where `known` [nc] is nan are left out. Heads
    by their lowest class."""
    from scipy.linalg import eigh

    classes = enough(known, heads)
    w = similarity[np.ix_(classes, classes)].copy()
    np.fill_diagonal(w, 1.0)  # also keeps the degree of a class that is like no other above 0
    scale = 1 / np.sqrt(w.sum(1))
    _, vectors = eigh(np.eye(len(w)) - scale[:, None] * w * scale[None], subset_by_index=[0, heads - 1])
    return sorted(listed(k_means(vectors * scale[:, None], heads, seed, "group/spectral"), classes, heads))


def enough(value: Floats, heads: int) -> Ints:
    """Classes that have a value, at least as many as heads."""
    classes = np.flatnonzero(np.isfinite(value))
    if len(classes) < heads:
        raise UserError(f"--heads {heads}: {len(classes)} classes have boxes above {SMALLEST:g} px, fewer than heads")
    return classes


def balanced(groups: Groups, similarity: Floats, tolerance: int) -> Groups:
    """Classes moved until every head has nc/heads of them, give or take `tolerance`: from the largest head to the
    smallest the class that is most similar to those there."""
    groups = [list(group) for group in groups]
    even = sum(map(len, groups)) / len(groups)
    while True:
        large, small = max(groups, key=len), min(groups, key=len)
        off = max(len(large) - even, even - len(small))
        if off <= tolerance or len(large) - len(small) <= 1:
            return [sorted(group) for group in groups]
        moved = max(large, key=lambda c: float(similarity[c, small].mean()))
        large.remove(moved)
        small.append(moved)


def apart(pairs: Pairs, boxes: Sequence[int] | Ints, heads: int) -> Groups:
    """Classes by falling number of boxes, each into the head with the fewest boxes of those that hold no class it is
    mistaken for; where every head does, into the head with the fewest."""
    groups: Groups = [[] for _ in range(heads)]
    load = [0] * heads
    for c in sorted(range(len(boxes)), key=lambda c: -int(boxes[c])):
        free = [h for h, group in enumerate(groups) if not any((min(c, d), max(c, d)) in pairs for d in group)]
        head = min(free or range(heads), key=lambda h: (load[h], len(groups[h])))
        groups[head].append(c)
        load[head] += int(boxes[c])
    return [sorted(group) for group in groups]


def at_random(nc: int, heads: int, seed: int) -> Groups:
    """Equal numbers of classes, drawn."""
    return [sorted(part.tolist()) for part in np.array_split(rng(seed, "group/random").permutation(nc), heads)]


def completed(groups: Groups, nc: int) -> tuple[Groups, list[int]]:
    """Classes of no head, each put into the one with the fewest classes; and which these are."""
    groups = [list(group) for group in groups]
    left = sorted(set(range(nc)) - {c for group in groups for c in group})
    for c in left:
        min(groups, key=len).append(c)
    return [sorted(group) for group in groups], left


def confused(counts: Ints, least: float) -> Pairs:
    """A confusion matrix [nc+1,nc+1] (predicted x true, last = background) -> pairs of classes of which one is taken
    for the other in at least this share of its objects that were found, and more than once."""
    found = counts[:-1, :-1]
    share = found / np.maximum(found.sum(0, keepdims=True), 1)
    wrong = (share >= least) & (found >= NOISE)
    return {(min(a, b), max(a, b)) for a, b in zip(*(x.tolist() for x in np.nonzero(wrong)), strict=True) if a != b}


def within_and_between(groups: Sequence[Sequence[int]], similarity: Floats, known: Floats) -> tuple[float, float]:
    """Mean similarity [nc,nc] of two classes of one head, and of two heads; nan where there are no such two. Classes
    where `known` [nc] is nan are left out."""
    owner = np.full(len(similarity), -1)
    for head, group in enumerate(groups):
        owner[list(group)] = head
    classes = np.flatnonzero(np.isfinite(known))
    a, b = (classes[i] for i in np.triu_indices(len(classes), 1))
    values, same = similarity[a, b], owner[a] == owner[b]
    return mean(values[same]), mean(values[~same])


def mean(values: Iterable[float] | Floats) -> float:
    """nan, without a word, where there is none."""
    finite = np.asarray(list(values), float)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else float("nan")
