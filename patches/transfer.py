"""--transfer-weights: a fresh run from every tensor of --weights that fits by name and shape.  Seam: load_weights.

Several heads are cut out of a plain detector's rows (--transfer-heads sliced), so that the new model detects what the
old one did;
--transfer-heads fresh starts them anew. What was taken, sliced, left fresh and left over is printed.
"""

import re
from dataclasses import dataclass

from models.graph import Detector
from utils.config import opt
from utils.errors import UserError
from utils.seams import Patch, Source, State


@dataclass(frozen=True, kw_only=True)
class Flags:
    transfer_weights: bool = opt(False, "start from all tensors of --weights that fit (new optimizer, epoch 0)")
    transfer_heads: str = opt("sliced", "heads from a plain detector's rows, or fresh", choices=("sliced", "fresh"))


def detector_number(state: State) -> str:
    """`77.` of the last plain detector `model.77.m.0.weight` among the keys; empty where there is none."""
    found = [m[1] for k in state if (m := re.fullmatch(r"model\.(\d+\.)m\.0\.weight", k))]
    return found[-1] if found else ""


def slice_heads(state: State, model: Detector, path: str) -> State:
    """State of the model's heads cut from the plain detector in `state`; empty where either side is not of that
    kind."""
    last = f"model.{len(model.model) - 1}."
    sliced = getattr(model.head, "sliced", None)
    number = detector_number(state)
    if sliced is None or not number:
        return {}
    prefix = f"model.{number}"
    plain = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    own = model.head.anchors
    rows, channels = plain["m.0.weight"].shape[0], plain["m.0.weight"].shape[1]
    want = own.shape[1] * (5 + model.nc)
    if rows != want or plain["anchors"].shape != own.shape:
        print(
            f"transfer: heads start fresh: the detector of {path} has {rows} outputs per level, this data needs {want}"
        )
        return {}
    new = {f"{last}{k}": v for k, v in sliced(plain).items()}
    fits = model.state_dict()
    if any(fits[k].shape[1:] != v.shape[1:] for k, v in new.items() if v.dim() == 4):
        print(f"transfer: heads start fresh: the detector of {path} reads {channels} channels at its first level")
        return {}
    return {**new, f"{last}anchors": plain["anchors"]}


class Transfer(Patch[Flags]):
    def load_weights(self, state: State, model: Detector, source: Source) -> State:
        own = model.state_dict()
        sliced = slice_heads(state, model, source.path) if self.flags.transfer_heads == "sliced" else {}
        taken = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape and k not in sliced}
        if not taken and not sliced:
            raise UserError(f"--transfer-weights: no tensor of {source.path} fits the model by name and shape")
        fresh = [k for k in own if k not in taken and k not in sliced and not k.endswith(".anchor_grid")]
        used = "model." + detector_number(state) if sliced else "-"  # slicing takes all of the plain detector's rows
        left = [k for k in state if k not in taken and not k.startswith(used)]
        print(
            f"transfer: {len(taken)} of {len(own)} tensors taken from {source.path}, "
            f"{len(sliced)} sliced, {len(fresh)} fresh, {len(left)} left over"
        )
        for what, keys in (("sliced", list(sliced)), ("fresh", fresh), ("left over", left)):
            if keys:
                print(f"  {what}: {', '.join(keys[:4])}{f', ... ({len(keys)} in all)' if len(keys) > 4 else ''}")
        anchors = f"model.{len(model.model) - 1}.anchors"
        if anchors in taken | sliced and not own[anchors].allclose((taken | sliced)[anchors]):
            print("  anchors: those of the checkpoint, which differ from the model YAML's")
        return {**own, **taken, **sliced}


patch = Transfer
