"""What train.py prints before it starts: module table, frozen share, schedule, features, and what a stage changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from models.graph import Detector
from utils import seams
from utils.config.options import help_topic, show
from utils.config.train import PLACES, parse, program
from utils.system.errors import quiet_pipe
from utils.system.notes import note, warn
from utils.system.table import aligned
from utils.system.yaml_file import read_yaml
from utils.train.modules import spans
from utils.train.run import Run
from utils.weights import own_blocks
from utils.weights.checkpoint import build_detector, read_model

MOST = 20  # settings that differ are listed, the others counted


def announce(run: Run, source: seams.Source | None) -> None:
    """Everything that was declared, before it starts."""
    print(module_table(run.model, run.meta["img_size"]))
    schedule = run.schedule.describe(run.cfg)
    print(note("warm-up capped", schedule) if run.schedule.capped(run.cfg) else schedule)
    norms = {"eval": "stand still", "train": "drift"}[run.cfg.freeze_bn]
    print(f"device {run.device}; mAP by --match {run.cfg.match}; BatchNorm statistics of frozen modules {norms}")
    print(f"features beyond plain training: {', '.join(run.patches) or 'none'}")
    tell_random(run, source)
    if source:
        defaults = {name: show(value) for name, value in run.patches.defaults().items()}
        print(inheritance(source.meta, run.meta, source.path, defaults))
        before, now = source.meta.get("scale"), run.meta.get("scale")
        if before and now and list(before) != list(now):
            said = f"scale of the images: {list(before)} at {source.path}, {list(now)} here: the same value is another"
            print(note("other scale", f"{said} shade to the weights"))


def tell_random(run: Run, source: seams.Source | None) -> None:
    """Modules that stand still at the start though no weights were loaded into them: what learns builds on noise."""
    if run.step or (run.cfg.weights and source is None):
        return
    known = {name: value.shape for name, value in source.state.items()} if source else {}
    drawn = []
    for number, module in enumerate(run.model.model):
        own = {f"model.{number}.{name}": p for name, p in module.named_parameters()}
        frozen = own and not any(p.requires_grad for p in own.values())
        if frozen and not any(known.get(name) == p.shape for name, p in own.items()):
            drawn.append(number)
    if drawn:
        why = f"{run.cfg.weights} holds none for them" if source else "there are no --weights"
        said = f"modules {spans(drawn)} are frozen with random weights ({why}): what learns builds on noise"
        warn("frozen random weights", f"{said}; give --weights of a trained network, or let them learn")


def module_table(model: Detector, size: int) -> str:
    """Index, from, module, output shape (C,H,W) at this square size, parameters, trainable or frozen."""
    lines = [("", "from", "module", "output", "parameters", "state")]
    for row in model.table(size):
        shape = "x".join(map(str, row.shape)) if isinstance(row.shape, tuple) else f"{len(row.shape)} levels"
        source = ",".join(map(str, row.source))
        lines.append((str(row.number), source, row.module, shape, *learns(model.model[row.number])))
    for name, branch in model.branches.items():
        at = str(model.branch_inputs[name])
        source, joins = (
            ("2nd picture", f"joins row {at}") if name == model.stem else ("image" if at == "-1" else at, name)
        )
        lines.append(("", source, type(branch).__name__, joins, *learns(branch)))
    return aligned(lines)


def learns(module: nn.Module) -> tuple[str, str]:
    """How many parameters it has, and whether they train: `frozen` where none does."""
    params = list(module.parameters())
    state = "trains" if any(p.requires_grad for p in params) else "frozen" if params else ""
    return f"{sum(p.numel() for p in params):,}", state


def print_help(argv: Sequence[str]) -> None:
    """train.py --help --cfg: the help, and the module table of that model, with the classes of --data and the heads of
    --head-config where they are given."""
    topic, train = help_topic(argv), program()
    at = next(i for i, word in enumerate(argv) if word.split("=")[0] in ("-h", "--help"))
    words = [*argv[:at], *argv[at + 1 + (topic != "" and "=" not in argv[at]) :]]
    given = parse(words)
    cfg = given.cfg
    own_blocks.use(cfg.modules)
    with quiet_pipe(0):
        print(train.help(topic or ""))
        spec, nc, channels = read_model(cfg.cfg), 0, 3
        if "data" in given.names:
            data = read_yaml(cfg.data, "--data")
            nc, channels = len(data.get("names") or ()), int(data.get("channels") or 3)
        patches = seams.Patches(
            {name: patch for name, patch in seams.switched_on(given.flags).items() if "layers" in vars(type(patch))}
        )
        model = build_detector(spec, nc or int(spec.get("nc", 80)), patches, cfg.cfg, channels)
        print(f"{cfg.cfg} at {cfg.train_size} px:\n{module_table(model, -(-cfg.train_size // 64) * 64)}")


def inheritance(
    before: Mapping[str, object], now: Mapping[str, object], path: str, defaults: Mapping[str, str] | None = None
) -> str:
    """What a stage changes against the training of the checkpoint it starts from, a line each; equal settings are
    counted. Of a feature that is new, what has its default (`FEATURE.SETTING`) goes without saying.

    before, now: {"config": {...}, "patches": {...}} as stored in checkpoints.
    """
    if not before.get("config"):
        return f"starts from {path}, a file that does not say how it was trained: nothing to compare the settings with"
    old, new = flatten(before), flatten(now)
    same = sum(k in old and old[k] == new[k] for k in new)
    fresh = new.keys() - old.keys()
    silent = {k for k in fresh if (defaults or {}).get(k) == new[k]}
    changed = [f"  {flag(k)}: {old.get(k, 'off')} -> {new[k]}" for k in new if old.get(k) != new[k] and k not in silent]
    gone = [f"  {flag(k)}: {old[k]} -> off" for k in old if k not in new]
    differ = f"{len(changed) + len(gone)} differ:" if changed or gone else "none differs"
    epoch = f" (epoch {before['epoch']})" if "epoch" in before else ""
    head = f"starts from {path}{epoch}; against its training {same} settings are the same, {differ}"
    lines = [*changed, *gone]
    if len(lines) > MOST:
        lines[MOST:] = [f"  ... and {len(lines) - MOST} more; run.yaml of both runs lists all settings"]
    return "\n".join([head, *lines])


def flag(setting: str) -> str:
    """`FEATURE.SETTING` as it is typed."""
    return "--" + setting.rpartition(".")[2].replace("_", "-")


def flatten(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings that matter to the outcome as one level of text; where files lie and how they are stored does not."""
    flat = {k: show(v) for k, v in settings["config"].items() if k not in PLACES}
    for name, flags in settings.get("patches", {}).items():
        flat |= {f"{name}.{k}": show(v) for k, v in flags.items() if not k.endswith("_table")}
    return flat
