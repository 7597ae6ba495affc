"""Plain values from a file (JSON, YAML, a checkpoint) against the type that is declared for them.

A type is what Python's annotations say: int, float, str, bool, None, Any, list[X], dict[K, V], a union, a TypedDict
(which may have further keys), and Annotated[int, (low, high)] for a number with bounds.
"""

import types
from collections.abc import Mapping
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from utils.system.errors import UserError, brief

Count = Annotated[int, (0, 2**53)]


def check(value: object, hint: Any, where: str) -> None:
    """UserError where the value, or something in it, is of another type; `where` grows by the keys that lead there."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or hint is object:
        return
    if is_typeddict(hint):
        keys = get_type_hints(hint, include_extras=True)
        lacking = sorted(hint.__required_keys__ - value.keys()) if isinstance(value, dict) else []
        if isinstance(value, dict) and not lacking:
            for key in keys.keys() & value.keys():
                check(value[key], keys[key], f"{where}: {key}")
            return
        raise UserError(f"{where}: {', '.join(lacking)} missing" if lacking else wrong(value, named(hint), where))
    if origin is Annotated:
        low, high = inner[1]
        check(value, inner[0], where)
        if not low <= value <= high:  # type: ignore[operator]
            raise UserError(wrong(value, f"a number from {low} to {high}", where))
    elif origin in (Union, types.UnionType):
        if not any(fits(value, one) for one in inner):
            raise UserError(wrong(value, " or ".join(map(named, inner)), where))
    elif origin is list:
        if not isinstance(value, (list, tuple)):
            raise UserError(wrong(value, named(hint), where))
        for one in value:
            check(one, inner[0], where)
    elif origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise UserError(wrong(value, named(hint), where))
        for key, one in value.items():
            check(key, inner[0], where)
            check(one, inner[1], f"{where}: {brief(key)}")
    elif hint is None or hint is type(None):
        if value is not None:
            raise UserError(wrong(value, "nothing", where))
    else:
        kinds = {float: (int, float)}.get(hint, (hint,))
        if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
            raise UserError(wrong(value, named(hint), where))


def fits(value: object, hint: Any) -> bool:
    try:
        check(value, hint, "")
    except UserError:
        return False
    return True


def wrong(value: object, expected: str, where: str) -> str:
    return f"{where}: expected {expected}, found {brief(value)}"


def named(hint: Any) -> str:
    """A type in words."""
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        type(None): "nothing",
    }
    words |= {list: "a list", Annotated: "a number"}
    return words.get(get_origin(hint) or hint, "key: value pairs")
