"""What bench.py measures: parts of a run, built from train.py's flags by the functions that train.py builds them with.

Pictures    a data set of drawn 640x480 JPEGs, written once into a temporary folder
Stepper     one training step: data, forward, loss, backward, optimizer, EMA
LossCall    the loss alone, on outputs of the model's shapes
LoaderPass  an epoch of batches without training
Evaluation  evaluate() on scores like a trained model's
"""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
import yaml
from torch import Tensor

import train
from models.graph import Detector
from models.head import Part
from utils.evaluation.evaluate import evaluate
from utils.seams import Batch
from utils.system.rng import rng
from utils.system.timing import Clock, Parts
from utils.train import start

CLASSES = 80
BOXES = 7  # per picture, as in COCO


def write_pictures(folder: Path, count: int, width: int = 640, height: int = 480) -> Path:
    """`count` JPEGs with BOXES labelled rectangles each, the same set for train and val -> their data YAML."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        draw = rng(0, "bench pictures", 0, i)
        coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image += draw.integers(-20, 21, image.shape, dtype=np.int16)
        picture = np.ascontiguousarray(image.clip(0, 255).astype(np.uint8))
        lines = []
        for box in targets(draw)[:, 1:].tolist():
            cls, (cx, cy, w, h) = int(box[0]), box[1:]
            low, high = ((cx - w / 2) * width, (cy - h / 2) * height), ((cx + w / 2) * width, (cy + h / 2) * height)
            colour = [int(v) for v in draw.integers(0, 256, 3)]
            cv2.rectangle(picture, [round(v) for v in low], [round(v) for v in high], colour, -1)
            lines.append(f"{cls} {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}\n")
        cv2.imwrite(str(folder / "images" / f"{i:05d}.jpg"), picture)
        (folder / "labels" / f"{i:05d}.txt").write_text("".join(lines))
    file = folder / "pictures.yaml"
    names = [str(i) for i in range(CLASSES)]
    file.write_text(yaml.safe_dump({"path": str(folder), "train": "images", "val": "images", "names": names}))
    return file


def targets(draw: np.random.Generator, image: int = 0) -> npt.NDArray[np.float64]:
    """[BOXES,6] image, class, cx, cy, w, h in 0..1: sides of 3 % to 50 %, small ones more often."""
    wh = np.exp(draw.uniform(np.log(0.03), np.log(0.5), (BOXES, 2)))
    centre = wh / 2 + draw.random((BOXES, 2)) * (1 - wh)
    number = np.full((BOXES, 1), image)
    return np.concatenate([number, draw.integers(0, CLASSES, (BOXES, 1)), centre, wh], 1)


class Stepper:
    """A run of train.py, step by step: its setup() and step(), watched by hooks. Every micro-batch steps the
    optimizer."""

    def __init__(self, words: Sequence[str]) -> None:
        """words: flags of train.py."""
        begun = start.begin(words)
        cfg = replace(begun.cfg, nominal_batch=begun.cfg.batch_size)
        with contextlib.redirect_stdout(io.StringIO()):
            self.run = run = train.setup(replace(begun, cfg=cfg))
        self.clock = Clock(run.device)
        run.loss_step.register_forward_pre_hook(lambda *_: self.clock.lap("data"))
        run.loss_step.criterion.register_forward_pre_hook(lambda *_: self.clock.lap("forward"))
        run.loss_step.register_forward_hook(lambda *_: self.clock.lap("loss"))
        run.optimizer.register_step_pre_hook(lambda *_: self.clock.lap("backward"))
        run.optimizer.register_step_post_hook(lambda *_: self.clock.lap("optimizer"))
        self.batches = self.endless()

    def endless(self) -> Iterator[Batch]:
        """Epoch after epoch."""
        while True:
            with contextlib.redirect_stdout(io.StringIO()):
                train.begin_epoch(self.run)
            yield from self.run.train
            self.run.epoch, self.run.batch = self.run.epoch + 1, 0

    def step(self, batch: Batch, clock: Clock) -> None:
        """What comes after the optimizer's step counts as the average's."""
        self.clock = clock
        train.step(self.run, batch)
        clock.lap("EMA")

    def measure(self) -> Parts:
        """Seconds of each part, and of the whole step without data. On CUDA the whole is timed by itself, over five
        steps: waiting for the device after each part costs the overlap of host and device."""
        device = self.run.device
        clock = Clock(device)
        self.step(next(self.batches), clock)
        if device.type != "cuda":
            wall, cpu = (sum(parts.values()) - parts["data"] for parts in (clock.parts, clock.cpu))
            return {**clock.parts, "step": wall, "CPU time": cpu}
        batches, several = [next(self.batches) for _ in range(5)], Clock(device)
        for batch in batches:
            self.step(batch, Clock(device, wait=False))
        several.lap("all")
        return {**clock.parts, "step": several.parts["all"] / len(batches)}

    def held_bytes(self) -> int:
        """Bytes of weights, average and optimizer state."""
        run = self.run
        momentum = [t for s in run.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        held = [*run.loss_step.state_dict().values(), *run.ema.model.state_dict().values(), *momentum]
        return sum(t.numel() * t.element_size() for t in held)


class LossCall:
    """The criterion on raw outputs of a forward pass of random images, BOXES objects each."""

    def __init__(self, stepper: Stepper, batch: int) -> None:
        run = stepper.run
        self.device, self.criterion, self.type = run.device, run.loss_step.criterion, run.autocast
        draw, size = rng(0, "bench loss", 0, batch), run.cfg.train_size
        self.target = torch.from_numpy(np.concatenate([targets(draw, i) for i in range(batch)])).float().to(self.device)
        with torch.no_grad(), self.computing():
            image = torch.rand(batch, 3, size, size, device=self.device)
            det = run.model(image)["det"]
        self.det = [level.requires_grad_() for level in det]

    def computing(self) -> torch.autocast:
        """The type that train.py computes in."""
        return torch.autocast(self.device.type, dtype=self.type, enabled=self.type is not None)

    def measure(self) -> Parts:
        clock = Clock(self.device)
        with self.computing():
            terms = self.criterion(self.det, self.target, BOXES)
        clock.lap("loss")
        torch.stack(list(terms.values())).sum().backward()
        clock.lap("backward")
        for level in self.det:
            level.grad = None
        return {**clock.parts, "CPU time": clock.cpu["loss"]}


class LoaderPass:
    """An epoch of the training loader, without training."""

    def __init__(self, words: Sequence[str]) -> None:
        self.loader, self.epoch = Stepper(words).run.train, 0
        self.images = len(self.loader.dataset)

    def measure(self) -> Parts:
        self.loader.order.set_epoch(self.epoch)
        self.epoch += 1
        clock = Clock(torch.device("cpu"))
        for _ in self.loader:
            pass
        clock.lap("epoch")
        return clock.parts


class TrainedLike(Detector):
    """A detector whose scores are drawn: 2 % of the boxes are objects of about a dozen classes each, as evaluation at
    confidence 0.001 meets them."""

    def decode(self, det: list[Tensor]) -> list[Part]:
        parts = super().decode(det)
        for i, part in enumerate(parts):
            draw = torch.Generator(part.pred.device).manual_seed(i)
            scores = part.pred[..., 4:]
            scores.uniform_(generator=draw)
            scores[..., 0].sub_(0.98).clamp_(min=0).mul_(50)
            scores[..., 1:].pow_(40)
        return parts


class Evaluation:
    """evaluate() over the validation pictures."""

    def __init__(self, stepper: Stepper) -> None:
        self.run, self.held_bytes = stepper.run, stepper.held_bytes
        self.run.ema.model.__class__ = TrainedLike

    def measure(self) -> Parts:
        """Seconds per image; `whole` is everything, loading included."""
        run, clock = self.run, Clock(self.run.device)
        judging = replace(run.judging, progress=False)
        found = evaluate(run.ema.model, run.val, run.device, judging, criterion=run.loss_step.criterion)
        clock.lap("whole")
        seconds = {**found.seconds, **clock.parts, "CPU time": clock.cpu["whole"]}
        return {name: value / found.images for name, value in seconds.items()}


def coco_files(folder: Path, images: int, each: int) -> tuple[Path, list[str], list[Tensor]]:
    """An annotation file of BOXES objects per image, and `each` detections per image: objects found again, a little
    off, and others. -> (file, image paths, detections as `evaluate` returns them)"""
    draw = rng(0, "bench coco")
    truth: list[dict[str, Any]] = []
    detections: list[Tensor] = []
    for image in range(images):
        objects = targets(draw)[:, 1:] * [1, 640, 480, 640, 480]
        objects[:, 1:3] -= objects[:, 3:] / 2
        for cls, *box in objects.tolist():
            more = {"area": box[2] * box[3], "iscrowd": 0, "id": len(truth) + 1}
            truth.append({"image_id": image, "category_id": int(cls), "bbox": box, **more})
        found = objects[draw.integers(0, BOXES, each)]
        found[:, 1:] *= draw.normal(1, 0.1, (each, 4))
        corners = [found[:, 1:3], found[:, 1:3] + found[:, 3:]]
        rows = np.concatenate([*corners, draw.random((each, 1)), found[:, :1]], 1)
        detections.append(torch.from_numpy(rows).float())
    file = folder / "truth.json"
    pictures = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(images)]
    names = [{"id": i, "name": str(i)} for i in range(CLASSES)]
    file.write_text(json.dumps({"images": pictures, "annotations": truth, "categories": names}))
    return file, [f"{i}.jpg" for i in range(images)], detections
