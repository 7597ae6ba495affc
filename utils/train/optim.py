"""Parameter groups, rates as pure functions of the step, train mode with frozen norms, moving average.

A step is one micro-batch (ni in the originals). Rates follow the recipe of YOLOv5/YOLOv7: linear warm-up, in which the
biases' rate comes from above, then a cosine or linear decay that is constant within an epoch.
"""

import math
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.graph import Detector
from utils.config.train import Config
from utils.seams import Groups
from utils.system.errors import UserError, brief


@dataclass(frozen=True)
class Phase:
    """A decay cycle of its own within a run, from its first epoch to the next one's or to the run's end."""

    start: int  # epoch
    peak: float  # rate at factor 1
    lrf: float
    ramp: float  # epochs in which the rate goes from what it was to what this cycle says


@dataclass(frozen=True)
class Schedule:
    """Rates, momentum and accumulation at any step; nothing else decides them."""

    batches: int  # steps per epoch
    epochs: int
    peak: float  # rate at factor 1
    lrf: float
    linear: bool
    warmup: int  # steps
    bias_start: float  # rate of the biases at step 0
    momentum: float
    momentum_start: float
    batch_size: int
    nominal_batch: int = 64
    compat: str = "none"
    phases: tuple[Phase, ...] = ()  # by their first epoch, none of them 0

    @classmethod
    def of(
        cls, cfg: Config, batches: int, from_weights: bool, groups: Iterable[Mapping[str, object]] = ()
    ) -> "Schedule":
        """from_weights: a later stage, whose biases must not start above its own rate. groups: may carry `phases`, the
        run's later cycles, {start: epoch, lr0, lrf or None = as before it, ramp: epochs} each."""
        asked = round(cfg.warmup * batches)
        floor = {"none": 0, "v5": 100, "v7": 1000}[cfg.compat]
        limit = int(cfg.warmup_share * cfg.epochs * batches) if cfg.compat == "none" else max(asked, floor)
        capped = min(cfg.warmup_bias_lr, cfg.peak_lr) if from_weights and cfg.compat == "none" else cfg.warmup_bias_lr
        return cls(
            batches,
            cfg.epochs,
            cfg.peak_lr,
            cfg.lrf,
            cfg.linear_lr,
            min(max(asked, floor), limit),
            capped,
            cfg.momentum,
            cfg.warmup_momentum,
            cfg.batch_size,
            cfg.nominal_batch,
            cfg.compat,
            phases_of(groups, cfg.peak_lr / cfg.lr0, cfg.lrf),
        )

    def capped(self, cfg: Config) -> bool:
        """Whether warm-up is shorter than asked for."""
        return self.warmup < round(cfg.warmup * self.batches)

    def describe(self, cfg: Config) -> str:
        """One line for the log: what warm-up does, and what was capped."""
        asked = round(cfg.warmup * self.batches)
        capped = f" ({asked} asked for, at most {cfg.warmup_share:.0%} of the run)" if self.capped(cfg) else ""
        bias = f" ({cfg.warmup_bias_lr:g} asked for)" if self.bias_start < cfg.warmup_bias_lr else ""
        rates = f"learning rate: {self.peak:g} to {self.peak * self.lrf:g}"
        later = "".join(f", from epoch {p.start} on {p.peak:g} to {p.peak * p.lrf:g}" for p in self.phases)
        start = f", in which that of biases starts at {self.bias_start:g}{bias}" if self.warmup else ""
        return f"{rates}{later}; warm-up: {self.warmup} steps{capped}{start}"

    def factor(self, epoch: int) -> float:
        """Decay factor of an epoch of the first cycle, 1 at epoch 0."""
        return self.decay(epoch, self.phases[0].start if self.phases else self.epochs, self.lrf)

    def decay(self, epoch: int, epochs: int, lrf: float) -> float:
        """Decay factor of an epoch of a cycle of so many."""
        if self.linear:
            span = epochs if self.compat == "v5" else max(epochs - 1, 1)
            return (1 - epoch / span) * (1.0 - lrf) + lrf
        return ((1 - math.cos(epoch * math.pi / epochs)) / 2) * (lrf - 1) + 1

    def rate(self, step: int, group: Mapping[str, Any]) -> float:
        """Rate of an optimizer group at this step: the schedule's, times the group's lr_scale, times its ramp.

        A group with `opens` (epoch) has rate 0 before it; then its ramp goes from 0 to 1 in `ramp` epochs. Only biases
        that learn from the start take part in the warm-up from above.
        """
        opens = group.get("opens", 0)
        since = step - opens * self.batches
        if since < 0:
            return 0.0
        ramp = interpolate(since, round(group.get("ramp", 0.0) * self.batches), 0.0, 1.0)
        return float(self.lr(step, bias=is_bias(group) and not opens) * group["lr_scale"] * ramp)

    def lr(self, step: int, bias: bool = False) -> float:
        """Rate of a group with lr_scale 1, open from the start, at this step."""
        epoch = step // self.batches
        begun = [i for i, phase in enumerate(self.phases) if phase.start <= epoch]
        if begun:
            return self.lr_in_phase(begun[-1], step)
        if self.warming(step):
            return interpolate(step, self.warmup, self.bias_start if bias else 0.0, self.peak * self.factor(epoch))
        # the originals step their scheduler at the end of an epoch; where warm-up ends, its last rate lasts that epoch
        late = self.compat != "none" and epoch > self.warmup // self.batches
        return self.peak * self.factor(max(epoch - late, 0))

    def lr_in_phase(self, number: int, step: int) -> float:
        phase, last = self.phases[number], number == len(self.phases) - 1
        end = self.epochs if last else self.phases[number + 1].start
        rate = phase.peak * self.decay(step // self.batches - phase.start, end - phase.start, phase.lrf)
        first, ramp = phase.start * self.batches, round(phase.ramp * self.batches)
        return interpolate(step - first, ramp, self.lr(first - 1), rate) if step - first < ramp else rate

    def warming(self, step: int) -> bool:
        return step <= self.warmup and self.warmup > 0

    def momentum_at(self, step: int) -> float:
        return (
            interpolate(step, self.warmup, self.momentum_start, self.momentum) if self.warming(step) else self.momentum
        )

    def accumulate(self, step: int) -> int:
        """Micro-batches that one optimizer step gathers; grows from 1 to nominal batch / batch during warm-up."""
        full = self.nominal_batch / self.batch_size
        value = interpolate(step, self.warmup, 1.0, full) if self.warming(step) else full
        return max(round(value), 1)

    def due(self, step: int, pending: int) -> bool:
        """Whether the optimizer steps after this micro-batch, `pending` of which have gathered gradients (this one
        included).

        The last batch of an epoch always steps, so that no gradient is dropped; the originals drop it.
        """
        if self.compat == "v7":
            return step % self.accumulate(step) == 0
        last = self.compat == "none" and (step + 1) % self.batches == 0
        return last or pending >= self.accumulate(step)


def phases_of(groups: Iterable[Mapping[str, Any]], factor: float, lrf: float) -> tuple[Phase, ...]:
    """The cycles that the groups carry, which are the run's. factor: of each lr0 (--auto-lr); lrf: of the first one."""
    phases: list[Phase] = []
    for cycle in next((group["phases"] for group in groups if "phases" in group), ()):
        lrf = lrf if cycle["lrf"] is None else cycle["lrf"]
        phases.append(Phase(cycle["start"], cycle["lr0"] * factor, lrf, cycle["ramp"]))
    return tuple(phases)


def interpolate(step: int, steps: int, start: float, end: float) -> float:
    """Linear from start (step 0) to end (step = steps), by NumPy's rule, so that values agree to the bit."""
    return end if step >= steps else (end - start) / steps * step + start


def is_bias(group: Mapping[str, object]) -> bool:
    return str(group["name"]).startswith("bias")


def param_groups(module: nn.Module, decay: float) -> Groups:
    """Three groups: norms and implicit constants, weights (decayed), biases. Frozen parameters are included: an
    optimizer skips what has no gradient."""
    norm: list[nn.Parameter] = []
    weight: list[nn.Parameter] = []
    bias: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        kind = (
            bias if name.rsplit(".", 1)[-1] == "bias" else norm if p.ndim <= 1 or name.endswith("implicit") else weight
        )
        kind.append(p)
    groups = [("norm", norm, 0.0), ("weight", weight, decay), ("bias", bias, 0.0)]
    return [
        {"params": params, "weight_decay": wd, "name": name, "lr_scale": 1.0} for name, params, wd in groups if params
    ]


def check_partition(groups: Groups, module: nn.Module) -> None:
    """Every parameter in exactly one group."""
    seen = [id(p) for g in groups for p in g["params"]]
    known = set(seen)
    missing = [n for n, p in module.named_parameters() if id(p) not in known]
    if missing or len(seen) != len(known):
        raise ValueError(f"optimizer groups: missing {missing}, {len(seen) - len(known)} parameters twice")


def make_optimizer(groups: Groups, cfg: Config, device: torch.device) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Adam; one kernel for all tensors where there is one, 4x faster than a loop.

    On CUDA that kernel also takes AMP's scale and overflow flag, so that the host need not wait for the flag.
    """
    fused = device.type in ("cpu", "cuda")
    if cfg.adam:
        return torch.optim.Adam(groups, lr=cfg.peak_lr, betas=(cfg.momentum, 0.999), fused=fused)
    sgd = torch.optim.SGD(groups, lr=cfg.peak_lr, momentum=cfg.momentum, nesterov=cfg.momentum > 0, fused=fused)
    # The first step would make these itself, but fused SGD refuses a parameter whose first gradient comes later (one
    # thawed during the run) and, where AMP's first step overflows, keeps memory that nothing filled.
    for group in sgd.param_groups:
        for p in group["params"]:
            sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


STATE = {  # of each parameter, by optimizer: what has its shape, and what is one number
    torch.optim.SGD: ({"momentum_buffer"}, set[str]()),
    torch.optim.Adam: ({"exp_avg", "exp_avg_sq"}, {"step"}),
}


def check_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """UserError where a saved state is not one of this optimizer: other groups, parameters, kinds or shapes. torch
    itself takes what it finds, and fails in a later step."""
    tensors, numbers = STATE[type(optimizer)]
    groups, saved = optimizer.param_groups, state["param_groups"]
    order = [p for group in groups for p in group["params"]]
    ids = [i for group in saved for i in group["params"]]
    if [len(g["params"]) for g in saved] != [len(g["params"]) for g in groups] or ids != list(range(len(order))):
        raise UserError("the groups of its optimizer do not hold the parameters of this model")
    for own, group in zip(groups, saved, strict=True):
        for key in own.keys() - {"params"}:
            plain = (int, float) if type(own[key]) in (int, float) else type(own[key])
            if key not in group or not isinstance(group[key], plain):
                raise UserError(f"its optimizer has {key} {brief(group.get(key))} in group {own['name']}")
    for number, values in state["state"].items():
        shapes = dict.fromkeys(tensors, order[number].shape) | dict.fromkeys(numbers, torch.Size())
        if {key: value.shape for key, value in values.items()} != shapes:
            raise UserError(f"its optimizer's state of parameter {number} is not that of {type(optimizer).__name__}")


def set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Write the rates of this step into the groups."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.rate(step, group)
        if "momentum" in group:  # Adam's betas have no warm-up, as in the originals
            group["momentum"] = schedule.momentum_at(step)


def train_mode(module: nn.Module, freeze_bn: str = "eval", fold_frozen: bool = False) -> None:
    """train(); with freeze_bn "eval", a norm layer whose parameters are all frozen stays in eval: statistics neither
    used nor moved. With fold_frozen, detectors fold their frozen prefix. Due after whatever freezes, thaws or loads."""
    module.train()
    for m in module.modules():
        own = list(m.parameters(recurse=False))
        norm = isinstance(m, nn.modules.batchnorm._BatchNorm)
        if freeze_bn == "eval" and norm and own and not any(p.requires_grad for p in own):
            m.eval()
    for m in module.modules():
        if isinstance(m, Detector):
            m.fold_prefix(fold_frozen)


def norm_modes(module: nn.Module) -> tuple[int, int]:
    """How many BatchNorm layers are in (train, eval) mode."""
    modes = [m.training for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return sum(modes), len(modes) - sum(modes)


class Ema:
    """Moving average of the model, buffers included: decay 0.9999 (1 - exp(-updates / 2000)) (YOLOv5/YOLOv7).

    lerp leaves a tensor that did not move bit-identical, so frozen tensors stay what they were. Integer buffers are
    copied.
    """

    def __init__(self, model: Detector, decay: float = 0.9999) -> None:
        self.model, self.decay, self.updates = deepcopy(model).eval().requires_grad_(False), decay, 0
        source, mine = model.state_dict(), self.model.state_dict()
        moving = [k for k, v in mine.items() if v.is_floating_point()]
        self.mine: list[Tensor] = [mine[k] for k in moving]
        self.source: list[Tensor] = [source[k] for k in moving]
        self.counters: list[tuple[Tensor, Tensor]] = [(mine[k], source[k]) for k in mine if k not in set(moving)]

    def decay_at(self, updates: int) -> float:
        return self.decay * (1 - math.exp(-updates / 2000))

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        torch._foreach_lerp_(self.mine, self.source, 1 - self.decay_at(self.updates))
        for mine, source in self.counters:
            mine.copy_(source)


def count_parameters(module: nn.Module) -> dict[str, Any]:
    """trainable_params, frozen_params, bn_total, bn_eval, bn_train: printed at each stage."""
    train, evaluating = norm_modes(module)
    return {
        "trainable_params": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "frozen_params": sum(p.numel() for p in module.parameters() if not p.requires_grad),
        "bn_total": train + evaluating,
        "bn_eval": evaluating,
        "bn_train": train,
    }
