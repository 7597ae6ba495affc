"""What is declared about a run's parameters: which train, in which optimizer group, with which settings; and by that
the mode of the norm layers. Read off at an epoch's start, held against the same reading later (utils.audit)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils.train.loss_step import LossStep

Row = tuple[str, str, str]  # tensor or quantity, declared, happened
Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Plan:
    """What is declared for a stage."""

    trains: dict[str, bool]  # parameter -> requires grad
    groups: dict[str, tuple[int, ...]]  # parameter -> numbers of the optimizer groups that hold it
    settings: tuple[dict[str, Any], ...]  # of each group, but for parameters, rate and momentum


def read_plan(loss_step: LossStep, optimizer: torch.optim.Optimizer) -> Plan:
    """The plan as it stands."""
    holds: dict[int, tuple[int, ...]] = {}
    for number, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            holds[id(p)] = (*holds.get(id(p), ()), number)
    live = parameters(loss_step)
    settings = tuple(
        {k: v for k, v in g.items() if k not in ("params", "lr", "momentum", "betas")} for g in optimizer.param_groups
    )
    trains = {n: p.requires_grad for n, p in live.items()}
    return Plan(trains, {n: holds.get(id(p), ()) for n, p in live.items()}, settings)


def parameters(loss_step: LossStep) -> dict[str, nn.Parameter]:
    """By their names in checkpoints: the model's without the LossStep's `model.`."""
    return {name.removeprefix("model."): p for name, p in loss_step.named_parameters()}


def plan_rows(plan: Plan, now: Plan, loss_step: LossStep, optimizer: torch.optim.Optimizer) -> list[Row]:
    """The plan as it stands against the declared one, and against what must always hold."""
    rows: list[Row] = []
    for name in plan.trains | now.trains:
        was, held = plan.trains.get(name), now.groups.get(name, ())
        if was != now.trains.get(name):
            rows.append((name, state_of(was), state_of(now.trains.get(name))))
        if len(held) != 1:
            rows.append((name, "in the optimizer once", f"{len(held)} times"))
        elif held != plan.groups.get(name):
            rows.append((name, f"in group {plan.groups.get(name)}", f"in group {held}"))
    live = {id(p) for p in loss_step.parameters()}
    kept = [p for group in optimizer.param_groups for p in group["params"]]
    if strangers := sum(id(p) not in live for p in {*kept, *optimizer.state}):
        rows.append(("optimizer", "live parameters only", f"{strangers} of no module"))
    if len(plan.settings) != len(now.settings):
        rows.append(("optimizer groups", str(len(plan.settings)), str(len(now.settings))))
    for was_set, is_set in zip(plan.settings, now.settings, strict=False):
        rows += [
            (f"group {was_set['name']} {k}", str(was_set.get(k)), str(is_set.get(k)))
            for k in was_set | is_set
            if was_set.get(k) != is_set.get(k)
        ]
    return rows


def norms(model: nn.Module, freeze_bn: str) -> Iterator[tuple[str, Norm, bool]]:
    """Norm layers by name, and whether they are to be in train mode."""
    for name, m in model.named_modules():
        if isinstance(m, Norm):
            own = list(m.parameters(recurse=False))
            yield name, m, freeze_bn == "train" or not own or any(p.requires_grad for p in own)


def mode_rows(model: nn.Module, freeze_bn: str) -> list[Row]:
    return [(n, mode(train), mode(m.training)) for n, m, train in norms(model, freeze_bn) if m.training != train]


def state_of(trains: bool | None) -> str:
    return "absent" if trains is None else "trains" if trains else "frozen"


def mode(train: bool) -> str:
    return "train mode" if train else "eval mode"
