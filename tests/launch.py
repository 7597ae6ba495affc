"""Runs an entry point as it cannot be had from outside: `python tests/launch.py CONDITION train.py ...`

kill:MOMENT:N   SIGKILL to itself at the N-th time of a moment below, or after N seconds of training (moment `time`);
                another signal as kill:MOMENT:N:SIGTERM
cores:N         a machine of N cores
full:FILE       no more than 20 bytes fit into files from the moment at which this one is opened
nan:EPOCH:FILE  a loss term that is NaN in this epoch for the batch with this image
child:CONDITION the condition for each train.py that `utils/__main__.py study` or `chain` starts
worth:M,M,...   evaluations of epoch 0, 1, ... find this mAP (both), the last one from then on
Several conditions are joined by +.
"""

import os
import runpy
import signal
import sys
import threading
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)


sent = [signal.SIGKILL]  # by `die`


def die() -> None:
    os.kill(os.getpid(), sent[0])


def at_call(owner: Any, name: str, count: int, when: str = "before", only: Any = lambda *_: True) -> None:
    """Die before, after or `half` way through the count-th call."""
    original, calls = getattr(owner, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += bool(only(*args))
        mine = calls[0] == count and only(*args)
        if mine and when == "half" and sent[0] == signal.SIGKILL:  # only a part reached the disk
            os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
        if mine and when != "after":
            die()
        result = original(*args, **kwargs)
        if mine:
            die()
        return result

    setattr(owner, name, wrapped)


def kill(moment: str, count: float) -> None:
    from models.graph import Detector
    from utils.runs import record
    from utils.train import optim, outputs, saving
    from utils.train.loss_step import LossStep

    n = int(count)
    if moment == "time":
        first = LossStep.forward

        def forward(*args: Any) -> Any:  # the clock starts with training: how long a start takes is the machine's
            LossStep.forward = first  # type: ignore[method-assign]
            timer = threading.Timer(count, die)
            timer.daemon = True
            timer.start()
            return first(*args)

        LossStep.forward = forward  # type: ignore[assignment,method-assign]
    elif moment == "setup":
        at_call(optim, "make_optimizer", 1)
    elif moment == "step":
        at_call(LossStep, "forward", n)
    elif moment == "write":
        at_call(os, "fsync", n, "half", only=lambda fd: os.readlink(f"/proc/self/fd/{fd}").endswith(".part"))
    elif moment == "rename":
        at_call(os, "replace", n, "after")
    elif moment == "evaluation":
        at_call(Detector, "forward", n, only=lambda model, *_: not model.training)
    elif moment == "rows":
        at_call(record.Results, "append", n, "after")
    elif moment == "back":
        at_call(saving, "save_last", n, "after", only=lambda run, *_: bool(run.guard.back))
    elif moment == "end":
        at_call(outputs, "close_folder", 1)
    else:
        raise SystemExit(f"unknown moment {moment}")


def full(name: str) -> None:
    import resource

    from utils.runs import record

    original = record.append_text

    def append_text(path: Path, text: str) -> None:
        if path.name == name:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        original(path, text)

    record.append_text = append_text


def nan_term(epoch: int, file: str) -> None:
    import torch

    import patches
    from utils.config.options import opt
    from utils.seams import Patch

    @dataclass(frozen=True)
    class Flags:
        trap: bool = opt(False, "a test's")

    class Trap(Patch[Flags]):
        terms = ("trap",)
        epoch = -1

        def on_epoch_start(self, model: Any, groups: Any, at: Any) -> None:
            self.epoch = at.epoch

        def loss_terms(self, batch: Any, out: Any, model: Any) -> dict[str, torch.Tensor]:
            hit = self.epoch == epoch and any(Path(p).name == file for p in batch["path"])
            return {"trap": out["det"][0].sum() * (float("nan") if hit else 0.0)}

    module = types.ModuleType("patches.trap")
    module.Flags, module.patch = Flags, Trap  # type: ignore[attr-defined]
    sys.modules["patches.trap"] = module
    patches.TABLE["trap"] = "trap"
    sys.argv.append("--trap")


def worth(values: list[float]) -> None:
    import dataclasses

    from utils.train import outputs, saving

    measure, begin, now = outputs.evaluate, saving.before_opening, [0]

    def before_opening(run: Any) -> None:
        now[0] = run.epoch
        begin(run)

    def evaluated(*args: Any, **kwargs: Any) -> Any:
        value = values[min(now[0], len(values) - 1)]
        return dataclasses.replace(measure(*args, **kwargs), map50=value, map=value)

    outputs.evaluate, saving.before_opening = evaluated, before_opening


def in_child(condition: str) -> None:
    from utils.study import child

    command, launch = child.command, str(Path(__file__).resolve())
    child.command = lambda words, ranks: [sys.executable, launch, condition, *command(words, ranks)[1:]]


def apply(kind: str, *values: str) -> None:
    if kind == "kill":
        sent[0] = signal.Signals[values[2]] if values[2:] else signal.SIGKILL
        kill(values[0], float(values[1]))
    elif kind == "cores":
        os.cpu_count = lambda: int(values[0])
    elif kind == "full":
        full(values[0])
    elif kind == "nan":
        nan_term(int(values[0]), values[1])
    elif kind == "child":
        in_child(":".join(values))
    elif kind == "worth":
        worth([float(v) for v in values[0].split(",")])


if __name__ == "__main__":
    conditions, sys.argv = sys.argv[1], sys.argv[2:]
    for condition in conditions.split("+"):
        apply(*condition.split(":"))
    runpy.run_path(sys.argv[0], run_name="__main__")
