"""Train a detector.

  python train.py --data data/shapes.yaml --cfg cfg/training/demo.yaml --hyp data/hyp.demo.yaml --img 160 --name base
  python train.py ... --weights runs/train/base/weights/best.pt --transfer-weights --freeze 50 --name stage1
  python train.py --resume runs/train/stage1        (or --replay runs/train/stage1/run.yaml: once more, compared)

Read top to bottom: setup() builds the parts, fit() is the loop, main() joins them. Features enter through the seams
of utils/seams.py (search for `patches.`). --help with --cfg also prints the module table of that model.
"""

import sys
import time

from utils.config.options import help_topic
from utils.config.train import help_alone

if __name__ == "__main__":
    help_alone(sys.argv[1:])  # before torch, whose import takes longer than the answer

import torch
from tqdm import tqdm

from utils.data.build import make_loaders, whole_strides
from utils.data.loader import Fed
from utils.data.spec import read_data
from utils.runs import manifest, record, replay, resumable
from utils.seams import Batch, Terms
from utils.system import dist, notes
from utils.system.processes.program import run_main
from utils.system.processes.signals import Interrupt, Stopped
from utils.train import anchors, announce, optim, outputs, saving, start
from utils.train.audit.audit import Audit
from utils.train.finite import Watch
from utils.train.guard import Guard
from utils.train.loss_step import LossStep, check_norms, check_recipe, compile_model, compute_type, make_scaler, place
from utils.train.run import Run, describe, repeatable, reweigh_images, tell_stage, to_device
from utils.train.start import Start, load_weights, prepare, starting_weights
from utils.weights import checkpoint


def setup(begun: Start) -> Run:
    cfg, patches, folder, device, resumed = begun.cfg, begun.patches, begun.folder, begun.device, begun.resumed
    repeatable(cfg, device)
    with dist.main_first():
        spec = read_data(cfg.data)
        contents = manifest.check(spec, resumed, folder, allow_changed=cfg.allow_changed_data) if resumed else None
    seen = spec.merged() if cfg.single_cls else spec
    nc, names = seen.nc, list(seen.names)
    patches.each("on_data_read", seen)

    # model: from scratch, from weights (a new stage), or resumed (the same stage)
    source = None if resumed else starting_weights(cfg, patches, names)
    graph = begun.spec or anchors.per_level(checkpoint.model_yaml(cfg.cfg, source), cfg.anchors)
    model = checkpoint.build_detector(graph, nc, patches, cfg.cfg or cfg.weights, spec.channels)
    check_recipe(model, cfg)
    load_weights(model, patches, source, resumed)
    fitting = anchors.wanted(model, cfg.noautoanchor, loaded=bool(source or resumed))
    chosen = prepare(model, cfg, patches)

    with dist.main_first():  # data, looked at when what was asked of the model is known to be right
        contents = contents or manifest.check(spec, None, folder, allow_changed=False)
        replay.check_data(cfg, contents)
    size = whole_strides(cfg.train_size, int(model.stride.max()))
    train, val = make_loaders(cfg, spec, patches, size, int(model.stride.max()))
    if fitting:
        anchors.meet_data(model, cfg, train.dataset, size)

    # what is optimised, and how
    criterion = model.criterion(model.head.gains(cfg.loss, size))
    loss_step = place(LossStep(model, criterion, patches), cfg, device)
    groups = patches.fold("param_groups", optim.param_groups(loss_step, cfg.scaled_decay), model)
    optim.check_partition(groups, loss_step)
    optimizer = optim.make_optimizer(groups, cfg, device)
    schedule = optim.Schedule.of(cfg, len(train), bool(cfg.weights), groups)
    scaler = make_scaler(cfg, device)
    results = record.Results(folder, resumed["meta"]["next_epoch"] if resumed else 0)

    meta = describe(cfg, patches, model, contents, spec=graph, names=names, img_size=size, scale=spec.scale)
    ema = optim.Ema(model)
    run = Run(
        cfg, folder, device, meta, model, patches, loss_step, ema, optimizer, schedule, scaler, train, val, results,
        Interrupt(cfg.save_steps, cfg.save_minutes), Watch(loss_step.terms, device, folder / "weights" / "last.pt"),
        Audit(cfg, loss_step, ema, optimizer, schedule, scaler),
        Guard(cfg, groups, chosen),
        record.conditions(device, compute_type(cfg, device) or torch.float32),
    )  # fmt: skip
    if resumed:
        saving.restore(run, resumed)
    optim.train_mode(loss_step, cfg.freeze_bn, cfg.fold_frozen)
    check_norms(model, groups, train, cfg)
    announce.announce(run, source)
    patches.each("on_start", model, optimizer.param_groups, schedule)
    if cfg.compile:
        compile_model(loss_step)
    if not resumed:
        outputs.open_folder(run, contents, source)
    return run


def fit(run: Run) -> None:
    """The loop: epochs of training, evaluation of the average, files."""
    outputs.measure_start(run)
    while run.epoch < run.cfg.epochs and not run.guard.ended:
        begin_epoch(run)
        start = time.perf_counter()
        losses = train_epoch(run)
        last = run.epoch == run.cfg.epochs - 1
        result = outputs.validate_trained(run) if last or not run.cfg.notest else None
        extra = run.patches.merge("on_epoch_end", run.model, run.at, {**losses, **(result.row if result else {})})
        run.audit.epoch_end(run.step)
        outputs.write_rows(run, losses, result, extra, time.perf_counter() - start)
        saving.save(run, result, saving.judge(run, result, losses))
        outputs.draw_progress(run)
        run.epoch, run.batch = run.epoch + 1, 0
        if run.interrupt.stopping and not (last or run.guard.ended):
            raise Stopped


def begin_epoch(run: Run) -> None:
    """What learns, and in which order the images come."""
    saving.before_opening(run)
    run.patches.each("on_epoch_start", run.model, run.optimizer.param_groups, run.at)
    run.train.order.set_epoch(run.epoch, run.batch)
    reweigh_images(run)
    optim.train_mode(run.loss_step, run.cfg.freeze_bn, run.cfg.fold_frozen)
    tell_stage(run)
    run.audit.epoch_start(run.step)


def train_epoch(run: Run) -> dict[str, float]:
    """One pass over the data -> mean of each loss term, `labels` and `size` of the last batch, `data_wait` (share)."""
    if run.batch == 0:
        run.sums = {name: torch.zeros((), device=run.device) for name in run.loss_step.terms}
    fed = Fed(run.train)
    bar = tqdm(fed, f"epoch {run.epoch}/{run.cfg.epochs - 1}", run.schedule.batches, initial=run.batch, mininterval=1,
               disable=not dist.main())  # fmt: skip
    run.optimizer.zero_grad(set_to_none=True)
    for loaded in bar:
        batch, terms = step(run, loaded)
        run.last_batch = {"labels": len(batch["target"]), "size": batch["image"].shape[-1]}
        for name, value in terms.items():
            run.sums[name] += value
        if run.step % 10 == 0 or run.step == 1:
            run.watch.look()
            bar.set_postfix(record.shown(terms))
        if run.pending == 0:
            saving.pause(run)
    run.watch.check(run.model)
    means = {name: float(total) / run.schedule.batches for name, total in run.sums.items()}
    return means | run.last_batch | {"data_wait": fed.share}


def step(run: Run, batch: Batch) -> tuple[Batch, Terms]:
    """A micro-batch, and an optimizer step where one is due -> the batch as computed, its loss terms over all ranks."""
    optim.set_rates(run.optimizer, run.schedule, run.step)
    batch = to_device(run, batch)
    with torch.autocast(run.device.type, dtype=run.autocast, enabled=run.autocast is not None):
        loss, terms = run.loss_step(batch)
    run.watch.note(run.step, terms, batch["path"])
    run.scaler.scale(loss).backward()
    dist.share_buffers(run.model)
    terms = dist.mean_terms(terms, batch["share"])
    run.pending += 1
    if run.schedule.due(run.step, run.pending):
        dist.sum_gradients(run.optimizer)
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.ema.update()
        run.audit.after_step(run.step)
        run.patches.each("on_step_end", run.model, run.ema.model, run.at)
        run.optimizer.zero_grad(set_to_none=True)
        run.pending = 0
    run.step, run.batch = run.step + 1, run.batch + 1
    return batch, terms


@notes.collecting()
def main(argv: list[str]) -> Run | None:
    if help_topic(argv) is not None:
        announce.print_help(argv)
        return None
    begun = start.begin(argv)
    with begun.lock, resumable.way_on(begun.folder):
        run = setup(begun)
        with run.interrupt.listening():
            try:
                fit(run)
                outputs.close_folder(run)
            except Stopped:
                outputs.draw_progress(run, now=True)
                return saving.stopped(run)
        repeated = replay.finish(run.dir, run.cfg.replay, run.guard.ended)
    dist.leave()
    if not repeated:
        raise SystemExit(1)
    return run


if __name__ == "__main__":
    run_main(main)
