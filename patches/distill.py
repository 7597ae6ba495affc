"""--teacher CKPT: a frozen detector teaches the one that trains.
Seams: on_data_read, on_model_built, before_training, on_epoch_start, loss_terms, on_epoch_end.

z are logits, p_T = sigmoid(z / T); t the teacher's, s the student's. Each cell and anchor counts by w = the teacher's
objectness there, in a weighted mean over the batch: <x> = sum w x / max(sum w, 1) (after arXiv:1805.06361).

    distill_cls  = gain * cls gain * T^2 / 80 * < sum over classes of KL(p_T(t) || p_T(s)) >
                   KL of two coins, p ln(p/q) + (1-p) ln((1-p)/(1-q)), as classes are sigmoids (T^2: arXiv:1503.02531)
    distill_box  = gain * box gain * < 1 - CIoU(teacher's box, student's box) >
    distill_feat = gain * feat gain * mean over node pairs of |project(s) - t|^2 / |t|^2 (hints: arXiv:1412.6550)

The gains have the scale of a hyp file's cls and box (80 classes, 3 levels). With several heads on either side, the
class that the teacher finds likeliest in a cell, by objectness * class, says whose objectness and box count there.

Heads without anchors, of both: w = the teacher's largest class probability in the cell; distill_cls is not divided by
80, and distill_box = 30 * gain * box gain * < mean over the four sides of KL(teacher's distances || student's) >, over
the 16 bins (arXiv:2102.12252): the scale of such a hyp file's cls (sums over classes) and dfl (1.5).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from models.anchored.assign import decode_rows
from models.graph import Detector
from models.head import View
from models.iou import iou
from models.loss import Softplus
from utils.config.options import check_range, opt
from utils.data.spec import DataSpec
from utils.evaluation import tables
from utils.runs.fingerprint import of_tensors
from utils.seams import Batch, Groups, Measure, Measured, Output, Patch, Progress, Rates, Source, State, Terms
from utils.system.errors import UserError
from utils.system.notes import warn
from utils.weights.checkpoint import load_detector
from utils.weights.class_rows import compare


@dataclass(frozen=True, kw_only=True)
class Flags:
    teacher: str = opt("", "checkpoint of the teacher, ours or YOLOv5's or YOLOv7's", "distillation")
    teacher_cfg: str = opt("", "model YAML of the teacher, for files that carry none", "distillation")
    distill_gain: float = opt(1.0, "gain of all three terms; 0: plain training, to the bit", "distillation", low=0)
    distill_cls_gain: float = opt(0.5, "gain of the class term, for 80 classes", "distillation", low=0)
    distill_box_gain: float = opt(0.05, "gain of the box term", "distillation", low=0)
    distill_feat_gain: float = opt(0.05, "gain of the feature term", "distillation", low=0)
    distill_temperature: tuple[float, ...] = opt(
        (1.0,),
        "temperature of the class term; two values: from the first to the second by a cosine",
        "distillation",
        nargs="+",
    )
    distill_nodes: tuple[str, ...] = opt(
        (),
        "modules whose features are matched, STUDENT:TEACHER numbers (default: the detectors' inputs)",
        "distillation",
        nargs="+",
    )
    teacher_sha256: str = opt("", "fingerprint of the teacher's tensors, as recorded", "distillation", hidden=True)

    def __post_init__(self) -> None:
        if not self.teacher:
            raise UserError("--teacher needs a checkpoint")
        for f in fields(self):
            check_range(f, getattr(self, f.name))
        heat = self.distill_temperature
        if len(heat) not in (1, 2) or not all(0 < t < math.inf for t in heat):
            raise UserError(f"--distill-temperature takes one or two numbers above 0, got {heat}")


def coin_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(sigmoid(teacher / T) || sigmoid(student / T)), elementwise. Gradient to the student's logits:
    T (sigmoid(student / T) - sigmoid(teacher / T))."""
    s, t = student / temperature, teacher / temperature
    kl: Tensor = t.sigmoid() * (t - s) + Softplus.apply(s) - Softplus.apply(t)
    return kl * temperature**2


def output_terms(
    student: Sequence[View], teacher: Sequence[View], owners: tuple[Tensor, Tensor], anchors: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The means <...> of the class and of the box term, without gains, in float32.

    owners: head of each class [nc], student's and teacher's. anchors: [L,A,2] in cells.
    """
    total = cls = box = anchors.new_zeros(())
    for level, (mine, theirs) in enumerate(zip(student, teacher, strict=True)):
        assert mine.obj is not None and theirs.obj is not None  # heads with anchors
        with torch.no_grad():
            obj, logits = theirs.obj.float().sigmoid(), theirs.cls.float()
            likeliest = torch.zeros_like(obj[..., 0], dtype=torch.long)  # [B,A,H,W] global class
            if mine.obj.shape[-1] > 1 or theirs.obj.shape[-1] > 1:
                likeliest = (obj[..., owners[1]] * logits.sigmoid()).argmax(-1)
            head_s, head_t = (owner[likeliest][..., None] for owner in owners)
            weight = of_head(obj[..., None], head_t)[..., 0]  # [B,A,H,W]
            prior = anchors[level][:, None, None].expand(*weight.shape, 2).reshape(-1, 2)
            want = decode_rows(of_head(theirs.box.float(), head_t).view(-1, 4), prior)
        have = decode_rows(of_head(mine.box.float(), head_s).view(-1, 4), prior)
        total = total + weight.sum()
        box = box + ((1 - iou(have, want, kind="ciou")) * weight.view(-1)).sum()
        if logits.shape[-1] > 1:  # one class: objectness says it all, as in the base's loss
            cls = cls + (coin_kl(mine.cls.float(), logits, temperature).sum(-1) * weight).sum()
    return cls / total.clamp(min=1), box / total.clamp(min=1)


def free_terms(
    student: Sequence[View], teacher: Sequence[View], owners: tuple[Tensor, Tensor], temperature: float
) -> tuple[Tensor, Tensor]:
    """`output_terms` of heads without anchors."""
    total = cls = box = student[0].cls.new_zeros((), dtype=torch.float32)
    for mine, theirs in zip(student, teacher, strict=True):
        logits = theirs.cls.float()  # [B,1,H,W,nc]
        best, likeliest = logits.max(-1)
        weight = best.sigmoid()  # [B,1,H,W]
        head_s, head_t = (owner[likeliest][..., None] for owner in owners)
        want = of_head(theirs.box.float(), head_t).unflatten(-1, (4, -1)).log_softmax(-1)  # [B,1,H,W,4,16]
        have = of_head(mine.box.float(), head_s).unflatten(-1, (4, -1)).log_softmax(-1)
        total = total + weight.sum()
        box = box + ((want.exp() * (want - have)).sum(-1).mean(-1) * weight).sum()
        cls = cls + (coin_kl(mine.cls.float(), logits, temperature).sum(-1) * weight).sum()
    return cls / total.clamp(min=1), box / total.clamp(min=1)


def of_head(values: Tensor, head: Tensor) -> Tensor:
    """[...,K,C] and the head [...,1] wanted in each cell -> [...,C]. A masked sum: its gradient needs no scatter."""
    mine = head == torch.arange(values.shape[-2], device=head.device)
    return torch.where(mine[..., None], values, 0).sum(-2)


def owner_of(groups: Sequence[Sequence[int]]) -> Tensor:
    """Head of each class [nc]."""
    of = {c: h for h, group in enumerate(groups) for c in group}
    return torch.tensor([of[c] for c in range(len(of))])


def node_pairs(words: Sequence[str], student: Detector, teacher: Detector) -> list[tuple[int, int]]:
    """`57:57`, ... -> pairs of module numbers whose outputs have one stride; no words: the inputs of the detectors."""
    pairs = list(zip(student.sources[-1], teacher.sources[-1], strict=True)) if not words else []
    for word in words:
        numbers = word.split(":")
        if len(numbers) != 2 or not all(n.isdecimal() for n in numbers):
            raise UserError(f"--distill-nodes {word}: give pairs of module numbers STUDENT:TEACHER, such as 57:57")
        pairs.append((int(numbers[0]), int(numbers[1])))
    sizes = student.shapes(128), teacher.shapes(128)
    for pair in pairs:
        for whose, number, shapes in zip(("student", "teacher"), pair, sizes, strict=True):
            if number >= len(shapes) - 1:
                last = len(shapes) - 2
                raise UserError(f"--distill-nodes: the {whose} has modules 0..{last} with features, {number} is none")
        strides = [128 // shapes[number][-1] for number, shapes in zip(pair, sizes, strict=True)]
        if strides[0] != strides[1]:
            raise UserError(
                f"--distill-nodes {pair[0]}:{pair[1]}: the student's has stride {strides[0]}, the teacher's "
                f"{strides[1]}; choose modules of one stride"
            )
    return pairs


def check_match(student: Detector, teacher: Detector, path: str) -> None:
    """Channels, cells and classes of both must be the same ones, and both have anchors or none, else a UserError that
    says what is not."""
    priors, wanted = student.head.priors(), teacher.head.priors()
    if (priors is None) != (wanted is None):
        said = "the student has none, the teacher has some"
        if wanted is None:
            said = "the teacher has none, the student has some"
        raise UserError(f"--teacher {path}: heads with anchors and without cannot be compared; {said}")
    if student.image_channels != teacher.image_channels:
        wrong = f"reads images of {teacher.image_channels} channels, not {student.image_channels}"
        raise UserError(f"--teacher {path} {wrong}")
    if student.nc != teacher.nc:
        raise UserError(f"--teacher {path} has {teacher.nc} classes, the data has {student.nc}: they must be the same")
    if student.stride.tolist() != teacher.stride.tolist():
        both = f"{teacher.stride.tolist()}, the student at {student.stride.tolist()}"
        raise UserError(f"--teacher {path} detects at strides {both}: they must be the same")


def check_anchors(student: Detector, teacher: Detector, path: str) -> None:
    """UserError where both have anchors, which are not the same in pixels."""
    priors, wanted = student.head.priors(), teacher.head.priors()
    if priors is None or wanted is None:
        return
    mine, theirs = (
        (own * model.stride[:, None, None]).float() for own, model in ((priors, student), (wanted, teacher))
    )

    def listed(anchors: Tensor) -> str:
        return str([[round(x, 1) for x in level.flatten().tolist()] for level in anchors])

    if mine.shape != theirs.shape or not mine.allclose(theirs, rtol=1e-3):  # half-precision files round anchors
        raise UserError(
            f"--teacher {path} has other anchors than the student: {listed(theirs)} against {listed(mine)} pixels; "
            "write the teacher's into the student's model YAML and train with --noautoanchor"
        )


def matched(names: Sequence[str], meta: Mapping[str, object], path: str, teacher: Detector) -> list[int]:
    """Number at the teacher of each class of the data; its detections have the data's numbers from now on. UserError
    where the teacher has other classes."""
    names = names if len(names) == teacher.nc else ["item"]  # all as one: --single-cls
    columns = compare(meta, f"--teacher {path}", names, "the data", "a teacher has the classes of the data")
    order = [c for c in columns if c is not None]
    teacher.head.renumber([order.index(c) for c in range(teacher.nc)])
    return order


class Distill(Patch[Flags]):
    terms = ("distill_cls", "distill_box", "distill_feat")
    known: Tensor  # [3] mAP@.5 and mAP@.5:.95 of the teacher, best mAP@.5:.95 of the student; nan: not yet measured

    def __init__(self, flags: Flags) -> None:
        super().__init__(flags)
        shares = (flags.distill_cls_gain / 80, flags.distill_box_gain, flags.distill_feat_gain)
        self.gains = [flags.distill_gain * share for share in shares]
        self.temperature = flags.distill_temperature[0]
        self.hidden: list[Detector] = []  # the teacher, in a list: no submodule, so neither saved nor optimised
        self.owners: list[Tensor] = []
        self.loaded = False  # --weights, whose anchors stay as they are
        self.weights_sha256, self.names = flags.teacher_sha256, list[str]()  # of the data
        self.order: list[int] = []  # number at the teacher of each class
        self.pairs: list[tuple[int, int]] = []
        self.project = nn.ModuleList()
        self.register_buffer("known", torch.full((3,), math.nan))

    def record(self) -> dict[str, Any]:
        return {**super().record(), "teacher_sha256": self.weights_sha256}

    def _apply(self, fn: Any, recurse: bool = True) -> "Distill":
        """Whatever moves the patch moves the teacher."""
        for module in self.hidden:
            module._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.owners = [fn(owner) for owner in self.owners]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def on_data_read(self, spec: DataSpec) -> None:
        self.names = list(spec.names)

    def load_weights(self, state: State, model: Detector, source: Source) -> State:
        self.loaded = True
        return state

    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        path = self.flags.teacher
        try:
            teacher, meta = load_detector(path, self.flags.teacher_cfg)
        except UserError as error:
            raise UserError(f"--teacher (its model YAML: --teacher-cfg): {error}") from None
        now, recorded = of_tensors(teacher.state_dict()), self.flags.teacher_sha256
        if recorded not in ("", now):
            raise UserError(
                f"--teacher {path}: its weights are others now (SHA-256 {now[:12]}) than those that this run was begun "
                f"with ({recorded[:12]}); put that file back"
            )
        check_match(model, teacher, path)
        if self.loaded:  # else the data may change them
            check_anchors(model, teacher, path)
        self.weights_sha256, self.order = now, matched(self.names, meta, path, teacher)
        self.hidden = [teacher.requires_grad_(False)]
        self.owners = [owner_of(model.groups), owner_of(teacher.groups)]
        if self.gains[2]:
            self.pairs = node_pairs(self.flags.distill_nodes, model, teacher)
        for mine, theirs in self.pairs:
            have, want = model.tap(mine), teacher.tap(theirs)
            self.project.append(nn.Conv2d(have, want, 1) if have != want else nn.Identity())
        print(
            f"distill: teacher {path} (SHA-256 {now[:12]}), "
            + (f"features {', '.join(f'{a}:{b}' for a, b in self.pairs)}" if self.pairs else "no features")
        )

    def on_start(self, model: Detector, groups: Groups, rates: Rates) -> None:
        check_anchors(model, self.hidden[0], self.flags.teacher)

    def before_training(self, start: Measured | None, measure: Measure) -> None:
        found = measure(self.hidden[0])
        self.known.copy_(torch.tensor([found.map50, found.map, math.nan]))
        print(
            f"teacher {self.flags.teacher}: mAP@.5 {tables.number(found.map50)}  mAP@.5:.95 "
            f"{tables.number(found.map)}  ({found.rule})"
        )
        if start is not None and found.map <= start.map:  # nan: not measured, for want of objects
            said = "the teacher is not better than the student at its start (mAP@.5:.95)"
            warn("teacher not better", said)

    def on_epoch_start(self, model: Detector, groups: Groups, at: Progress) -> None:
        first, last = self.flags.distill_temperature[0], self.flags.distill_temperature[-1]
        done = at.epoch / max(at.epochs - 1, 1)
        self.temperature = last + (first - last) * (1 + math.cos(math.pi * done)) / 2

    def loss_terms(self, batch: Batch, out: Output, model: Detector) -> Terms:
        cls, box, feat = self.gains
        zero = batch["image"].new_zeros(())
        values = [zero, zero, zero]
        if cls or box or feat:
            with torch.no_grad():
                teacher = self.hidden[0]
                taught = teacher(batch["image"])
        if cls or box:
            views = [m.head.views(o["det"]) for m, o in ((model, out), (teacher, taught))]
            if self.order != sorted(self.order):
                views[1] = [view._replace(cls=view.cls[..., self.order]) for view in views[1]]
            owners = (self.owners[0], self.owners[1])
            priors = teacher.head.priors()
            if priors is None:
                found = free_terms(views[0], views[1], owners, self.temperature)
                cls, box = cls * 80, box * 30  # of such a hyp file
            else:
                found = output_terms(views[0], views[1], owners, priors, self.temperature)
            values[:2] = found[0] * cls, found[1] * box
        if feat:
            values[2] = self.feature_term(out["feat"], taught["feat"]) * feat
        return dict(zip(self.terms, values, strict=True))

    def feature_term(self, have: dict[int, Tensor], want: dict[int, Tensor]) -> Tensor:
        """Squared distance relative to the teacher's features, mean over the pairs; 1 = as far off as zeros."""
        off = []
        for (mine, theirs), project in zip(self.pairs, self.project, strict=True):
            target = want[theirs].float()
            error = (project(have[mine]).float() - target).square().sum()
            off.append(error / target.square().sum().clamp(min=1e-12))
        return torch.stack(off).mean()

    def on_epoch_end(self, model: Detector, at: Progress, row: Mapping[str, float]) -> dict[str, float]:
        theirs50, theirs, best = self.known.tolist()
        now = max(best, row.get("mAP", 0.0)) if best == best else row.get("mAP", math.nan)
        self.known[2] = now
        if now > theirs and (not best > theirs or at.epoch == at.epochs - 1):
            said = f"the student's best mAP@.5:.95 {now:.4f} is above the teacher's {theirs:.4f}"
            warn("teacher not better", said, epoch=at.epoch)
        return {"teacher_mAP50": theirs50, "teacher_mAP": theirs}


patch = Distill
