"""--transfer-weights: a fresh run from every tensor of --weights that fits by name and shape.  Seam: load_weights.

Images of another number of channels: the first convolution is adapted. From A to B > A channels the kernels are
repeated in turn (0, 1, 2, 0, 1 for 3 -> 5), each divided by how often it is taken; to B < A, channel i is added to
channel i modulo B (3 -> 1: the sum over all). Either way a picture with equal channels gets the same response.

Classes go by name (utils/weights/class_rows.py): a class that the file has keeps its rows, whatever its number there.

Several heads are cut out of a plain detector's rows (--transfer-heads sliced), so that the new model detects what the
old one did;
--transfer-heads fresh starts them anew. What was taken, sliced, left fresh and left over is printed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from models.class_names import Columns
from models.graph import Detector
from utils.config.options import opt
from utils.seams import Patch, Source, State
from utils.system.errors import UserError
from utils.system.notes import note, warn
from utils.system.table import few

LOW_SHARE = 0.5  # of the model's tensors


@dataclass(frozen=True, kw_only=True)
class Flags:
    transfer_weights: bool = opt(
        False, "start from all tensors of --weights that fit (new optimizer, epoch 0)", "model"
    )
    transfer_heads: str = opt(
        "sliced",
        "several heads begin with their classes' rows of a plain detector's head, or with random numbers",
        "model",
        choices=("sliced", "fresh"),
    )


@runtime_checkable
class Several(Protocol):
    """Heads that can be cut out of a plain detector."""

    plain_mark: str  # one of the plain detector's keys, by which it is known

    def misfit(self, detector: Mapping[str, Tensor], by_name: bool) -> str: ...
    def sliced(self, detector: Mapping[str, Tensor], columns: Columns) -> State: ...


def slice_heads(state: State, model: Detector, source: Source) -> tuple[State, str]:
    """State of the model's heads cut from the plain detector in `state`, and that one's prefix `model.77.`; empty where
    either side is not of that kind."""
    heads = model.head
    mark = re.escape(heads.plain_mark) if isinstance(heads, Several) else ""
    numbers = [m[1] for k in state if mark and (m := re.fullmatch(rf"(model\.\d+\.){mark}", k))]
    if not isinstance(heads, Several) or not numbers:
        return {}, ""
    prefix = numbers[-1]
    plain = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if misfit := heads.misfit(plain, by_name=not set(source.columns) <= {None}):
        print("transfer: heads start fresh: " + note("heads start fresh", f"the detector of {source.path} {misfit}"))
        return {}, ""
    found = heads.sliced(plain, source.columns or tuple(range(model.nc)))
    return {f"model.{len(model.model) - 1}.{k}": v for k, v in found.items()}, prefix


def mixed(weight: Tensor, before: int, now: int) -> Tensor:
    """Kernels [O, k*before, h, w] of a convolution of `before` image channels, in k groups (space to depth), for `now`
    channels: [O, k*now, h, w]."""
    mix = torch.zeros(now, before, dtype=weight.dtype)
    for j in range(max(now, before)):
        mix[j % now, j % before] = 1
    if now > before:
        mix /= mix.sum(0)
    groups = weight.unflatten(1, (-1, before))  # [O,k,before,h,w]
    return torch.einsum("nb,okbhw->oknhw", mix, groups).flatten(1, 2)


def adapted(state: State, model: Detector) -> State:
    """The convolutions that read the image, through nothing but rows without parameters, where the file has them for
    another number of channels."""
    own, found, at = model.state_dict(), {}, {-1}
    for i, sources in enumerate(model.sources):
        if not at & set(sources):
            continue
        if not any(True for _ in model.model[i].parameters()):
            at.add(i)
        for k in (k for k in own if k.startswith(f"model.{i}.") and k in state and own[k].dim() == state[k].dim() == 4):
            groups, ungrouped = divmod(own[k].shape[1], model.in_channels)
            before, uneven = divmod(state[k].shape[1], max(groups, 1))
            same = own[k].shape[::2] == state[k].shape[::2] and own[k].shape[3] == state[k].shape[3]
            if same and not ungrouped and not uneven and before != model.in_channels:
                found[k] = mixed(state[k], before, model.in_channels)
    return found


class Transfer(Patch[Flags]):
    needs_weights = takes_part = True

    def load_weights(self, state: State, model: Detector, source: Source) -> State:
        own = model.state_dict()
        wanted = self.flags.transfer_heads == "sliced"
        sliced, used = slice_heads(state, model, source) if wanted else (State(), "")
        fitted = adapted(state, model)
        state = {**state, **fitted}
        taken = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape and k not in sliced}
        if not taken and not sliced:
            raise UserError(f"--transfer-weights: no tensor of {source.path} fits the model by name and shape")
        fresh = [k for k in own if k not in taken and k not in sliced and not k.endswith(".anchor_grid")]
        left = [k for k in state if k not in taken and not (used and k.startswith(used))]  # slicing takes all its rows
        print(
            f"transfer: of the model's {len(own)} tensors {len(taken)} are taken from {source.path}, {len(sliced)} are "
            f"parts of its head (sliced), {len(fresh)} start fresh; {len(left)} of the file's are left over"
        )
        if len(taken) + len(sliced) < LOW_SHARE * len(own):
            said = f"only {len(taken) + len(sliced)} of {len(own)} tensors of {source.path} fit, perhaps by chance"
            warn("transfer: another network", f"{said}: is it another architecture?")
        for what, keys in (("fresh", fresh), ("left over", left)):
            if keys:
                note(f"transfer: {what}", f"{source.path}: {few(keys, 4)}", count=len(keys))
        for what, keys in (("sliced", list(sliced)), ("fresh", fresh), ("left over", left)):
            if keys:
                print(f"  {what}: {few(keys, 4)}")
        for k in fitted:
            print(f"  adapted to {model.in_channels} channels: {k} (see docs/images.md)")
        anchors = f"model.{len(model.model) - 1}.anchors"
        if anchors in taken | sliced and not own[anchors].allclose((taken | sliced)[anchors]):
            print("  anchors: those of the checkpoint, which differ from the model YAML's")
        return {**own, **taken, **sliced}


patch = Transfer
