"""Which model description the tensors of a file fit."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.graph import Detector, GraphError
from utils.weights.foreign import ForeignCheckpoint, describe
from utils.weights.model_files import shipped


class Guess(NamedTuple):
    """How well a model file fits a state."""

    where: str
    spec: dict[str, Any]
    fitting: int  # tensors of the state with the model's name and shape
    missing: int  # tensors that the model has and the state has not (or in another shape)


def fit(spec: dict[str, object], where: str, state: Mapping[str, Tensor], nc: int) -> Guess | None:
    """Compare names and shapes with those of the model that `spec` describes; None where it cannot be built."""
    try:
        with torch.device("meta"):
            model = Detector(spec, nc)
    except (GraphError, TypeError, KeyError, AttributeError, RuntimeError):  # a file's own description may be anything
        return None
    shapes = {k: t.shape for k, t in model.state_dict().items() if not k.endswith(".anchor_grid")}
    fitting = sum(k in shapes and shapes[k] == t.shape for k, t in state.items())
    return Guess(where, spec, fitting, len(shapes) - fitting)


def guess_model(found: ForeignCheckpoint) -> Guess | None:
    """The model description that fits best: the file's own first, then the program's files of as many rows:
    building all of them takes many seconds."""
    state = {k: t for k, t in found.state.items() if not k.endswith(".anchor_grid")}
    guesses = [fit(found.yaml, "its own model description", state, found.nc or 80)] if found.yaml else []
    if not any(g and not g.missing for g in guesses):
        last = max((int(n.group(1)) for key in state if (n := re.match(r"model\.(\d+)\.", key))), default=-1)
        like = [(where, spec) for where, spec in shipped() if len(spec["backbone"]) + len(spec["head"]) == last + 1]
        guesses += [fit(spec, where, state, found.nc or spec["nc"]) for where, spec in like]
    known = [g for g in guesses if g and g.fitting]
    pixels = found.anchors.flatten(1).tolist() if found.anchors is not None else None
    return max(known, key=lambda g: (g.fitting - g.missing, g.spec.get("anchors") == pixels), default=None)


def guess_exactly(state: Mapping[str, Tensor]) -> Guess | None:
    """The one of the program's files that has every tensor of the state, and no other."""
    about = describe(state, None)
    about.pop("notes")
    guess = guess_model(ForeignCheckpoint(dict(state), "", **about))
    total = sum(not k.endswith(".anchor_grid") for k in state)
    return guess if guess and guess.fitting == total and not guess.missing else None
