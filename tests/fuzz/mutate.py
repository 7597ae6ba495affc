"""Damage: bytes, texts and YAML trees, changed in seeded ways that no honest program would."""

import copy
import datetime
import json
from random import Random
from typing import Any

import yaml

NAUGHTY = (
    None, True, False, 0, -1, 1, 2, 3, 7, 64, 10**9, 10**30, -(10**12), 0.0, -0.5, 0.5, 1e-320, 1e308, float("inf"),
    float("-inf"),
    float("nan"), "", " ", "x", "nc", "anchors", "None", "nn.SiLU()", "nn.LeakyReLU(x)", "nn.LeakyReLU(1e999)",
    "../../../etc/passwd",
    "/dev/zero", "/dev/null", "/proc/self/mem", "/", ".", "~nosuchuser/x", "images/train", "a" * 300, "A" * 100_000,
    "é€\U0001f600", "a\0b",
    "%s%n{0}{x}", "\x1b[31m", "-", "--epochs", "1e5", "0x10", "1_000", "yes", [], {}, [[]], [None], [1, 2, 3], [-1],
    [0.5, "a"], {"a": 1}, {0: "a", 1: "b"},
    {1: 1}, {"names": []}, [[1, 2], [3, 4]], list(range(300)), ["c"] * 50, datetime.date(2024, 1, 1), b"\xff\xfe",
    {"x": {"y": {"z": [1]}}},
)  # fmt: skip
TEXTS = (
    "\t", "\0", ": : :", "- - -", "&a [*a]", "*a", "!!python/object/apply:os.system [id]", "!!int x", "!!float x",
    "!!binary x", "!!timestamp x",
    "2024-13-45", "<<: *x", "{", "[" * 200, "]" * 5, "'", '"', "#", "|", ">", "%YAML 9.9", "---", "...", "? x",
    "!!set {a, b}", "!!omap [a: 1]",
    "9" * 5000, "-" + "9" * 400, "1e400", ".inf", "-.inf", ".nan", "\u2028", "\ufeff", "0o777", "1:30:59", "=", "~",
    "!x y", "\"\\ud800\"", "\"\\x00\"",
)  # fmt: skip
BOMB = "b0: &b0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]\n" for i in range(1, 9)
)


def of_bytes(data: bytes, draw: Random) -> bytes:
    """One to four changes of a file's bytes."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, size = draw.randrange(len(out) + 1), draw.choice((1, 1, 2, 4, 8, 64, 1024))
        kind = draw.randrange(9)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            out[at : at + size] = draw.randbytes(size)
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size] * draw.choice((1, 2, 50))
        elif kind == 4:
            out[at : at + size] = bytes(min(size, len(out) - at))
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            value = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
            out[at : at + 4] = value.to_bytes(4, draw.choice(("little", "big")))
        elif kind == 7:
            there = draw.randrange(len(out) + 1)
            out[at : at + size], out[there : there + size] = out[there : there + size], out[at : at + size]
        else:
            out += draw.randbytes(size)
    return bytes(out)


def of_head(data: bytes, draw: Random, size: int = 128) -> bytes:
    """The same among the first bytes, where headers say how large things are."""
    return of_bytes(data[:size], draw) + data[size:]


def of_text(text: str, draw: Random, pieces: tuple[str, ...] = TEXTS) -> bytes:
    """Tokens and lines of a text, exchanged, doubled, left out, or made something odd."""
    lines = text.splitlines()
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(lines) + 1)
        kind = draw.randrange(8)
        if kind == 0:
            lines.insert(at, draw.choice(pieces))
        elif kind == 1 and at < len(lines):
            del lines[at]
        elif kind == 2 and at < len(lines):
            lines.insert(draw.randrange(len(lines)), lines[at])
        elif kind in (3, 4) and at < len(lines) and (words := lines[at].split(" ")):
            words[draw.randrange(len(words))] = draw.choice(pieces)
            lines[at] = " ".join(words)
        elif kind == 5:
            lines.insert(at, draw.choice(pieces) * draw.choice((1, 30)))
        elif kind == 6 and at < len(lines):
            lines[at] = lines[at].replace(draw.choice("0123456789:-,[]{} "), draw.choice(pieces))
        elif at < len(lines):
            lines[at] = draw.choice((" ", "  ", "\t", "")) + lines[at].strip()
    out = "\n".join(lines).encode("utf-8", "surrogatepass")
    return of_bytes(out, draw) if draw.random() < 0.25 else out


def spots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        spots(value[key], found)
    return found


def of_tree(tree: Any, draw: Random, odd: tuple[Any, ...] = NAUGHTY) -> Any:
    """A copy of dicts and lists with one to three values exchanged, left out, renamed, doubled or wrapped."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = spots(tree, [])
        if not places:
            return draw.choice(odd)
        holder, key = draw.choice(places)
        kind = draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            name = draw.choice(odd)
            holder[name if isinstance(name, (str, int, float)) else str(key) + "x"] = holder.pop(key)
        elif kind == 2:
            there, other = draw.choice(places)
            holder[key] = copy.deepcopy(there[other]) if other in range(len(there)) or other in there else None
        elif kind == 3:
            for _ in range(draw.choice((1, 90, 300))):
                holder[key] = [holder[key]]
        elif kind == 4 and isinstance(holder[key], (int, float)):
            holder[key] = holder[key] * draw.choice((-1, 0, 1000, 10**9)) + draw.choice((0, 1, -1))
        else:
            holder[key] = copy.deepcopy(draw.choice(odd))
    return tree


def of_yaml(text: str, draw: Random) -> bytes:
    """A YAML file whose tree or text is damaged, or that holds a bomb of aliases."""
    kind = draw.random()
    if kind < 0.6:
        try:
            return yaml.safe_dump(of_tree(yaml.safe_load(text), draw), sort_keys=False, allow_unicode=True).encode()
        except (yaml.YAMLError, RecursionError):
            pass
    if kind > 0.92:
        lines = text.splitlines()
        keys = [i for i, line in enumerate(lines) if line[:1].isalpha() and ":" in line] or [0]
        at = draw.choice(keys)
        lines[at] = f"{lines[at].split(':')[0]}: {draw.choice(('*b8', '[*b8]', '{a: *b5}', '*b3'))}"
        return (BOMB + "\n".join(lines)).encode()
    return of_text(text, draw)


def of_json(value: Any, draw: Random) -> str:
    """The JSON text of a damaged tree."""
    tree = of_tree(value, draw, (*(v for v in NAUGHTY if not isinstance(v, (bytes, datetime.date))), -(10**400)))
    try:
        return json.dumps(tree)
    except (TypeError, RecursionError):
        return json.dumps(None)
