"""A training run: everything it is made of, and what it writes: checkpoints, results, pictures."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.graph import Detector
from utils import checkpoint, data, dist, fingerprint, history, last, manifest, optim, plots, record, replay, seams
from utils.audit import Audit
from utils.config import Config
from utils.data import Sample, class_weights, collate, image_weights
from utils.device import peak_memory, peak_resident
from utils.errors import UserError
from utils.evaluate import Result, Sink, evaluate
from utils.files import naming
from utils.guard import Guard, tell
from utils.interrupt import Interrupt, Stopped
from utils.manifest import Manifest
from utils.missing import report
from utils.notes import keep_in, note
from utils.step import LossStep, compute_type
from utils.tables import write_classes
from utils.watch import Watch


@dataclass
class Run:
    """Everything one training run is made of."""

    cfg: Config
    dir: Path
    device: torch.device
    meta: dict[str, Any]  # what a checkpoint says about itself: model YAML, names, patches, configuration
    model: Detector
    patches: seams.Patches
    loss_step: LossStep
    ema: optim.Ema
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler
    train: Any  # DataLoader of Batch
    val: Any
    results: record.Results
    interrupt: Interrupt
    watch: Watch
    audit: Audit
    guard: Guard
    epoch: int = 0  # next epoch to run, or the one under way
    batch: int = 0  # micro-batches done in it
    sums: dict[str, Tensor] = field(default_factory=dict)  # of each loss term over these
    step: int = 0  # micro-batches done
    pending: int = 0  # micro-batches since the last optimizer step
    best: float = -1.0  # fitness of the best epoch so far
    counts: dict[str, int] = field(default_factory=dict)  # of what learns, as last printed
    class_ap: list[float] | None = None  # AP per class of the last evaluation, for --image-weights
    found: dict[str, Any] = field(default_factory=dict)  # map50, map and their rule, of the last epoch's evaluation

    @property
    def at(self) -> seams.Progress:
        return seams.Progress(self.epoch, self.cfg.epochs, self.step)

    @property
    def autocast(self) -> torch.dtype | None:
        """Type to compute in, None = float32."""
        return compute_type(self.cfg, self.device)

    @property
    def arithmetic(self) -> str:
        """On what kind of device and in which type, for a resume to compare."""
        return f"{self.device.type} {str(self.autocast or torch.float32).removeprefix('torch.')}"


def repeatable(cfg: Config, device: torch.device) -> None:
    """The same numbers again: one seed, no choice of cuDNN kernels by timing, and on a CPU, or with --deterministic, an
    error from every operation of torch that has no deterministic form."""
    torch.manual_seed(cfg.seed)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    # filling costs time, and nothing here reads memory before it writes it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(device.type == "cpu" or cfg.deterministic)


def starting_weights(cfg: Config, patches: seams.Patches) -> seams.Source | None:
    """What --weights holds; None where the run starts from scratch. A patch that acts on weights needs some."""
    if cfg.weights:
        return checkpoint.read_source(cfg.weights)
    if users := [n for n, p in patches.items() if isinstance(p, seams.Patch) and p.needs_weights]:
        raise UserError(f"--weights is missing: patches/{', '.join(users)}.py was switched on to act on them")
    return None


def describe(cfg: Config, patches: seams.Patches, model: Detector, contents: Manifest, **more: Any) -> dict[str, Any]:
    """What a checkpoint says about itself; more: model YAML, class names, image size."""
    return {
        "config": dataclasses.asdict(cfg),
        "patches": patches.records(),
        "groups": model.groups,
        "group_names": model.group_names,
        **more,
        "nc": model.nc,
        "channels": model.in_channels,
        "data": {"yaml": cfg.data, "fingerprint": contents.fingerprint},
    }


def measure(run: Run, detector: Detector, batches: Iterable[data.Batch] | None = None) -> Result:
    """A detector with the run's classes, on its validation set or `batches` made of it, and by its rule. No loss terms:
    its head may be of another kind than the run's."""
    cfg = run.cfg
    return evaluate(
        detector, run.val if batches is None else batches, run.device, names=run.meta["names"], match=cfg.match,
        v5_metric=cfg.v5_metric, autocast=run.autocast, single_cls=cfg.single_cls,
    )  # fmt: skip


def to_device(run: Run, batch: data.Batch) -> data.Batch:
    """The batch where it is computed, images float 0..1, with --multi-scale in the size drawn for this step."""
    batch = data.to_device(batch, run.device)
    if run.cfg.multi_scale:
        size, stride = run.meta["img_size"], int(run.model.stride.max())
        batch["image"] = data.multiscale(batch["image"], size, stride, run.cfg.seed, run.step)
    return batch


def tell_stage(run: Run) -> None:
    """What learns from this epoch on, where that is not what did before."""
    counts = optim.count_parameters(run.loss_step)
    if counts != run.counts:
        print(f"from epoch {run.epoch} on: " + ", ".join(f"{k} {v:,}" for k, v in counts.items()))
    run.counts = counts


def reweigh_images(run: Run) -> None:
    """Draw images by the classes they hold: rare ones, and those found badly in the last evaluation, more often."""
    labels, nc = run.train.dataset.labels, run.meta["nc"]
    missed = 1 - np.array(run.class_ap if run.class_ap else [0.0] * nc)
    run.train.order.weights = image_weights(labels, class_weights(labels, nc) * missed**2)


def restore(run: Run, ckpt: dict[str, Any]) -> None:
    """Continue exactly where the checkpoint was written; the model itself was loaded when it was built."""
    at = ckpt["meta"]
    if at["arithmetic"] != run.arithmetic:
        said = f"resumed on {run.arithmetic}, begun on {at['arithmetic']}: the run goes on, but not to the bit"
        print(note("other arithmetic", said, epoch=at["next_epoch"]))
    keep_in(run.dir, fresh=False)
    note("resumed", f"from step {at['step']}", epoch=at["next_epoch"])
    load(run, ckpt)
    run.epoch, run.batch, run.step, run.best = at["next_epoch"], at["next_batch"], at["step"], at["best"]
    run.pending, run.sums = at["pending"], {k: v.to(run.device) for k, v in ckpt["sums"].items()}
    run.guard.restore(at.get("guard", {}))
    run.audit.went_back(run.guard.undone)
    if at["data"]["fingerprint"] != run.meta["data"]["fingerprint"]:  # allowed by flag: batches are others now
        run.batch, run.step, run.sums = 0, run.epoch * run.schedule.batches, {}


def load(run: Run, ckpt: dict[str, Any]) -> None:
    """All that training changes, but for the model's tensors and the counters of progress."""
    at = ckpt["meta"]
    run.ema.model.load_state_dict(ckpt["ema"])
    run.patches.load_state_dict(ckpt["patches"])
    run.optimizer.load_state_dict(ckpt["optimizer"])
    if ckpt["scaler"] and at["arithmetic"] == run.arithmetic:
        run.scaler.load_state_dict(ckpt["scaler"])
    run.ema.updates, run.class_ap = at["ema_updates"], at["class_ap"]
    run.found = {k: at[k] for k in ("map50", "map", "match") if k in at}


def before_opening(run: Run) -> None:
    """At an epoch's start: keep everything as it stands, where the guard may have to go back to it."""
    if run.guard.opens_now(run.epoch, run.optimizer.param_groups):
        assert run.guard.opening
        write_training(run, run.dir / "weights" / run.guard.opening.file, description(run, run.found), {})
        run.audit.remember()


def judge(run: Run, result: Result | None) -> None:
    """--patience and the guard: whether this was the last epoch, and whether `save` takes the run back."""
    rows = run.guard.judge(run.epoch, result, run.best, run.optimizer.param_groups)
    tell(rows)
    for row in rows if dist.main() else ():
        run.results.append("guard.csv", row)


def go_back(run: Run) -> None:
    """The run as it was before the opening, but for its progress and what the guard changes in the groups."""
    file = run.dir / "weights" / run.guard.back
    dist.barrier()  # rank 0 may still be writing it
    ckpt = checkpoint.read_resumable(file)
    run.guard.undone += run.ema.updates - ckpt["meta"]["ema_updates"]
    run.model.load_state_dict(ckpt["model"])
    load(run, ckpt)
    run.guard.rewrite(run.optimizer.param_groups)
    run.audit.went_back(run.guard.undone)
    print(f"guard: back to {file}")


def save(run: Run, result: Result | None) -> None:
    """best.pt (weights) when this epoch is the best so far, a numbered copy every save_period epochs; then, perhaps
    taken back by the guard, last.pt (resumable)."""
    better = result is not None and result.fitness > run.best
    run.best = max(result.fitness if result else run.best, run.best)
    run.found = {"map50": result.map50, "map": result.map, "match": result.match} if result else {}
    if result is not None:
        run.class_ap = np.nan_to_num(result.ap).tolist()
    last_one = run.epoch == run.cfg.epochs - 1 or bool(run.guard.ended)
    wanted = run.interrupt.save_due(run.step) or last_one or not run.cfg.nosave
    state, meta, weights = (
        run.ema.model.state_dict(),
        {**run.meta, **run.found, "epoch": run.epoch},
        run.dir / "weights",
    )
    # best.pt before last.pt: a kill between the two repeats the epoch and writes the same best.pt again
    if wanted and better and dist.main():
        checkpoint.save_checkpoint(weights / "best.pt", state=state, meta=meta)
    if wanted and run.cfg.save_period > 0 and (run.epoch + 1) % run.cfg.save_period == 0 and dist.main():
        checkpoint.save_checkpoint(weights / f"epoch_{run.epoch + 1:03d}.pt", state=state, meta=meta)
    if run.guard.back:
        go_back(run)
    if wanted:
        save_last(run, {**run.found, "next_epoch": run.epoch + 1, "next_batch": 0}, {})


def save_last(run: Run, at: dict[str, Any], sums: dict[str, Tensor]) -> None:
    """last.pt: everything that the next step depends on. at: what to say beside it, next_epoch and next_batch
    included."""
    weights = run.dir / "weights"
    write_training(run, weights / last.LAST, description(run, at), sums, keep=weights / last.PREVIOUS)
    if dist.main():
        run.guard.tidy(weights)
    run.interrupt.saved()


def description(run: Run, at: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of training says about itself and the run's progress. at: more of that."""
    progress = {"epoch": run.epoch, "step": run.step, "pending": run.pending, "best": run.best}
    averaged = {"ema_updates": run.ema.updates, "class_ap": run.class_ap, "guard": run.guard.state()}
    return {**run.meta, **progress, "arithmetic": run.arithmetic, **averaged, **at}


def write_training(
    run: Run, path: Path, meta: dict[str, Any], sums: dict[str, Tensor], keep: Path | None = None
) -> None:
    """A checkpoint to go on from, written by rank 0."""
    training = {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "patches": run.patches.state_dict(),
        "scaler": run.scaler.state_dict(),
        "sums": sums,
    }
    if dist.main():
        checkpoint.save_checkpoint(path, state=run.ema.model.state_dict(), meta=meta, training=training, keep=keep)


def pause(run: Run) -> None:
    """After an optimizer step within an epoch: save where that is due, stop where that was asked for."""
    if run.batch == run.schedule.batches:
        return
    if run.interrupt.save_due(run.step):
        run.watch.check(run.model)
        run.audit.before_save(run.step)
        save_last(run, {"next_epoch": run.epoch, "next_batch": run.batch}, run.sums)
    if run.interrupt.stopping:
        raise Stopped


def metric_columns(run: Run) -> list[str]:
    """Names of `Result.row`, for epochs that were not evaluated."""
    heads = [f"{kind}/{name}" for kind in ("mAP50", "mAP") for name in run.model.group_names]
    terms = [f"val_{name}" for name in run.loss_step.criterion.terms]
    several = heads if len(run.model.group_names) > 1 else []
    return ["P", "R", "F1", "mAP50", "mAP", *terms, *several, *run.patches.metric_names()]


def line(result: Result) -> str:
    """The means on one line, with the rule they were made by, and what patches measured on a second."""
    heads = (
        "".join(f"  {name} {h.map50:.3f}" for name, h in result.per_head.items()) if len(result.per_head) > 1 else ""
    )
    means = f"P {result.mp:.4f}  R {result.mr:.4f}  mAP@.5 {result.map50:.4f}  mAP@.5:.95 {result.map:.4f}"
    return f"{means}{heads}  ({result.rule})" + (f"\n  {result.said}" if result.said else "")


def write_rows(
    run: Run, losses: dict[str, float], result: Result | None, extra: dict[str, float], seconds: float
) -> None:
    """results.csv, results.txt and timing.csv, and the line on the screen. losses: mean terms; `labels`, `size` of the
    last batch; `data_wait`, the share of the training pass that was spent waiting for batches."""
    if not dist.main():
        return
    labels, size, waited = losses.pop("labels"), losses.pop("size"), losses.pop("data_wait")
    rates = {f"lr_{g['name']}": g["lr"] for g in run.optimizer.param_groups}
    found: dict[str, Any] = result.row if result else {}
    memory = peak_memory(run.device)
    columns = {**dict.fromkeys(metric_columns(run), ""), **found, "match": result.match if result else ""}
    run.results.append("results.csv", {"epoch": run.epoch, "step": run.step, **rates, **losses, **columns, **extra})
    if history.wanted(extra):
        history.write(run.dir, losses)
    timing = {
        "seconds": f"{seconds:.2f}",
        "memory_gib": f"{peak_resident(run.device):.3f}",
        "data_wait": f"{waited:.3f}",
    }
    run.results.append("timing.csv", {"epoch": run.epoch, **timing})
    kinds = record.sums_by_kind(losses)
    val = record.sums_by_kind(result.losses if result else {})
    run.results.append_text(
        {k: kinds[k] for k in ("box", "obj", "cls")}
        | {"total": sum(kinds.values()), "at": f"{run.epoch}/{run.cfg.epochs - 1}", "memory": f"{memory:.3g}G"}
        | {"labels": labels, "size": size, **{k: found.get(k, 0.0) for k in ("P", "R", "mAP50", "mAP")}}
        | {f"val_{k}": val[k] for k in ("box", "obj", "cls")}
    )
    outcome = line(result) if result else "(not evaluated)"
    print(f"  loss {sum(kinds.values()):.4f}  data wait {waited:.0%}  {outcome}")


def open_folder(run: Run, contents: Manifest, source: seams.Source | None) -> None:
    """The run folder with run.yaml, data.csv, the label statistics and the first training batch."""
    if not dist.main():
        return
    with naming(run.dir):
        (run.dir / "weights").mkdir(exist_ok=True)
    last.forget(run.dir / "weights")
    settings = {k: run.meta[k] for k in ("config", "patches")}
    files, start = fingerprint.of_flags(settings), fingerprint.of_start(source)
    where = {"device": record.machine(run.device), "parameters": optim.count_parameters(run.loss_step)}
    inputs = {"files": files, "start": start, "data": {**run.meta["data"], "names": contents.names}}
    with naming(run.dir):
        (run.dir / "result.yaml").unlink(missing_ok=True)  # of a run that --exist-ok replaces
        fingerprint.write_listing(run.dir / manifest.NAME, contents.listing)
    record.write_run_yaml(
        run.dir / "run.yaml",
        {**where, **settings, **inputs},
        run.meta["spec"],
    )
    keep_in(run.dir, fresh=True)
    if run.cfg.replay:
        replay.announce(Path(run.cfg.replay), run.dir)
    names, order = run.meta["names"], run.train.order.order()
    batch = collate([run.train.dataset[Sample(0, i)] for i in order[: min(run.cfg.batch_size, 16)].tolist()])
    rows = plots.target_rows(batch["target"], len(batch["image"]), *batch["image"].shape[2:])
    with naming(run.dir):
        plots.plot_labels(run.train.dataset.labels, names, run.dir / "labels.png")
        plots.plot_batch(batch["image"], rows, names, run.dir / "train_batch0.jpg")


def close_folder(run: Run, validate: Callable[[Run, Detector, Sink], Result]) -> None:
    """Evaluate best.pt once more, draw the pictures, say where everything is."""
    run.audit.close()
    if run.guard.ended:
        print(f"ended after epoch {run.epoch} of {run.cfg.epochs}: {run.guard.ended}")
    best = run.dir / "weights" / "best.pt"
    dist.barrier()  # rank 0 may still be writing it
    if dist.main():
        with naming(run.dir):
            plots.plot_results(run.dir / "results.csv", run.dir / "results.png")
            if (run.dir / "history.json").is_file():
                history.plot(run.dir)
    if best.is_file():
        run.ema.model.load_state_dict(checkpoint.read_checkpoint(best)["ema"])
        names = run.meta["names"]
        with naming(run.dir):
            result = validate(run, run.ema.model, lambda batch, found: plots.plot_found(batch, found, names, run.dir))
            if dist.main():
                plots.plot_evaluation(result, run.dir)
                write_classes(run.dir / "per_class.csv", result)
                run.patches.each("draw", result.observed, run.dir)
        print(f"best.pt: {line(result)}")
        if run.model.stem:
            with naming(run.dir):
                report(result, run.val, partial(measure, run, run.ema.model), run.dir / "modality.csv")
    print(f"results in {run.dir}")
