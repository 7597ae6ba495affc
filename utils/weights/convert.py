"""`python -m utils convert X.pt OUT.pt|OUT.safetensors`: another program's weights -> our checkpoint or safetensors.

X may be a YOLOv5 or YOLOv7 `.pt` (pickled model), a plain state dict, a safetensors file, or a checkpoint of ours.
--only-det leaves out what a checkpoint of ours has beside its detector (the head or network of --classify and
--dual-backbone).
Prints what was found: source, keys, parameters, classes, anchors, and which model file the tensors fit.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from utils import seams
from utils.config.tools import CONVERT
from utils.system.errors import UserError, fail
from utils.system.table import few
from utils.weights import own_blocks
from utils.weights.checkpoint import build_detector, channels_of, detection_alone, lasting, save_checkpoint, try_own
from utils.weights.foreign import ForeignCheckpoint, as_meta, describe, read_foreign
from utils.weights.guess import Guess, guess_model


def report(path: Path, found: ForeignCheckpoint, guess: Guess | None) -> str:
    """What the file holds, for people."""
    keys = list(found.state)
    lines = [f"{path.name}: {found.source}", f"  keys          {len(keys)}: {keys[0]} ... {keys[-1]}"]
    lines.append(f"  parameters    {found.parameters:,}")
    names = f": {few(found.names, 5)}" if found.names else ", without names"
    lines.append(f"  classes       {found.nc if found.nc is not None else 'unknown'}{names}")
    if found.groups:
        lines.append(f"  heads         {len(found.groups)} with {', '.join(str(len(g)) for g in found.groups)} classes")
    if found.anchors is not None and found.stride is not None:
        levels = zip(found.stride.tolist(), found.anchors.tolist(), strict=True)
        text = " | ".join(f"stride {s:g}: " + " ".join(f"{w:g},{h:g}" for w, h in level) for s, level in levels)
        lines.append(f"  anchors       {text}")
    total = sum(not k.endswith(".anchor_grid") for k in keys)
    if guess is None:
        lines.append(
            "  architecture  none of the shipped model files fits; give the model YAML with --cfg where it is used"
        )
    elif guess.fitting == total and not guess.missing:
        lines.append(f"  architecture  {guess.where}: all {total} tensors fit")
    else:
        lines.append(
            f"  architecture  nearest is {guess.where}: {guess.fitting} of {total} tensors fit, {guess.missing} missing"
        )
    return "\n".join([*lines, *(f"  note          {note}" for note in found.notes)])


def from_own(content: Mapping[str, Any]) -> ForeignCheckpoint:
    """One of our checkpoints in the same terms."""
    meta, state = content["meta"], dict(content["ema"])
    about = describe(state, None)
    return ForeignCheckpoint(
        state,
        "checkpoint of this program",
        nc=meta.get("nc"),
        names=meta.get("names"),
        anchors=about["anchors"],
        stride=about["stride"],
        yaml=meta.get("spec"),
        groups=meta.get("groups"),
    )


def write_safetensors(path: Path, found: ForeignCheckpoint) -> None:
    """The tensors, and what is known of them as JSON texts. Written aside, then renamed."""
    about = {"nc": found.nc, "names": found.names, "yaml": found.yaml, "groups": found.groups, "source": found.source}
    aside = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(
            {k: t.contiguous() for k, t in found.state.items()}, aside, {k: json.dumps(v) for k, v in about.items()}
        )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def convert(source: Path, out: Path, only_det: bool = False) -> str:
    """Read, write, and return the report. only_det: of a checkpoint of ours, without branches. UserError: unreadable
    source, an unknown or existing target."""
    if out.suffix not in (".pt", ".safetensors"):
        fail(f"{out}: the target must end in .pt (our checkpoint) or .safetensors")
    if out.exists():
        fail(f"{out}: exists already; name another target or remove it first")
    if not out.parent.is_dir():
        fail(f"{out}: there is no folder {out.parent}")
    own = try_own(source)
    if only_det:
        if own is None:
            fail(f"{source}: --only-det takes a checkpoint of this program")
        state, meta = detection_alone(own["ema"], own["meta"])
        own = {**own, "ema": state, "meta": meta}
    if own is not None and out.suffix == ".pt" and not only_det:
        fail(f"{source}: is a checkpoint of this program already; it can be converted to .safetensors")
    found = from_own(own) if own is not None else read_foreign(source)
    guess = guess_model(found)
    text = report(source, found, guess)
    exact = guess is not None and not guess.missing
    if found.yaml and not exact and own is None:  # what no program here could build is not written
        meta = as_meta(found)
        with torch.device("meta"):
            build_detector(meta["spec"], found.nc or 80, seams.revive(lasting(meta)), str(source), channels_of(meta))
    spec = found.yaml or (guess.spec if guess and exact else None)
    try:
        if out.suffix == ".safetensors":
            write_safetensors(out, found)
        elif own is not None:
            save_checkpoint(out, state=own["ema"], meta=own["meta"])
        else:
            save_checkpoint(out, state=found.state, meta=as_meta(dataclasses.replace(found, yaml=spec)))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    return f"{text}\nwrote {out}"


def main(argv: list[str]) -> None:
    args = CONVERT.parse(argv).cfg
    own_blocks.use(args.modules)
    print(convert(Path(args.source), Path(args.out), args.only_det))
