"""A pickle reader for weights files that builds nothing but plain values, tensor descriptions and inert nodes.

A pickle is a program: it names functions and classes ("globals") and has the reader call them. Here no name is ever
imported. `Reader.find_class` answers from three sources and nothing else:
  1. OPS: operations of our own for what weights files need (tensors, ordered dicts, sets, numpy scalars and arrays);
  2. a stand-in class for classes of model code (`models.yolo.Model`, `torch.nn.modules.conv.Conv2d`, ...): it keeps its
     name, arguments and state, and can do nothing;
  3. a refusal that names the global, for everything else (the standard library, torch and numpy outside of 1 and 2).
Before a byte is executed, utils/weights/opcodes.py walks the program.
"""

import io
import pickle
import re
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np
import torch

from utils.system.errors import fail
from utils.weights.opcodes import check_program

MAX_PICKLE = 64 << 20  # bytes of program; published checkpoints have well under one MiB
BAD_PICKLE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, OverflowError)
MODEL_CODE = ("torch.nn.modules.", "torch.nn.functional", "torch.nn.parallel.", "torch.optim.", "torch.amp.")
HIDDEN = {
    "os",
    "sys",
    "nt",
    "posix",
    "subprocess",
    "shutil",
    "socket",
    "builtins",
    "importlib",
    "runpy",
    "ctypes",
    "pty",
}
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """Base of all that a pickle may create or name: whatever it is fed, it only stores, or raises."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"the file gives a state to {type(self).__name__}, which has none")


class Node(Inert):
    """Stand-in for an object of a foreign class: keeps the attributes that the pickle sets, ignores all else."""

    __slots__ = ("state",)
    name = ""  # "module.Class", set on each stand-in class
    state: Any

    def __new__(cls, *args: object, **kwargs: object) -> "Node":
        node = super().__new__(cls)
        node.state = {}
        return node

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # (attributes, slots)
            state = {**(state[0] or {}), **(state[1] or {})}
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def get(self, key: str) -> Any:
        """An attribute that the pickle stored, or None."""
        return self.state.get(key) if isinstance(self.state, dict) else None


class Mapping(dict[Any, Any]):
    """In place of OrderedDict and defaultdict; the attributes that torch hangs on a state dict are dropped."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class StorageKind(Inert):
    """What `torch.HalfStorage` and its like name: the element type of a storage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class Storage(NamedTuple):
    """A stretch of numbers in the file: its key there, element type and count."""

    key: str
    dtype: torch.dtype
    numel: int


class TensorRef(NamedTuple):
    """A tensor as the pickle describes it; no memory is taken before `utils.weights.archive` reads it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class Op(Inert):
    """A named operation of our own that a pickle may call."""

    __slots__ = ("call", "name")

    def __init__(self, name: str, call: Callable[..., object]) -> None:
        self.name, self.call = name, call

    def __call__(self, *args: object) -> object:
        return self.call(*args)


class NumpyType(Inert):
    """numpy.dtype: kind and size such as "f8", then byte order from the state."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = str(code), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])

    def numpy(self) -> np.dtype[Any] | None:
        """The numeric type, or None for objects, strings and records."""
        match = re.fullmatch(r"[<>|=]?([biuf][1248])", self.code)
        return np.dtype(("" if self.order == "|" else self.order[:1]) + match[1]) if match else None


class NumpyArray(Inert):
    """numpy.ndarray: its numbers where they are plain, else None."""

    __slots__ = ("value",)

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        dtype = kind.numpy()
        if dtype is not None and isinstance(data, bytes):
            self.value = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> TensorRef:
    """torch._utils._rebuild_tensor and _v2. Bounds are checked against the storage, sizes against each other."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise pickle.UnpicklingError("a tensor without a storage, size and stride")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise pickle.UnpicklingError(f"a tensor of size {size!r:.60} and stride {stride!r:.60}")
    assert isinstance(offset, int)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.numel:
        raise pickle.UnpicklingError(f"a tensor reaches element {last} of storage {storage.key} of {storage.numel}")
    return TensorRef(storage, offset, size, stride)


def _parameter(data: object, *_: object) -> object:
    return data


def _from_type(rebuild: object, kind: object, args: object, state: object) -> object:
    """torch._tensor._rebuild_from_type_v2: a tensor that carries attributes, which are dropped."""
    if not isinstance(rebuild, Op) or not isinstance(args, tuple):
        raise pickle.UnpicklingError("a tensor is rebuilt by something unknown")
    return rebuild(*args)


def _mapping(items: object = (), *_: object) -> Mapping:
    return Mapping(items) if isinstance(items, list | tuple | dict) else Mapping()


def _set(items: object = ()) -> set[Any]:
    if not isinstance(items, list | tuple):
        raise pickle.UnpicklingError("a set of something that is no list")
    return set(items)


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """_codecs.encode: how protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"_codecs.encode to {encoding!r:.40}")
    return text.encode("latin1")


def _scalar(kind: object, data: object = None) -> object:
    """numpy.core.multiarray.scalar -> a Python number, or None for what is none."""
    dtype = kind.numpy() if isinstance(kind, NumpyType) else None
    return np.frombuffer(data, dtype, 1)[0].item() if dtype is not None and isinstance(data, bytes) else None


def _reconstruct(*_: object) -> NumpyArray:
    return NumpyArray()


def _text(*parts: object) -> str:
    """pathlib paths, which old programs stored among their options, become strings."""
    return "/".join(p for p in parts if isinstance(p, str))


def _size(items: object = ()) -> tuple[int, ...]:
    if not isinstance(items, list | tuple) or not all(type(n) is int for n in items):
        raise pickle.UnpicklingError("a torch.Size of something that is no list of numbers")
    return tuple(items)


def _names(prefixes: str, names: str) -> list[str]:
    return [f"{p}.{n}" for p in prefixes.split() for n in names.split()]


OPS: dict[str, Inert] = {
    **{f"torch.{name}": StorageKind(dtype) for name, dtype in STORAGES.items()},
    **{
        name: Op(name, call)
        for names, call in (
            (_names("torch._utils", "_rebuild_tensor _rebuild_tensor_v2"), _tensor),
            (_names("torch._utils", "_rebuild_parameter _rebuild_parameter_with_state"), _parameter),
            (["torch._tensor._rebuild_from_type_v2"], _from_type),
            (["torch.Size"], _size),
            (["collections.OrderedDict"], _mapping),
            (["collections.defaultdict"], lambda *_: Mapping()),
            (_names("builtins __builtin__", "set frozenset"), _set),
            (["_codecs.encode"], _encode),
            (_names("numpy.core.multiarray numpy._core.multiarray", "scalar"), _scalar),
            (_names("numpy.core.multiarray numpy._core.multiarray", "_reconstruct"), _reconstruct),
            (["numpy.dtype"], NumpyType),  # an Op: the class itself stays out of reach
            (
                _names("pathlib pathlib._local", "Path PurePath PosixPath PurePosixPath WindowsPath PureWindowsPath"),
                _text,
            ),
        )
        for name in names
    },
}
# named as values or as classes of harmless records, never called by us
RECORDS = {
    *_names("builtins __builtin__", "int float str bool list dict tuple bytes complex slice object"),
    *_names("numpy", "ndarray float64 float32 int64 int32 bool_"),
    *_names("torch", "device dtype float32 float16 bfloat16 float64 int64 int32 uint8 bool Tensor strided"),
    "torch.nn.parameter.Parameter",
    "argparse.Namespace",
    "types.SimpleNamespace",
    *_names("datetime", "date datetime time timedelta timezone"),
    *_names("collections", "Counter deque"),
    "torch.torch_version.TorchVersion",
}


def refuse(name: str) -> NoReturn:
    fail(f"the file asks for {name}, which weights do not need and which could run code; it was not read further")


def stand_in(module: str, name: str) -> type[Node]:
    """The inert class for a foreign class, or a UserError where the name is not one that weights files have."""
    full = f"{module}.{name}"
    parts = module.split(".")
    known_parts = parts[0] not in sys.stdlib_module_names and parts[0] not in ("__builtin__", "torch", "numpy")
    model_code = known_parts or module.startswith(MODEL_CODE)
    plain = name.isidentifier() and not (HIDDEN & {*parts, name})
    if full not in RECORDS and not (model_code and plain):
        refuse(full)
    return type("Node", (Node,), {"__slots__": (), "name": full})


def answer(module: str, name: str) -> Any:
    """What a pickle gets for `module.name`. Nothing is looked up outside of this file."""
    return OPS.get(f"{module}.{name}") or stand_in(module, name)


class Reader(pickle.Unpickler):
    """Runs one checked program. Every name it asks for is answered by OPS, a stand-in or a refusal."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="latin1")  # texts of Python 2 files, too
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        return answer(module, name)

    def persistent_load(self, pid: Any) -> object:
        """torch names a storage by ("storage", kind, key, device, elements), in old files with a view at the end;

        old files also name a class together with its source text, which is ignored: ("module", class, file, text).
        """
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module" and isinstance(pid[1], type):
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or (pid[5:] and pid[5]):
            raise pickle.UnpicklingError(f"an unknown persistent id {str(pid)[:60]}")
        _, kind, key, _, numel = pid[:5]
        if (
            not isinstance(kind, StorageKind)
            or type(key) is not str
            or type(numel) is not int
            or not 0 <= numel < 1 << 62
        ):
            raise pickle.UnpicklingError("a storage without kind, key and length")
        storage = Storage(key, kind.dtype, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {key[:40]} is declared twice and differently")
        return storage


def run_program(stream: BinaryIO) -> tuple[Any, dict[str, Storage]]:
    """Check one pickle, then read it -> (its value, the storages it refers to). The stream is left behind its STOP.

    Raises one of BAD_PICKLE or a UserError.
    """
    start = stream.tell()
    check_program(stream, answer)
    end = stream.tell()
    stream.seek(start)
    if end - start > MAX_PICKLE:
        raise pickle.UnpicklingError(f"a pickle of {end - start} bytes (limit {MAX_PICKLE})")
    reader = Reader(io.BytesIO(stream.read(end - start)))
    return reader.load(), reader.storages
