"""--heads N --head-config FILE: one backbone, N heads, each with its own classes (1B4H).  Seam: layers.
Heads without anchors: patches.multihead.free; with them, as follows.

The head owns its loss and its decoding, so train.py and test.py do not change. Raw output of a level: [B,A,H,W,P], the
heads side by side, P = sum of 5 + n_h columns; it comes from one convolution whose weights are the heads' own, joined.

Loss, on the scale of one head with all classes, so that rates, decay and warm-up carry over. With w_h = head weight /
mean head weight, over the rows (positives) of all heads: box = weighted mean of 1 - CIoU; cls = weighted mean over rows
of the BCE of all class logits, each scored against the row's class, whichever head holds it; obj = mean over cells of
w_h * BCE at the head's own positives, and of the mean over heads elsewhere.
`--head-loss sum` adds up four independent losses instead, as the original did.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from models.catalog import FREE, Build
from models.graph import Detector
from patches.multihead.free import MultiHeadFreeDetect
from patches.multihead.head import MultiHeadDetect, MultiHeadDetectAttn
from patches.multihead.head_file import read_head_file, restored_table
from utils.config.options import opt
from utils.data.spec import DataSpec
from utils.seams import Patch
from utils.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Flags:
    heads: int = opt(0, "number of heads; must agree with the head file", "heads", low=0)
    head_config: str = opt("", "head file: which head owns which classes", "heads")
    head_loss: str = opt(
        "mean",
        "combination of the heads' losses: mean = on the scale of one head; sum = the original",
        "heads",
        choices=("mean", "sum"),
    )
    head_table: dict[str, Any] | None = opt(
        None, "the head file's content, as stored in checkpoints", "heads", hidden=True
    )


class MultiHead(Patch[Flags]):
    def __init__(self, flags: Flags) -> None:
        super().__init__(flags)
        if flags.head_table is not None:
            self.table = restored_table(flags.head_table)
        else:
            if not flags.head_config:
                raise UserError("--heads needs --head-config FILE, which says which head owns which classes")
            self.table = read_head_file(flags.head_config, flags.heads)

    def on_data_read(self, spec: DataSpec) -> None:
        """The head file once more, now with the data's class names."""
        if self.flags.head_table is None:
            self.table = read_head_file(self.flags.head_config, self.flags.heads, spec.names)

    def record(self) -> dict[str, Any]:
        return {**super().record(), "head_table": dict(vars(self.table))}

    def layers(self) -> Mapping[str, Build]:
        """A model YAML's plain detector, too, becomes one with several heads."""
        attention = {"MultiHeadDetectAttn": MultiHeadDetectAttn, "MultiHeadDetectAttention": MultiHeadDetectAttn}
        plain = dict.fromkeys(("Detect", "IDetect", "MultiHeadDetect"), MultiHeadDetect)
        kinds = {**plain, **attention, FREE: MultiHeadFreeDetect}
        return {name: partial(kind, table=self.table, loss=self.flags.head_loss) for name, kind in kinds.items()}

    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        heads, stated = len(self.table.groups), model.spec.get("nh")
        if len(model.groups) != heads:
            raise UserError(
                f"--heads: the model YAML's detector {model.kinds[-1]} cannot be split over several heads; those "
                "ending in Detect or IDetect can (of a model with auxiliary heads: its file in cfg/deploy)"
            )
        if stated not in (None, heads):
            raise UserError(f"--head-config: {heads} heads; the model YAML says nh: {stated}")


patch = MultiHead
