"""What the patches offer on the command line, without importing them: torch alone takes longer than --help should.

Their `Flags` are read from the text: each field is a call `opt(...)` of literals.
"""

import ast
import dataclasses
import importlib
import importlib.util
import sys
from pathlib import Path
from types import GenericAlias
from typing import Any

from utils.config.options import opt

TYPES: tuple[type, ...] = (str, int, float, bool)
KINDS: dict[str, Any] = {kind.__name__: kind for kind in TYPES}
KINDS |= {f"tuple[{kind.__name__}, ...]": GenericAlias(tuple, (kind, ...)) for kind in TYPES}


def patch_table() -> dict[str, str]:
    """{flag that switches a patch on: its place}. Empty where patches/ is absent: the base runs alone."""
    if importlib.util.find_spec("patches") is None:
        return {}
    return dict(importlib.import_module("patches").TABLE)


def patch_tools() -> dict[str, str]:
    """{tool that a patch brings: its module}. Empty where patches/ is absent."""
    tools = importlib.import_module("patches").TOOLS if patch_table() else {}
    return {name: f"patches.{place}" for name, place in tools.items()}


def record_name(place: str) -> str:
    """What run.yaml and checkpoints call a patch: the last part of its place, `image_class.joint` -> `joint`."""
    return place.rpartition(".")[2]


def patch_schemas() -> dict[str, type]:
    """{patch: its Flags, as far as they are flags}, in the order of patches.TABLE."""
    return {record_name(place): schema(place, "Flags") for place in dict.fromkeys(patch_table().values())}


def test_schemas() -> dict[str, type]:
    """{patch: the TestFlags that it adds to test.py}."""
    in_test = importlib.import_module("patches").IN_TEST if patch_table() else ()
    places = dict.fromkeys(patch_table().values())
    return {record_name(place): schema(place, "TestFlags") for place in places if record_name(place) in in_test}


def schema(place: str, name: str) -> Any:
    """A dataclass of options of a patch: from its text, as long as the patch is not imported."""
    module = sys.modules.get(f"patches.{place}")
    return getattr(module, name) if module else read_flags(patch_file(place), name)


def patch_file(place: str) -> Path:
    spec = importlib.util.find_spec("patches")
    assert spec is not None and spec.submodule_search_locations, "patch_table has looked"
    path = Path(spec.submodule_search_locations[0], *place.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def read_flags(file: Path, name: str = "Flags") -> type:
    """A patch's `Flags` as far as the help shows them."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    flags = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = []
    for line in flags.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(line.value, ast.Call):
            if any(word.arg == "hidden" for word in line.value.keywords):
                continue
            values = [ast.literal_eval(value) for value in line.value.args]
            meta = {str(word.arg): ast.literal_eval(word.value) for word in line.value.keywords}
            fields.append((line.target.id, KINDS[ast.unparse(line.annotation)], opt(*values, **meta)))
    return dataclasses.make_dataclass(name, fields, frozen=True)
