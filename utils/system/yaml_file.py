"""The one reader of YAML files: recipes, data, models, heads, records. What is wrong is an error that names the file.

Relative paths are looked for in the working folder, then beside the program, so that `data/hyp.scratch.p5.yaml` is
found from any folder. Read is plain YAML without tags of Python; a key that stands twice is refused, since the second
one would win silently.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.system.errors import UserError, parsing
from utils.system.files import ROOT

MOST_BYTES = 50_000_000
MOST_VALUES = 2_000_000  # written out: an alias counts as all that it stands for
MOST_DEPTH = 100


def located(path: str | Path, folders: Sequence[str] = ()) -> Path:
    """The file as given, else the one of that name beside the program or in one of these folders there; where there is
    none, the path as given."""
    given = Path(os.path.expanduser(path))  # which leaves the name of an unknown user as it is
    places = [given, *((ROOT / folder / given) for folder in ("", *folders))]
    return next((place for place in places if place.is_file()), given)


def read_yaml(path: str | Path, flag: str = "", folders: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file. flag: what asked for it, for the message; folders: see `located`."""
    asked = f"{flag}: " if flag else ""
    with parsing(f"{asked}{path!s:.300}"):
        file = located(path, folders)
        if not file.is_file():
            if file.exists():
                raise UserError(f"{asked}{path} is no regular file")
            places = "".join(f", nor in the program's {folder}" for folder in folders)
            raise UserError(f"{asked}there is no file {str(path)!r:.300}{places}")
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{asked}{path}: {file.stat().st_size:,} bytes, more than any YAML file for this program")
        return mapping(file.read_bytes().decode("utf-8-sig"), f"{asked}{path}")


def mapping(text: str, where: str) -> dict[str, object]:
    """`key: value` lines as a dict. where: for the message."""
    with parsing(f"{where} is not valid YAML"):
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            check_node(node, where, {}, 0)
            values = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    if not isinstance(values, dict):
        raise UserError(f"{where} must hold `key: value` lines, got {type(values).__name__}")
    return values


def check_node(node: yaml.Node | None, where: str, sizes: dict[int, int], depth: int) -> int:
    """How many values a node stands for, aliases written out. Errors: UserError for a doubled key, an alias to what it
    lies in, and more values or levels than a file for this program can have."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    line = f"{where}: line {node.start_mark.line + 1}"
    if sizes.get(id(node)) == 0 or depth > MOST_DEPTH:
        raise UserError(f"{line}: " + ("it contains itself" if id(node) in sizes else f"over {MOST_DEPTH} levels deep"))
    if id(node) not in sizes:
        sizes[id(node)] = 0  # under way
        children = list(node.value)
        if isinstance(node, yaml.MappingNode):
            check_keys(node, where)
            children = [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(check_node(child, where, sizes, depth + 1) for child in children)
    if sizes[id(node)] > MOST_VALUES:
        raise UserError(f"{line}: its aliases stand for more than {MOST_VALUES:,} values")
    return sizes[id(node)]


def check_keys(node: yaml.MappingNode, where: str) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line, name = key.start_mark.line + 1, (key.tag, key.value)
        if name in lines:
            raise UserError(f"{where}: line {line}: key {key.value!r:.60} is given twice, first in line {lines[name]}")
        lines[name] = line
