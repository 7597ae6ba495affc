"""What a run writes for people: rows, lines on the screen, pictures."""

import math
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from models.graph import Detector
from utils import seams
from utils.data.loader import collate
from utils.evaluation.evaluate import MEANS, Result, Sink, evaluate
from utils.evaluation.tables import number, write_classes
from utils.runs import fingerprint, manifest, plots, record, replay, resumable
from utils.runs.folder import START, START_CLASSES, Facts
from utils.runs.manifest import Manifest
from utils.system import dist
from utils.system.device import peak_memory, peak_resident
from utils.system.files import naming, write_text
from utils.system.notes import keep_in, warn
from utils.system.processes.signals import Stopped
from utils.train import optim, saving
from utils.train.run import Run
from utils.weights import checkpoint


def measure(run: Run, detector: Detector | None = None, change: seams.BatchChange | None = None) -> Result:
    """The average, or another detector with the run's classes, on the validation set and by the run's rule. change: of
    every batch as loaded. No loss terms: the head may be of another kind than the run's."""
    batches = map(change, heeding(run)) if change else heeding(run)
    return evaluate(detector or run.ema.model, batches, run.device, run.judging)


def validate(run: Run, sink: Sink | None = None) -> Result:
    """The average on the validation set, loss terms included. sink: gets the first batch and its detections."""
    criterion = run.loss_step.criterion
    return evaluate(
        run.ema.model, heeding(run), run.device, run.judging,
        criterion=criterion, patches=run.patches, first_batch_sink=sink,
    )  # fmt: skip


def validate_trained(run: Run) -> Result:
    """At the end of an epoch, whose training it must not put at risk."""
    with saving.trained(run):
        return validate(run)


def heeding(run: Run) -> Iterator[seams.Batch]:
    """The validation batches; Stopped between two of them where that was asked for. The ranks, which have about as many
    each, vote before every one."""
    batches = iter(run.val)
    for _ in range(-(-len(run.val.order.global_sizes()) // dist.world())):
        if run.interrupt.vote() == 2:
            raise Stopped
        if (batch := next(batches, None)) is not None:
            yield batch


def measure_start(run: Run) -> None:
    """What the weights that a stage starts from reach before anything has learned, as the epochs are evaluated:
    start.csv, a row `start` with the columns of an evaluation, and start_per_class.csv. Nothing of training depends on
    it. From scratch there is nothing to measure."""
    if run.step:
        return
    result = validate(run) if run.cfg.weights and run.cfg.measure_start else None
    if result and dist.main():
        with naming(run.dir):
            write_text(run.dir / START, record.as_csv({"epoch": "start", "step": 0, **evaluated(run, result)}))
            write_classes(run.dir / START_CLASSES, result)
        print(f"start, {run.cfg.weights}: {line(result)}")
    run.patches.each("before_training", result, partial(measure, run))


def evaluated(run: Run, result: Result | None) -> dict[str, float | str]:
    """The columns of an evaluation, empty where nothing was measured."""
    names = Result.columns(run.loss_step.criterion.terms, run.model.group_names, run.patches.metric_names())
    unmeasured = dict.fromkeys(MEANS, "") if result and not result.measured else {}
    found = result.row if result else {}
    return {**dict.fromkeys(names, ""), **found, **unmeasured, "match": result.match if result else ""}


def line(result: Result) -> str:
    """The means on one line, with the rule they were made by, and what patches measured on a second."""
    heads = (
        "".join(f"  {name} {number(h.map50, 3)}" for name, h in result.per_head.items())
        if len(result.per_head) > 1
        else ""
    )
    values = {"P": result.mp, "R": result.mr, "mAP@.5": result.map50, "mAP@.5:.95": result.map}
    means = "  ".join(f"{name} {number(value)}" for name, value in values.items())
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
    found = result.row if result else {}
    memory = peak_memory(run.device)
    columns = evaluated(run, result)
    run.results.append("results.csv", {"epoch": run.epoch, "step": run.step, **rates, **losses, **columns, **extra})
    timing = {
        "seconds": f"{seconds:.2f}",
        "memory_gib": f"{peak_resident(run.device):.3f}",
        "data_wait": f"{waited:.3f}",
    }
    run.results.append("timing.csv", {"epoch": run.epoch, **timing})
    kinds = record.sums_by_kind(losses)
    val = record.sums_by_kind({f"val_{name}": value for name, value in (result.losses if result else {}).items()})
    run.results.append_text(
        {**found, **val, **kinds}
        | {"total": sum(kinds.values()), "at": f"{run.epoch}/{run.cfg.epochs - 1}", "memory": f"{memory:.3g}G"}
        | {"labels": labels, "size": size},
        run.model.head.loss_kinds(),
    )
    outcome = line(result) if result else "(not evaluated)"
    print(f"  loss {sum(kinds.values()):.4f}  data wait {waited:.0%}  {outcome}")


def open_folder(run: Run, contents: Manifest, source: seams.Source | None) -> None:
    """The run folder with run.yaml, data.csv, the label statistics and the first training batch."""
    if not dist.main():
        return
    with naming(run.dir):
        (run.dir / "weights").mkdir(exist_ok=True)
    resumable.forget(run.dir / "weights")
    settings = {k: run.meta[k] for k in ("config", "patches")}
    files, start = fingerprint.of_flags(settings), fingerprint.of_start(source)
    where = {**run.conditions, "parameters": optim.count_parameters(run.loss_step)}
    inputs = {
        "best_by": run.choice.record(),
        "files": files,
        "start": start,
        "data": {**run.meta["data"], "names": contents.names},
        **({"modules": needed} if (needed := run.meta.get("modules")) else {}),
    }
    with naming(run.dir):
        for name in ("result.yaml", START, START_CLASSES):  # of a run that --exist-ok replaces
            (run.dir / name).unlink(missing_ok=True)
        fingerprint.write_listing(run.dir / manifest.NAME, contents.listing)
    record.write_run_yaml(run.dir / "run.yaml", {**where, **settings, **inputs}, run.meta["spec"])
    keep_in(run.dir, fresh=True)
    if run.cfg.replay:
        replay.announce(Path(run.cfg.replay), run.dir)
    names, order = run.meta["names"], run.train.order.order()
    batch = collate([run.train.dataset[seams.Sample(0, i)] for i in order[: min(run.cfg.batch_size, 16)].tolist()])
    rows = plots.target_rows(batch["target"], len(batch["image"]), *batch["image"].shape[2:])
    with naming(run.dir):
        plots.plot_labels(run.train.dataset.labels, names, run.dir / "labels.png")
        plots.plot_batch(batch["image"], rows, names, run.dir / "train_batch0.jpg")


def draw_progress(run: Run, now: bool = False) -> None:
    """results.png of the epochs so far, for those who watch; drawing takes a hundredth of the time at most."""
    began = time.monotonic()
    if dist.main() and not run.interrupt.trouble and (now or began > run.draw_at):
        with naming(run.dir):
            plots.plot_results(Facts(run.dir), run.dir / "results.png")
        run.draw_at = time.monotonic() + 100 * (time.monotonic() - began)


def close_folder(run: Run) -> None:
    """Evaluate best.pt once more, draw the pictures, say where everything is."""
    run.audit.close()
    if run.guard.ended:
        print(f"ended after {run.epoch} of {run.cfg.epochs} epochs: {run.guard.ended}")
    best = run.dir / "weights" / "best.pt"
    dist.barrier()  # rank 0 may still be writing it
    if best.is_file():  # --nosave writes it only where the last epoch is the best one
        run.ema.model.load_state_dict(checkpoint.read_checkpoint(best, trusted=True)["ema"])
    names = run.meta["names"]
    with naming(run.dir):
        result = validate(run, lambda batch, found: plots.plot_found(batch, found, names, run.dir))
        print(f"{'best.pt' if best.is_file() else 'last epoch'}: {line(result)}")
        if dist.main():
            draw_progress(run, now=True)
            plots.plot_evaluation(result, run.dir)
            write_classes(run.dir / "per_class.csv", result)
        run.patches.each("after_evaluation", result, partial(measure, run), run.dir)
    tell_ties(run)
    print(f"results in {run.dir}")


def tell_ties(run: Run) -> None:
    """Where no epoch was better than another, best.pt was chosen by nothing."""
    scores = [run.choice.score(row) for row in Facts(run.dir).rows] if dist.main() else []
    known = [score for score in scores if not math.isnan(score)]
    if len(known) > 1 and min(known) == max(known):
        figure = f"{run.choice.name} {run.choice.value(known[0]):.4g}"
        said = (
            f"all {len(known)} evaluated epochs have the same {figure}: best.pt is the first of them, not a better one"
        )
        warn("equal epochs", f"{said} (--best-by chooses by another figure)")
