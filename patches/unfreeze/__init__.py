"""--unfreeze "0:77, 100:31-76@0.1, ..." | FILE.yaml, or --progressive-unfreeze: parts of the model begin to learn in
mid-run, in one optimizer, one average, one results file.  Seams: wrap_dataset, on_model_built, param_groups, on_start,
on_epoch_start.

Every parameter is in the optimizer from the start, in groups split by opening. A group carries plain data: `stage`,
`opens` (epoch), `ramp` (epochs), `lr_scale`; its rate is utils.optim.Schedule.rate(step, group), a pure function. At
each epoch's start a group is open or frozen (no gradient, its norms in eval) by `opens` as it then stands, so that
whoever changes these fields postpones or slows an opening.
Modules that --freeze names never open and must be in no stage. What patches add (branches, parameters of their own)
learns from the start, except a branch that a stage names: `branches.NAME`.
Forms of the schedule: utils.openings.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.graph import Detector
from patches.unfreeze.openings import AUGMENTATION, PRESETS, Opening, by_rule, from_file, from_words, preset_for
from patches.unfreeze.plan_table import plan_table
from utils.config.options import check_range, opt
from utils.data.spec import DataSpec
from utils.seams import Dataset, Groups, Patch, Progress, Rates
from utils.system.errors import UserError
from utils.system.notes import note
from utils.train.modules import depth_groups, parse_modules, spans


@dataclass(frozen=True, kw_only=True)
class Flags:
    unfreeze: tuple[str, ...] = opt(
        (),
        "when what begins to learn: EPOCH:MODULES[@SCALE], ... (0:77, 100:31-76@0.1), or a YAML file",
        "freezing",
        nargs="+",
    )
    progressive_unfreeze: bool = opt(
        False, "neck and head learn from the start, the backbone is opened block by block, from its end", "freezing"
    )
    unfreeze_preset: str = opt(
        "auto",
        "start, rate and scale of --progressive-unfreeze: small 20 10 .01, medium 10 5 .1, large 5 3 .3; auto = by the "
        "number of training images (under 1,000; to 10,000; above)",
        "freezing",
        choices=("small", "medium", "large", "auto"),
    )
    unfreeze_order: str = opt(
        "end", "which block of the backbone opens first: the last (end), or the first (stem)", "freezing",
        choices=("end", "stem"),
    )  # fmt: skip
    unfreeze_start: int = opt(-1, "epoch of its first opening (-1: the preset's)", "freezing", low=-1)
    unfreeze_rate: int = opt(-1, "epochs from one opening to the next (-1: the preset's)", "freezing", low=-1)
    unfreeze_lr_scale: float = opt(-1.0, "scale of the opened groups' rate (-1: the preset's)", "freezing", low=-1)
    unfreeze_ramp: float = opt(
        1.0, "epochs in which the rate of what opens rises from 0 (YAML: `ramp`)", "freezing", low=0
    )
    unfreeze_plan: bool = opt(False, "print the table of epochs and groups, and end before training", "freezing")
    unfreeze_table: dict[str, Any] | None = opt(
        None, "the schedule as read, as stored in checkpoints", "freezing", hidden=True
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            check_range(f, getattr(self, f.name))


def read(flags: Flags) -> list[Opening]:
    """The openings as far as the flags alone say: none yet for --progressive-unfreeze, which needs the model."""
    own = [n for n in ("unfreeze_start", "unfreeze_rate", "unfreeze_lr_scale") if getattr(flags, n) != -1]
    asked = {"unfreeze_preset": "auto", "unfreeze_order": "end"} if flags.unfreeze_table is None else {}
    own += [name for name, default in asked.items() if getattr(flags, name) != default]
    if own and not flags.progressive_unfreeze:
        raise UserError(f"--{own[0].replace('_', '-')} belongs to --progressive-unfreeze")
    if flags.unfreeze and flags.progressive_unfreeze:
        raise UserError("--unfreeze and --progressive-unfreeze are two schedules: give one of them")
    if flags.unfreeze_rate == 0 or flags.unfreeze_lr_scale == 0:
        raise UserError("--unfreeze-rate and --unfreeze-lr-scale must be above 0")
    if flags.unfreeze_table is not None:
        return [Opening(**stage) for stage in flags.unfreeze_table["stages"]]
    if flags.progressive_unfreeze:
        return []
    if not flags.unfreeze:
        raise UserError("--unfreeze-plan shows the plan of --unfreeze or of --progressive-unfreeze: give one of them")
    if len(flags.unfreeze) == 1 and flags.unfreeze[0].endswith((".yaml", ".yml")):
        return from_file(flags.unfreeze[0], flags.unfreeze_ramp)
    return from_words(flags.unfreeze, flags.unfreeze_ramp)


def trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def empty(module: nn.Module) -> bool:
    return not any(True for _ in module.parameters())


class Unfreeze(Patch[Flags]):
    def __init__(self, flags: Flags) -> None:
        super().__init__(flags)
        self.openings, self.images = read(flags), 0
        self.stage_of: dict[int, int] = {}  # id of a parameter -> number of its opening

    def record(self) -> dict[str, Any]:
        stages = [{**dataclasses.asdict(o), "hyp": dict(o.hyp)} for o in self.openings]
        return {**super().record(), "unfreeze_plan": False, "unfreeze_table": {"stages": stages}}

    def on_data_read(self, spec: DataSpec) -> None:
        self.images = len(spec.images("train"))

    def wrap_dataset(self, dataset: Dataset, split: str) -> Dataset:
        changes = [(o.epoch, values) for o in self.openings if (values := o.part(AUGMENTATION))]
        return dataset.changing(changes) if changes and split == "train" else dataset

    def on_model_built(self, model: Detector, terms: tuple[str, ...]) -> None:
        held = {i for i, m in enumerate(model.model) if not empty(m) and not trains(m)}  # by --freeze
        self.openings = self.openings or self.progressive(model, held)
        stages = [list(members(o, model)) for o in self.openings]
        check_cover(self.openings, stages, held, model)
        for number, (opening, parts) in enumerate(zip(self.openings, stages, strict=True)):
            for _, module in parts:
                self.stage_of |= {id(p): number for p in module.parameters()}
                module.requires_grad_(opening.epoch == 0)
            print(f"unfreeze: stage {number + 1}: {opening.modules} from epoch {opening.epoch} on, rate x "
                  f"{opening.scale:g}, ramp {opening.ramp:g} epochs")  # fmt: skip

    def progressive(self, model: Detector, held: set[int]) -> list[Opening]:
        flags = self.flags
        name = preset_for(self.images) if flags.unfreeze_preset == "auto" else flags.unfreeze_preset
        given = (flags.unfreeze_start, flags.unfreeze_rate, flags.unfreeze_lr_scale)
        start, rate, scale = (p if g == -1 else g for p, g in zip(PRESETS[name], given, strict=True))
        why = f"by {self.images:,} training images" if flags.unfreeze_preset == "auto" else "as asked for"
        print(f"progressive unfreezing: preset {name} ({why}): start {start}, rate {rate}, lr scale {scale:g}")
        blocks = depth_groups(model)
        decoder = [*blocks.pop("neck", []), *blocks.pop("head", [])]
        backbone = list(blocks.values()) if flags.unfreeze_order == "end" else list(blocks.values())[::-1]
        free = [[i for i in group if i not in held] for group in (decoder, *backbone)]
        words = [spans(group) for group in free if any(not empty(model.model[i]) for i in group)]
        return by_rule(words, int(start), int(rate), scale, flags.unfreeze_ramp)

    def param_groups(self, groups: Groups, model: Detector) -> Groups:
        """Each group in parts by opening; what no stage names stays as it was. All carry the run's decay cycles."""
        split: Groups = []
        rated = [o for o in self.openings if "lr0" in o.hyp]
        phases = [{"start": o.epoch, "lr0": o.hyp["lr0"], "lrf": o.hyp.get("lrf"), "ramp": o.ramp} for o in rated]
        for group in groups:
            kept = [p for p in group["params"] if id(p) not in self.stage_of]
            split += [{**group, "params": kept}] if kept else []
            for number, o in enumerate(self.openings):
                params = [p for p in group["params"] if self.stage_of.get(id(p)) == number]
                own = {"lr_scale": group["lr_scale"] * o.scale, "opens": o.epoch, "ramp": o.ramp, "stage": number + 1}
                split += [{**group, "params": params, "name": f"{group['name']}/{number + 1}", **own}] if params else []
        return [{**group, "phases": phases} for group in split] if phases else split

    def on_start(self, model: Detector, groups: Groups, rates: Rates) -> None:
        late = [str(i) for i, o in enumerate(self.openings, 1) if o.epoch >= rates.epochs]
        if late:
            said = f"unfreeze: stage {', '.join(late)} would open after the last epoch ({rates.epochs}): never does"
            print(note("stage never opens", said))
        if self.flags.unfreeze_plan:
            print(plan_table(rates, groups, {str(i): o.modules for i, o in enumerate(self.openings, 1)}))
            raise SystemExit(0)

    def on_epoch_start(self, model: Detector, groups: Groups, at: Progress) -> None:
        said: dict[int, str] = {}
        for group in (g for g in groups if "opens" in g):
            is_open = at.epoch >= group["opens"]
            for p in (p for p in group["params"] if p.requires_grad != is_open):
                p.requires_grad_(is_open)
                p.grad = None
                said[group["stage"]] = f"learns from epoch {group['opens']} on" if is_open else "is frozen again"
        for stage, what in said.items():
            print(f"unfreeze: epoch {at.epoch}: stage {stage} {what}")


def members(opening: Opening, model: Detector) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of everything that an opening names."""
    words = [w.strip() for w in opening.modules.split("+")]
    for name in (w.removeprefix("branches.") for w in words if w.startswith("branches.")):
        if name not in model.branches:
            known = ", ".join(f"branches.{n}" for n in model.branches) or "none"
            raise UserError(f"--unfreeze {opening.epoch}:branches.{name}: no such branch; there are: {known}")
        yield f"branches.{name}", model.branches[name]
    plain = [w for w in words if not w.startswith("branches.")]
    for i in parse_modules(plain, model, f"--unfreeze {opening.epoch}:") if plain else []:
        yield str(i), model.model[i]


def check_cover(
    openings: Sequence[Opening], stages: Sequence[Sequence[tuple[str, nn.Module]]], held: set[int], model: Detector
) -> None:
    """Every module with parameters in exactly one stage, or frozen by --freeze and in none; something at epoch 0."""
    epochs: dict[str, int] = {}
    for opening, parts in zip(openings, stages, strict=True):
        for name, _ in parts:
            if name in epochs:
                raise UserError(f"--unfreeze: module {name} opens twice, at epochs {epochs[name]} and {opening.epoch}")
            epochs[name] = opening.epoch
    if both := [i for i in held if str(i) in epochs]:
        raise UserError(
            f"--unfreeze names modules {spans(both)}, which --freeze or --trainable-first keeps frozen for good"
        )
    left = [i for i, m in enumerate(model.model) if str(i) not in epochs and i not in held and not empty(m)]
    if left:
        count = sum(p.numel() for i in left for p in model.model[i].parameters())
        raise UserError(
            f"--unfreeze: modules {spans(left)} ({count:,} parameters) are in no stage and would never learn: open "
            f"them in one, or say so with --freeze {spans(left)}"
        )
    if not any(o.epoch == 0 and not empty(m) for o, parts in zip(openings, stages, strict=True) for _, m in parts):
        raise UserError(f"--unfreeze: nothing learns before epoch {openings[0].epoch}: open something at epoch 0")


patch = Unfreeze
