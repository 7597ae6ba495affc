"""One option = its help, range and type; any dataclass of options as flags of a command line."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from utils.system.errors import UserError


def opt(default: Any, help: str, **meta: Any) -> Any:
    """A dataclass field that carries its own command-line help; meta: hyp, nargs, choices, low, high, hidden, alias."""
    return field(default=default, metadata={"help": help, **meta})


def hyper(default: float, help: str, low: float = 0.0, high: float = math.inf) -> Any:
    """A hyper-parameter with its allowed range."""
    return opt(default, help, hyp=True, low=low, high=high)


T = TypeVar("T")


TYPES: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}  # as in YAML


def check_ranges(values: Any) -> None:
    """Every field of a Config or of a patch's Flags, by what its `opt` says."""
    for f in dataclasses.fields(values):
        check_range(f, getattr(values, f.name))


def check_range(f: dataclasses.Field[Any], value: Any) -> None:
    low, high = f.metadata.get("low", -math.inf), f.metadata.get("high", math.inf)
    if isinstance(value, (int, float)) and not low <= value <= high:
        raise UserError(f"{f.name} must lie in {low:g}..{high:g}, got {value}")
    choices = f.metadata.get("choices")
    if choices and value not in choices:
        raise UserError(f"{f.name} must be one of {', '.join(choices)}, got {value!r}")


def add_flags(parser: argparse.ArgumentParser, schema: type, title: str) -> None:
    """One flag per dataclass field, spelt with - and with _; absent flags stay absent, so that a YAML value can win
    over the default."""
    group, hints = parser.add_argument_group(title), get_type_hints(schema)
    for f in dataclasses.fields(schema):
        meta, kind = f.metadata, hints[f.name]
        if meta.get("hidden"):
            continue
        names = list(dict.fromkeys(["--" + f.name.replace("_", "-"), "--" + f.name]))
        names += [meta["alias"]] if "alias" in meta else []
        shared: dict[str, Any] = {"dest": f.name, "default": argparse.SUPPRESS, "help": meta["help"]}
        if kind is bool:
            action: Any = argparse.BooleanOptionalAction if meta.get("negatable") else "store_true"
            group.add_argument(*names, action=action, **shared)
            continue
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
        extra = {k: meta[k] for k in ("nargs", "const", "choices") if k in meta}
        shared["help"] += "" if f.default in ("", None) else f" (default: {show(f.default)})"
        metavar = None if "choices" in meta else f.name.upper() if kind is str else kind.__name__.upper()
        group.add_argument(*names, type=kind, metavar=metavar, **extra, **shared)


def show(value: Any) -> str:
    return " ".join(str(v) for v in value) if isinstance(value, tuple) else str(value)


def make_parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Abbreviations are off: a misspelt flag stops the run."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def given_flags(argv: Sequence[str]) -> set[str]:
    """Names of the flags on a command line, spelt with _."""
    return {word.split("=")[0].removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")}


def only_flags(argv: Sequence[str], allowed: set[str], why: str) -> None:
    """A UserError that says why, where other flags are given."""
    if foreign := given_flags(argv) - allowed:
        flags = " ".join("--" + f.replace("_", "-") for f in sorted(foreign))
        raise UserError(f"{why}, without {flags}; to change them start a stage: --weights")


def restored(schema: type[T], values: Any, where: str) -> T:
    """A Config or a patch's Flags from the plain values of a YAML file. Unknown keys and values of another type or out
    of range are errors that name `where` and the key."""
    hints = get_type_hints(schema)
    if not isinstance(values, dict) or (unknown := values.keys() - hints.keys()):
        raise UserError(f"{where}: " + (f"unknown settings {unknown}" if isinstance(values, dict) else "missing"))
    for key, value in values.items():
        several = get_origin(hints[key]) is tuple
        kind = get_args(hints[key])[0] if several else hints[key]
        right = isinstance(value, list) == several and (
            kind not in TYPES or all(type(v) in TYPES[kind] for v in (value if several else [value]))
        )
        if kind in TYPES and not right:
            raise UserError(f"{where}: {key}: expected {'a list of ' * several}{kind.__name__}, got {value!r}")
    try:
        return schema(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
