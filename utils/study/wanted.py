"""What a run with these flags of train.py would be, found out without training: whether all of it fits together, and
whether a run that is there already is that one.

Looked at: flags and their ranges, the files that they name, data YAML, model, patches; starting weights where they are
there already. A run is the same where its settings (but for where and how fast it runs), the contents of the files that
its flags name, its data, starting weights and code are.
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils import seams
from utils.config.options import flag
from utils.config.train import PLACES, Config, parse
from utils.data.build import whole_strides
from utils.data.spec import DataSpec, read_data
from utils.runs import fingerprint
from utils.runs.folder import Facts
from utils.system.errors import UserError
from utils.train import anchors
from utils.train.start import load_weights, starting_weights
from utils.weights import checkpoint, own_blocks

FREE = PLACES - {"notest"}  # settings that say where and how fast, not what comes out
APART = {"data", "hyp"}  # files whose contents are compared as data, and as settings
MOST = 4  # differing settings that are named

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Wanted:
    """A run that is asked for."""

    cfg: Config
    patches: Mapping[str, Mapping[str, Any]]  # {name: its flags}
    files: Mapping[str, Mapping[str, str]]  # {flag: path and sha256}
    spec: DataSpec
    graph: Mapping[str, Any]  # the model YAML
    shapes: Shapes  # of the model's tensors
    transfers: bool  # whether it takes what fits of other weights


def rehearse(words: Sequence[str], before: "Wanted | None" = None) -> Wanted:
    """What these flags ask for. before: the run whose checkpoint it will start from, while that is not there. Errors:
    UserError where something does not exist, is wrong or does not fit."""
    with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
        given = parse([*words, "--weights", ""] if before else words)
        cfg = given.cfg
        own_blocks.use(cfg.modules)
        patches = seams.switched_on(given.flags)
        spec = read_data(cfg.data)
        seen = spec.merged() if cfg.single_cls else spec
        patches.each("on_data_read", seen)
        source = None if before else starting_weights(cfg, patches, list(seen.names))
        spec_of_model = before.graph if before and not cfg.cfg else checkpoint.model_yaml(cfg.cfg, source)
        graph = anchors.per_level(spec_of_model, cfg.anchors)
        model = checkpoint.build_detector(graph, seen.nc, patches, cfg.cfg or cfg.weights, spec.channels)
        if source:
            load_weights(model, patches, source, None)
        size = whole_strides(cfg.train_size, int(model.stride.max()))
        criterion = model.criterion(model.head.gains(cfg.loss, size))
        patches.each("on_model_built", model, patches.names(criterion.terms))
        settings = {name: vars_shown(p.flags) for name, p in patches.items() if isinstance(p, seams.Patch)}
        files = fingerprint.of_flags({"config": dataclasses.asdict(cfg), "patches": settings})
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        transfers = any(isinstance(p, seams.Patch) and p.takes_part for p in patches.values())
    found = Wanted(cfg, settings, files, spec, graph, shapes, transfers)
    if before:
        check_fit(before, found)
    return found


def check_fit(before: Wanted, now: Wanted) -> None:
    """The model of a stage takes all tensors of the one before, or says that it takes what fits."""
    other = [k for k in {**before.shapes, **now.shapes} if before.shapes.get(k) != now.shapes.get(k)]
    other = [k for k in other if not k.endswith(".anchor_grid")]
    if other and not now.transfers:
        raise UserError(
            f"its model does not fit the weights of the stage before ({len(other)} tensors differ, first "
            f"{other[0]}): give it the same --cfg and heads, or transfer-weights: true"
        )


def vars_shown(flags: Any) -> dict[str, Any]:
    """The flags that a user can give."""
    return {f.name: getattr(flags, f.name) for f in dataclasses.fields(flags) if not f.metadata.get("hidden")}


def data_print(spec: DataSpec) -> str:
    """Fingerprint of the data as they are now; quick where they were looked at before."""
    with contextlib.redirect_stdout(io.StringIO()):
        return fingerprint.of_data(spec)[0]


def differences(run: Facts, wanted: Wanted, weights: str | None, code: bool = True) -> list[str]:
    """In what the run that is there is another one than that which is wanted; empty where it is that one. weights:
    fingerprint of the tensors that it would start from; empty: from scratch; None: of a checkpoint that does not exist
    yet. code: whether another code counts."""
    if not run.settings.get("config"):
        return [*run.gaps, "nothing says with what it was made (run.yaml)"][:1]
    lines = settings_apart(run, wanted)
    old = run.settings.get("files") or {}
    for name in sorted({*old, *wanted.files} - APART):
        then, now = (str(x.get(name, {}).get("sha256", "none"))[:12] for x in (old, wanted.files))
        if then != now:
            lines.append(f"content of {flag(name)} {wanted.files.get(name, old.get(name, {}))['path']}")
    if run.data != (now := data_print(wanted.spec)):
        lines.append(f"data {wanted.cfg.data} (fingerprint {run.data[:12] or 'not recorded'}, now {now[:12]})")
    began = str(run.start.get("tensors") or "")
    if weights is None:
        lines.append(f"weights: it started from {began[:12] or 'scratch'}, and the stage before is still to be trained")
    elif began != weights:
        lines.append(f"weights: it started from {began[:12] or 'scratch'}, now {weights[:12] or 'scratch'}")
    then = str((run.settings.get("environment") or {}).get("code") or "")
    if code and then != (now := fingerprint.of_code()):
        lines.append(f"code ({then[:12] or 'not recorded'}, now {now[:12]})")
    return lines


def settings_apart(run: Facts, wanted: Wanted) -> list[str]:
    """Flags with other values, those of the base first."""
    old, new = dict(run.config), dataclasses.asdict(wanted.cfg)
    pairs = [(k, old.get(k), v) for k, v in new.items() if k not in FREE and k != "hyp"]
    for name in {**run.patches, **wanted.patches}:
        then, now = run.patches.get(name), wanted.patches.get(name)
        if then is None or now is None:
            pairs += [(k, "not given", v) for k, v in (now or {}).items()][:1]
            pairs += [(k, v, "not given") for k, v in (then or {}).items()][:1]
            continue
        pairs += [(k, then.get(k), v) for k, v in now.items()]
    other = [f"{flag(k)} {shown(b)} (there {shown(a)})" for k, a, b in pairs if plain(a) != plain(b)]
    return other[:MOST] + [f"{len(other) - MOST} more flags"] * (len(other) > MOST)


def plain(value: Any) -> str:
    """As YAML keeps it: lists for tuples, and no difference between 1 and 1.0."""
    value = list(value) if isinstance(value, tuple) else value
    return json.dumps(float(value) if isinstance(value, int) and not isinstance(value, bool) else value, default=str)


def shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value) if value != "" else "none"


def tensors_of(weights: str) -> str:
    """Fingerprint of the tensors of a checkpoint; empty where there is none."""
    return fingerprint.of_tensors(checkpoint.read_source(weights).state) if weights else ""


def ended_with(run: Facts, file: str) -> str | None:
    """Fingerprint of the weights in a file of a run that has ended; None where the run has none of that name."""
    known = (run.result.get("tensors") or {}).get(f"{file} ema")
    path = Path(run.folder) / "weights" / file
    return str(known) if known else tensors_of(str(path)) if path.is_file() else None
