"""Augmentation as a pure function of the epoch: changed in mid-run (--unfreeze's stages), and without mosaic at the end
(--close-mosaic). The epoch comes with each Sample, so that workers need not be told of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from utils.augment import AugmentParams

Change = tuple[int, Mapping[str, float]]  # from this epoch on, these parameters


@dataclass(frozen=True)
class AugmentPlan:
    """params from epoch 0, and what changes."""

    params: AugmentParams
    changes: tuple[Change, ...] = ()  # by epoch; a value holds until a later change gives another
    closes: int | None = None  # from this epoch on no mosaic, and no mixup, which mixes two of them

    def at(self, epoch: int) -> AugmentParams:
        params = self.params
        for start, values in self.changes:
            if start <= epoch:
                params = replace(params, **values)
        return replace(params, mosaic=0.0, mixup=0.0) if self.closes is not None and epoch >= self.closes else params

    def changed(self, changes: Sequence[Change]) -> "AugmentPlan":
        return replace(self, changes=tuple(sorted((*self.changes, *changes), key=lambda change: change[0])))
