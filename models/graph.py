"""Model YAML (the YOLOv5/YOLOv7 form) -> Detector: modules numbered in file order, `model.N`, run in that order.

In training the leading rows in which nothing learns, the frozen prefix, run without a graph; `fold_prefix` replaces
them, for that purpose alone, by folded copies that belong to no state_dict.

A row is `[from, number, module, args]`: from = -1 (the row before), another relative or absolute row number, or a list
of them; number = how often the module is repeated (times depth_multiple); channel arguments, at most
max_channels, are scaled by width_multiple and rounded up to a multiple of 8. `scales` lists these three by sizes, of
which `scale` chooses one. A Detect row without anchors is the head of models.free.
Words in args (nc, anchors, None, nn.LeakyReLU(0.1), ...) are looked up, never evaluated.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.catalog import FREE, LAYERS, advice
from models.catalog import Build as Build
from models.fuse import folded
from models.head import Head, Part
from models.loss import Criterion, LossSettings
from models.rows import (
    MOST_PARAMETERS,
    MOST_REPEATS,
    at_scale,
    check_rows,
    check_settings,
    cut,
    outputs_per_level,
    parse_word,
)
from models.rows import GraphError as GraphError

DEEP = ("m", "l", "x")  # sizes of YOLO11 all of whose C3k2 have C3k inside, whatever the row says


# what torch makes of odd numbers
ODD = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


class NormsKeepShapes(TorchFunctionMode):
    """Batch norms hand on what they get. Without arithmetic torch takes them to pieces in Python, which takes most of
    a dry run's time."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if func is nn.functional.batch_norm else func(*args, **(kwargs or {}))


class Row(NamedTuple):
    """One line of the module table."""

    number: int
    source: tuple[int, ...]
    module: str
    params: int
    shape: tuple[int, ...]  # output [C,H,W] at the size asked for; the detector has one entry per level in `levels`


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Smallest multiple of `divisor` that is not below `channels`."""
    return int(-(-channels // divisor) * divisor)


class Graph(nn.Module):
    """Rows of a model YAML as modules, each with the rows it reads."""

    def __init__(
        self, spec: Mapping[str, object], parts: Sequence[str], nc: int, builders: Mapping[str, Build], channels: int
    ) -> None:
        """spec: the model YAML. parts: `backbone`, `head`. nc: classes. channels: of the input image."""
        super().__init__()
        self.nc, self.in_channels = nc, channels
        self.sources: list[tuple[int, ...]] = []
        self.kinds: list[str] = []
        self.feat: set[int] = set()
        self.joins: set[int] = set()  # rows whose `from` is a list: they take a list, of one entry too
        rows = [row for part in parts for row in check_rows(spec, part)]
        spec = at_scale(spec)
        check_settings(spec)
        default_act = parse_word(spec["activation"], {}) if "activation" in spec else None
        modules: list[nn.Module] = []
        size = 0  # parameters so far
        outputs = [channels]  # outputs[i + 1] = channels of module i
        for i, (source, number, kind, args) in enumerate(rows):
            absolute = tuple(i + s if s < 0 else s for s in (source if isinstance(source, list) else [source]))
            if any(s >= i or s < -1 for s in absolute):
                raise GraphError(f"row {i} ({kind}): from {source} points outside of rows 0..{i - 1}")
            c1 = [outputs[s + 1] for s in absolute]
            row = (spec, nc, builders, kind, number, args, c1 if isinstance(source, list) else c1[0])
            try:
                with torch.device("meta"):  # first without memory
                    size += sum(p.numel() for p in build_row(*row).parameters())
                if size > MOST_PARAMETERS:
                    raise ValueError(f"the model has {size:,} parameters up to here; {MOST_PARAMETERS:,} are the most")
                module = build_row(*row)
                if not isinstance(made := module.out_channels, int):
                    raise ValueError("it takes the output of one row, but `from` is a list")
            except ODD as error:
                raise GraphError(f"row {i} ({kind} {cut(args)}): {first_line(error)}") from None
            if default_act is not None:
                replace_activation(module, default_act)
            modules.append(module)
            outputs.append(made)
            self.sources.append(absolute)
            if isinstance(source, list):
                self.joins.add(i)
            self.kinds.append(kind)
        self.model = nn.ModuleList(modules)
        self.last_reader = {s: i for i, source in enumerate(self.sources) for s in source}

    def run_row(self, i: int, module: nn.Module, kept: dict[int, object]) -> None:
        """Row i from the outputs of the rows it reads to its own; those that nobody reads later are dropped."""
        inputs = [kept[s] for s in self.sources[i]]
        for s in self.sources[i]:
            if self.last_reader[s] == i and s not in self.feat:
                kept.pop(s, None)
        kept[i] = module(inputs if i in self.joins else inputs[0])


class Backbone(Graph):
    """The backbone of a model YAML by itself: image [B,3,H,W] -> output of its last row [B,out_channels,h,w]."""

    def __init__(self, spec: Mapping[str, object], builders: Mapping[str, Build] = LAYERS, channels: int = 3) -> None:
        super().__init__(spec, ("backbone",), 1, builders, channels)
        self.out_channels = int(cast(int, self.model[-1].out_channels))

    def forward(self, image: Tensor) -> Tensor:
        kept: dict[int, Any] = {-1: image}
        for i, module in enumerate(self.model):
            self.run_row(i, module, kept)
        return cast(Tensor, kept[len(self.model) - 1])


class Detector(Graph):
    """Runs the modules in order; the last one is the head. `tap(N)` adds the output of module N to out["feat"]."""

    def __init__(
        self, spec: Mapping[str, Any], nc: int, builders: Mapping[str, Build] = LAYERS, channels: int = 3
    ) -> None:
        """spec: the model YAML. nc: classes of the data, which replace the YAML's own. channels: of the input image."""
        super().__init__(spec, ("backbone", "head"), nc, builders, channels)
        self.spec = dict(spec)
        self.branch_inputs: dict[str, int] = {}
        self.stand_ins: dict[int, nn.Module] = {}  # see fold_prefix; no submodules of this one
        self.sections = sections(len(spec["backbone"]), len(self.model))
        self.branches = nn.ModuleDict()
        if not hasattr(self.model[-1], "decode"):
            raise GraphError(f"the last row must be a detector (Detect, IDetect, ...), not {self.kinds[-1]}")
        if (own := sum(map(len, self.groups))) != nc:
            raise GraphError(f"the detector's row says {own} classes, the data has {nc}; write nc there")
        self.kinds[-1] = type(self.model[-1]).__name__  # which may be another than the file's: several heads
        self.register_load_state_dict_post_hook(drop_stand_ins)  # type: ignore[no-untyped-call]
        sizes = [shape[-1] for shape in self.shapes(128)[-1]]
        if any(128 % size for size in sizes):
            raise GraphError(f"row {len(self.model) - 1}: 128 px give {sizes} cells; strides must be powers of 2")
        try:
            self.head.attach([128 // size for size in sizes])
        except ValueError as error:
            raise GraphError(f"row {len(self.model) - 1} ({self.kinds[-1]}): {error}") from None

    @property
    def head(self) -> Head:
        return cast(Head, self.model[-1])

    @property
    def stride(self) -> Tensor:
        return self.head.stride

    @property
    def groups(self) -> list[list[int]]:
        return self.head.groups

    @property
    def group_names(self) -> list[str]:
        return self.head.group_names

    def criterion(self, settings: LossSettings) -> Criterion:
        """settings: with the head's own `gains`."""
        return self.head.criterion(settings)

    def decode(self, det: list[Tensor]) -> list[Part]:
        return self.head.decode(det)

    def tap(self, index: int) -> int:
        """Expose module `index` in out["feat"]; returns its channels."""
        self.feat.add(index)
        return int(cast(int, self.model[index].out_channels))

    def add_branch(self, name: str, index: int, module: nn.Module) -> None:
        """A second output: forward gives out[name] = module(output of row `index`); -1 is the image itself. Its tensors
        are `branches.NAME....`: averaged, saved and loaded with the model.

        A module that says `joins` is a second stem instead of an output: images then hold two pictures, [B,2C,H,W], of
        which the rows read the first; row `index` becomes module(its output, the second picture)."""
        if name in self.branches or name in ("det", "feat") or not -1 <= index < len(self.model) - 1:
            raise GraphError(f"branch {name} at row {index}: the name is taken, or there is no such row with features")
        self.branches[name] = module
        self.branch_inputs[name] = index
        self.feat.add(index)

    @property
    def stem(self) -> str:
        """Name of the branch that is a second stem; empty where there is none."""
        return "".join(name for name, branch in self.branches.items() if getattr(branch, "joins", False))

    @property
    def image_channels(self) -> int:
        """Of what forward reads; in_channels are those of one picture."""
        return self.in_channels * (2 if self.stem else 1)

    def forward(self, image: Tensor) -> dict[str, Any]:
        """image [B,3,H,W] float 0..1 -> {"det": raw output of the head, "feat": {N: [B,C,H,W]}, and each branch's}."""
        kept = self.run(image, len(self.model) - 1)
        outputs = [name for name in self.branches if name != self.stem]
        out = {name: self.branches[name](kept[self.branch_inputs[name]]) for name in outputs}
        return {"det": kept[len(self.model) - 1], "feat": {i: kept[i] for i in self.feat}, **out}

    def features(self, image: Tensor, index: int) -> Tensor:
        """Output of row `index`, which was tapped, and no row after it is computed."""
        return cast(Tensor, self.run(image, index)[index])

    def run(self, image: Tensor, last: int) -> dict[int, Any]:
        """Rows 0..last on an image -> what is still kept of their outputs, by row."""
        frozen = self.prefix() if self.training and torch.is_grad_enabled() and not image.requires_grad else 0
        stem = self.stem
        first, second = image.chunk(2, 1) if stem else (image, None)
        kept: dict[int, Any] = {-1: first}

        def run_row(i: int, module: nn.Module) -> None:
            self.run_row(i, module, kept)
            if stem and i == self.branch_inputs[stem]:
                kept[i] = self.branches[stem](kept[i], second)

        with torch.no_grad():
            if self.stand_ins and frozen:
                kept[-1] = first.to(memory_format=prefix_format(image.device))
            for i in range(min(frozen, last + 1)):
                run_row(i, self.stand_ins.get(i, self.model[i]))
        for i in range(frozen, last + 1):
            run_row(i, self.model[i])
        return kept

    def prefix(self) -> int:
        """How many leading rows are frozen: no parameter that learns, no norm that uses or moves batch statistics, and
        no second stem that does. Read from the modules at every call, so that it follows whatever freezes them."""
        stem = self.stem
        last = self.branch_inputs[stem] if stem and not still(self.branches[stem]) else len(self.model)
        return next((i for i, row in enumerate(self.model[:last]) if not still(row)), last)

    def fold_prefix(self, on: bool = True) -> None:
        """Folded copies of the frozen prefix as it is now, for training steps; off: none.

        They equal the rows up to rounding. A row that thaws is no longer replaced, and loading weights drops the
        copies; call this again after any other change of frozen tensors. Hooks put on a row later miss its copy.
        """
        rows = [i for i in range(self.prefix() if on else 0) if any(True for _ in self.model[i].parameters())]
        fresh = {i: folded(self.model[i]).to(memory_format=prefix_format(self.stride.device)) for i in rows}
        kept = {i: copy for i, copy in self.stand_ins.items() if i in fresh}
        for i, copy in kept.items():
            copy.load_state_dict(fresh[i].state_dict())  # written into, so that what was compiled stays valid
        self.stand_ins = fresh | kept

    def shapes(self, size: int) -> list[Any]:
        """Output shape (C,H,W) of every module for a square input; for the head, the list of its input shapes. Costs no
        arithmetic."""
        shapes: dict[int, Any] = {}

        def note(index: int, inputs: Any, out: Tensor) -> None:
            last = index == len(self.model) - 1
            levels = inputs[0] if isinstance(inputs[0], list) else [inputs[0]]
            shapes[index] = [tuple(t.shape[1:]) for t in levels] if last else tuple(out.shape[1:])

        hooks = [
            module.register_forward_hook(lambda _m, inputs, out, i=i: note(i, inputs, out))
            for i, module in enumerate(self.model)
        ]
        try:
            self.dry_run(size, size)
        except ODD as error:
            failed = len(shapes)
            raise GraphError(f"row {failed} ({self.kinds[failed]}) at {size} px: {first_line(error)}") from None
        finally:
            for hook in hooks:
                hook.remove()
        return [shapes[i] for i in range(len(self.model))]

    @torch.no_grad()
    def dry_run(self, height: int, width: int) -> None:
        """A picture of this size, without arithmetic and in evaluation mode: for hooks that look at shapes."""
        modes = [(module, module.training) for module in self.modules()]
        state = {k: v.to("meta") for k, v in [*self.named_parameters(), *self.named_buffers()]}
        image = torch.zeros(1, self.image_channels, height, width, device="meta")
        try:
            with NormsKeepShapes():
                torch.func.functional_call(self.eval(), state, image)
        finally:
            for module, mode in modes:
                module.training = mode  # not train(): frozen norms stay in eval

    def table(self, size: int) -> list[Row]:
        """The module table for a square input of `size` pixels."""
        shapes = self.shapes(size)
        return [
            Row(i, self.sources[i], self.kinds[i], sum(p.numel() for p in module.parameters()), shapes[i])
            for i, module in enumerate(self.model)
        ]


def drop_stand_ins(model: nn.Module, _keys: object) -> None:
    cast(Detector, model).stand_ins = {}


def still(module: nn.Module) -> bool:
    """Nothing of it moves in training."""
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return not any(p.requires_grad for p in module.parameters()) and not any(m.training for m in norms)


def prefix_format(device: torch.device) -> torch.memory_format:
    """With the channels last, steps are 1.05 to 1.2 times faster on CPUs; on other devices that was not measured."""
    return torch.channels_last if device.type == "cpu" else torch.preserve_format


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:500]


def sections(backbone: int, total: int) -> dict[str, range]:
    """Named parts as module ranges: backbone (the YAML's list), neck (everything between), head (the detector)."""
    return {"backbone": range(backbone), "neck": range(backbone, total - 1), "head": range(total - 1, total)}


def build_row(
    spec: Mapping[str, Any],
    nc: int,
    builders: Mapping[str, Build],
    kind: str,
    number: int,
    args: list[object],
    c1: object,
) -> nn.Module:
    """One row -> one module. c1: input channels (a list where the row joins several inputs)."""
    build = builders.get(kind)
    if build is None:
        raise ValueError(f"unknown module; {advice(kind, builders)}")
    words = [parse_word(a, {"nc": nc, "anchors": spec.get("anchors")}) for a in args]
    if odd := [w for w in words if isinstance(w, str) and not re.fullmatch(r"[A-Za-z]\w*", w)]:
        raise ValueError(f"cannot read the argument {odd[0]!r}; nothing is evaluated")
    if getattr(build, "scales_width", False):
        if not words or not isinstance(words[0], (int, float)) or not words[0] > 0:
            raise ValueError("its first argument must be a number of output channels")
        if words[0] != outputs_per_level(spec.get("anchors"), nc):  # a count that is the detector's stays, as there
            most = spec.get("max_channels", words[0])
            words[0] = make_divisible(min(words[0], most) * spec.get("width_multiple", 1.0))
    if kind == "C3k2" and spec.get("scale") in DEEP:
        words[1:2] = [True]
    if kind in ("Detect", "MultiHeadDetect") and len(words) == 1:
        if spec.get("anchors"):
            raise ValueError("the model has `anchors`, this row does not take them: write [nc, anchors], or drop them")
        plain = not any(row[2] == "C3k2" for row in [*spec["backbone"], *spec["head"]])
        return builders[FREE](c1, words[0], plain)
    n = max(round(number * spec.get("depth_multiple", 1.0)), 1) if number > 1 else number
    if n > MOST_REPEATS:
        raise ValueError(f"{n} repeats; {MOST_REPEATS} are the most")
    if getattr(build, "takes_repeats", False):
        return build(c1, words[0], n, *words[1:])
    if n == 1:
        return build(c1, *words)
    copies = [build(c1, *words)]
    copies += [build(copies[-1].out_channels, *words) for _ in range(n - 1)]
    stack = nn.Sequential(*copies)
    stack.out_channels = copies[-1].out_channels  # type: ignore[assignment]
    return stack


def replace_activation(module: nn.Module, act: nn.Module) -> None:
    """YOLOv5's top-level `activation:` key: stands for the default SiLU everywhere."""
    for child in module.modules():
        if isinstance(getattr(child, "act", None), nn.SiLU):
            child.act = act
