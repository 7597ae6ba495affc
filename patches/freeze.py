"""--freeze N | N M ... | 0-10 | backbone | backbone+neck: these modules do not learn.
--trainable-first N: the inverse, only modules 0..N-1 learn.  Seam: on_model_built.

--freeze with one number N means modules 0..N-1; several numbers, exactly those; ranges a-b include both ends; names are
the sections backbone, neck, head.
Their BatchNorm layers stay in eval mode (--freeze-bn eval), so that nothing of them moves; the optimizer keeps its
groups and skips them. What patches add to the model (branches, parameters of their own) learns all the same.
"""

from dataclasses import dataclass

from models.graph import Detector
from utils.config.options import opt
from utils.seams import Patch
from utils.system.errors import UserError
from utils.train.modules import cut, parse_first


@dataclass(frozen=True, kw_only=True)
class Flags:
    freeze: tuple[str, ...] = opt(
        ("0",),
        "modules that do not learn: N = the first N; several numbers, ranges 0-10, or backbone, neck, head",
        "freezing",
        nargs="+",
    )
    trainable_first: int = opt(
        -1, "only the first N modules learn, the opposite of --freeze N (-1: not used)", "freezing"
    )


class Freeze(Patch[Flags]):
    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        words, first, total = self.flags.freeze, self.flags.trainable_first, len(model.model)
        if first != -1 and words != ("0",):
            raise UserError("--freeze says what does not learn, --trainable-first what does: give one of the two")
        if first != -1 and not 1 <= first <= total:
            raise UserError(f"--trainable-first {first}: the model has {total} modules; valid: 1..{total}")
        frozen = list(range(first, total)) if first != -1 else parse_first(words, model, "--freeze")
        if len(frozen) == total and not model.branches:
            raise UserError(f"--freeze {' '.join(words)} freezes the whole model: nothing would train")
        for i in frozen:
            model.model[i].requires_grad_(False)
        only = f"only the first {first} train; " if first != -1 else ""
        print(f"freeze: {len(frozen)} of {total} modules do not learn; {only}{cut(frozen, model)}")


patch = Freeze
