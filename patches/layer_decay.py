"""--layer-decay D: rates fall with the distance from the output, group by group by the factor D (ULMFiT, Howard and
Ruder, arXiv:1801.06146: 1 / 2.6).  Seam: param_groups.

Groups, deepest first: head 1, neck D, then the backbone by resolution D^2, D^3, ... (utils.select.depth_groups). What
patches add keeps its rate. Works alone, and multiplies the scales of --unfreeze.
"""

from dataclasses import dataclass

from models.graph import Detector
from utils.config.options import opt
from utils.seams import Groups, Patch
from utils.system.errors import UserError
from utils.train.modules import depth_groups, spans


@dataclass(frozen=True, kw_only=True)
class Flags:
    layer_decay: float = opt(1.0, "factor of the rate from one depth group to the next (ULMFiT: 0.385)", "freezing")

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"--layer-decay must lie above 0 and up to 1, got {self.layer_decay}")


class LayerDecay(Patch[Flags]):
    def param_groups(self, groups: Groups, model: Detector) -> Groups:
        depth: dict[int, int] = {}
        for number, (name, modules) in enumerate(depth_groups(model).items()):
            depth |= {id(p): number for i in modules for p in model.model[i].parameters()}
            print(f"layer decay: {name} ({spans(modules)}): rate x {self.flags.layer_decay**number:.4g}")
        split: Groups = []
        for group in groups:
            for number in sorted({depth.get(id(p), -1) for p in group["params"]}):
                params = [p for p in group["params"] if depth.get(id(p), -1) == number]
                scale = self.flags.layer_decay ** max(number, 0)
                own = {"name": f"{group['name']}/depth{number}", "lr_scale": group["lr_scale"] * scale}
                split.append({**group, "params": params, **(own if number >= 0 else {})})
        return split


patch = LayerDecay
