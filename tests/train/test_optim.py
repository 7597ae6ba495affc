"""Rates, momentum, accumulation, groups and average: the original programs' numbers, and the default's own rules."""

import json
import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.blocks.layers import ImplicitM
from models.graph import Detector
from tests.golden import golden, keys
from tests.models.test_zoo import spec
from utils.config.train import Config
from utils.train.optim import (
    Ema,
    Phase,
    Schedule,
    check_partition,
    interpolate,
    make_optimizer,
    norm_modes,
    param_groups,
    set_rates,
    train_mode,
)

COLUMNS = ("lr0", "lr1", "lr2", "momentum", "accumulate", "did_step")


def config(book: dict[str, Any], **more: Any) -> Config:
    """The run of a reference table as our flags."""
    return Config(
        epochs=book["epochs"],
        batch_size=book["batch"],
        linear_lr=book["linear"],
        lr0=book["lr0"],
        lrf=book["lrf"],
        momentum=book["momentum"],
        warmup_epochs=book["warmup_epochs"],
        warmup_momentum=book["warmup_momentum"],
        warmup_bias_lr=book["warmup_bias_lr"],
        weight_decay=book["weight_decay_in"],
        **{"compat": {"yolov7": "v7", "yolov5": "v5"}[book["kind"]], **more},
    )


def schedule_of(book: dict[str, Any]) -> Schedule:
    cfg = config(book)
    made = Schedule.of(cfg, book["nb"], from_weights=True)
    if book["warmup_floor"]:
        return made
    return Schedule(**{**vars(made), "warmup": book["nw"]})  # tables made without the originals' lower limit


def trace(schedule: Schedule, steps: int, bias_first: bool) -> Any:
    """One row per step, columns as COLUMNS; a step that is due empties what has been gathered."""
    rows, pending = [], 0
    for step in range(steps):
        pending += 1
        due = schedule.due(step, pending)
        plain, bias = schedule.lr(step), schedule.lr(step, bias=True)
        rates = [bias, plain, plain] if bias_first else [plain, plain, bias]
        rows.append([*rates, schedule.momentum_at(step), schedule.accumulate(step), due])
        pending = 0 if due else pending
    return np.array(rows, dtype=np.float64)


@pytest.mark.parametrize("name", keys("schedule/schedule.json", "configs") or ["absent"])
def test_every_step_of_the_originals(name: str) -> None:
    ref = golden()
    book = ref.json("schedule/schedule.json")
    run, order = book["configs"][name], [book["columns"].index(c) for c in COLUMNS]
    want = ref.npz("schedule/lr.npz")[name]
    schedule = schedule_of(run)
    assert schedule.warmup == run["nw"]
    got = trace(schedule, len(want), bias_first=run["kind"] == "yolov5")
    np.testing.assert_array_equal(want[:, 0], np.arange(len(want)) // run["nb"])
    want = want[:, order]
    if name.endswith("adam"):  # no momentum there: its betas stay
        assert np.isnan(want[:, 3]).all()
        got, want = np.delete(got, 3, 1), np.delete(want, 3, 1)
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=0)
    assert config(run).scaled_decay == pytest.approx(run["weight_decay_scaled"], rel=1e-15)


def test_weight_decay_by_batch() -> None:
    table = golden().json("schedule/schedule.json")["weight_decay_by_batch"]
    for batch, want in table.items():
        cfg = Config(batch_size=int(batch))
        assert (cfg.accumulate, cfg.scaled_decay) == (
            want["accumulate_nominal"],
            pytest.approx(want["weight_decay_scaled"]),
        )
    assert len(table) == 17


def test_one_cycle_factor() -> None:
    for epochs, want in golden().json("schedule/schedule.json")["one_cycle_lrf0_01"].items():
        schedule = Schedule.of(Config(epochs=int(epochs), lrf=0.01), 10, False)
        assert [schedule.factor(e) for e in range(int(epochs) + 1)] == pytest.approx(want, rel=1e-13)


def plain(**more: Any) -> Config:
    return Config(**{"epochs": 10, "lr0": 0.001, "lrf": 0.1, "warmup_bias_lr": 0.1, "batch_size": 16, **more})


def test_default_warm_up_takes_at_most_its_share() -> None:
    """205 images at batch 16 are 13 steps: the originals' 1,000 would be 77 epochs."""
    cfg = plain()
    schedule = Schedule.of(cfg, 13, False)
    assert schedule.warmup == 13 == int(0.1 * 10 * 13)
    assert "(39 asked for, at most 10% of the run)" in schedule.describe(cfg)
    assert Schedule.of(plain(compat="v7"), 13, False).warmup == 1000
    assert Schedule.of(plain(compat="v5"), 13, False).warmup == 100
    assert Schedule.of(plain(epochs=100), 13, False).warmup == 39
    assert Schedule.of(plain(warmup_epochs=0), 13, False).warmup == 0


def test_no_rate_above_the_stages_own_schedule_when_it_starts_from_weights() -> None:
    for linear in (False, True):
        cfg = plain(linear_lr=linear)
        schedule = Schedule.of(cfg, 20, from_weights=True)
        assert schedule.bias_start == cfg.lr0 and "(0.1 asked for)" in schedule.describe(cfg)
        for step in range(200):
            limit = cfg.lr0 * (1 if schedule.warming(step) else schedule.factor(step // 20))
            assert max(schedule.lr(step), schedule.lr(step, bias=True)) <= limit * (1 + 1e-12)
    fresh = Schedule.of(plain(), 20, from_weights=False)
    assert fresh.lr(0, bias=True) == 0.1 and fresh.lr(0) == 0
    assert Schedule.of(plain(compat="v7"), 20, from_weights=True).lr(0, bias=True) == 0.1


def test_default_decay_is_not_an_epoch_late() -> None:
    """The originals step their scheduler after the epoch, so that epoch e runs at the factor of e - 1."""
    ours, theirs = (Schedule.of(plain(warmup_epochs=0, compat=c), 20, False) for c in ("none", "v7"))
    assert [ours.lr(20 * e) for e in range(10)] == [0.001 * ours.factor(e) for e in range(10)]
    late = Schedule(**{**vars(theirs), "warmup": 0})
    assert [late.lr(20 * e) for e in range(1, 10)] == [0.001 * late.factor(e - 1) for e in range(1, 10)]
    linear = Schedule.of(plain(warmup_epochs=0, linear_lr=True), 20, False)
    assert linear.lr(199) == pytest.approx(0.0001), "the last epoch reaches lr0 * lrf"


def test_each_phase_is_a_cycle_of_its_own() -> None:
    """Written out: cosine over the phase's epochs, reached linearly from the last rate before it."""
    first = Schedule.of(plain(epochs=12, warmup_epochs=1), 20, False)
    schedule = replace(first, phases=(Phase(4, 0.005, 0.01, 1.5), Phase(7, 0.002, 0.5, 0)))

    def cycle(epoch: int, start: int, end: int, peak: float, lrf: float) -> float:
        share = (1 + math.cos(math.pi * (epoch - start) / (end - start))) / 2
        return peak * (lrf + (1 - lrf) * share)

    for step in range(12 * 20):
        epoch = step // 20
        if epoch < 4:
            want = cycle(epoch, 0, 4, 0.001, 0.1) * min(step / 20, 1)
        elif epoch < 7:
            want, before = cycle(epoch, 4, 7, 0.005, 0.01), cycle(3, 0, 4, 0.001, 0.1)
            want = before + (want - before) * min((step - 80) / 30, 1)
        else:
            want = cycle(epoch, 7, 12, 0.002, 0.5)
        assert schedule.lr(step) == pytest.approx(want, rel=1e-12), step
    assert schedule.lr(80) == schedule.lr(79), "no jump"
    for step in range(12 * 20):
        assert schedule.momentum_at(step) == first.momentum_at(step)
        assert schedule.accumulate(step) == first.accumulate(step)
    assert "from epoch 4 on 0.005 to 5e-05, from epoch 7 on 0.002 to 0.001" in schedule.describe(plain())


def test_rates_of_groups_that_open_later() -> None:
    """0 before, a ramp from 0 of their own, then the schedule times their scale; no bias rate from above."""
    schedule = Schedule.of(plain(warmup_epochs=3, warmup_share=1.0), 20, False)
    weight = {"name": "weight/2", "lr_scale": 0.3, "opens": 2, "ramp": 2.5}
    for name in ("weight/2", "bias/2"):
        group = {**weight, "name": name}
        for step in range(20 * 30):  # also long after the last epoch of the run
            want = 0.3 * schedule.lr(step) * min(max((step - 40) / 50, 0), 1)
            assert schedule.rate(step, group) == pytest.approx(want, rel=1e-12, abs=1e-18)
    assert schedule.rate(40, {**weight, "ramp": 0.0}) == 0.3 * schedule.lr(40) > 0
    at_once = {"name": "bias/1", "lr_scale": 1.0, "opens": 0, "ramp": 0.0}
    plain_bias = {"name": "bias", "lr_scale": 1.0}
    rates = [(schedule.rate(s, at_once), schedule.rate(s, plain_bias), schedule.lr(s, True)) for s in range(200)]
    assert all(a == b == c for a, b, c in rates) and rates[0][0] == 0.1


def test_the_last_batch_of_an_epoch_steps() -> None:
    schedule = Schedule.of(plain(warmup_epochs=0), 10, False)
    assert schedule.accumulate(0) == 4
    pending, due = 0, []
    for step in range(20):
        pending += 1
        if schedule.due(step, pending):
            due.append(step)
            pending = 0
    assert due == [3, 7, 9, 13, 17, 19], "10 batches: 4 + 4 + 2, none is dropped"


def test_interpolation_is_numpys() -> None:
    for step in range(0, 1000, 7):
        assert interpolate(step, 1000, 0.1, 0.0123) == np.interp(step, [0, 1000], [0.1, 0.0123])


def test_auto_lr() -> None:
    """lr0 by the square root of the batch over 64; five epochs of warm-up from 128 on."""
    table = {32: 0.01, 64: 0.01, 128: 0.01414, 256: 0.02, 384: 0.02449}
    for batch, lr in table.items():
        cfg = Config(batch_size=batch, auto_lr=True, lr0=0.01)
        assert cfg.peak_lr == pytest.approx(lr, abs=5e-6)
        assert cfg.warmup == (5.0 if batch >= 128 else 3.0)
    assert Config(batch_size=384, lr0=0.01).peak_lr == 0.01


def tiny_model() -> Detector:
    return Detector({**spec("demo"), "width_multiple": 0.25}, 3)


def test_groups_cover_everything_once_by_kind() -> None:
    model = nn.ModuleDict({"det": tiny_model(), "im": ImplicitM(4)})
    groups = {g["name"]: g for g in param_groups(model, 5e-4)}
    check_partition(list(groups.values()), model)
    named = {id(p): n for n, p in model.named_parameters()}
    names = {k: [named[id(p)] for p in g["params"]] for k, g in groups.items()}
    assert list(groups) == ["norm", "weight", "bias"]
    assert {k: g["weight_decay"] for k, g in groups.items()} == {"norm": 0.0, "weight": 5e-4, "bias": 0.0}
    assert all(n.endswith(".bias") for n in names["bias"])
    assert all(n.endswith("bn.weight") or n.endswith("implicit") for n in names["norm"])
    assert "im.implicit" in names["norm"] and any(n.endswith("implicit") and n.startswith("det") for n in names["norm"])
    assert all(n.endswith("weight") and "bn" not in n for n in names["weight"])
    with pytest.raises(ValueError, match=r"im\.implicit"):
        check_partition(param_groups(model["det"], 0), model)
    with pytest.raises(ValueError, match="1 parameters twice"):
        check_partition([*groups.values(), {"params": [model["im"].implicit]}], model)


def test_rates_reach_the_optimizer() -> None:
    cfg = plain()
    for adam in (False, True):
        model = tiny_model()
        optimizer = make_optimizer(param_groups(model, cfg.scaled_decay), plain(adam=adam), torch.device("cpu"))
        optimizer.param_groups[1]["lr_scale"] = 0.5
        schedule = Schedule.of(cfg, 20, False)
        set_rates(optimizer, schedule, 10)
        rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
        want = schedule.lr(10)
        assert rates == {"norm": want, "weight": want / 2, "bias": schedule.lr(10, bias=True)} and rates["bias"] > want
        if adam:
            assert optimizer.param_groups[0]["betas"] == (0.937, 0.999), "the originals do not warm it up"
        else:
            assert 0.8 < optimizer.param_groups[0]["momentum"] == schedule.momentum_at(10) < 0.937


@pytest.mark.parametrize("adam", [False, True])
def test_a_parameter_thawed_during_the_run_starts_like_any_other(adam: bool) -> None:
    """Its first step is the first step of an optimizer made for it then, bit for bit."""
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.linspace(-1, 1, 3))
    fresh = nn.Parameter(late.detach().clone())

    def optimizer(*params: nn.Parameter) -> torch.optim.Optimizer:
        group = {"params": list(params), "weight_decay": 5e-4, "name": "weight", "lr_scale": 1.0}
        return make_optimizer([group], plain(adam=adam), torch.device("cpu"))

    both, alone = optimizer(early, late), optimizer(fresh)
    early.grad = torch.full((3,), 0.3)
    both.step()
    assert torch.equal(late, fresh), "no gradient, no step"
    late.grad = fresh.grad = torch.tensor([0.1, -0.2, 0.0])
    both.step()
    alone.step()
    assert torch.equal(late, fresh) and not torch.equal(early, torch.ones(3))


def test_momentum_is_laid_out_as_its_parameter() -> None:
    """The one kernel reads both as plain memory: another order of the axes would mix up the channels."""
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    group = {"params": [weight], "weight_decay": 0.0, "name": "weight", "lr_scale": 1.0}
    optimizer = make_optimizer([group], plain(), torch.device("cpu"))
    assert optimizer.state[weight]["momentum_buffer"].stride() == weight.stride()


def test_train_mode_keeps_norms_of_frozen_modules_in_eval() -> None:
    model = tiny_model()
    for i in (0, 1):
        model.model[i].requires_grad_(False)
    total = sum(norm_modes(model))
    for freeze_bn, evaluating in (("eval", 2), ("train", 0)):
        train_mode(model, freeze_bn)
        assert norm_modes(model) == (total - evaluating, evaluating)
    norm = model.model[2].get_submodule("bn")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.requires_grad_(False)
    train_mode(model)
    assert norm.training, "a norm that learns its bias is not frozen"


def test_average_decay() -> None:
    table = golden().json("schedule/schedule.json")["ema_decay"]
    ema = Ema(tiny_model())
    for updates, want in table.items():
        assert ema.decay_at(int(updates)) == pytest.approx(want, rel=1e-14, abs=0)
    assert len(table) > 30


@pytest.mark.parametrize("start", [0, 2000])
def test_average_equals_the_original_update_by_update(start: int) -> None:
    arrays = golden().npz("schedule/ema.npz")
    net = nn.Sequential(OrderedDict([("0", nn.Linear(3, 3)), ("1", nn.BatchNorm1d(3))]))

    def state(part: str) -> dict[str, torch.Tensor]:
        return {
            k.split("/")[1]: torch.from_numpy(np.asarray(arrays[k])) for k in arrays.files if k.split("/")[0] == part
        }

    # five updates from 0; one update at 2,001, where the average starts as model 5
    steps = [(f"model{t}", f"ema{t}") for t in range(1, 6)] if not start else [("model_u2001", "ema_u2001")]
    net.load_state_dict(state("model5" if start else "model0"))
    ema = Ema(net)  # type: ignore[arg-type]
    ema.updates = start
    for model, average in steps:
        net.load_state_dict(state(model))
        ema.update()
        for key, want in state(average).items():
            if not key.endswith("num_batches_tracked"):  # a counter that nothing reads: left behind there, copied here
                np.testing.assert_allclose(ema.model.state_dict()[key], want, rtol=1e-6, atol=1e-7, err_msg=key)
    assert ema.updates == start + len(steps)


def test_average_leaves_what_did_not_move_bit_identical() -> None:
    model = tiny_model()
    ema = Ema(model)
    before = {k: v.clone() for k, v in ema.model.state_dict().items()}
    with torch.no_grad():
        model.model[5].get_submodule("conv").weight.add_(1)  # type: ignore[operator]
    for _ in range(50):
        ema.update()
    moved = [k for k, v in ema.model.state_dict().items() if not torch.equal(v, before[k])]
    assert moved == ["model.5.conv.weight"]
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())


def test_settings_are_plain_values() -> None:
    """A schedule can be written down with the run: same values, same rates."""
    schedule = Schedule.of(plain(), 20, True)
    again = Schedule(**json.loads(json.dumps(vars(schedule))))
    assert [again.lr(s, True) for s in range(200)] == [schedule.lr(s, True) for s in range(200)]
