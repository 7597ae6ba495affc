"""--audit: is what happened what was declared? A contradiction ends the run with a table before anything is saved.

The plan is what stands at an epoch's start, when the patches have had their say: which parameters train, in which
group, at which lr_scale. A new plan begins a stage. Checked after optimizer steps 1, 10 and 100 of the run and of each
stage (a resumed run begins one), at each stage's start, and before every checkpoint:

  plan        unchanged since the epoch's start; every parameter in the optimizer exactly once, nothing else in it
  movement    a frozen tensor, its average, the statistics of a frozen norm (unless --freeze-bn train) and constants of
              the model stand still; a trainable tensor stands still without a step or at rate 0, else it moves, and so
              does its average; a norm in train mode counts its batches
  gradients   finite; none on a frozen parameter
  rates       each group's rate, momentum and decay by the closed form (utils.optim.Schedule.rate)
  steps       real optimizer steps, updates of the average and micro-batches, as the schedule implies; what the guard
              takes back (utils.guard) is what was there before the opening
  ranks       equal parameters, buffers, averages and optimizer states

What may stand still though it trains, and is printed instead: a tensor whose gradient is exactly zero, or whose update
is lost in float rounding. Not even a gradient in 10 steps of a stage is a contradiction.
"""

from typing import Any

import torch
from torch import Tensor

from utils.config.train import Config
from utils.system import dist
from utils.system.errors import UserError
from utils.system.notes import note
from utils.system.table import aligned, few
from utils.train.audit.digest import digest
from utils.train.audit.plan import Plan, Row, mode_rows, norms, parameters, plan_rows, read_plan
from utils.train.loss_step import LossStep
from utils.train.optim import Ema, Schedule

STEPS = (1, 10, 100)
ROWS = 20  # of a table


class Audit:
    """Watches one run; changes nothing of it. With cfg.audit off it does nothing."""

    def __init__(
        self,
        cfg: Config,
        loss_step: LossStep,
        ema: Ema,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.cfg, self.loss_step, self.ema, self.optimizer = cfg, loss_step, ema, optimizer
        self.schedule, self.scaler = schedule, scaler
        self.plan: Plan | None = None
        self.before: dict[str, int] = {}  # digests at the last check
        self.followed: set[str] = set()  # frozen tensors whose average equalled them when the stage began
        self.moved: set[str] = set()  # trainable tensors seen to move in this stage
        self.said: set[tuple[str, str]] = set()
        self.step = self.pending = 0  # micro-batches seen, and gathered since the last step that was due
        self.due = self.stage = self.since = 0  # optimizer steps due: in the run, the stage, since the last check
        self.base = self.taken = 0  # of the run before this process; real ones in this process
        self.undone = 0  # updates of the average that the guard has taken back
        self.kept: dict[str, int] = {}  # digests of the state to which it may go back
        self.renew = False  # whether the next epoch begins a stage, whatever its plan
        self.checks = 0
        self.applied: list[float] = []  # sum of each group's rates since the last check
        self.rate: list[float] = []  # of each group at the last step that was due
        if cfg.audit:
            optimizer.register_step_post_hook(self.count_step)

    def count_step(self, *_: object) -> None:
        self.taken += 1

    def epoch_start(self, step: int) -> None:
        """After the patches' on_epoch_start. step: micro-batches done."""
        if not self.cfg.audit:
            return
        if self.plan is None:
            self.advance(step)
            self.base, self.since = self.due, 0
        now = read_plan(self.loss_step, self.optimizer)
        if now == self.plan and not self.renew:
            return
        self.renew = False
        digests = self.digests()
        if self.plan is not None:
            kept = [
                n
                for n, p in parameters(self.loss_step).items()
                if not p.requires_grad and not self.plan.trains.get(n, True)
            ]
            self.stop([(n, "frozen", "moved") for n in kept if digests[n] != self.before[n]])
        self.plan, self.before, self.stage, self.moved = now, digests, 0, set()
        self.applied, self.rate, self.since = self.zeros(), self.zeros(), 0
        self.followed = {n for n in digests if digests.get(average(n)) == digests[n]}
        self.stop(
            [
                *plan_rows(self.plan, now, self.loss_step, self.optimizer),
                *mode_rows(self.loss_step.model, self.cfg.freeze_bn),
                *self.average_rows(),
            ]
        )
        train = sum(now.trains.values())
        print(f"audit: from step {step} on {train} tensors train, {len(now.trains) - train} are frozen")

    def after_step(self, step: int) -> None:
        """After an optimizer step, while its gradients are still there. step: number of the micro-batch."""
        if not self.cfg.audit:
            return
        self.advance(step + 1)
        if self.due in STEPS or self.stage in STEPS:
            self.check(gradients=True)

    def epoch_end(self, step: int) -> None:
        """Before an epoch's files are written. step: micro-batches done."""
        if self.cfg.audit and step % self.schedule.batches:
            done = step % self.schedule.batches
            self.stop([("micro-batches of the epoch", str(self.schedule.batches), str(done))])
        self.before_save(step)

    def before_save(self, step: int) -> None:
        """Before a checkpoint. step: micro-batches done."""
        if not self.cfg.audit:
            return
        self.advance(step)
        self.check(gradients=False)

    def remember(self) -> None:
        """The state in which it is kept for the guard."""
        if self.cfg.audit:
            self.kept = self.digests()

    def went_back(self, undone: int) -> None:
        """The guard has put that state back, or had done so before this process: `undone` updates of the average in
        all were taken back. The next epoch begins a stage."""
        self.undone, self.renew = undone, True
        if self.kept:
            now = self.digests()
            self.stop([(n, "as before the opening", "other") for n, d in self.kept.items() if now[n] != d])
            self.before = now

    def close(self) -> None:
        """The end of the run."""
        if self.checks:
            print(f"audit: {self.due - self.base} optimizer steps, checked {self.checks} times: all went as declared")

    def advance(self, until: int) -> None:
        """What the schedule implies for the micro-batches up to number `until`."""
        for step in range(self.step, until):
            self.pending += 1
            if self.schedule.due(step, self.pending):
                self.due, self.stage, self.since, self.pending = self.due + 1, self.stage + 1, self.since + 1, 0
                if self.plan is not None:  # before the first one only the count matters
                    self.rate = [self.schedule.rate(step, group) for group in self.optimizer.param_groups]
                    self.applied = [a + r for a, r in zip(self.applied, self.rate, strict=True)]
        self.step = max(self.step, until)

    def check(self, gradients: bool) -> None:
        """Everything; gradients: whether those of the last step are still there."""
        assert self.plan is not None
        self.checks += 1
        now, digests = read_plan(self.loss_step, self.optimizer), self.digests()
        skipped = self.scaler.is_enabled() and not self.scaler.state_dict()["_growth_tracker"]
        if skipped and gradients:
            said = f"audit: the gradient scaler skipped optimizer step {self.due} or has just grown; not looked at"
            print(note("scaler skipped", said))
        rows = [
            *plan_rows(self.plan, now, self.loss_step, self.optimizer),
            *mode_rows(self.loss_step.model, self.cfg.freeze_bn),
            *self.count_rows(),
            *self.rate_rows(),
            *self.average_rows(),
        ]
        rows += self.rank_rows(digests)
        if gradients and not skipped:
            rows += self.gradient_rows()
        if not rows:  # movement is judged by a plan that holds
            rows = [*self.still_rows(digests), *(self.moving_rows(digests, gradients) if not skipped else ())]
        self.stop(rows)
        self.moved |= {n for n in self.plan.trains if digests[n] != self.before[n]}
        self.before = digests
        if not skipped:
            self.applied, self.since = self.zeros(), 0

    def zeros(self) -> list[float]:
        """A rate of 0 for each group."""
        return [0.0] * len(self.optimizer.param_groups)

    def stop(self, rows: list[Row]) -> None:
        """Nothing, or the end: UserError with the table."""
        if not rows:
            return
        lines = aligned([("tensor or quantity", "declared", "happened"), *rows[:ROWS]]).splitlines()
        more = [f"... and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
        where = (
            f"audit after {self.step} micro-batches, {self.due} optimizer steps: not what was declared; nothing saved"
        )
        raise UserError("\n  ".join([where, *lines, *more]))

    def say(self, still: dict[str, str]) -> None:
        """What stood still for a reason, {tensor: reason}, once each."""
        new = set(still.items()) - self.said
        self.said |= new
        for why in sorted({why for _, why in new}):
            names = [n for n in still if (n, why) in new]
            print(f"audit: trainable but still up to optimizer step {self.due}, {why}: {few(names, 5)}")

    # what is looked at

    def digests(self) -> dict[str, int]:
        """By name. 0 is added first: -0 becomes 0, as any step of rate 0 makes it."""
        live: dict[str, Tensor] = {**parameters(self.loss_step), **dict(self.loss_step.model.named_buffers())}
        mean = {average(n): t for n, t in self.ema.model.state_dict().items()}
        with torch.no_grad():
            found = [digest(torch._foreach_add(list(part.values()), 0)) for part in (live, mean)]
        return dict(zip([*live, *mean], torch.cat(found).tolist(), strict=True))

    # contradictions

    def count_rows(self) -> list[Row]:
        """Optimizer steps and updates of the average against what the micro-batches imply."""
        steps = self.due - self.base
        rows = [("optimizer steps", str(steps), str(self.taken))] if not self.steps_fit(steps) else []
        if self.ema.updates != self.due - self.undone:
            rows.append(("updates of the average", str(self.due - self.undone), str(self.ema.updates)))
        return rows

    def steps_fit(self, steps: int) -> bool:
        """Loss scaling may skip steps, which it does before the optimizer's step or in it."""
        return self.taken == steps or (self.scaler.is_enabled() and self.taken < steps)

    def rate_rows(self) -> list[Row]:
        """Rates as they were at the last micro-batch."""
        rows: list[Row] = []
        for group in self.optimizer.param_groups:
            want: dict[str, Any] = {"lr": self.schedule.rate(self.step - 1, group)}
            if "betas" in group:
                want["betas"] = (self.schedule.momentum, 0.999)
            else:
                want["momentum"] = self.schedule.momentum_at(self.step - 1)
            rows += [(f"group {group['name']} {k}", str(v), str(group[k])) for k, v in want.items() if group[k] != v]
        return rows

    def average_rows(self) -> list[Row]:
        """The tensors that the average works on are those of the model and its own."""
        source, mine = self.loss_step.model.state_dict(), self.ema.model.state_dict()
        pairs = [*zip(self.ema.mine, self.ema.source, strict=True), *self.ema.counters]
        used = {place(m): place(s) for m, s in pairs}
        return [
            (average(n), "follows the live tensor", "stale")
            for n in mine
            if used.get(place(mine[n])) != place(source[n])
        ]

    def gradient_rows(self) -> list[Row]:
        """Finite where there are any, and none on a frozen parameter."""
        live = parameters(self.loss_step)
        rows = [(n, "frozen", "has a gradient") for n, p in live.items() if not p.requires_grad and p.grad is not None]
        sizes = self.gradient_sizes()
        return rows + [(n, "gradient finite", f"gradient {v}") for n, v in sizes.items() if not v < float("inf")]

    def gradient_sizes(self) -> dict[str, float]:
        """Largest absolute value of each gradient there is; NaN where it holds one."""
        grads = {n: p.grad for n, p in parameters(self.loss_step).items() if p.grad is not None}
        if not grads:
            return {}
        return dict(
            zip(grads, torch.stack(torch._foreach_norm(list(grads.values()), float("inf"))).tolist(), strict=True)
        )

    def rank_rows(self, digests: dict[str, int]) -> list[Row]:
        """Every rank holds the same tensors, optimizer state included."""
        if dist.world() == 1:
            return []
        names = {id(p): n for n, p in parameters(self.loss_step).items()}
        state = {
            f"{k} of {names.get(id(p), '?')}": v
            for p, slots in self.optimizer.state.items()
            for k, v in slots.items()
            if isinstance(v, Tensor)
        }
        every = dist.gather({**digests, **dict(zip(state, digest(list(state.values())).tolist(), strict=True))})
        return [
            (n, "equal on all ranks", f"rank {r} differs")
            for r, theirs in enumerate(every)
            for n in every[0] | theirs
            if theirs.get(n) != every[0].get(n)
        ]

    def still_rows(self, digests: dict[str, int]) -> list[Row]:
        """What was to stand still and did not."""
        assert self.plan is not None
        free = {
            f"{n}.{b}"
            for n, m, train in norms(self.loss_step.model, self.cfg.freeze_bn)
            if train
            for b, _ in m.named_buffers(recurse=False)
        }
        rows: list[Row] = []
        for name in [*self.plan.trains, *dict(self.loss_step.model.named_buffers())]:
            trains, copy = self.plan.trains.get(name, False), average(name)
            if trains:
                if self.applied[self.plan.groups[name][0]] == 0 and digests[name] != self.before[name]:
                    rows.append((name, "still, no step at a rate above 0", "moved"))
            elif name not in free:
                declared = "frozen" if name in self.plan.trains else "constant"
                if digests[name] != self.before[name]:
                    rows.append((name, declared, "moved"))
                if name in self.followed and digests[copy] != self.before[copy]:
                    rows.append((copy, declared, "moved"))
        return rows

    def moving_rows(self, digests: dict[str, int], gradients: bool) -> list[Row]:
        """What was to move and stood still."""
        assert self.plan is not None
        if not self.since:
            return []
        rows: list[Row] = []
        still: dict[str, str] = {}
        live, sizes = parameters(self.loss_step), self.gradient_sizes() if gradients else {}
        for name, p in live.items():
            number = self.plan.groups[name][0]
            if not p.requires_grad or self.applied[number] == 0 or digests[name] != self.before[name]:
                continue
            update = self.rate[number] * self.direction(p, self.optimizer.param_groups[number])
            if gradients and name not in sizes:
                if self.stage >= 10 and name not in self.moved:
                    rows.append((name, "trains", f"no gradient reaches it, {self.stage} steps into the stage"))
                else:
                    still[name] = "no gradient reached it"
            elif would_move(p.detach(), update):
                if gradients or (self.stage >= 10 and name not in self.moved):
                    rows.append((name, "trains", "stood still"))
            else:
                still[name] = "its gradient is exactly zero" if not update.any() else "its update is lost in rounding"
        self.say(still)
        states, mine = self.loss_step.model.state_dict(), self.ema.model.state_dict()
        weight = 1 - self.ema.decay_at(self.ema.updates)
        for name, copy in ((n, average(n)) for n in mine):
            followed = digests[name] != self.before[name] and digests[copy] == self.before[copy]
            if followed and would_move(mine[name], (states[name] - mine[name]) * weight):
                rows.append((copy, "follows", "stood still"))
        for name, m, train in norms(self.loss_step.model, self.cfg.freeze_bn):
            counter = f"{name}.num_batches_tracked"
            if train and m.num_batches_tracked is not None and digests[counter] == self.before[counter]:
                rows.append((counter, "counts batches", "stood still"))
        return rows

    def direction(self, p: Tensor, group: dict[str, object]) -> Tensor:
        """What the optimizer's rate is multiplied by, roughly."""
        state = self.optimizer.state.get(p, {})
        if "exp_avg" in state:
            return torch.as_tensor(state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"]))
        buffer = state.get("momentum_buffer")
        return torch.zeros_like(p) if buffer is None else torch.as_tensor(buffer)


def average(name: str) -> str:
    return f"average of {name}"


def place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def would_move(x: Tensor, update: Tensor) -> bool:
    """Whether adding an update of this size must show in x's bits: with a margin, as its size is known roughly, and a
    wide one for a single number, which may come back to where it was."""
    return not torch.equal(x + update / (4 if x.numel() > 1 else 256), x)
