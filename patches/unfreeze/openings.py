"""When which modules begin to learn: a list of openings, from words, from a YAML file, or by the rule of progressive
unfreezing.

Words: `EPOCH:MODULES[@SCALE]`, as `0:77, 100:31-76@0.1, 200:backbone`. Several modules are joined by +; numbers mean
exactly these modules.
YAML: `stages:`, a list of {epoch, open, scale: 1, ramp: epochs, hyp: {...}}. hyp: lr0 and lrf begin a decay cycle of
the run's rate; parameters of augmentation hold until a later stage gives others.
Rule: n(e) = 0 for e < start, else min(1 + floor((e - start) / rate), groups) blocks of the backbone are open; neck and
head learn from the start. Blocks: utils.train.modules.depth_groups.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from utils.config.options import check_range
from utils.config.train import Config
from utils.data.augment import AugmentParams
from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml

FORM = "EPOCH:MODULES[@SCALE], as 0:77, 100:31-76@0.1, 200:backbone"
RATES = ("lr0", "lrf")
AUGMENTATION = tuple(f.name for f in dataclasses.fields(AugmentParams))
PRESETS = {"small": (20, 10, 0.01), "medium": (10, 5, 0.1), "large": (5, 3, 0.3)}  # start, rate, lr scale
SIZES = {"small": 1_000, "medium": 10_001}  # images below which a preset is meant, else large


@dataclass(frozen=True)
class Opening:
    """Modules that begin to learn at the start of an epoch."""

    epoch: int
    modules: str  # words
    scale: float  # of their rate
    ramp: float  # epochs in which their rate goes from 0 to its own
    hyp: Mapping[str, float] = field(default_factory=dict)  # of the whole run, from this epoch on

    def part(self, keys: Sequence[str]) -> dict[str, float]:
        return {k: v for k, v in self.hyp.items() if k in keys}


def from_words(words: Sequence[str], ramp: float) -> list[Opening]:
    """The inline form. What opens at epoch 0 has no ramp: the warm-up is one."""
    openings = []
    for word in (w.strip() for w in " , ".join(words).split(",")):
        if not word:
            continue
        match = re.fullmatch(r"(\d+)\s*:\s*([^@:]+?)(?:@(\d*\.?\d+(?:e-?\d+)?))?", word)
        if not match:
            raise UserError(f"--unfreeze {word}: expected {FORM}, or a YAML file")
        epoch, scale = int(match[1]), float(match[3] or 1)
        openings.append(checked(Opening(epoch, match[2], scale, ramp if epoch else 0.0), f"--unfreeze {word}"))
    return ordered(openings, "--unfreeze")


def from_file(path: str, ramp: float) -> list[Opening]:
    """The YAML form. Errors name the file, the stage and the key."""
    content = read_yaml(path, "--unfreeze")
    stages = content.get("stages")
    if set(content) != {"stages"} or not isinstance(stages, list) or not stages:
        raise UserError(f"{path}: expected `stages:`, a list of {{epoch, open, scale, ramp, hyp}}, and nothing else")
    openings = []
    for number, stage in enumerate(stages, 1):
        where = f"{path}: stage {number}"
        if not isinstance(stage, dict) or not {"epoch", "open"} <= stage.keys() <= {*OPTIONAL, "epoch", "open"}:
            raise UserError(f"{where}: expected the keys epoch and open, and maybe {', '.join(OPTIONAL)}; got {stage}")
        values = {"scale": 1.0, "ramp": ramp if stage["epoch"] else 0.0, **stage}
        for key, kinds in (("epoch", int), ("scale", (int, float)), ("ramp", (int, float)), ("open", (int, str))):
            if isinstance(values[key], bool) or not isinstance(values[key], kinds):
                raise UserError(f"{where}: {key}: {values[key]!r} is not of the right kind")
        hyp = checked_hyp(values.get("hyp") or {}, where)
        opening = Opening(values["epoch"], str(values["open"]), float(values["scale"]), float(values["ramp"]), hyp)
        openings.append(checked(opening, where))
    return ordered(openings, path)


OPTIONAL = ("scale", "ramp", "hyp")


def checked(opening: Opening, where: str) -> Opening:
    if opening.epoch < 0 or not 0 < opening.scale < float("inf") or not 0 <= opening.ramp < float("inf"):
        raise UserError(f"{where}: the epoch must be 0 or more, the scale above 0, the ramp 0 or more")
    if opening.epoch == 0 and opening.hyp:
        raise UserError(f"{where}: the hyper-parameters of epoch 0 are the run's own: give them by --hyp or by flags")
    return opening


def checked_hyp(values: object, where: str) -> dict[str, float]:
    """Hyper-parameters that may change within a run: the rate's cycle and augmentation. The others (loss gains,
    momentum, decay, ...) are built into criterion and optimizer once."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: hyp: expected {{key: value}}, got {values!r}")
    known = {f.name: f for f in dataclasses.fields(Config)}
    for key, value in values.items():
        if key not in (*RATES, *AUGMENTATION):
            raise UserError(
                f"{where}: hyp: {key} cannot change within a run; what can: {', '.join((*RATES, *AUGMENTATION))}. "
                "For other settings start a new stage with --weights"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{where}: hyp: {key} must be a number, got {value!r}")
        try:
            check_range(known[key], value)
        except UserError as error:
            raise UserError(f"{where}: hyp: {error}") from None
    if "lrf" in values and "lr0" not in values:
        raise UserError(f"{where}: hyp: lrf belongs to a cycle that begins with lr0: give both")
    return {key: float(value) for key, value in values.items()}


def ordered(openings: Sequence[Opening], where: str) -> list[Opening]:
    """By epoch; two rates at one epoch are an error."""
    if not openings:
        raise UserError(f"{where}: no opening; expected {FORM}, or a YAML file")
    rated = [o.epoch for o in openings if "lr0" in o.hyp]
    if twice := {e for e in rated if rated.count(e) > 1}:
        raise UserError(f"{where}: lr0 is given twice for epoch {min(twice)}")
    return sorted(openings, key=lambda o: o.epoch)


def by_rule(groups: Sequence[str], start: int, rate: int, scale: float, ramp: float) -> list[Opening]:
    """Progressive unfreezing. groups: words for neck and head, then for each block of the backbone in its turn."""
    later = [start + rate * i for i in range(len(groups) - 1)]
    openings = [Opening(e, words, scale, ramp if e else 0.0) for e, words in zip(later, groups[1:], strict=True)]
    return [Opening(0, groups[0], 1.0, 0.0), *openings]


def preset_for(images: int) -> str:
    """The preset meant for a training set of this size."""
    return next((name for name, limit in SIZES.items() if images < limit), "large")
