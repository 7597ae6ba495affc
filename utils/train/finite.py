"""Loss terms and weights are finite, else the run stops before anything is saved over a good checkpoint.

`note` after every batch costs a few tiny kernels and no wait for the device: a tensor there keeps the first bad step of
each term. `look` waits, and names term, step and the files of that step's batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.system.errors import UserError
from utils.system.table import few


class Watch:
    """names: the loss terms. last: the checkpoint to go back to, for the message."""

    def __init__(self, names: Sequence[str], device: torch.device, last: Path) -> None:
        self.names, self.last = tuple(names), last
        self.first = torch.full((len(self.names),), -1, dtype=torch.int64, device=device)  # [T] -1: good so far
        self.paths: dict[int, list[str]] = {}  # of the batches since the last look, by step

    def note(self, step: int, terms: Mapping[str, Tensor], paths: Sequence[str]) -> None:
        """After the batch of this step. terms: scalars on the device."""
        bad = ~torch.isfinite(torch.stack([terms[name] for name in self.names]))  # [T]
        self.first = torch.where(bad & (self.first < 0), step, self.first)
        self.paths[step] = list(paths)

    def look(self) -> None:
        """UserError for a term that was not finite since the last look."""
        first = self.first.tolist()
        bad = {name: step for name, step in zip(self.names, first, strict=True) if step >= 0}
        if bad:
            step = min(bad.values())
            terms = ", ".join(name for name, at in bad.items() if at == step)
            raise UserError(f"loss term {terms} is not finite at step {step}; {self.where(step)}")
        self.paths = {step: paths for step, paths in self.paths.items() if step == max(self.paths)}

    def check(self, model: nn.Module) -> None:
        """Before a save: `look`, and that the step just taken has left every weight and statistic finite."""
        self.look()
        tensors = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
        finite = torch.stack([torch.isfinite(v).all() for v in tensors.values()]).tolist()
        if bad := [k for k, good in zip(tensors, finite, strict=True) if not good]:
            step = max(self.paths, default=-1)
            raise UserError(f"{few(bad)} not finite after step {step}; {self.where(step)}")

    def where(self, step: int) -> str:
        files = "\n  ".join(self.paths.get(step, []))
        there = self.last.exists()
        before = f"{self.last} is from before, --resume goes back to it" if there else "no checkpoint was written yet"
        return f"{before}; images of that step (mosaics mix in others):\n  {files}"
