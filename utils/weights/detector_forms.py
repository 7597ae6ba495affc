"""A detector in another of YOLOv7's forms than the model that is built: as it is trained, or as it is deployed.

Trained, its last row is an IDetect, or an IAuxDetect behind one further convolution per level for its auxiliary head;
deployed it is a Detect, whose convolutions hold the implicit constants, and its row number is that much lower.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from models.graph import Detector
from models.head import folded_rows
from utils.seams import State
from utils.system.notes import note


def as_built(state: State, model: Detector, path: str) -> State:
    """The tensors of a file in the form that the model has; as they are where they are in that form already, or in
    none of these. What was done is said in a line. What the file lacks (an auxiliary head) stays away."""
    numbers = [int(m[1]) for key in state if (m := re.fullmatch(r"model\.(\d+)\.m\.0\.weight", key))]
    own, last = model.state_dict(), len(model.model) - 1
    if not numbers or f"model.{last}.m.0.weight" not in own:
        return state
    row, levels = max(numbers), len(model.stride)
    there, here = f"model.{row}.", f"model.{last}."
    auxiliary = {"file": f"{there}m2.0.weight" in state, "model": f"{here}m2.0.weight" in own}
    drop = levels * (auxiliary["file"] - auxiliary["model"])
    if row - drop != last:
        return state
    aside = {f"model.{row - i}." for i in range(1, drop + 1)}  # convolutions of the auxiliary head alone
    kept = {k: v for k, v in state.items() if not k.startswith((there, *aside))}
    detector = {k.removeprefix(there): v for k, v in state.items() if k.startswith(there)}
    said = []
    if drop > 0:
        detector = {k: v for k, v in detector.items() if not k.startswith("m2.")}
        said.append("its auxiliary head is left out")
    elif drop < 0:
        said.append("it has no auxiliary head")
    implicit = {"file": "ia.0.implicit" in detector, "model": f"{here}ia.0.implicit" in own}
    if implicit["file"] and not implicit["model"]:
        detector = folded(detector, levels)
        said.append("the implicit constants of its detector are folded in")
    elif implicit["model"] and not implicit["file"]:
        fills = {k.removeprefix(here): v for k, v in own.items() if k.startswith((f"{here}ia.", f"{here}im."))}
        detector |= {k: torch.full_like(v, float(k.startswith("im."))) for k, v in fills.items()}
        said.append("implicit constants are added to its detector at 0 and 1")
    if said:
        print("weights: " + note("another form of the detector", f"{path}: {', '.join(said)}"))
    return {**kept, **{here + k: v for k, v in detector.items()}}


def folded(detector: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """State of an IDetect -> that of the Detect with the same outputs."""
    rest = {k: v for k, v in detector.items() if not k.startswith(("m.", "ia.", "im.", "anchor_grid"))}
    for level in range(levels):
        rest[f"m.{level}.weight"], rest[f"m.{level}.bias"] = folded_rows(detector, level)
    return rest
