"""--freeze N | N M ... | 0-10 | backbone | backbone+neck: these modules do not learn.  Seam: on_model_built.

One number N means modules 0..N-1; several numbers, exactly those; ranges a-b include both ends; names are the sections
backbone, neck, head.
Their BatchNorm layers stay in eval mode (--freeze-bn eval), so that nothing of them moves; the optimizer keeps its
groups and skips them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from models.graph import Detector
from utils.config import opt
from utils.errors import UserError
from utils.seams import Patch


@dataclass(frozen=True, kw_only=True)
class Flags:
    freeze: tuple[str, ...] = opt(
        ("0",),
        "modules that do not learn: N = the first N; several numbers, ranges 0-10, or backbone, neck, head",
        nargs="+",
    )


def parse_modules(words: Sequence[str], model: Detector) -> list[int]:
    """The flag's words -> sorted module numbers; an unknown name or a number beyond the model is an error with what is
    valid."""
    total = len(model.model)
    valid = (
        f"valid: 0..{total - 1}, {', '.join(f'{name} ({r.start}-{r.stop - 1})' for name, r in model.sections.items())}"
    )
    if len(words) == 1 and re.fullmatch(r"\d+", words[0]):
        if int(words[0]) > total:
            raise UserError(f"--freeze {words[0]}: the model has {total} modules; {valid}")
        return list(range(int(words[0])))
    chosen: set[int] = set()
    for word in (part for w in words for part in re.split(r"[+,]", w)):
        if word in model.sections:
            chosen |= set(model.sections[word])
        elif match := re.fullmatch(r"(\d+)(?:-(\d+))?", word):
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < total:
                raise UserError(f"--freeze {word}: no such modules; {valid}")
            chosen |= set(range(first, last + 1))
        else:
            raise UserError(f"--freeze {word}: unknown name; {valid}")
    return sorted(chosen)


def cut(frozen: Sequence[int], model: Detector) -> str:
    """Which sections are frozen, open, or cut through."""
    said = []
    for name, r in model.sections.items():
        count = len(set(r) & set(frozen))
        split = f"SPLIT: {count} of {len(r)} modules frozen"
        said.append(f"{name} {'open' if not count else 'frozen' if count == len(r) else split}")
    return ", ".join(said)


class Freeze(Patch[Flags]):
    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        frozen = parse_modules(self.flags.freeze, model)
        if len(frozen) == len(model.model):
            raise UserError(f"--freeze {' '.join(self.flags.freeze)} freezes the whole model: nothing would train")
        for i in frozen:
            model.model[i].requires_grad_(False)
        print(f"freeze: {len(frozen)} of {len(model.model)} modules; {cut(frozen, model)}")


patch = Freeze
