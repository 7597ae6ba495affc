"""A second stem: a copy of the first rows of a detector reads another picture of the scene and joins them at row N.

    row N = rows 0..N (first picture) + W * rows 0..N of the copy (second picture)

W is a 1x1 convolution [C,C,1,1] without bias that starts as zeros, and the copy starts from the detector's own rows; so
the two together begin as the detector that was there before, to the bit (as "zero convolutions", arXiv:2302.05543,
section 3.1). Detector.add_branch says how it is run.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from models.graph import Backbone, Detector

STRIDE = 4  # of the pictures, at most, where a join was not asked for by number


def join_rows(model: Detector) -> list[int]:
    """Rows of the backbone where a second stem can join: nothing behind them reads a row before them, which would know
    the first picture alone."""
    return [
        n
        for n in model.sections["backbone"]
        if all(s >= n for sources in model.sources[n + 1 :] for s in sources)
        and any(True for row in model.model[: n + 1] for _ in row.parameters())
    ]


def early_row(model: Detector) -> int | None:
    """The last of them at stride 4 or finer."""
    size = 128
    shapes = model.shapes(size)
    return max((n for n in join_rows(model) if size // shapes[n][-1] <= STRIDE), default=None)


class SecondStem(nn.Module):
    """forward: output of row N [B,C,h,w] and the second picture [B,C0,H,W] -> [B,C,h,w]."""

    joins = True

    def __init__(self, model: Detector, row: int) -> None:
        super().__init__()
        self.rows = Backbone({**model.spec, "backbone": model.spec["backbone"][: row + 1]}, channels=model.in_channels)
        channels = self.rows.out_channels
        self.join = nn.Conv2d(channels, channels, 1, bias=False)
        self.load_state_dict(self.starting(model.state_dict()))

    def starting(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This module's state at the start beside a detector with that state, `model.N....`."""
        return {
            k: torch.zeros_like(v) if k == "join.weight" else state[k.removeprefix("rows.")]
            for k, v in self.state_dict().items()
        }

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first + cast(Tensor, self.join(self.rows(second)))
