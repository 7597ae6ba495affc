"""Openings within a run: rates by their closed form, momentum and optimizer untouched, resume, the plan, the errors."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from models.graph import Detector
from patches import freeze, layer_decay, unfreeze
from patches.unfreeze.plan_table import plan_table
from tests.models.test_zoo import spec
from tests.shared import ROOT
from tests.toy import FOUR_HEADS, STEPS, cut, resumed, same, toy, trained
from utils import seams
from utils.config.train import Config
from utils.system.errors import UserError
from utils.train import optim
from utils.train.run import Run

PLAN = ("--unfreeze", "0:77,", "1:31-76@0.1,", "2:0-30@0.05", "--unfreeze-ramp", "1.5", "--audit")
STAGES = {"1": (0, 1.0, 0.0), "2": (1, 0.1, 1.5), "3": (2, 0.05, 1.5)}  # opens, scale, ramp


@dataclass
class Log:
    """What a run showed of itself."""

    rates: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # step, {group: rate}
    identities: set[tuple[int, tuple[int, ...]]] = field(default_factory=set)  # optimizer, its parameters
    momentum: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = field(default_factory=list)  # before, after a start
    frozen: list[set[int]] = field(default_factory=list)  # modules, by epoch
    states: list[dict[str, Tensor]] = field(default_factory=list)  # of the model at each epoch's start


def module_of(name: str) -> int:
    return int(name.split(".")[1])


def watched(patch: pytest.MonkeyPatch) -> Log:
    log, set_rates, opening = Log(), optim.set_rates, unfreeze.Unfreeze.on_epoch_start

    def rates(optimizer: torch.optim.Optimizer, schedule: optim.Schedule, step: int) -> None:
        set_rates(optimizer, schedule, step)
        log.rates.append((step, {g["name"]: g["lr"] for g in optimizer.param_groups}))
        log.identities.add((id(optimizer), tuple(id(p) for g in optimizer.param_groups for p in g["params"])))

    def start(self: unfreeze.Unfreeze, model: Detector, groups: seams.Groups, at: seams.Progress) -> None:
        def momentum() -> dict[str, Tensor]:
            return {n: state[p]["momentum_buffer"].clone() for n, p in model.named_parameters()}

        state = holder[-1].state if (holder := [o for o in optimizers if o.param_groups is groups]) else {}
        before = momentum() if state else {}
        opening(self, model, groups, at)
        log.momentum.append((before, momentum() if state else {}))
        log.frozen.append({module_of(n) for n, p in model.named_parameters() if not p.requires_grad})
        log.states.append({k: v.clone() for k, v in model.state_dict().items()})

    optimizers: list[torch.optim.Optimizer] = []
    make = optim.make_optimizer

    def made(*args: Any) -> torch.optim.Optimizer:
        optimizers.append(make(*args))
        return optimizers[-1]

    patch.setattr(optim, "make_optimizer", made)
    patch.setattr(optim, "set_rates", rates)
    patch.setattr(unfreeze.Unfreeze, "on_epoch_start", start)
    return log


@pytest.fixture(scope="module")
def straight(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Log]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        log = watched(patch)
        return trained(small_shapes, tmp_path_factory.mktemp("u"), "straight", *PLAN, epochs=5), log


def test_rates_are_the_closed_form(straight: tuple[Run, Log]) -> None:
    """Written out here once more: (warm-up, cosine) x scale x ramp, at every step, biases too."""
    run, log = straight
    cfg, warmup = run.cfg, run.schedule.warmup
    assert [step for step, _ in log.rates] == list(range(5 * STEPS)) and warmup == 1
    for step, found in log.rates:
        cosine = (1 + math.cos(math.pi * (step // STEPS) / 5)) / 2 * (1 - cfg.lrf) + cfg.lrf
        assert found.keys() == {f"{kind}/{s}" for kind in ("norm", "weight", "bias") for s in STAGES}
        for name, rate in found.items():
            opens, scale, ramp = STAGES[name.split("/")[1]]
            first = cfg.warmup_bias_lr if name == "bias/1" else 0.0
            plain = first + (cfg.lr0 - first) * step if step < warmup else cfg.lr0 * cosine
            since, length = step - STEPS * opens, round(ramp * STEPS)
            share = 0 if since < 0 else min(since / length, 1) if length else 1
            assert rate == pytest.approx(plain * scale * share, rel=1e-12, abs=1e-18), (step, name)


def test_one_optimizer_and_no_momentum_lost(straight: tuple[Run, Log]) -> None:
    run, log = straight
    assert len(log.identities) == 1
    for epoch, (before, after) in enumerate(log.momentum):
        assert before.keys() == {n for n, _ in run.model.named_parameters()}
        assert all(torch.equal(before[n], after[n]) for n in before)
        trained_before = {n for n in before if before[n].any()}
        open_before = {n for n in before if epoch and module_of(n) not in log.frozen[epoch - 1]}
        assert trained_before == open_before, "what was frozen has gathered none"


def test_frozen_until_they_open(straight: tuple[Run, Log]) -> None:
    """Parameters and statistics stand still to the bit until their epoch, then move."""
    run, log = straight
    weighted = {module_of(n) for n, _ in run.model.named_parameters()}
    assert log.frozen == [weighted & set(range(77)), weighted & set(range(31)), set(), set(), set()]
    ends = [*log.states[1:], run.model.state_dict()]
    for epoch, (before, after) in enumerate(zip(log.states, ends, strict=True)):
        still = [k for k in before if module_of(k) in log.frozen[epoch]]
        assert all(torch.equal(before[k], after[k]) for k in still), epoch
    constant = (".anchors", ".anchor_grid")
    for key, first in log.states[0].items():
        assert torch.equal(first, ends[-1][key]) == key.endswith(constant), key
    assert optim.count_parameters(run.loss_step)["frozen_params"] == 0
    optim.check_partition(run.optimizer.param_groups, run.loss_step)


def test_an_opening_in_a_resumed_run(straight: tuple[Run, Log], small_shapes: Path, tmp_path: Path) -> None:
    """Ended just before the first opening; the next one and the ramps come after it, too."""
    stopped = cut(small_shapes, tmp_path, "cut", *PLAN, epochs=5, step=STEPS)
    resumed(stopped)
    same(straight[0].dir, stopped)


def test_four_heads_after_a_transfer(
    straight: tuple[Run, Log], small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --heads, --weights, --transfer-weights and --freeze; a cycle and augmentation of its own from a file; then a
    plain stage from it, whose checkpoint needs no schedule."""
    (tmp_path / "plan.yaml").write_text(
        "stages:\n- {epoch: 0, open: neck+head}\n- {epoch: 1, open: 10-28, ramp: 1, hyp: {lr0: 0.001, mosaic: 0}}\n"
    )
    four = [*FOUR_HEADS, "--audit", "--freeze", "10"]
    start = ["--weights", str(straight[0].dir / "weights/best.pt"), "--transfer-weights"]
    run = trained(
        small_shapes, tmp_path, "f", *four, *start, "--unfreeze", str(tmp_path / "plan.yaml"), "--adam", epochs=3
    )
    assert run.schedule.phases == (optim.Phase(1, 0.001, 0.1, 1.0),)
    assert [run.train.dataset.augment.at(e).mosaic for e in range(3)] == [0.5, 0, 0]
    assert optim.norm_modes(run.model) == (47, 8)
    (tmp_path / "plan.yaml").unlink()
    again = seams.revive(run.meta["patches"])["unfreeze"]
    assert isinstance(again, unfreeze.Unfreeze) and isinstance(own := run.patches["unfreeze"], unfreeze.Unfreeze)
    assert again.openings == own.openings
    after = trained(small_shapes, tmp_path, "g", *four[:-2], "--weights", str(run.dir / "weights/best.pt"))
    assert after.meta["patches"].keys() == {"multihead"}


def plan_of(
    words: list[str], data: Path, folder: Path, capsys: pytest.CaptureFixture[str], epochs: int = 6
) -> list[list[str]]:
    """The printed table's rows by words, from a start that must end before training."""
    with pytest.raises(SystemExit) as end:
        trained(data, folder, "plan", "--unfreeze-plan", *words, epochs=epochs)
    assert end.value.code == 0
    assert not folder.exists() or not list(folder.iterdir()), "no run folder"
    return [line.split() for line in capsys.readouterr().out.split("\nplan for ")[1].splitlines()]


def test_the_plan_without_training(
    straight: tuple[Run, Log],
    small_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Modules and parameters of each stage; rates are those that the run then had."""
    monkeypatch.chdir(ROOT)
    rows = plan_of(list(PLAN), small_shapes, tmp_path / "none", capsys, epochs=5)
    model, log = straight[0].model, dict(straight[1].rates)
    ranges = {"1": range(77, 78), "2": range(31, 77), "3": range(31)}
    for row, (stage, modules) in zip(rows[2:5], ranges.items(), strict=True):
        opens, scale, ramp = STAGES[stage]
        count = sum(p.numel() for i in modules for p in model.model[i].parameters())
        words = f"{modules[0]}-{modules[-1]}" if len(modules) > 1 else "77"
        assert row == [stage, str(opens), words, f"{count:,}", f"{scale:g}", f"{ramp:g}"]
    epochs = {int(r[0]): r[1:] for r in rows[7:]}
    assert list(epochs) == [0, 1, 2, 3, 4]
    for epoch, (learning, *cells) in epochs.items():
        count = sum(p.numel() for n, p in model.named_parameters() if module_of(n) not in straight[1].frozen[epoch])
        assert learning == f"{count:,}"
        rates = log[(epoch + 1) * STEPS - 1]
        assert cells == [f"{rates[f'weight/{s}']:.3g}" if STAGES[s][0] <= epoch else "-" for s in STAGES]


def test_the_short_form(
    small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    flag = "--progressive-unfreeze"
    rows = plan_of([flag, "--unfreeze-preset", "medium"], small_shapes, tmp_path / "none", capsys, epochs=40)
    blocks = ["22-28", "15-21", "8-14", "1-7", "0"]
    assert [(r[1], r[2], r[4]) for r in rows[2:8]] == [
        ("0", "29-77", "1"),  # neck and head, at full rate
        *zip(map(str, range(10, 35, 5)), blocks, ["0.1"] * 5, strict=True),
    ]
    rows = plan_of([flag, "--unfreeze-order", "stem"], small_shapes, tmp_path / "none", capsys, epochs=70)
    assert [r[2] for r in rows[2:8]] == ["29-77", *blocks[::-1]]
    assert [r[1] for r in rows[2:8]] == ["0", "20", "30", "40", "50", "60"], "12 images: small"
    some = [flag, "--unfreeze-rate", "3", "--freeze", "5", "--layer-decay", "0.5"]
    rows = plan_of(some, small_shapes, tmp_path / "none", capsys, epochs=30)
    assert [r[2] for r in rows[2:6]] == ["29-77", *blocks[:3]]
    assert [r[1] for r in rows[2:6]] == ["0", "20", "23", "26"], "rate by flag"
    assert rows[6][1:3] == ["29", "5-7"], "without what --freeze keeps"
    assert [r[-2] for r in rows[2:7]] == ["0.5..1", "0.0025", "0.00125", "0.000625", "0.0003125"]
    rows = plan_of([flag, "--unfreeze-start", "0"], small_shapes, tmp_path / "none", capsys, 1)
    assert [r[1] for r in rows[2:5]] == ["0", "0", "10"] and rows[4][2] == "(never)", "start 0, one epoch"


def test_what_chose_the_preset_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    patch = unfreeze.Unfreeze(unfreeze.Flags(progressive_unfreeze=True))
    patch.images = 5000
    patch.on_model_built(narrow(), ())
    said = capsys.readouterr().out
    assert "preset medium (by 5,000 training images): start 10, rate 5, lr scale 0.1" in said


def test_a_plan_lists_its_stages_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    """The detector of YOLOv5 has no norms, so that it is in another optimizer group first."""
    model = narrow()
    patch = unfreeze.Unfreeze(unfreeze.Flags(unfreeze=("0:77, 1:0-76",)))
    patch.on_model_built(model, ())
    groups = patch.param_groups(optim.param_groups(model, 0.0), model)[::-1]
    rates = SimpleNamespace(epochs=2, batches=3, warmup=0, rate=lambda step, group: 0.1)
    lines = plan_table(rates, groups, {"1": "77", "2": "0-76"}).splitlines()  # type: ignore[arg-type]
    assert [line.split()[0] for line in lines[2:4]] == ["1", "2"]
    assert next(line for line in lines if line.startswith("epoch")).split()[2:] == ["stage", "1", "stage", "2"]


@pytest.fixture(scope="module")
def base(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(small_shapes, tmp_path_factory.mktemp("base"), "base").dir / "weights/best.pt"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--freeze 10", " are frozen with random weights (there are no --weights)"),
        ("--progressive-unfreeze", " are frozen with random weights"),
        ("--freeze 0", ""),
        ("--freeze 10 --weights {base}", ""),
    ],
)
def test_frozen_noise_is_warned_of(
    flags: str, says: str, small_shapes: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(small_shapes, tmp_path, "a", *flags.format(base=base).split())
    said = capsys.readouterr().out
    assert says in said and ("warning" in said and "builds on noise" in said) == bool(says)


def narrow() -> Detector:
    return Detector({**spec("demo"), "width_multiple": 0.25}, 12)


def built(*words: str, frozen: str = "0", **more: Any) -> tuple[Detector, unfreeze.Unfreeze]:
    model = narrow()
    freeze.Freeze(freeze.Flags(freeze=(frozen,))).on_model_built(model, ())
    patch = unfreeze.Unfreeze(unfreeze.Flags(unfreeze=words, **more))
    patch.on_model_built(model, ())
    return model, patch


@pytest.mark.parametrize(
    ("words", "frozen", "message"),
    [
        ("0:77, 1:31-76, 2:11-30", "0", r"modules 0-5\+7\+9-10 \(.* parameters\) are in no stage"),
        ("0:31-77, 1:11-31, 2:0-10", "0", "module 31 opens twice, at epochs 0 and 1"),
        ("0:head, 1:backbone+neck, 2:77", "0", "module 77 opens twice, at epochs 0 and 2"),
        ("0:6-77, 1:0-5+6", "0", "module 6 opens twice"),
        ("0:11-77, 1:0-10", "5", "--unfreeze names modules 0-4, which --freeze"),
        ("3:0-77", "0", "nothing learns before epoch 3"),
        ("0:0-76, 1:78", "0", "--unfreeze 1: 78: no such modules; valid: 0..77"),
        ("0:0-76, 1:heads", "0", "--unfreeze 1: heads: unknown name"),
        ("0:0-77+branches.classify", "0", "no such branch; there are: none"),
    ],
)
def test_uncovered_doubled_overlapping(words: str, frozen: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(words, frozen=frozen)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"unfreeze": ("0:77",), "progressive_unfreeze": True}, "two schedules"),
        ({"unfreeze": ("0:77",), "unfreeze_start": 3}, "--unfreeze-start belongs to --progressive-unfreeze"),
        ({"unfreeze": ("0:77",), "unfreeze_order": "stem"}, "--unfreeze-order belongs to --progressive-unfreeze"),
        ({"unfreeze_plan": True}, "give one of them"),
        ({"progressive_unfreeze": True, "unfreeze_rate": 0}, "above 0"),
        ({"progressive_unfreeze": True, "unfreeze_ramp": -1.0}, "--unfreeze-ramp must be at least 0, got -1"),
        ({"unfreeze": ("absent.yaml",)}, "there is no file 'absent.yaml'"),
    ],
)
def test_flags_that_do_not_go_together(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        unfreeze.Unfreeze(unfreeze.Flags(**flags))


def test_branches_and_patches_learn_from_the_start_unless_named() -> None:
    for words, named in (("0:77, 2:0-76", False), ("0:77, 2:0-76+branches.classify", True)):
        model = narrow()
        model.add_branch("classify", 28, nn.LazyLinear(3))
        model.branches["classify"] = nn.Linear(4, 3)
        patch = unfreeze.Unfreeze(unfreeze.Flags(unfreeze=(words,)))
        patch.on_model_built(model, ())
        other = nn.Linear(2, 2)  # of another patch
        whole = nn.ModuleDict({"model": model, "other": other})
        groups = patch.param_groups(optim.param_groups(whole, 0.0), model)
        optim.check_partition(groups, whole)
        names = {id(p): g["name"] for g in groups for p in g["params"]}
        assert (names[id(other.weight)], names[id(other.bias)]) == ("weight", "bias")
        assert names[id(model.branches["classify"].weight)] == ("weight/2" if named else "weight")  # type: ignore[arg-type]
        for epoch in range(4):
            patch.on_epoch_start(model, groups, seams.Progress(epoch, 4, epoch * STEPS))
            assert other.weight.requires_grad
            assert model.branches["classify"].weight.requires_grad == (not named or epoch >= 2)


def test_openings_follow_the_groups_own_fields() -> None:
    """Whoever postpones an opening, or takes it back, does so by editing `opens`."""
    model, patch = built("0:77, 1:0-76@0.1")
    groups = patch.param_groups(optim.param_groups(model, 0.0), model)
    late = model.get_parameter("model.3.conv.weight")

    def state(epoch: int) -> bool:
        patch.on_epoch_start(model, groups, seams.Progress(epoch, 9, 0))
        return late.requires_grad

    assert [state(e) for e in range(3)] == [False, True, True]
    late.grad = torch.ones_like(late)
    for group in groups:
        group["opens"] = 4 if group["opens"] else 0
    assert not state(3) and late.grad is None and model.get_parameter("model.77.m.0.weight").requires_grad
    schedule = optim.Schedule.of(Config(epochs=9, warmup_epochs=0), STEPS, False)
    group = next(g for g in groups if g["name"] == "bias/2")
    assert [schedule.rate(STEPS * e, group) for e in (1, 3, 4)] == [0, 0, 0] and state(4)
    assert schedule.rate(STEPS * 5, group) == schedule.lr(STEPS * 5) * 0.1


def test_layer_decay_alone() -> None:
    model, factor = narrow(), 1 / 2.6
    patch = layer_decay.LayerDecay(layer_decay.Flags(layer_decay=factor))
    plain = optim.param_groups(model, 5e-4)
    groups = patch.param_groups(plain, model)
    optim.check_partition(groups, model)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    depth = {77: 0, **dict.fromkeys(range(29, 77), 1), **dict.fromkeys(range(22, 29), 2), 0: 6}
    depth |= {**dict.fromkeys(range(15, 22), 3), **dict.fromkeys(range(8, 15), 4), **dict.fromkeys(range(1, 8), 5)}
    for name, p in model.named_parameters():
        assert scale[id(p)] == pytest.approx(factor ** depth[module_of(name)], rel=1e-12)
    kinds = {id(p): (g["name"], g["weight_decay"]) for g in plain for p in g["params"]}
    assert all((g["name"].split("/")[0], g["weight_decay"]) == kinds[id(p)] for g in groups for p in g["params"])
    for wrong in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(UserError, match="--layer-decay"):
            layer_decay.Flags(layer_decay=wrong)


def test_words_of_the_command_line(small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that is wrong ends before anything is written."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="in no stage"):
        train.main([*toy(small_shapes, tmp_path, "x"), "--unfreeze", "0:77"])
    assert not (tmp_path / "x").exists()
