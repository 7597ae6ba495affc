"""Each way in which training can leave its plan ends the run with the row that names it; clean runs pass, unchanged."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import train
from models.graph import Detector
from models.loss import scale_gains
from patches.freeze import Flags, Freeze
from tests.models.test_zoo import spec
from tests.ranks import on_ranks
from tests.shared import ROOT
from tests.toy import toy, trained
from utils import seams
from utils.config.train import Config
from utils.data.loader import Order
from utils.runs.choice import Choice
from utils.system.errors import UserError
from utils.system.processes.program import run_main
from utils.train import optim
from utils.train.audit.audit import Audit, would_move
from utils.train.finite import Watch
from utils.train.guard import Guard
from utils.train.loss_step import LossStep
from utils.train.run import Run

FROZEN, LIVE = "model.0.conv.weight", "model.40.conv.weight"
Act = Callable[["Toy"], None]


def nothing(_: "Toy") -> None: ...


class Toy:
    """A run of a narrow model with ten frozen modules, on one batch, by train.py's own begin_epoch() and step()."""

    def __init__(self, **more: Any) -> None:
        torch.manual_seed(0)
        given = {"audit": True, "epochs": 3, "batch_size": 2, "nominal_batch": 2, "lr0": 0.01, "warmup_epochs": 0}
        self.cfg = cfg = Config(**{**given, "fold_frozen": False, **more})
        self.model = Detector({**spec("demo"), "width_multiple": 0.25}, 12)
        patch = Freeze(Flags(freeze=("10",)))
        patch.on_model_built(self.model, ())
        patches, cpu = seams.Patches({"freeze": patch}), torch.device("cpu")
        self.loss_step = LossStep(self.model, self.model.criterion(scale_gains(cfg.loss, 3, 12, 64)), patches)
        groups = optim.param_groups(self.loss_step, cfg.scaled_decay)
        self.optimizer = optim.make_optimizer(groups, cfg, cpu)
        schedule, self.ema = optim.Schedule.of(cfg, 6, from_weights=False), optim.Ema(self.model)
        scaler = torch.amp.GradScaler(enabled=False)
        self.audit = Audit(cfg, self.loss_step, self.ema, self.optimizer, schedule, scaler)
        loader: Any = SimpleNamespace(order=Order(12, batch_size=2, shuffle=True, seed=0))
        unused: Any = None
        self.of = Run(
            cfg, Path(), cpu, {}, self.model, patches, self.loss_step, self.ema, self.optimizer, schedule, scaler,
            loader, loader, unused, unused, Watch(self.loss_step.terms, cpu, Path()), self.audit,
            Guard(cfg, groups, Choice()), {},
        )  # fmt: skip
        image = (torch.rand(2, 3, 64, 64) * 255).to(torch.uint8)
        target = torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.4], [1, 5, 0.4, 0.6, 0.6, 0.5]])
        self.batch = {"image": image, "target": target, "images": 2, "share": 1.0, "path": ["a", "b"]}
        self.before, self.between, self.when = nothing, nothing, 1
        self.loss_step.register_forward_pre_hook(lambda *_: self.before(self) if self.at == self.when else None)
        self.optimizer.register_step_pre_hook(lambda *_: self.between(self) if self.at >= self.when else None)

    @property
    def at(self) -> int:
        return self.of.step

    def parameter(self, name: str) -> nn.Parameter:
        return self.model.get_parameter(name)

    def run(self, batches: int = 12, before: Act = nothing, at: int = 1, between: Act = nothing) -> "Toy":
        """`before` acts before batch number `at`, `between` after its backward pass, as a patch might."""
        self.before, self.between, self.when = before, between, at
        for _ in range(batches):
            if self.at % 6 == 0:
                train.begin_epoch(self.of)
            train.step(self.of, dict(self.batch))
            if self.at % 6 == 0:
                self.audit.epoch_end(self.at)
                self.of.epoch, self.of.batch = self.of.epoch + 1, 0
        return self


def write(name: str) -> Callable[[Toy], None]:
    def act(toy: Toy) -> None:
        with torch.no_grad():
            toy.model.state_dict()[name].view(-1)[0] += 1

    return act


def thaw(toy: Toy) -> None:
    toy.parameter(FROZEN).requires_grad_(True)


def freeze(toy: Toy) -> None:
    toy.parameter(LIVE).requires_grad_(False)


def write_average(toy: Toy) -> None:
    update = toy.ema.update

    def spoilt() -> None:
        update()
        toy.ema.model.get_parameter(FROZEN).view(-1)[0] += 1

    toy.ema.update = spoilt  # type: ignore[method-assign]


def replace(toy: Toy) -> None:
    """A new parameter in the old one's place: neither optimizer nor average know it."""
    toy.model.model[40].conv.weight = nn.Parameter(toy.parameter(LIVE).detach().clone())


def reallocate(toy: Toy) -> None:
    toy.parameter(LIVE).data = toy.parameter(LIVE).data.clone()


def edit_rate(toy: Toy) -> None:
    toy.optimizer.param_groups[1]["lr"] *= 2


def edit_momentum(toy: Toy) -> None:
    toy.optimizer.param_groups[0]["momentum"] = 0.5


def edit_scale(toy: Toy) -> None:
    toy.optimizer.param_groups[1]["lr_scale"] = 0.1


def edit_opening(toy: Toy) -> None:
    toy.optimizer.param_groups[1]["opens"] = 1


def edit_decay(toy: Toy) -> None:
    toy.optimizer.param_groups[1]["weight_decay"] = 0.1


def drop(toy: Toy) -> None:
    del toy.optimizer.param_groups[1]["params"][3]


def duplicate(toy: Toy) -> None:
    toy.optimizer.param_groups[0]["params"].append(toy.parameter(LIVE))


def shift(toy: Toy) -> None:
    groups = toy.optimizer.param_groups
    groups[0]["params"].append(groups[1]["params"].pop(40))


def stranger(toy: Toy) -> None:
    toy.optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(2)))


def skip_step(toy: Toy) -> None:
    toy.optimizer.step = lambda: None  # type: ignore[method-assign,assignment]


def step_twice(toy: Toy) -> None:
    toy.optimizer.step()


def skip_average(toy: Toy) -> None:
    toy.ema.update = lambda: None  # type: ignore[method-assign]


def average_in_vain(toy: Toy) -> None:
    def update() -> None:
        toy.ema.updates += 1

    toy.ema.update = update  # type: ignore[method-assign]


def thaw_norm(toy: Toy) -> None:
    toy.model.model[0].bn.train()


def still_norm(toy: Toy) -> None:
    toy.model.model[40].bn.eval()


def blind_norm(toy: Toy) -> None:
    toy.model.model[40].bn.track_running_stats = False


def hold(toy: Toy) -> None:
    """The optimizer's work on one tensor is undone."""
    kept = toy.parameter(LIVE).detach().clone()
    toy.optimizer.register_step_post_hook(lambda *_: toy.parameter(LIVE).data.copy_(kept))


def detach(toy: Toy) -> None:
    """A trainable layer that the loss does not reach: its output is used as a constant."""
    toy.model.model[0].register_forward_hook(lambda *a: a[-1].detach())


def not_a_number(toy: Toy) -> None:
    grad = toy.parameter(LIVE).grad
    assert grad is not None
    grad.view(-1)[0] = torch.nan


def gradient_on_frozen(toy: Toy) -> None:
    toy.parameter(FROZEN).grad = torch.zeros_like(toy.parameter(FROZEN))


BROKEN: list[tuple[Callable[[Toy], None], str]] = [
    (thaw, rf"{FROZEN} +frozen +trains"),
    (freeze, rf"{LIVE} +trains +frozen"),
    (write(FROZEN), rf"{FROZEN} +frozen +moved"),
    (write("model.3.bn.running_mean"), r"model.3.bn.running_mean +constant +moved"),
    (write("model.77.anchors"), r"model.77.anchors +constant +moved"),
    (write_average, rf"average of {FROZEN} +frozen +moved"),
    (replace, rf"{LIVE} +in the optimizer once +0 times\n.*1 of no module\n *average of {LIVE} +follows.* stale"),
    (reallocate, rf"average of {LIVE} +follows the live tensor +stale"),
    (edit_rate, r"group weight lr +0.01 +0.02"),
    (edit_momentum, r"group norm momentum +0.937 +0.5"),
    (edit_scale, r"group weight lr_scale +1.0 +0.1"),
    (edit_opening, r"group weight opens +None +1"),
    (edit_decay, r"group weight weight_decay +0.0005 +0.1"),
    (drop, r"in the optimizer once +0 times"),
    (duplicate, rf"{LIVE} +in the optimizer once +2 times"),
    (shift, r"conv.weight +in group \(1,\) +in group \(0,\)"),
    (stranger, r"optimizer +live parameters only +1 of no module"),
    (skip_step, r"optimizer steps +6 +1"),
    (step_twice, r"optimizer steps +6 +7"),
    (skip_average, r"updates of the average +6 +1"),
    (average_in_vain, r"average of model.10.conv.weight +follows +stood still"),
    (thaw_norm, r"model.0.bn +eval mode +train mode"),
    (still_norm, r"model.40.bn +train mode +eval mode"),
    (blind_norm, r"model.40.bn.num_batches_tracked +counts batches +stood still"),
    (hold, rf"{LIVE} +trains +stood still"),
]


@pytest.mark.parametrize(("act", "row"), BROKEN, ids=[getattr(a, "__name__", "?") for a, _ in BROKEN])
def test_a_contradiction_is_named(act: Callable[[Toy], None], row: str) -> None:
    toy = Toy()
    first = act in (edit_rate, edit_momentum)  # written anew at each step
    with pytest.raises(UserError, match=row) as found:
        toy.run(10, before=act, at=0 if first else 1)
    assert "tensor or quantity" in str(found.value)
    assert toy.at == (0 if first else 9 if act is hold else 6), "before the files of the epoch, or at step 10"


@pytest.mark.parametrize(
    ("act", "row"),
    [
        (not_a_number, rf"{LIVE} +gradient finite +gradient nan"),
        (gradient_on_frozen, rf"{FROZEN} +frozen +has a gradient"),
    ],
)
def test_gradients_are_looked_at_before_they_are_gone(act: Callable[[Toy], None], row: str) -> None:
    with pytest.raises(UserError, match=row):
        Toy().run(1, between=act, at=0)


def test_a_layer_that_no_gradient_reaches() -> None:
    """At step 1 it is said; at step 10 of the stage it ends the run."""
    toy = Toy()
    toy.model.model[0].requires_grad_(True)
    detach(toy)
    toy.run(9)
    with pytest.raises(UserError, match=rf"{FROZEN} +trains +no gradient reaches it, 10 steps"):
        toy.run(1)


def test_a_gradient_of_exactly_zero_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    toy = Toy(weight_decay=0.0)

    def silence(toy: Toy) -> None:
        grad = toy.parameter(LIVE).grad
        assert grad is not None
        grad.zero_()

    toy.run(12, between=silence, at=0)
    assert f"still up to optimizer step 1, its gradient is exactly zero: {LIVE}\n" in capsys.readouterr().out


def test_an_update_lost_in_rounding_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Toy(lr0=1e-12, lrf=1.0).run(6)
    assert "its update is lost in rounding" in capsys.readouterr().out
    x = torch.ones(3)
    assert would_move(x, torch.tensor([0, 0, 1e-6])) and not would_move(x, torch.full((3,), 1e-7))
    assert not would_move(x[:1], torch.full((1,), 1e-6)) and would_move(x[:1], torch.full((1,), 1e-3))


def test_no_step_no_movement() -> None:
    """Between the epoch's last step and its files, and where the warm-up's rate is 0."""
    toy = Toy().run(6)
    write(LIVE)(toy)
    with pytest.raises(UserError, match=rf"{LIVE} +still, no step at a rate above 0 +moved"):
        toy.audit.before_save(6)
    with pytest.raises(UserError, match=rf"{LIVE} +still, no step at a rate above 0 +moved"):
        Toy(warmup_epochs=1, warmup_share=1.0).run(1, before=write(LIVE), at=0)


def test_a_short_epoch_is_found() -> None:
    toy = Toy().run(5)
    with pytest.raises(UserError, match=r"micro-batches of the epoch +6 +5"):
        toy.audit.epoch_end(5)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"freeze_bn": "train"},
        {"adam": True},
        {"nominal_batch": 8},
        {"warmup_epochs": 3, "warmup_share": 1.0},
        {"compat": "v7"},
        {"compat": "v5", "nominal_batch": 8},
    ],
    ids=str,
)
def test_clean_runs_pass_unchanged(more: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    watched, plain = Toy(**more).run(18), Toy(**more, audit=False).run(18)
    for a, b in ((watched.model, plain.model), (watched.ema.model, plain.ema.model)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    watched.audit.close()
    out = capsys.readouterr().out
    assert "as declared" in out and "gradient" not in out and watched.audit.checks >= 4 > plain.audit.checks


def test_a_stage_within_a_run() -> None:
    """Thawing and rescaling at an epoch's start is a new stage; writing what stays frozen there is not."""
    toy = Toy().run(6)
    thaw(toy)
    toy.optimizer.param_groups[1]["lr_scale"] = 0.5
    toy.run(6)
    assert toy.audit.stage == 6 and toy.audit.due == 12
    toy.model.model[9].requires_grad_(True)
    write("model.2.conv.weight")(toy)
    with pytest.raises(UserError, match=r"model.2.conv.weight +frozen +moved"):
        toy.run(1)


def test_frozen_later_its_average_still_comes_nearer() -> None:
    toy = Toy().run(6)
    toy.parameter(LIVE).requires_grad_(False)
    toy.run(12)


def ranks_case(rank: int) -> str:
    """One rank's weights go another way after the first step; both see it at the epoch's end."""
    try:
        Toy().run(6, before=write(LIVE) if rank == 1 else lambda _: None)
    except UserError as error:
        return str(error)
    return ""


def test_ranks_that_part_are_found(tmp_path: Path) -> None:
    for said in on_ranks(ranks_case, tmp_path):
        assert re.search(r"model\.\d+\.\S+ +equal on all ranks +rank 1 differs", said)
        assert "6 optimizer steps" in said


def test_through_the_command_line(
    small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A patch that thaws behind the back in the second epoch: exit code 2, a table, the first epoch's files."""
    monkeypatch.chdir(ROOT)
    more = ["--notest", "--freeze", "10", "--audit", "--nominal-batch", "64"]
    clean = trained(small_shapes, tmp_path, "clean", *more, epochs=2)
    assert clean.audit.checks >= 3

    def meddle(self: Freeze, batch: seams.Batch, out: seams.Output, model: Detector) -> seams.Terms:
        calls.append(1)
        if len(calls) == 5:
            model.get_parameter(FROZEN).requires_grad_(True)
        return {}

    calls: list[int] = []
    monkeypatch.setattr(Freeze, "loss_terms", meddle)
    monkeypatch.setattr(sys, "argv", ["train.py", *toy(small_shapes, tmp_path, "broken", epochs=2), *more])
    with pytest.raises(SystemExit) as stop:
        run_main(train.main)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "error: audit after 6 micro-batches" in error and "nothing saved" in error and FROZEN in error
    last = torch.load(tmp_path / "broken/weights/last.pt", weights_only=True)
    assert '"next_epoch": 1' in last["meta"]
