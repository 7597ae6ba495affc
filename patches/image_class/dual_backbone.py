"""--dual-backbone [CFG]: a second, disjoint network names the class of the image, beside the detector.
Seams: branches, load_weights, param_groups, loss_terms, observe (utils.classify).

The network is a backbone of its own (that of the model YAML again, or CFG's) with an ImageHead, reading the image. It
shares no parameter with the detector, so one backward pass of the summed loss gives each network the gradient of its
own terms, and the detector trains to the bit as it would alone. (But for fp16 on CUDA: where the loss scaler skips a
step, it does so for both.) Both are averaged, and saved in one checkpoint; without its tensors `branches....` that is a
plain detector's.

Its optimizer groups are its own: rate = the detector's times --dual-lr-scale, decay --dual-weight-decay; momentum and
schedule are shared.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from models.graph import Backbone, Detector
from patches.image_class.head import ImageHead
from patches.image_class.training import NAME, ImageClasses, Settings
from utils.config.options import check_ranges, opt
from utils.seams import Dataset, Groups, Progress
from utils.system import dist
from utils.system.timing import Clock, Parts, interleaved, ratios
from utils.system.yaml_file import read_yaml

SAME = "same"


@dataclass(frozen=True, kw_only=True)
class Flags:
    dual_backbone: str = opt(
        "",
        "name the image's class by a network of its own; with the backbone of this YAML",
        "tasks",
        nargs="?",
        const="same",
    )
    dual_gain: float = opt(1.0, "gain of its loss term", "tasks", low=0)
    dual_dropout: float = opt(0.2, "dropout before its last layer", "tasks", low=0, high=0.99)
    dual_weights: tuple[str, ...] = opt(
        ("none",), "class weights: none, balanced, or one number per class", "tasks", nargs="+"
    )
    dual_lr_scale: float = opt(1.0, "its learning rate over the detector's", "tasks", low=0)
    dual_weight_decay: float = opt(-1.0, "its weight decay (default: the detector's)", "tasks", low=-1)
    cls_names: tuple[str, ...] = opt((), "the classes, as stored in checkpoints", "tasks", hidden=True)
    dual_spec: dict[str, Any] | None = opt(None, "the YAML's content, as stored in checkpoints", "tasks", hidden=True)

    def __post_init__(self) -> None:
        check_ranges(self)


class DualBackbone(ImageClasses[Flags]):
    def __init__(self, flags: Flags) -> None:
        super().__init__(flags, Settings("dual-backbone", flags.dual_gain, flags.dual_weights, flags.cls_names))
        self.image_size = self.batch_size = 0

    def branches(self, model: Detector) -> Mapping[str, tuple[int, nn.Module]]:
        given = self.flags.dual_backbone
        spec = self.flags.dual_spec or (model.spec if given == SAME else read_yaml(given, "--dual-backbone"))
        self.place = {"dual_spec": {k: v for k, v in spec.items() if k != "head"}}
        trunk = Backbone(spec, channels=model.in_channels)
        return {NAME: (-1, ImageHead(trunk.out_channels, self.names, self.flags.dual_dropout, trunk))}

    def param_groups(self, groups: Groups, model: Detector) -> Groups:
        """The detector's groups without this network's parameters, then those, by the same kinds."""
        own = {id(p) for p in model.branches[NAME].parameters()}
        scale, decay = self.flags.dual_lr_scale, self.flags.dual_weight_decay
        theirs = [{**g, "params": [p for p in g["params"] if id(p) not in own]} for g in groups]
        mine = [
            {
                **g,
                "params": [p for p in g["params"] if id(p) in own],
                "name": f"{g['name']}_dual",
                "lr_scale": g["lr_scale"] * scale,
                "weight_decay": decay if decay >= 0 and g["weight_decay"] else g["weight_decay"],
            }
            for g in groups
        ]
        return [g for g in [*theirs, *mine] if g["params"]]

    def wrap_dataset(self, dataset: Dataset, split: str) -> Dataset:
        self.image_size = dataset.img_size
        return super().wrap_dataset(dataset, split)

    def on_epoch_start(self, model: Detector, groups: Groups, at: Progress) -> None:
        super().on_epoch_start(model, groups, at)
        if at.step == 0 and dist.main():
            print(cost(model, self.image_size))


def cost(model: Detector, size: int, images: int = 2, rounds: int = 5) -> str:
    """Parameters and time of the branch beside the detector's: forward and backward pass in float32, in turns, on
    copies."""
    head, device = deepcopy(model.branches[NAME]), model.stride.device
    alone = deepcopy(model)
    alone.branches.clear()
    image = torch.zeros(images, model.in_channels, size, size, device=device)

    def timed(network: nn.Module) -> Parts:
        clock = Clock(device)
        out = network(image)
        levels = [level for level in (out["det"] if isinstance(out, dict) else [out]) if level.requires_grad]
        if levels:
            torch.autograd.backward([level.float().sum() for level in levels])
        clock.lap("step")
        return clock.cpu if device.type == "cpu" else clock.parts

    found = interleaved({"detector": partial(timed, alone), "classes": partial(timed, head)}, rounds)
    time = ratios(*([parts["step"] for parts in found[name]] for name in ("classes", "detector")))
    own, theirs = (sum(p.numel() for p in m.parameters()) for m in (head, alone))
    return (
        f"image classes: a network of {own:,} parameters beside the detector's {theirs:,} ({own / theirs:+.0%}); "
        f"its time is {time['median']:.2f} ({time['min']:.2f}..{time['max']:.2f}) of the detector's, measured: "
        f"forward and backward of {images} images at {size} px on {device.type}, median of {rounds}"
    )


patch = DualBackbone
