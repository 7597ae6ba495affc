"""Opcodes and containers for weights files that no honest program would write."""

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from utils.system.errors import UserError
from utils.weights.foreign import read_foreign


def text(value: str) -> bytes:
    """Opcode that pushes a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def named(module: str, name: str, stack: bool = False) -> bytes:
    """Opcodes that push a global, by GLOBAL or by STACK_GLOBAL."""
    return text(module) + text(name) + b"\x93" if stack else f"c{module}\n{name}\n".encode()


def called(module: str, name: str, *args: bytes, stack: bool = False) -> bytes:
    """Opcodes that push the result of module.name(*args)."""
    return named(module, name, stack) + b"(" + b"".join(args) + b"tR"


def write(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> Path:
    """A zip archive as torch.save lays it out, around any program."""
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def weights(*items: bytes) -> bytes:
    """A program whose value is {"model": {"model.0.weight": <item 0>, ...}}."""
    pairs = b"".join(text(f"model.{i}.weight") + item for i, item in enumerate(items))
    return b"\x80\x02}" + text("model") + b"}(" + pairs + b"us."


def storage(key: bytes = text("0"), numel: int = 4, kind: bytes = named("torch", "FloatStorage")) -> bytes:
    number = pickle.dumps(numel, 2)[2:-1]
    return b"(" + text("storage") + kind + key + text("cpu") + number + b"tQ"


def tensor(source: bytes, offset: int = 0, size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,)) -> bytes:
    numbers = [pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride)]
    return called("torch._utils", "_rebuild_tensor_v2", source, *numbers, b"\x89", b"N")


def module(name: str, *children: bytes) -> bytes:
    """Opcodes of a pickled model object with the given children in _modules."""
    pairs = b"".join(text(str(i)) + child for i, child in enumerate(children))
    return named("models.yolo", name) + b")\x81}" + text("_modules") + b"}(" + pairs + b"usb"


def stream(path: Path, program: bytes, keys: bytes = b"\x80\x02].", tail: bytes = b"") -> Path:
    """The older container around any program."""
    head = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join(head) + program + keys + tail)
    return path


# name -> (opcodes that run a command given its text, what the refusal must name)
COMMANDS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "os.system": (lambda c: called("os", "system", text(c)), r"os\.system"),
    "posix.system": (lambda c: called("posix", "system", text(c)), r"posix\.system"),
    "os.system by stack": (lambda c: called("os", "system", text(c), stack=True), r"os\.system"),
    "subprocess": (
        lambda c: called("subprocess", "check_call", b"]" + b"(" + text("sh") + text("-c") + text(c) + b"e"),
        r"subprocess\.check_call",
    ),
    "eval": (lambda c: called("builtins", "eval", text(f"__import__('os').system({c!r})")), r"builtins\.eval"),
    "exec, old name": (
        lambda c: called("__builtin__", "exec", text(f"import os; os.system({c!r})")),
        r"__builtin__\.exec",
    ),
    "getattr chain": (
        lambda c: (
            named("builtins", "getattr", True)
            + b"("
            + called("builtins", "__import__", text("os"), stack=True)
            + text("system")
            + b"tR("
            + text(c)
            + b"tR"
        ),
        r"builtins\.getattr",
    ),
    "dotted name": (lambda c: called("torch.serialization", "os.system", text(c), stack=True), r"os\.system"),
    "alias of a module": (lambda c: called("torch.serialization.os", "system", text(c)), r"torch\.serialization\.os"),
    "timeit": (
        lambda c: called("timeit", "timeit", text("pass"), text(f"import os; os.system({c!r})")),
        r"timeit\.timeit",
    ),
    "runpy by pickle.loads": (
        lambda c: called("pickle", "loads", b"C" + bytes([len(p := b"cos\nsystem\n(" + text(c) + b"tR.")]) + p),
        r"pickle\.loads",
    ),
    "apply by map": (
        lambda c: called("builtins", "list", called("builtins", "map", named("os", "system"), b"(" + text(c) + b"t")),
        r"builtins\.map|os\.system",
    ),
    "partial": (
        lambda c: called("functools", "partial", named("os", "system"), text(c)) + b")R",
        r"functools\.partial",
    ),
    "set of map": (
        lambda c: called("builtins", "set", called("builtins", "map", named("os", "system"), b"(" + text(c) + b"t")),
        r"builtins\.map|os\.system",
    ),
    "INST": (lambda c: b"(" + text(c) + b"ios\nsystem\n", "opcode INST"),
    "OBJ": (lambda c: b"(" + named("os", "system") + text(c) + b"o", r"os\.system|OBJ"),
    "defaultdict factory": (
        lambda c: (
            called("collections", "defaultdict", called("functools", "partial", named("os", "system"), text(c))) + b"0N"
        ),
        r"functools\.partial",
    ),
    "BUILD with a setter": (
        lambda c: called("os", "system", text(c)) + b"}" + text("__setstate__") + named("os", "system") + b"sb",
        r"os\.system",
    ),
}
# these two only run through Python's object protocol, not by a plain load
INDIRECT = {"alias of a module", "OBJ", "INST", "apply by map", "set of map", "defaultdict factory", "exec, old name"}


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_foreign(path)
    assert str(path) in str(caught.value)
