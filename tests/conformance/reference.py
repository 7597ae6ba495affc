"""Reference values computed with the original YOLOv5, YOLOv7 and 1B4H programs: where they lie, what a case is.

`golden/` (beside the checkout, not part of it) holds arrays and JSON; its README says how each was computed. Read by
utils.conformance and by the tests. A file that is not there raises Absent: the comparison is then skipped, by name.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from torch import Tensor

from models.catalog import LAYERS
from models.graph import Detector
from models.loss import Criterion, DetectionLoss, LossSettings
from patches.multihead import Flags, MultiHead
from patches.multihead.head_file import HeadTable
from patches.multihead.loss import MultiHeadLoss, SummedHeadLoss
from utils.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
UNFILLED = ("num_batches_tracked", "anchors", "anchor_grid")  # keys that the fill rule leaves as built
GAINS = {"yolov5n": 2.4, "yolov7": 2.2}  # of the fill rule; 2.0 for every other model


class Absent(UserError):
    """A reference file is not there."""


@cache
def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@dataclass(frozen=True)
class Reference:
    """The folder `golden`."""

    root: Path

    def path(self, relative: str) -> Path:
        path = self.root / relative
        if not path.exists():
            raise Absent(f"{relative} not present")
        return path

    def json(self, relative: str) -> Any:
        return read_json(self.path(relative))

    def npz(self, relative: str) -> Any:
        return np.load(self.path(relative))

    def inputs(self, name: str) -> Tensor:
        """Input images `a` [1,3,64,96] or `b` [2,3,128,128] of the forward cases."""
        return torch.from_numpy(self.npz("forward/inputs.npz")[f"x_{name}"])


class LossCase(NamedTuple):
    """One loss computation of the reference."""

    criterion: Criterion
    det: list[Tensor]  # raw levels, leaves that require a gradient
    target: Tensor  # [N,6]
    batch: int
    items: list[float]  # expected box, obj, cls
    grad: list[float]  # expected L2 norm of d(sum * batch)/d(level), where the reference has it


def fill(state: Mapping[str, Tensor], gain: float) -> dict[str, Tensor]:
    """The reference's weights: random numbers that depend on each tensor's key and shape alone."""
    return {k: v if k.rsplit(".", 1)[-1] in UNFILLED else filled(k, v.shape, gain) for k, v in state.items()}


def filled(key: str, shape: torch.Size, gain: float) -> Tensor:
    last, n = key.rsplit(".", 1)[-1], int(np.prod(shape))
    draw = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF)
    if last == "running_var":
        value = 0.5 + draw.random_sample(n)
    else:
        value = draw.standard_normal(n)
        weight = last in ("weight", "in_proj_weight", "gamma")
        if weight and len(shape) > 1:
            value *= np.sqrt(gain / np.prod(shape[1:]))
        else:
            value *= 0.1
            if (last == "implicit" and ".im." in key) or weight:
                value += 1
    return torch.from_numpy(value.reshape(tuple(shape)).astype(np.float32))


def head_table(groups: Any, weights: Any, full_head: bool) -> HeadTable:
    """The reference's description of the heads as ours."""
    names = tuple(f"head_{h}" for h in range(len(groups)))
    return HeadTable(names, tuple(map(tuple, groups)), tuple(weights), "", full_head)


def model_for(ref: Reference, name: str) -> Detector:
    """An unfilled model by its reference name: yolov7-tiny, yolov5s-nc3, yolov7-tiny-1b4h-attn-geometry, ..."""
    base, layers, nc = name, dict(LAYERS), 80
    if "-1b4h-" in name:
        full = name.endswith("-fullhead")
        base, grouping = name.removesuffix("-fullhead").rsplit("-", 1)
        configs = ref.json("models/head_configs.json")
        if grouping not in configs:
            raise Absent(f"no head file for {name}")
        table = head_table(configs[grouping]["head_classes"], configs[grouping]["weights"], full)
        layers |= MultiHead(Flags(head_table=dict(vars(table)))).layers()
    elif "-nc" in name:
        base, count = name.rsplit("-nc", 1)
        nc = int(count)
    path = ROOT / f"cfg/training/{base}.yaml"
    if not path.is_file():
        raise Absent(f"{base}.yaml is not among the shipped model files")
    return Detector(yaml.safe_load(path.read_text()), nc, layers)


def filled_model(ref: Reference, name: str) -> Detector:
    """The model with the reference's weights, in eval mode."""
    model = model_for(ref, name)
    model.load_state_dict(fill(model.state_dict(), GAINS.get(name, 2.0)))
    return model.eval()


def raw_outputs(model: Detector, det: list[Tensor]) -> list[Tensor]:
    """Raw outputs [B,A,H,W,5+n] in the reference's order: head by head, and in it level by level."""
    per_head = getattr(model.head, "per_head", None)
    return [raw for head in per_head(det) for raw in head] if per_head else list(det)


def dense(model: Detector, det: list[Tensor]) -> Tensor:
    """Decoded outputs of all heads as the originals have them: [B,M,5+nc], zeros for classes a head does not own."""
    parts = []
    for pred, classes, _ in model.decode(det):
        wide = pred.new_zeros(*pred.shape[:2], 5 + model.nc)
        wide[..., :5], wide[..., 5 + classes] = pred[..., :5], pred[..., 5:]
        parts.append(wide)
    return torch.cat(parts, 1)


def settings_of(book: Any, variant: str, **more: Any) -> LossSettings:
    """Settings of a variant (base, ls, focal, pw, anchor_t2.5, gains, gr0.5) of loss/*.json."""
    hyp = {**book["base_hyp"], **book["variants"].get(variant, {})}
    if variant.startswith("gr"):
        hyp["gr"] = float(variant.removeprefix("gr"))
    return LossSettings(**{k: v for k, v in hyp.items() if k in LossSettings._fields}, **more)


def anchors_of(book: Any, config: str, stride: Tensor) -> Tensor:
    """Anchors [L,A,2] in cells."""
    pixels = torch.tensor(book["anchors_px_nl4" if config == "p10x4" else "anchors_px"])
    return pixels.view(len(stride), -1, 2) / stride.view(-1, 1, 1)


def expected(result: Any) -> tuple[list[float], list[float]]:
    """Items box, obj, cls and gradient norms; of several calls the first."""
    first = result[0] if isinstance(result, list) else result
    return first["items"][:3], [g["l2"] for g in first.get("grad", [])]


def loss_keys(book: Any) -> list[str]:
    """Cases of loss/yolov5.json or yolov7.json, without `autobalance`: an option, off by default, absent here."""
    return [key for key in book["results"] if not key.endswith("/autobalance")]


def loss_case(ref: Reference, family: str, key: str, square: bool = True) -> LossCase:
    """family yolov5 or yolov7; key as in its JSON, `ota/...` for OTA; square: with YOLOv7's square boxes in OTA."""
    book, inputs = ref.json(f"loss/{family}.json"), ref.npz("loss/inputs.npz")
    name, case, variant = key.removeprefix("ota/").split("/")
    config = book["configs"][name]
    stride = torch.tensor(config["strides"], dtype=torch.float32)
    settings = settings_of(book, variant, ota=key.startswith("ota/"), square_ota=square)
    criterion = DetectionLoss(config["nc"], anchors_of(book, name, stride), settings, stride)
    det = [torch.from_numpy(inputs[f"{name}_{i}"]).requires_grad_() for i in range(len(stride))]
    target = torch.from_numpy(inputs[f"T_{config['targets']}_{case}"]).float().view(-1, 6)
    return LossCase(criterion, det, target, config["bs"], *expected(book["results"][key]))


def router_case(ref: Reference, key: str, loss: str = "sum") -> LossCase:
    """The 4-head loss: --head-loss sum is the original's form, mean ours."""
    book, inputs = ref.json("loss/router.json"), ref.npz("loss/inputs.npz")
    name, case, variant = key.split("/")
    config, tag = book["configs"][name], {"rw": "rs", "r1": "rs"}.get(name, name)
    stride = torch.tensor([8.0, 16.0, 32.0])
    table = head_table(config["head_classes"], config["weights"], config["full_head"])
    kind = SummedHeadLoss if loss == "sum" else MultiHeadLoss
    criterion = kind(table, anchors_of(book, name, stride), settings_of(book, variant), stride)
    heads = range(len(table.groups))
    det = [torch.cat([torch.from_numpy(inputs[f"{tag}{h}_{i}"]) for h in heads], -1).requires_grad_() for i in range(3)]
    target = torch.from_numpy(inputs[f"T_{config['targets']}_{case}"]).float().view(-1, 6)
    return LossCase(criterion, det, target, len(det[0]), *expected(book["results"][key]))


def items_of(terms: Mapping[str, Tensor]) -> list[float]:
    """Box, obj and cls of named terms, several heads added up."""
    return [
        sum(float(v.detach()) for k, v in terms.items() if k.split("/")[0] == kind) for kind in ("box", "obj", "cls")
    ]
