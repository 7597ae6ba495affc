"""Class names of a data YAML as they are written in it.

YAML makes booleans, numbers, dates and nothing of `yes`, `007`, `12:30` or `null`. A name must be text or a plain whole
number; of anything else the error shows what is written and asks for quotes.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from utils.system.errors import UserError, brief
from utils.system.files import read_text

PLAIN = re.compile(r"0|[1-9][0-9]*")


def class_names(source: Path, key: str, names: object) -> tuple[str, ...]:
    """The names under `key` of the YAML `source`, checked. Errors: UserError."""
    if isinstance(names, dict):
        ids = list(names)
        if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(ids))):
            raise UserError(f"{source}: {key}: the ids must be 0..{len(ids) - 1}, each once; found {brief(ids)}")
        names = [names[i] for i in sorted(ids)]
    if not isinstance(names, list):
        raise UserError(f"{source}: {key}: expected a list or a map {{id: name}}, found {brief(names)}")
    if not all(isinstance(name, str) for name in names):
        for text, value in written(source, key):
            if not isinstance(value, str) and not (type(value) is int and PLAIN.fullmatch(text or "")):
                quoted = "" if text is None else f'; quote it: "{text}"'
                raise UserError(f"{source}: {key}: {text or brief(value)} is read by YAML as {brief(value)}{quoted}")
    texts = tuple(map(str, names))
    for text in texts:
        if not text.strip() or any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
            raise UserError(f"{source}: {key}: {brief(text)} is no name (empty, or with characters that are none)")
    if doubled := [name for name, count in Counter(texts).items() if count > 1]:
        raise UserError(f"{source}: {key}: {', '.join(sorted(doubled)[:5])} given more than once")
    return texts


def written(source: Path, key: str) -> Iterator[tuple[str | None, Any]]:
    """(text in the file, what YAML makes of it) of each name; None for the text of what is no scalar."""
    loader = yaml.SafeLoader(read_text(source))
    try:
        root = loader.get_single_node()
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        node = next((value for name, value in pairs if name.value == key), None)
        entries = node.value if isinstance(node, yaml.SequenceNode) else [v for _, v in node.value] if node else []
        for entry in entries:
            if isinstance(entry, yaml.ScalarNode):
                yield entry.value, loader.construct_object(entry)
            else:
                yield None, loader.construct_object(entry, deep=True)
    finally:
        loader.dispose()
