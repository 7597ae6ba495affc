"""What `python train.py --help` prints, without torch: its import alone takes longer than the whole answer should.

The flags of the patches stand in files that import torch, so their `Flags` are read from the text: each field is a
call `opt(...)` of literals.
"""

import ast
import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any

from utils.config.options import opt
from utils.config.train import train_parser

TYPES: tuple[type, ...] = (str, int, float, bool)
KINDS: dict[str, Any] = {kind.__name__: kind for kind in TYPES}
KINDS |= {f"tuple[{kind.__name__}, ...]": GenericAlias(tuple, (kind, ...)) for kind in TYPES}


def help_alone(argv: Sequence[str]) -> bool:
    """Print the help and say so, where it is asked for without a model (whose table needs torch)."""
    words = {word.split("=")[0] for word in argv}
    if not words & {"-h", "--help"} or "--cfg" in words:
        return False
    print(help_text())
    return True


def help_text() -> str:
    """The flags of the base and of every patch."""
    flags = {f.parent.name if f.stem == "__init__" else f.stem: read_flags(f) for f in patch_files()}
    return train_parser(flags).format_help()


def patch_files() -> list[Path]:
    """The patches' files, in the order of patches.TABLE."""
    spec = importlib.util.find_spec("patches")
    if spec is None or not spec.submodule_search_locations:
        return []
    names = dict.fromkeys(importlib.import_module("patches").TABLE.values())
    folder = Path(spec.submodule_search_locations[0])
    places = [folder / place.replace(".", "/") for place in names]
    return [p / "__init__.py" if p.is_dir() else p.with_suffix(".py") for p in places]


def read_flags(file: Path) -> type:
    """A patch's `Flags` as far as the help shows them."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    flags = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == "Flags")
    fields = []
    for line in flags.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(line.value, ast.Call):
            values = [ast.literal_eval(value) for value in line.value.args]
            meta = {str(word.arg): ast.literal_eval(word.value) for word in line.value.keywords}
            if not meta.get("hidden"):
                fields.append((line.target.id, KINDS[ast.unparse(line.annotation)], opt(*values, **meta)))
    return dataclasses.make_dataclass("Flags", fields, frozen=True)
