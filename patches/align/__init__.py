"""--align: infrared partners of the visible images are pulled to the same features.  Seams: branches, loss_terms.

The data YAML names the partners (`pairs:`, see utils/data/pairs.py). Detection reads the visible image alone. At a
module of the detector (--align-node; of several, the terms are means) the features of both images are pooled, over the
picture and over each box (RoIAlign), projected to unit vectors (patches/align/contrast.py), and partners are drawn
together among all pairs of the global batch:

  align       lambda * symmetric cross-entropy over pictures               chance: lambda * ln(pairs)
  align_box   lambda * the same over boxes                                 chance: lambda * ln(boxes)
  align_bank  lambda * 0.1 * hardest negatives from a memory, with --align-bank; its keys come from the average

lambda = --align-weight, 0 before --align-start, rising linearly over --align-ramp epochs. With lambda 0 the infrared
image is not computed and training is plain training to the bit. The infrared pass normalises with the running
statistics that evaluation will use, and moves none: detection's statistics stay those of visible images.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from models.graph import Detector
from patches.align.contrast import LARGEST_SCALE, START_SCALE, Bank, Projector, bank_loss, pair_loss, scale_of
from patches.align.measure import measure_alignment, plot_map
from utils.config.options import check_ranges, opt
from utils.data.spec import DataSpec
from utils.evaluation.boxes import xywhn_to_xyxy
from utils.evaluation.evaluate import eval_mode
from utils.images.pixels import fractions
from utils.seams import (
    Batch,
    Dataset,
    Groups,
    Measure,
    Measured,
    Observed,
    Output,
    Patch,
    Progress,
    Source,
    State,
    Terms,
)
from utils.system import dist
from utils.system.errors import UserError

BANK_SHARE = 0.1  # of the bank's term
HARDEST = 256  # keys of the bank that a query meets
ROI = 3  # cells a side of a pooled box
MEASURES = ("align_top1_visible", "align_top1_infrared", "align_top1_chance", "align_gap", "align_probe")
COUNTS = ("align_pairs", "align_boxes", "align_missing", "align_alone")


@dataclass(frozen=True, kw_only=True)
class Flags:
    align: bool = opt(
        False, "pull visible and infrared features of one scene together; needs `pairs` in the data YAML", "pairs"
    )
    align_weight: float = opt(0.005, "lambda: weight of the alignment terms", "pairs", low=0)
    align_start: int = opt(0, "epoch at which alignment begins", "pairs", low=0)
    align_ramp: int = opt(1, "epochs over which lambda rises to its value, the first one included", "pairs", low=1)
    align_node: tuple[int, ...] = opt(
        (), "module(s) whose features are aligned (default: the last one of the backbone)", "pairs", nargs="+"
    )
    align_dim: int = opt(128, "length of the embeddings", "pairs", low=2)
    align_bank: int = opt(0, "memory of hard negatives: so many pictures (0: none; 8192 is usual)", "pairs", low=0)
    align_every: int = opt(1, "measure alignment on the validation set every so many epochs", "pairs", low=1)
    align_subset: int = opt(512, "validation pairs that are measured: the first ones", "pairs", low=2)

    def __post_init__(self) -> None:
        check_ranges(self)


class Embed(nn.Module):
    """[B,C,H,W] -> unit vectors [B,D] of the pictures; `boxes` of boxes, with a projector of their own."""

    def __init__(self, c1: int, size: int) -> None:
        super().__init__()
        self.picture, self.box = Projector(c1, size), Projector(c1, size)

    def forward(self, feat: Tensor) -> Tensor:
        with full_precision(feat):
            return torch.as_tensor(self.picture(feat.float().mean((2, 3))))

    def boxes(self, feat: Tensor, rois: Tensor, stride: float) -> Tensor:
        """rois [N,5]: number in the batch, x0, y0, x1, y1 in input pixels -> [N,D]."""
        with full_precision(feat):
            pooled = roi_align(feat.float(), rois, ROI, 1 / stride, sampling_ratio=2, aligned=True)
            return torch.as_tensor(self.box(pooled.mean((2, 3))))


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """No autocast: fp16 has too few digits for cosines near 1."""
    return torch.autocast(x.device.type, enabled=False) if x.device.type != "meta" else nullcontext()


@dataclass
class Micro:
    """What is kept of a micro-batch until its keys enter the bank: the pairs alone."""

    visible: Tensor  # [P,3,H,W]
    infrared: Tensor
    numbers: Tensor  # [P] of the images in the data set


class Align(Patch[Flags]):
    counts: Tensor  # [4] COUNTS of the epoch under way, all ranks together
    counted: Tensor  # [] that epoch
    metrics = MEASURES
    judged = MappingProxyType(dict.fromkeys(("align_top1_visible", "align_top1_infrared", "align_gap"), False))

    def __init__(self, flags: Flags) -> None:
        super().__init__(flags)
        self.terms = ("align", "align_box", *(("align_bank",) if flags.align_bank else ()))
        self.register_buffer("counts", torch.zeros(len(COUNTS), dtype=torch.long))
        self.register_buffer("counted", torch.tensor(-1))
        if flags.align_bank:
            self.visible_bank = Bank(flags.align_bank, flags.align_dim)
            self.infrared_bank = Bank(flags.align_bank, flags.align_dim)
        self.log_scale = nn.Parameter(torch.tensor(START_SCALE))
        self.weight, self.measuring, self.unpaired = 0.0, True, ""  # data without pairs
        self.waiting: list[Micro] = []

    def nodes(self, model: Detector) -> list[int]:
        """The modules whose features are aligned; the first one is measured and fills the bank."""
        most = len(model.model) - 2
        for node in self.flags.align_node:
            if not 0 <= node <= most or self.flags.align_node.count(node) > 1:
                raise UserError(f"--align-node {node}: modules 0..{most} have features, each can be named once")
        return list(self.flags.align_node) or [len(model.sections["backbone"]) - 1]

    def branches(self, model: Detector) -> Mapping[str, tuple[int, nn.Module]]:
        size = self.flags.align_dim
        return {branch(node): (node, Embed(model.tap(node), size)) for node in self.nodes(model)}

    def load_weights(self, state: State, model: Detector, source: Source) -> State:
        """A checkpoint without projectors, e.g. of a plain detector: they start fresh."""
        own = {k: v for k, v in model.state_dict().items() if k.startswith("branches.align_")}
        if own.keys() <= source.state.keys():
            return state
        print(f"align: {source.path} has no projectors of this shape; they start fresh ({len(own)} tensors)")
        return {**state, **own}

    def on_data_read(self, spec: DataSpec) -> None:
        self.unpaired = str(spec.source) if spec.pairs is None else ""

    def wrap_dataset(self, dataset: Dataset, split: str) -> Dataset:
        if dataset.reads != "visible":
            raise UserError(
                "--align pulls infrared features to those of visible images: it goes with --modality visible"
            )
        if dataset.partners is None and split != "train":
            return dataset  # detection alone is evaluated
        return dataset.with_partners()

    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        if self.unpaired:
            raise UserError(f"--align: {self.unpaired} names no infrared partners; add the key `pairs`: `pairs: llvip`")
        shapes = model.shapes(128)
        self.strides = {node: 128 / shapes[node][-1] for node in self.nodes(model)}
        for node, stride in self.strides.items():
            learns = any(p.requires_grad for p in model.model[: node + 1].parameters())
            alone = "" if learns else "; all modules up to it are frozen, so only the projectors learn"
            print(f"align: features of module {node} ({model.kinds[node]}, stride {stride:g}){alone}")

    def on_epoch_start(self, model: Detector, groups: Groups, at: Progress) -> None:
        f = self.flags
        self.weight = f.align_weight * min(max((at.epoch - f.align_start + 1) / f.align_ramp, 0.0), 1.0)
        self.measuring = at.epoch % f.align_every == 0 or at.epoch == at.epochs - 1
        self.log_scale.requires_grad_(self.weight > 0)
        for node in self.nodes(model):
            model.branches[branch(node)].requires_grad_(self.weight > 0)
        self.waiting.clear()
        if int(self.counted) != at.epoch:  # else it was resumed in mid-epoch
            self.counts.zero_()
            self.counted.fill_(at.epoch)

    def loss_terms(self, batch: Batch, out: Output, model: Detector) -> Terms:
        image = batch["image"]
        if self.weight == 0:
            return {name: torch.zeros((), device=image.device) for name in self.terms}
        nodes, share = self.nodes(model), float(batch["share"])
        here = batch["paired"] if share else torch.zeros_like(batch["paired"])  # a repeated image of an idle rank
        rows = here.nonzero().flatten()
        visible, infrared = image[rows], partners(batch, rows, image)
        with eval_mode(model):
            feats = model.run(infrared, max(nodes))
        numbers = batch["number"][rows].to(image.device)
        rois = boxes_of(batch["target"], rows, image)

        table = dist.table([len(rows), len(rois), len(image) - len(rows) if share else 0])
        scale = scale_of(self.log_scale)
        if dist.world() > 1:  # every rank computes the whole loss, and their gradients are added up
            scale = scale / dist.world() + (scale - scale / dist.world()).detach()
        joined: list[tuple[Tensor, Tensor]] = []  # of pictures, by node
        at_pictures, at_boxes = [], []
        for node in nodes:
            embed = model.branches[branch(node)]
            assert isinstance(embed, Embed)
            views = (out[branch(node)][rows], embed(feats[node]))
            a, b = (dist.join_rows(x, [c[0] for c in table]) for x in views)
            local = [embed.boxes(x, rois, self.strides[node]) for x in (out["feat"][node][rows], feats[node])]
            one, two = (dist.join_rows(x, [c[1] for c in table]) for x in local)
            joined.append((a, b))
            at_pictures.append(pair_loss(a, b, scale))
            at_boxes.append(pair_loss(one, two, scale))
        found = {"align": torch.stack(at_pictures).mean(), "align_box": torch.stack(at_boxes).mean()}
        if self.flags.align_bank:
            (a, b), of = joined[0], dist.join_rows(numbers, [c[0] for c in table])
            ways = ((a, b, self.infrared_bank), (b, a, self.visible_bank))
            hard = [bank_loss(q, k, of, bank, scale, HARDEST) for q, k, bank in ways]
            found["align_bank"] = BANK_SHARE * (hard[0] + hard[1]) / 2
            self.waiting.append(Micro(visible.detach(), infrared, numbers))

        pairs, boxes, missing = (sum(c[i] for c in table) for i in range(3))
        alone = pairs == 1 and not (self.flags.align_bank and int(self.visible_bank.filled))
        self.counts += torch.tensor([pairs, boxes, missing, int(alone)], device=self.counts.device)
        return {name: self.weight * of_all(value, share) for name, value in found.items()}

    @torch.no_grad()
    def on_step_end(self, model: Detector, average: Detector, at: Progress) -> None:
        self.log_scale.clamp_(0, LARGEST_SCALE)
        node = self.nodes(average)[0]
        embed = average.branches[branch(node)]
        for micro in self.waiting:  # after use, so that no query has met its own key
            counts = [c[0] for c in dist.table([len(micro.numbers)])]
            views = ((micro.visible, self.visible_bank), (micro.infrared, self.infrared_bank))
            numbers = dist.join_rows(micro.numbers, counts)
            for images, bank in views:
                bank.add(dist.join_rows(embed(average.features(images, node)), counts), numbers)
        self.waiting.clear()

    def on_epoch_end(self, model: Detector, at: Progress, row: Mapping[str, float]) -> dict[str, float]:
        return dict(zip(COUNTS, map(float, self.counts.tolist()), strict=True))

    def observe(self, batch: Batch, out: Output, model: Detector) -> Observed:
        if not self.measuring or "infrared" not in batch:
            return {}
        rows = (batch["paired"] & (batch["number"] < self.flags.align_subset)).nonzero().flatten()
        node = self.nodes(model)[0]
        mine = out[branch(node)]
        seen = {name: torch.full_like(mine, torch.nan) for name in ("visible", "infrared")}
        if len(rows):
            feat = model.features(partners(batch, rows, batch["image"]), node)
            seen["visible"][rows], seen["infrared"][rows] = mine[rows], model.branches[branch(node)](feat)
        return {f"align_{name}": x for name, x in seen.items()}

    def figures(self, observed: Observed) -> dict[str, float]:
        if not observed.get("align_visible", torch.empty(0)).numel():
            return {}
        found = measure_alignment(*known(observed))
        measured = (found.retrieval_a, found.retrieval_b, found.chance, found.gap, found.probe)
        return dict(zip(MEASURES, measured, strict=True))

    def after_evaluation(self, result: Measured, measure: Measure, folder: Path) -> None:
        if dist.main() and result.observed.get("align_visible", torch.empty(0)).numel():
            a, b = known(result.observed)
            plot_map(a[:200], b[:200], ("visible", "infrared"), folder / "align_map.png")


def branch(node: int) -> str:
    """Name of the projectors at a module."""
    return f"align_{node}"


def partners(batch: Batch, rows: Tensor, image: Tensor) -> Tensor:
    """Infrared images [P,C,H,W] of these rows, on the device of the visible ones, in their channels and size; float
    0..1."""
    infrared = fractions(batch["infrared"][rows].to(image.device, non_blocking=True))
    if infrared.shape[1] == 1:
        infrared = infrared.expand(-1, image.shape[1], -1, -1)
    if infrared.shape[2:] != image.shape[2:]:  # --multi-scale has resized the visible ones
        size = image.shape[2:]
        infrared = nn.functional.interpolate(infrared, size=size, mode="bilinear", align_corners=False)
    return infrared


def boxes_of(target: Tensor, rows: Tensor, image: Tensor) -> Tensor:
    """target [N,6] -> the boxes of these images [M,5]: place among `rows`, x0, y0, x1, y1 in input pixels."""
    place = torch.full((len(image),), -1, device=target.device)
    place[rows.to(target.device)] = torch.arange(len(rows), device=target.device)
    own = place[target[:, 0].long()]
    corners = xywhn_to_xyxy(target[:, 2:6], image.shape[3], image.shape[2])
    return torch.cat([own[:, None].to(corners), corners], 1)[own >= 0]


def of_all(loss: Tensor, share: float) -> Tensor:
    """A loss over the global batch, of which this rank has `share` of the images: its value, and the gradient that adds
    up to its own once each rank has multiplied it by its number of images."""
    return loss if share in (0, 1) else loss + (1 / share - 1) * (loss - loss.detach())


def known(observed: Observed) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Embeddings [N,D] of both views, of the pairs that were measured."""
    a, b = (observed[f"align_{name}"].double().numpy() for name in ("visible", "infrared"))
    seen = ~np.isnan(a[:, 0])
    return a[seen], b[seen]


patch = Align
