"""Checkpoints of a run under way, and the way back from them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.evaluation.evaluate import Result
from utils.runs import record, resumable
from utils.system import dist
from utils.system.errors import UserError, brief, parsing
from utils.system.notes import keep_in, note, warn
from utils.system.processes.signals import Stopped
from utils.train import optim
from utils.train.guard import tell
from utils.train.run import Run
from utils.weights import checkpoint

WORTH = 60  # seconds of training that an evaluation must not put at risk
NOT_OF_THE_BITS = ("git", "platform")  # the code has a fingerprint of its own; the processor is compared by itself


def restore(run: Run, ckpt: dict[str, Any]) -> None:
    """Continue exactly where the checkpoint was written; the model itself was loaded when it was built."""
    at = ckpt["meta"]
    if lines := record.changed(at["conditions"], run.conditions, NOT_OF_THE_BITS):
        said = f"what the bits depend on has changed; the run goes on, but perhaps not to the bit: {'; '.join(lines)}"
        warn("other conditions", said, epoch=at["next_epoch"])
    keep_in(run.dir, fresh=False)
    note("resumed", f"from step {at['step']}", epoch=at["next_epoch"])
    with parsing(f"--resume {run.dir}: its checkpoint is damaged"):
        check_training(run, ckpt)
        load(run, ckpt)
        run.guard.restore(at.get("guard", {}))
    run.epoch, run.batch, run.step, run.best = at["next_epoch"], at["next_batch"], at["step"], at["best"]
    run.pending, run.sums = at["pending"], {k: v.to(run.device) for k, v in ckpt["sums"].items()}
    run.last_batch = at.get("last_batch", {})
    run.audit.went_back(run.guard.undone)
    if at["data"]["fingerprint"] != run.meta["data"]["fingerprint"]:  # allowed by flag: batches are others now
        run.batch, run.step, run.sums = 0, run.epoch * run.schedule.batches, {}


def check_training(run: Run, ckpt: dict[str, Any]) -> None:
    """What torch would take as it comes, and stumble over in the first step: errors, each naming the part."""
    at, sums = ckpt["meta"], ckpt["sums"]
    terms = set(run.loss_step.terms)
    if not isinstance(sums, dict) or (set(sums) != terms and (sums or at["next_batch"])):
        raise UserError(f"its sums are of {brief(sorted(map(str, sums)))}, the loss has {', '.join(sorted(terms))}")
    if not all(isinstance(v, Tensor) and v.shape == () for v in sums.values()):
        raise UserError("its sums of loss terms are no numbers")
    if at["class_ap"] is not None and len(at["class_ap"]) != at["nc"]:
        raise UserError(f"class_ap has {len(at['class_ap'])} values for {at['nc']} classes")
    optim.check_state(run.optimizer, ckpt["optimizer"])


def load(run: Run, ckpt: dict[str, Any]) -> None:
    """All that training changes, but for the model's tensors and the counters of progress."""
    at = ckpt["meta"]
    run.ema.model.load_state_dict(ckpt["ema"])
    run.patches.load_state_dict(ckpt["patches"])
    run.optimizer.load_state_dict(ckpt["optimizer"])
    before, now = at["conditions"]["device"], run.conditions["device"]
    if ckpt["scaler"] and all(before.get(key) == now[key] for key in ("type", "dtype")):
        run.scaler.load_state_dict(ckpt["scaler"])
    run.ema.updates, run.class_ap = at["ema_updates"], at["class_ap"]
    run.found = {k: at[k] for k in ("map50", "map", "match") if k in at}


def before_opening(run: Run) -> None:
    """At an epoch's start: keep everything as it stands, where the guard may have to go back to it."""
    if run.guard.opens_now(run.epoch, run.optimizer.param_groups):
        assert run.guard.opening
        write_training(run, run.dir / "weights" / run.guard.opening.file, description(run, run.found), {})
        run.audit.remember()


def judge(run: Run, result: Result | None, losses: Mapping[str, float]) -> float:
    """--patience and the guard: whether this was the last epoch, and whether `save` takes the run back. The epoch's
    score by --best-by, nan where it was not measured."""
    row = {**losses, **result.row} if result else {}
    rows = run.guard.judge(run.epoch, row, run.best, run.optimizer.param_groups)
    tell(rows, run.guard.watched)
    for line in rows if dist.main() else ():
        run.results.append("guard.csv", line)
    return run.choice.score(row)


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


def save(run: Run, result: Result | None, score: float) -> None:
    """best.pt (weights) when this epoch is the best so far, a numbered copy every save_period epochs; then, perhaps
    taken back by the guard, resumable.pt (resumable)."""
    better = score > run.best  # never by nan: without objects nothing is measured
    run.best = score if better else run.best
    run.found = {"map50": result.map50, "map": result.map, "match": result.match} if result and result.measured else {}
    if result is not None:
        run.class_ap = np.nan_to_num(result.ap).tolist()
    last_one = run.epoch == run.cfg.epochs - 1 or bool(run.guard.ended)
    kept = last_one or not run.cfg.nosave  # neither a signal nor the clock decides which files there are at the end
    due = run.interrupt.save_due(run.step)
    state, meta, weights = (
        run.ema.model.state_dict(),
        {**run.meta, **run.found, "epoch": run.epoch},
        run.dir / "weights",
    )
    # best.pt before resumable.pt: a kill between the two repeats the epoch and writes the same best.pt again
    if kept and better and dist.main():
        checkpoint.save_checkpoint(weights / "best.pt", state=state, meta=meta)
    if kept and run.cfg.save_period > 0 and (run.epoch + 1) % run.cfg.save_period == 0 and dist.main():
        checkpoint.save_checkpoint(weights / f"epoch_{run.epoch:03d}.pt", state=state, meta=meta)
    if run.guard.back:
        go_back(run)
    if kept or due:
        save_last(run, {**run.found, "next_epoch": run.epoch + 1, "next_batch": 0}, {})


def save_last(run: Run, at: dict[str, object], sums: dict[str, Tensor]) -> None:
    """last.pt: everything that the next step depends on. at: what to say beside it, next_epoch and next_batch
    included."""
    weights = run.dir / "weights"
    write_training(run, weights / resumable.LAST, description(run, at), sums, keep=weights / resumable.PREVIOUS)
    if dist.main():
        run.guard.tidy(weights)
        if run.cfg.nosave and at["next_epoch"] == run.cfg.epochs:
            resumable.drop_previous(weights)
    run.interrupt.saved()


def description(run: Run, at: dict[str, object]) -> dict[str, Any]:
    """What a checkpoint of training says about itself and the run's progress. at: more of that."""
    progress = {"epoch": run.epoch, "step": run.step, "pending": run.pending, "best": run.best}
    averaged = {"ema_updates": run.ema.updates, "class_ap": run.class_ap, "guard": run.guard.state()}
    return {**run.meta, **progress, "conditions": run.conditions, **averaged, **at}


def write_training(
    run: Run, path: Path, meta: dict[str, object], sums: dict[str, Tensor], keep: Path | None = None
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
        save_within(run)
    if run.interrupt.stopping:
        raise Stopped


def save_within(run: Run) -> None:
    """last.pt of an epoch under way, or trained and not yet evaluated."""
    run.watch.check(run.model)
    run.audit.before_save(run.step)
    save_last(run, {"next_epoch": run.epoch, "next_batch": run.batch, "last_batch": run.last_batch}, run.sums)


@contextmanager
def trained(run: Run) -> Iterator[None]:
    """The evaluation of a trained epoch. What was trained is saved before it, where that took a minute or a stop was
    asked for; else when the evaluation is stopped or fails."""
    ahead = run.interrupt.vote(run.interrupt.unsaved() > WORTH) > 0
    if ahead:
        save_within(run)
    if run.interrupt.stopping:
        raise Stopped
    try:
        yield
    except (Stopped, UserError):
        if not ahead:
            save_within(run)
        raise


def stopped(run: Run) -> Run:
    """Asked to, and saved. Errors: UserError where it was trouble that asked."""
    way = f"stopped and saved; go on with: python train.py --resume {run.dir}"
    saved = (run.dir / "weights" / resumable.LAST).is_file()
    said = way if saved else "stopped before anything was trained (no --resume): the same command begins anew"
    dist.leave()
    if run.interrupt.trouble:
        raise UserError(note("stopped", f"{run.interrupt.trouble}; {said}", epoch=run.epoch))
    print(said)
    return run
