"""--modules FILE.py: blocks and heads of a user's own for the rows of a model YAML, and the list of all that are known.

A file is imported only when it is named on the command line: it is code. Checkpoints and run.yaml say which files their
model needs, by the hash of each; they never make one be imported.

`python -m utils modules [FILE.py ...]` lists every module that a model YAML can name.
"""

import hashlib
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from models.blocks.known import BLOCKS, ORIGINAL, Build
from models.blocks.layers import BN_EPS, BN_MOMENTUM
from models.catalog import LAYERS
from utils.config.tools import MODULES
from utils.system.errors import UserError, running
from utils.system.notes import note

SIZE = 64  # pixels of the square on which output channels are found
_count = itertools.count()


@dataclass(frozen=True)
class OwnBlocks:
    """What the files of --modules define."""

    hashes: Mapping[str, str] = field(default_factory=dict)  # {file name: SHA-256 of its content}
    builders: Mapping[str, Build] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)  # {module: file name}

    @property
    def layers(self) -> dict[str, Build]:
        """All modules that a model YAML can name."""
        return {**LAYERS, **self.builders}

    def needed(self, spec: Mapping[str, Any]) -> dict[str, str]:
        """Of `hashes`, the files of which a row of this model YAML names a module."""
        kinds = {row[2] for part in ("backbone", "head") for row in spec[part]}
        files = {file for kind, file in self.origins.items() if kind in kinds}
        return {file: digest for file, digest in self.hashes.items() if file in files}


_in_use = OwnBlocks()  # of the process, as what it has imported is


def use(files: Sequence[str]) -> None:
    """From here on every model of this process is built with what these files define. For the start of a program."""
    global _in_use
    _in_use = read(files)


def in_use() -> OwnBlocks:
    return _in_use


def read(files: Sequence[str]) -> OwnBlocks:
    """Import the files. Errors: UserError that names the file, and the line where one fails."""
    hashes: dict[str, str] = {}
    builders: dict[str, Build] = {}
    origins: dict[str, str] = {}
    for file in files:
        path = Path(file)
        if not path.is_file():
            raise UserError(f"--modules: there is no file {file!r}")
        if path.name in hashes:
            raise UserError(f"--modules {file}: two files are called {path.name}; give them different names")
        hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        own = {name: adapted(kind, path) for name, kind in defined(path).items()}
        if clash := own.keys() & builders.keys():
            raise UserError(f"--modules {file}: {', '.join(sorted(clash))} came from another file already")
        builders |= own
        origins |= dict.fromkeys(own, path.name)
    return OwnBlocks(hashes, builders, origins)


def defined(path: Path) -> dict[str, type[nn.Module]]:
    """The modules that a file defines: those that its `__all__` names; without one, all whose names are not ours."""
    module = imported(path)
    kinds = {
        name: kind
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module.__name__
    }
    if (claimed := getattr(module, "__all__", None)) is not None:
        if missing := [name for name in claimed if name not in kinds]:
            raise UserError(f"--modules {path}: __all__ names {missing[0]!r}, which is no nn.Module of the file")
        kinds = {name: kinds[name] for name in claimed}
        if replaced := sorted(kinds.keys() & LAYERS.keys()):
            print(note("own modules", f"{path.name}: {', '.join(replaced)} stand for this program's, as __all__ says"))
    elif ours := sorted(kinds.keys() & LAYERS.keys()):
        kinds = {name: kind for name, kind in kinds.items() if name not in ours}
        print(note("own modules", f"{path.name}: rows {', '.join(ours)} mean this program's; __all__ can claim a name"))
    if not kinds:
        raise UserError(f"--modules {path}: it defines no nn.Module of a new name")
    return kinds


def imported(path: Path) -> ModuleType:
    name = f"own_modules_{next(_count)}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--modules {path}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with running(path):
        spec.loader.exec_module(module)
    return module


def adapted(kind: type[nn.Module], path: Path) -> Build:
    """A class as the rows of a model YAML build it: `Block(c1, *args)`; c1 is a list where the row joins inputs.

    `scales_width` of the class says whether its first argument is a channel count; without it, one is where the
    parameter behind c1 has no default. `takes_repeats` says whether it takes the row's number; without it, one does
    whose parameter behind that is called n. Norms get the eps and momentum of both families, as YOLOv5 and YOLOv7 give
    them to every block. A head (a class with `decode`) is built as it is.
    """
    if hasattr(kind, "decode"):
        return kind
    parameters = [p for p in inspect.signature(kind).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:3]
    counted = bool(parameters) and parameters[0].default is inspect.Parameter.empty
    repeats = counted and len(parameters) == 2 and parameters[1].name == "n"

    def build(c1: int | list[int], *words: Any) -> nn.Module:
        with running(path):
            module = kind(c1, *words)
            for norm in module.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.eps, norm.momentum = BN_EPS, BN_MOMENTUM
            if not isinstance(getattr(module, "out_channels", None), int):
                module.out_channels = output_channels(module, c1)  # type: ignore[assignment]
        return module

    build.scales_width = getattr(kind, "scales_width", counted)  # type: ignore[attr-defined]
    build.takes_repeats = getattr(kind, "takes_repeats", repeats)  # type: ignore[attr-defined]
    return build


def output_channels(module: nn.Module, c1: int | list[int]) -> int:
    """From a run on the meta device, which computes nothing. A block on which that fails can say `out_channels`."""
    counts = c1 if isinstance(c1, list) else [c1]
    inputs = [torch.zeros(1, c, SIZE, SIZE, device="meta") for c in counts]
    state = {k: v.to("meta") for k, v in [*module.named_parameters(), *module.named_buffers()]}
    modes = [(each, each.training) for each in module.modules()]
    with torch.no_grad():
        out = torch.func.functional_call(module.eval(), state, inputs if isinstance(c1, list) else inputs[0])
    for each, mode in modes:
        each.training = mode
    if not isinstance(out, Tensor) or out.ndim != 4:
        raise ValueError("its output is no tensor [B,C,H,W]; a block has one output")
    return out.shape[1]


def check(meta: Mapping[str, Any], path: str | Path, own: OwnBlocks | None = None) -> None:
    """The files that a checkpoint's model needs are named, and are what they were in its training. Errors: UserError.
    own: in place of those in use."""
    own = own or in_use()
    for name, digest in (meta.get("modules") or {}).items():
        if name not in own.hashes:
            raise UserError(f"{path}: its model has blocks of {name}; if you trust that file, add --modules {name}")
        if own.hashes[name] != digest:
            raise UserError(
                f"{path}: {name} has changed since the training (SHA-256 {own.hashes[name][:12]}, "
                f"there {digest[:12]}); give the file as it was"
            )


def arguments(build: Build, numbered: bool) -> str:
    """`c2, k=1, s=1`: what a row gives. The input's channels come by themselves, as the number of repeats does where
    the block takes it."""
    given = list(inspect.signature(build).parameters.values())[1:]
    words = given[:1] + given[2:] if numbered else given
    return ", ".join(str(p.replace(annotation=inspect.Parameter.empty)).replace(" = ", "=") for p in words)


def main(argv: Sequence[str]) -> None:
    files = MODULES.parse(argv).cfg.files
    print("width: the first argument is scaled by width_multiple; number: the row's number goes into the block\n")
    own = {name: kind for file in files for name, kind in defined(Path(file)).items()}
    known: dict[str, Build] = {**LAYERS, **own}
    for name, build in known.items():
        row = adapted(own[name], Path()) if name in own else build
        marks = [word for word, key in (("width", "scales_width"), ("number", "takes_repeats")) if getattr(row, key, 0)]
        test = "yours" if name in own else "tested against: " + (BLOCKS[name].test if name in BLOCKS else ORIGINAL)
        about = " ".join((inspect.getdoc(build) or "").split())
        print(f"{name}({arguments(build, 'number' in marks)})  [{', '.join([*marks, test])}]\n    {about}")
