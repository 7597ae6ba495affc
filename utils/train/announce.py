"""What train.py prints before it starts: module table, frozen share, schedule, features, and what a stage changes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from models.graph import Detector
from utils import seams
from utils.config.options import help_topic, show
from utils.config.train import PLACES, parse, program
from utils.system.errors import quiet_pipe
from utils.system.notes import note
from utils.system.yaml_file import read_yaml
from utils.train.optim import count_parameters
from utils.train.run import Run
from utils.weights.checkpoint import build_detector, read_model


def announce(run: Run, source: seams.Source | None) -> None:
    """Everything that was declared, before it starts."""
    print(module_table(run.model, run.meta["img_size"]))
    print(parameter_summary(run.loss_step))
    schedule = run.schedule.describe(run.cfg)
    print(note("warm-up capped", schedule) if run.schedule.capped(run.cfg) else schedule)
    print(f"BatchNorm of frozen modules: {run.cfg.freeze_bn}; mAP by --match {run.cfg.match}; device {run.device}")
    print(f"features beyond plain training: {', '.join(run.patches) or 'none'}")
    if source:
        defaults = {name: show(value) for name, value in run.patches.defaults().items()}
        print(inheritance(source.meta, run.meta, source.path, defaults))


def module_table(model: Detector, size: int) -> str:
    """Index, from, module, output shape (C,H,W) at this square size, parameters, trainable or frozen."""
    lines = [f"{'':>4} {'from':>14}  {'module':20} {'output':>18} {'parameters':>12}  state"]
    for row in model.table(size):
        params = list(model.model[row.number].parameters())
        frozen = bool(params) and not any(p.requires_grad for p in params)
        source = ",".join(str(s) for s in row.source)
        shape = row.shape if isinstance(row.shape, tuple) else f"{len(row.shape)} levels"
        text = "x".join(str(s) for s in shape) if isinstance(shape, tuple) else shape
        state = "frozen" if frozen else "trains" if params else ""
        lines.append(f"{row.number:>4} {source:>14}  {row.module:20} {text:>18} {row.params:>12,}  {state}")
    for name, branch in model.branches.items():
        params = list(branch.parameters())
        state = "trains" if any(p.requires_grad for p in params) else "frozen" if params else ""
        source = "image" if model.branch_inputs[name] < 0 else str(model.branch_inputs[name])
        count, shown = sum(p.numel() for p in params), name
        if name == model.stem:
            source, shown = "2nd picture", f"joins row {model.branch_inputs[name]}"
        lines.append(f"{'':>4} {source:>14}  {type(branch).__name__:20} {shown:>18} {count:>12,}  {state}")
    return "\n".join(lines)


def print_help(argv: Sequence[str]) -> None:
    """train.py --help --cfg: the help, and the module table of that model, with the classes of --data and the heads of
    --head-config where they are given."""
    topic, train = help_topic(argv), program()
    at = next(i for i, word in enumerate(argv) if word.split("=")[0] in ("-h", "--help"))
    words = [*argv[:at], *argv[at + 1 + (topic != "" and "=" not in argv[at]) :]]
    given = parse(words)
    cfg = given.cfg
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


def parameter_summary(module: nn.Module) -> str:
    """One line: trainable and frozen parameters, BatchNorm layers by mode."""
    counts = count_parameters(module)
    total = counts["trainable_params"] + counts["frozen_params"]
    share = counts["trainable_params"] / max(total, 1)
    return f"parameters {total:,}, of which {share:.1%} train; " + ", ".join(f"{k} {v:,}" for k, v in counts.items())


def inheritance(
    before: Mapping[str, Any], now: Mapping[str, Any], path: str, defaults: Mapping[str, str] | None = None
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
    return "\n".join([head, *changed, *gone])


def flag(setting: str) -> str:
    """`FEATURE.SETTING` as it is typed."""
    return "--" + setting.rpartition(".")[2].replace("_", "-")


def flatten(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings that matter to the outcome as one level of text; where files lie and how they are stored does not."""
    flat = {k: show(v) for k, v in settings["config"].items() if k not in PLACES}
    for name, flags in settings.get("patches", {}).items():
        flat |= {f"{name}.{k}": show(v) for k, v in flags.items() if not k.endswith("_table")}
    return flat
