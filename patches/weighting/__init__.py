"""--mtl fixed|uncertainty|dwa|gradnorm: how much each task counts in the loss, L = sum_i w_i L_i.
Seams: loss_weights, on_step_end, on_epoch_start, on_epoch_end, after_evaluation.

Formulas and papers: utils.gradnorm. A window is what one optimizer step gathers: its micro-batches on all ranks. w is
constant within a window and moves at its end, by the window's mean losses and, with GradNorm, by the norms of the
window's mean gradients of the unweighted losses at the last shared layer (utils.shared_layer); these cost a backward
pass from each task to that layer, in every N-th window. What is measured there goes into the results by epoch:
grad_norm/TASK, cosine/TASK:TASK, weight/TASK. The network's own gradients are those of the plain weighted sum.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from models.graph import Detector
from patches.weighting import gradnorm, history, shared_layer
from patches.weighting.tasks import Tasks, read_tasks
from utils.config.options import check_range, opt
from utils.seams import Batch, Groups, Measure, Measured, Patch, Progress, Terms
from utils.system import dist
from utils.system.errors import UserError
from utils.system.notes import note

FIRST = 10  # windows whose mean loss is L_i(0)


@dataclass(frozen=True, kw_only=True)
class Flags:
    mtl: str = opt(
        "gradnorm",
        "how tasks are weighed: fixed weights, by their uncertainty, by the pace of their losses (dwa), gradnorm",
        "tasks",
        choices=("fixed", "uncertainty", "dwa", "gradnorm"),
    )
    mtl_tasks: tuple[str, ...] = opt(
        (),
        "losses to weigh against each other: detection, box, obj, cls, heads, a head's or a term's name, or sums as "
        "box+obj (default: detection image_class)",
        "tasks",
        nargs="+",
    )
    mtl_weights: tuple[float, ...] = opt(
        (), "with --mtl fixed: the weight of each task (default: 1)", "tasks", nargs="+"
    )
    uncertainty_lr: float = opt(0.025, "rate of the log variances", "tasks", low=0)
    gradnorm_alpha: float = opt(1.5, "pull towards equal pace, 0: equal gradient norms", "tasks", low=0)
    gradnorm_lr: float = opt(0.025, "rate of the weights", "tasks", low=0)
    gradnorm_momentum: float = opt(0.9, "momentum of the weights", "tasks", low=0, high=0.999)
    gradnorm_min: float = opt(0.1, "smallest weight", "tasks", low=1e-6, high=1)
    gradnorm_max: float = opt(10.0, "largest weight", "tasks", low=1)
    gradnorm_every: int = opt(
        0,
        "measure gradients at every N-th optimizer step (0: at each with gradnorm, else at every tenth)",
        "tasks",
        low=0,
    )
    gradnorm_node: tuple[int, ...] = opt(
        (), "module(s) where gradients are measured (else the last that all tasks share)", "tasks", nargs="+"
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            check_range(f, getattr(self, f.name))
        if self.mtl_weights and self.mtl != "fixed":
            raise UserError(f"--mtl-weights goes with --mtl fixed, not with --mtl {self.mtl}")
        if any(w < 0 for w in self.mtl_weights):
            raise UserError(f"--mtl-weights must not be below 0, got {' '.join(map(str, self.mtl_weights))}")


class Weighting(Patch[Flags]):
    w: Tensor  # [T] weights in use
    s: Tensor  # [T] log variances of --mtl uncertainty
    velocity: Tensor  # [T] of --mtl gradnorm
    first: Tensor  # [2,T] sum and number of the losses that make L_i(0)
    paces: Tensor  # [2,T] mean losses of the last two epochs, newest first; 0: none yet
    steps: Tensor  # optimizer steps taken
    scale: Tensor  # of losses in fp16, whose small gradients would become 0
    norm_sums: Tensor  # [2,T] sum and number of this epoch's norms
    cosine_sums: Tensor  # [2,T,T] the same of cosines

    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        self.tasks: Tasks = read_tasks(self.flags.mtl_tasks, terms)
        self.terms_of_run = terms
        t, given = len(self.tasks), self.flags.mtl_weights
        if given and len(given) != t:
            raise UserError(f"--mtl-weights: {len(given)} weights for {t} tasks ({', '.join(self.tasks)})")
        for node in self.flags.gradnorm_node:
            check_node(model, node)
        shapes = {"s": [t], "velocity": [t], "first": [2, t], "paces": [2, t]}
        shapes |= {"norm_sums": [2, t], "cosine_sums": [2, t, t]}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("w", torch.tensor(given) if given else torch.ones(t))
        self.register_buffer("scale", torch.tensor(65536.0))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.every = self.flags.gradnorm_every or (1 if self.flags.mtl == "gradnorm" else 10)
        self.said = ""
        print(f"mtl: {self.flags.mtl}; tasks " + ", ".join(f"{k} ({' + '.join(v)})" for k, v in self.tasks.items()))

    # one window

    def on_epoch_start(self, model: Detector, groups: Groups, at: Progress) -> None:
        self.taken = int(self.steps)
        self.layer: list[Tensor] | None = None  # weights of the shared layer; looked for at the epoch's first batch
        self.open_window()

    def open_window(self) -> None:
        self.images: float = 0
        self.loss_sum: Tensor | None = None  # [T] over images
        self.grad_sum: Tensor | None = None  # [T,n] the same of gradients at the shared layer

    def loss_weights(self, terms: Terms, batch: Batch, model: Detector) -> Mapping[str, float | Tensor]:
        if torch.is_grad_enabled():
            losses = {task: torch.stack([terms[t] for t in own]).sum() for task, own in self.tasks.items()}
            self.gather(losses, float(batch["images"]), model)
        return {term: w for own, w in zip(self.tasks.values(), self.w.unbind(), strict=True) for term in own}

    def gather(self, losses: Mapping[str, Tensor], images: float, model: Detector) -> None:
        """A micro-batch's mean losses by task, and where this window is measured their gradients at the shared layer,
        times its number of images as in the network's own loss."""
        if self.layer is None:
            self.layer = self.find_layer(losses, model)
        values = torch.stack([loss.detach().float() for loss in losses.values()]) * images
        self.images += images
        self.loss_sum = values if self.loss_sum is None else self.loss_sum + values
        if self.layer and self.taken % self.every == 0:
            grads = self.gradients(losses, self.layer) * images
            self.grad_sum = grads if self.grad_sum is None else self.grad_sum + grads

    def gradients(self, losses: Mapping[str, Tensor], layer: list[Tensor]) -> Tensor:
        """[T,n] float32, of the unweighted losses; a task without a graph in this batch has zeros."""
        kind, rows = layer[0].device.type, []
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        with torch.autocast(kind, enabled=False):
            for loss in losses.values():
                scaled = loss * self.scale if half else loss
                found = (
                    torch.autograd.grad(scaled, layer, retain_graph=True, allow_unused=True, materialize_grads=True)
                    if loss.requires_grad
                    else [torch.zeros_like(p) for p in layer]
                )
                flat = torch.cat([g.reshape(-1).float() for g in found])
                rows.append(flat / self.scale if half else flat)
        return torch.stack(rows)

    def find_layer(self, losses: Mapping[str, Tensor], model: Detector) -> list[Tensor]:
        """The weights where gradients are measured; none where there is no such place and no need of one."""
        asked, needed = self.flags.gradnorm_node, self.flags.mtl == "gradnorm"
        trouble, rows = "", list(asked)
        by_task = shared_layer.rows_by_task(model, losses)
        if getattr(model, "_compiled_call_impl", None) is not None:
            trouble = "the backward pass of a compiled model does not stop at a layer: leave out --compile"
        elif asked:
            for node in asked:
                if not shared_layer.weights_of(model.model[node]):
                    raise UserError(f"--gradnorm-node {node} is frozen: choose a module that trains, or freeze fewer")
                if away := [task for task, own in by_task.items() if node not in own]:
                    raise UserError(f"--gradnorm-node {node}: no gradient of {', '.join(away)} passes through it")
        elif not (rows := shared_layer.last_shared(model, by_task)):
            constant = [task for task, loss in losses.items() if not loss.requires_grad]
            frozen = any(not p.requires_grad for p in model.parameters())
            cure = "freeze fewer modules (--freeze, --unfreeze)" if frozen else "they have networks of their own"
            if constant:
                idle = f"{', '.join(constant)} depends on no weight (with one class, cls is 0)"
                cure = f"{idle}: leave it out of --mtl-tasks"
            trouble = f"no module that trains is shared by {' and '.join(by_task)}: {cure}"
        if trouble and needed:
            raise UserError(f"--mtl gradnorm: {trouble}")
        where = trouble or f"measured at {shared_layer.describe(model, rows)}"
        if where != self.said:  # what trains, and with it the place, may change from epoch to epoch
            said = f"mtl: gradient norms and cosines {'not measured: ' if trouble else ''}{where}"
            tqdm.write(note("gradient norms not measured", said) if trouble else said)
        self.said = where
        return [] if trouble else [p for i in rows for p in shared_layer.weights_of(model.model[i])]

    @torch.no_grad()
    def on_step_end(self, model: Detector, average: Detector, at: Progress) -> None:
        moving = self.grad_sum is not None or self.flags.mtl == "uncertainty"
        if moving and self.loss_sum is not None:
            t = len(self.tasks)
            sums = torch.cat((self.loss_sum, self.loss_sum.new_tensor([self.images])))
            if self.grad_sum is not None:
                sums = torch.cat((sums, self.grad_sum.flatten()))
            sums = dist.total(sums)
            losses, grads = sums[:t] / sums[t], sums[t + 1 :].view(t, -1) / sums[t]
            self.note(losses, grads) if self.grad_sum is not None else self.move(losses, None)
        self.taken += 1
        self.steps += 1
        self.open_window()

    def note(self, losses: Tensor, grads: Tensor) -> None:
        """A measured window: losses [T], gradients [T,n], its means over all images."""
        n, cosine = gradnorm.norms(grads), gradnorm.cosines(grads)
        good = n.isfinite().all()
        self.scale.copy_(torch.where(good, self.scale, (self.scale / 2).clamp(min=1)))  # fp16 overflowed
        met = good & cosine.isfinite()
        self.norm_sums += torch.where(good, torch.stack((n, torch.ones_like(n))), 0)
        self.cosine_sums += torch.where(met, torch.stack((cosine, torch.ones_like(cosine))), 0)
        self.move(losses, torch.where(good, n, 0))

    def move(self, losses: Tensor, n: Tensor | None) -> None:
        """New weights at a window's end from its losses [T] and gradient norms [T]."""
        losses = torch.where(losses.isfinite(), losses, 0)  # the run stops for that, but not by this
        f = self.flags
        if f.mtl == "uncertainty":
            self.s.copy_(gradnorm.uncertainty_step(self.s, losses, f.uncertainty_lr))
            self.w.copy_(torch.exp(-self.s))
        if f.mtl == "gradnorm" and n is not None:
            there = (losses > 0) & (n > 0)  # a task none of whose labels was in the window has nothing to say
            ready = self.first[1] >= FIRST
            initial = self.first[0] / self.first[1].clamp(min=1)
            pace = losses / torch.where(ready, initial, 1)
            gradient = gradnorm.gradnorm_gradient(self.w, n, pace, f.gradnorm_alpha, there & ready)
            w, velocity = gradnorm.gradnorm_step(
                self.w, self.velocity, gradient, n,
                lr=f.gradnorm_lr, momentum=f.gradnorm_momentum, low=f.gradnorm_min, high=f.gradnorm_max,
            )  # fmt: skip
            act = (there & ready).sum() > 1
            self.w.copy_(torch.where(act, w.to(self.w), self.w))
            self.velocity.copy_(torch.where(act, velocity, self.velocity))
            self.first += torch.where(there & ~ready, torch.stack((losses, torch.ones_like(losses))), 0)

    # one epoch

    @torch.no_grad()
    def on_epoch_end(self, model: Detector, at: Progress, row: Mapping[str, float]) -> dict[str, float]:
        """The epoch's weights (those at its end), mean norms and mean cosines; NaN: not measured."""
        norms = (self.norm_sums[0] / self.norm_sums[1]).tolist()
        cosine = (self.cosine_sums[0] / self.cosine_sums[1]).tolist()
        found = {f"weight/{task}": w for task, w in zip(self.tasks, self.w.tolist(), strict=True)}
        found |= {f"grad_norm/{task}": n for task, n in zip(self.tasks, norms, strict=True)}
        for (i, a), (j, b) in combinations(enumerate(self.tasks), 2):
            found[f"cosine/{a}:{b}"] = cosine[i][j]
        self.norm_sums.zero_()
        self.cosine_sums.zero_()
        if self.flags.mtl == "dwa":
            means = self.w.new_tensor([sum(row[t] for t in own) for own in self.tasks.values()])
            self.paces.copy_(torch.stack((means, self.paces[0])))
            self.w.copy_(gradnorm.dwa_weights(*self.paces))
        return found

    def after_evaluation(self, result: Measured, measure: Measure, folder: Path) -> None:
        if dist.main():
            history.write(folder, self.terms_of_run)
            history.plot(folder)


def check_node(model: Detector, node: int) -> None:
    """A module before the detector that has weights."""
    last = len(model.model) - 1
    if not 0 <= node < last:
        raise UserError(f"--gradnorm-node {node}: the model has modules 0..{last - 1} before its detector")
    if not any(p.ndim > 1 for p in model.model[node].parameters()):
        raise UserError(f"--gradnorm-node {node}: {model.kinds[node]} has no weights")


patch = Weighting
