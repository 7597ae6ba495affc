"""A training run: everything it is made of, and what it writes: checkpoints, results, pictures."""

import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.graph import Detector
from utils import seams
from utils.config.settings import EvalSettings
from utils.config.train import Config
from utils.data import loader
from utils.data.loader import class_weights, image_weights, multiscale
from utils.runs import record
from utils.runs.choice import Choice
from utils.runs.manifest import Manifest
from utils.system.processes.signals import Interrupt
from utils.train import optim
from utils.train.audit.audit import Audit
from utils.train.finite import Watch
from utils.train.guard import Guard
from utils.train.loss_step import LossStep, compute_type
from utils.weights import own_blocks


@dataclass
class Run:
    """Everything one training run is made of."""

    cfg: Config
    dir: Path
    device: torch.device
    meta: dict[str, Any]  # what a checkpoint says about itself: model YAML, names, patches, configuration
    model: Detector
    patches: seams.Patches
    loss_step: LossStep
    ema: optim.Ema
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler
    train: loader.Loader
    val: loader.Loader
    results: record.Results
    interrupt: Interrupt
    watch: Watch
    audit: Audit
    guard: Guard
    conditions: dict[str, dict[str, Any]]  # on which the bits depend: versions, code, machine, arithmetic
    epoch: int = 0  # next epoch to run, or the one under way
    batch: int = 0  # micro-batches done in it
    sums: dict[str, Tensor] = field(default_factory=dict)  # of each loss term over these
    last_batch: dict[str, int] = field(default_factory=dict)  # `labels`, `size` of the one done last
    step: int = 0  # micro-batches done
    pending: int = 0  # micro-batches since the last optimizer step
    best: float = -math.inf  # score of the best epoch so far, see utils/runs/choice.py
    counts: dict[str, int] = field(default_factory=dict)  # of what learns, as last printed
    class_ap: list[float] | None = None  # AP per class of the last evaluation, for --image-weights
    found: dict[str, Any] = field(default_factory=dict)  # map50, map and their rule, of the last epoch's evaluation
    draw_at: float = field(default_factory=lambda: time.monotonic() + 60)  # when results.png is due again

    @property
    def at(self) -> seams.Progress:
        return seams.Progress(self.epoch, self.cfg.epochs, self.step)

    @property
    def choice(self) -> Choice:
        """By what best.pt is chosen."""
        return self.guard.choice

    @property
    def autocast(self) -> torch.dtype | None:
        """Type to compute in, None = float32."""
        return compute_type(self.cfg, self.device)

    @property
    def judging(self) -> EvalSettings:
        return self.cfg.judging(self.meta["names"], self.autocast, self.model.head.nms_iou())


def repeatable(cfg: Config, device: torch.device) -> None:
    """The same numbers again: one seed, no choice of cuDNN kernels by timing, and on a CPU, or with --deterministic, an
    error from every operation of torch that has no deterministic form."""
    torch.manual_seed(cfg.seed)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    # filling costs time, and nothing here reads memory before it writes it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(device.type == "cpu" or cfg.deterministic)


def describe(cfg: Config, patches: seams.Patches, model: Detector, contents: Manifest, **more: Any) -> dict[str, Any]:
    """What a checkpoint says about itself; more: model YAML, class names, image size."""
    return {
        "config": dataclasses.asdict(cfg),
        "patches": patches.records(),
        "groups": model.groups,
        "group_names": model.group_names,
        **{k: list(v) if k == "scale" else v for k, v in more.items() if v is not None},
        "nc": model.nc,
        **({"modules": needed} if (needed := own_blocks.in_use().needed(model.spec)) else {}),
        "channels": model.in_channels,
        "data": {"yaml": cfg.data, "fingerprint": contents.fingerprint},
    }


def to_device(run: Run, batch: seams.Batch) -> seams.Batch:
    """The batch where it is computed, images float 0..1, with --multi-scale in the size drawn for this step."""
    batch = loader.to_device(batch, run.device)
    if run.cfg.multi_scale:
        size, stride = run.meta["img_size"], int(run.model.stride.max())
        batch["image"] = multiscale(batch["image"], size, stride, run.cfg.seed, run.step)
    return batch


def tell_stage(run: Run) -> None:
    """What learns from this epoch on, where that is not what did before."""
    counts = optim.count_parameters(run.loss_step)
    if counts != run.counts:
        train, total = counts["trainable_params"], counts["trainable_params"] + counts["frozen_params"]
        norms = f"BatchNorm layers: {counts['bn_train']} train, {counts['bn_eval']} stand still"
        print(
            f"from epoch {run.epoch} on {train:,} of {total:,} parameters train ({train / max(total, 1):.1%}); {norms}"
        )
    run.counts = counts


def reweigh_images(run: Run) -> None:
    """With --image-weights: draw images by the classes they hold: rare ones, and those found badly in the last
    evaluation, more often."""
    if not run.cfg.image_weights:
        return
    labels, nc = run.train.dataset.labels, run.meta["nc"]
    missed = 1 - np.array(run.class_ap if run.class_ap else [0.0] * nc)
    run.train.order.weights = image_weights(labels, class_weights(labels, nc) * missed**2)
