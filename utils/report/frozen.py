"""Did what was frozen stand still? The tensors of frozen modules in a run's checkpoints, bit for bit against those the
run started from; where that checkpoint is gone, best.pt against last.pt.

Frozen up to an epoch: what --freeze or --trainable-first names, and the stages of --unfreeze that open later. BatchNorm
statistics count only under --freeze-bn eval.
"""

from collections.abc import Iterator

import torch

from models.graph import Detector
from utils import seams
from utils.runs.folder import Checkpoint, Facts
from utils.seams import Source, State
from utils.system.errors import UserError
from utils.train.modules import parse_first, parse_modules
from utils.weights.checkpoint import build_detector, channels_of, lasting

Verdict = list[str] | str  # of a rule: what it found, or why that could not be measured
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MINIMUM = 2  # checkpoints to compare without a start


def frozen_moved(run: Facts) -> Verdict:
    """What moved, or why that is not known."""
    if not run.patches.keys() & {"freeze", "unfreeze"}:
        return "nothing was frozen"
    files = [c for name in ("best.pt", "last.pt") if (c := run.checkpoint(name))]
    if not files:
        return "there is no readable best.pt or last.pt"
    try:
        model = rebuilt(files[0])
        names = {c.path.name: set(still(run, model, int(c.meta.get("epoch", 0)))) for c in files}
    except UserError as error:
        return f"the model cannot be built: {error}"
    if not any(names.values()):
        return "nothing was frozen"
    if isinstance(run.origin, Source):
        reference, called = run.origin.state, run.origin.path
    elif len(files) == MINIMUM:
        reference, called = files[0].state, files[0].path.name
    else:
        return run.origin
    said, compared = [], 0
    for file in files:
        for what, state in (("average", file.state), ("model", file.model)):
            if state is not reference:
                known = [k for k in sorted(names[file.path.name]) if comparable(k, state, reference)]
                if called == files[0].path.name:  # of two checkpoints: what both still have frozen
                    known = [k for k in known if all(k in n for n in names.values())]
                compared += len(known)
                moved = [k for k in known if not torch.equal(state[k], reference[k].to(state[k].dtype))]
                if moved:
                    first = ", ".join(moved[:3])
                    share = f"{len(moved)} of {len(known)}"
                    said.append(f"{file.path.name}, {what}: {share} frozen tensors are not those of {called}: {first}")
    return said if compared else f"no frozen tensor of the run has its like in {called}"


def comparable(name: str, state: State, reference: State) -> bool:
    return name in state and name in reference and state[name].shape == reference[name].shape


def rebuilt(file: Checkpoint) -> Detector:
    """The model of a checkpoint, without its weights."""
    meta = file.meta
    patches = seams.revive(lasting(meta))
    return build_detector(meta["spec"], int(meta["nc"]), patches, str(file.path), channels_of(meta))


def still(run: Facts, model: Detector, epoch: int) -> Iterator[str]:
    """Names of the tensors that were frozen up to the end of this epoch (from 0)."""
    frozen: set[str] = set()
    flags = run.patches.get("freeze", {})
    first = int(flags.get("trainable_first", -1))
    words = tuple(map(str, flags.get("freeze", ("0",))))
    numbers = range(first, len(model.model)) if first != -1 else parse_first(words, model, "--freeze")
    frozen |= {f"model.{i}." for i in numbers}
    for stage in (run.patches.get("unfreeze", {}).get("unfreeze_table") or {}).get("stages", ()):
        if int(stage["epoch"]) > epoch:
            parts = [w.strip() for w in str(stage["modules"]).split("+")]
            frozen |= {f"{w}." for w in parts if w.startswith("branches.")}
            plain = [w for w in parts if not w.startswith("branches.")]
            frozen |= {f"model.{i}." for i in (parse_modules(plain, model, "--unfreeze") if plain else ())}
    statistics = run.config.get("freeze_bn", "eval") == "eval"
    for name in model.state_dict():
        held = any(name.startswith(prefix) for prefix in frozen)
        if held and not name.endswith(".anchor_grid") and (statistics or name.rsplit(".", 1)[-1] not in STATISTICS):
            yield name
