"""How a run starts: anew (from scratch or from weights, a new stage) or resumed (the same stage). Never two of them.

A replay is a new run, from scratch or from weights as its original, with the settings that the original recorded.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.graph import Detector
from utils import seams
from utils.config.options import Given, restored
from utils.config.train import Config, parse
from utils.runs import choice, lock, replay, resumable
from utils.runs.choice import Choice
from utils.system import dist
from utils.system.device import select_device
from utils.system.errors import UserError, parsing
from utils.system.notes import note
from utils.system.sync_bn import synchronise_norms
from utils.weights import checkpoint, class_rows, detector_forms, own_blocks

RESUMED = (  # what the description of a checkpoint must hold for its run to go on
    "config", "patches", "spec", "data", "conditions", "next_epoch", "next_batch", "step", "best", "pending",
    "ema_updates", "class_ap",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """What a run is made from."""

    cfg: Config
    patches: seams.Patches
    device: torch.device
    folder: Path  # of the run
    lock: AbstractContextManager[object]  # held by rank 0 as long as it may write there
    resumed: dict[str, Any] | None = None  # content of the checkpoint that is continued
    spec: dict[str, Any] | None = None  # model YAML of a resumed or replayed run


def begin(argv: Sequence[str]) -> Start:
    """argv -> where to start from. Errors: UserError for flags that are wrong or do not go together."""
    given = parse(argv)
    cfg = given.cfg
    own_blocks.use(cfg.modules)
    if cfg.resume:
        return resume(given)
    if cfg.allow_changed_data:
        raise UserError("--allow-changed-data goes with --resume")
    if cfg.replay:
        return repeat(given)
    patches = seams.switched_on(given.flags)
    device = meet(cfg)
    return Start(cfg, patches, device, *claim(cfg, "name" in given.names))


def claim(cfg: Config, named: bool) -> tuple[Path, AbstractContextManager[object]]:
    """The folder of a new run, and the right to write there."""
    return lock.claim(cfg.project, cfg.name, named=named, exist_ok=cfg.exist_ok, resumes=True)


def resume(given: Given[Config]) -> Start:
    """The run's own settings; only where it runs, and where its data lie now, is taken from the command line: a changed
    setting is a new stage."""
    cfg, where = given.cfg, {"device", "workers", "data", "modules"}
    given.only({"resume", "project", "allow_changed_data"} | where, "--resume goes on with the run's own settings")
    path = resumable.find(cfg.resume, cfg.project)
    resumable.check_place(path)
    folder = path.parent.parent
    if said := resumable.ended(folder):
        print(said)
        raise SystemExit  # with code 0: what was asked for is there
    old = replay.read(str(folder))
    held = lock.Lock(folder) if dist.main() else nullcontext()
    resumed, damage = resumable.read(path)
    meta = resumed["meta"]
    resumable.check_run(path, meta.get("config") or {}, old.content.get("config"))
    if dist.main():
        resumable.clear(folder)
    if path.name == resumable.PREVIOUS:
        print(note("from the save before", f"goes on from {path}, the save before the last: step {meta.get('step')}"))
    if lacking := [name for name in RESUMED if name not in meta]:
        raise UserError(
            f"--resume {path}: an earlier version wrote it, it does not say {', '.join(lacking)}; go on with that "
            f"version, or start a new stage with --weights {path}"
        )
    own_blocks.check(meta, path)
    taken = {name: getattr(cfg, name) for name in where & given.names}
    taken["allow_changed_data"] = cfg.allow_changed_data  # never the stored one: it is allowed once
    own = restored(Config, {**old.here(meta["config"]), **taken}, f"--resume {path}: its settings")
    device = meet(own)
    if damage:
        print(note("damaged checkpoint", damage, epoch=meta["next_epoch"]))
        dist.barrier()  # every rank has read
        if dist.main():
            resumable.put_aside(path)
    patches = seams.revive({name: old.here(record) for name, record in meta["patches"].items()})
    return Start(own, patches, device, folder, held, resumed, meta["spec"])


def repeat(given: Given[Config]) -> Start:
    """The recorded run from its beginning, in a folder of its own; only where it runs, and where its weights and its
    data lie now, is taken from the command line."""
    cfg, where = given.cfg, {"project", "name", "device", "workers", "weights", "data", "modules"}
    given.only(where | {"replay"}, "--replay repeats a run with its own settings")
    old = replay.read(cfg.replay)
    own_blocks.check(old.content, old.folder)
    fresh = {"project": str(old.folder.parent), "name": f"{old.folder.resolve().name}_replay", "exist_ok": False}
    changed = {
        "replay": cfg.replay,
        "resume": "",
        **fresh,
        **{name: getattr(cfg, name) for name in where & given.names},
    }
    own = dataclasses.replace(old.cfg, **changed)
    if bool(own.weights) != bool(old.cfg.weights):
        raise UserError(f"--weights: {old.folder} started from scratch, and so does its replay")
    if own.weights and not Path(own.weights).is_file():
        raise UserError(f"--replay: the weights {own.weights} are gone; say with --weights FILE where they are now")
    with torch.random.fork_rng(devices=[]):
        patches = replay.make_patches(old)
    device = meet(own)
    return Start(own, patches, device, *claim(own, "name" in given.names), spec=old.spec)


def starting_weights(cfg: Config, patches: seams.Patches, names: list[str]) -> seams.Source | None:
    """What --weights holds, its classes compared with those of the data; None where the run starts from scratch. A
    patch that acts on weights needs some."""
    if cfg.weights:
        source = checkpoint.read_source(cfg.weights)
        some = any(isinstance(p, seams.Patch) and p.takes_part for p in patches.values())
        cure = "--transfer-weights keeps the rows of equal names and starts the others fresh"
        columns = class_rows.compare(source.meta, source.path, names, cfg.data, "" if some else cure)
        return dataclasses.replace(source, columns=columns)
    if users := [n for n, p in patches.items() if isinstance(p, seams.Patch) and p.needs_weights]:
        raise UserError(f"--weights is missing: patches/{', '.join(users)}.py was switched on to act on them")
    return None


def load_weights(
    model: Detector, patches: seams.Patches, source: seams.Source | None, resumed: Mapping[str, Any] | None
) -> None:
    """Tensors of --weights, or those of the run that is resumed; with neither, the model stays as it was drawn."""
    if source:
        source = dataclasses.replace(source, state=detector_forms.as_built(source.state, model, source.path))
        state = patches.fold("load_weights", class_rows.by_name(source, model), model, source)
        checkpoint.load_into(model, state, source.path, source)
    elif resumed:
        with parsing("--resume: the checkpoint's weights do not fit the model"):
            model.load_state_dict(resumed["model"])


def prepare(model: Detector, cfg: Config, patches: seams.Patches) -> Choice:
    """The patches act on the model; by which figure best.pt is chosen. Errors: UserError for what was asked of a model
    that it does not have; no data are needed to find it."""
    if cfg.sync_bn and dist.world() > 1:
        synchronise_norms(model)
    terms = tuple(model.criterion(cfg.loss).terms)
    with torch.random.fork_rng(devices=[]):  # a patch must not shift the random numbers of the base
        patches.each("on_model_built", model, patches.names(terms))
    return choice.of_run(cfg.best_by, terms, patches.names(terms), model.group_names, patches)


def meet(cfg: Config) -> torch.device:
    """The device of this process; with torchrun the ranks have found each other afterwards."""
    if cfg.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
    device = select_device(cfg.device)
    dist.join(device)
    return device
