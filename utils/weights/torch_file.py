"""Files of torch.save, read by torch.load(weights_only=True): no code of theirs runs, no class of theirs is imported.

Container: a zip (since PyTorch 1.6) or a stream of pickles. Classes of foreign programs (`models.yolo.Model`, ...) are
answered by inert stand-ins; names that weights do not need are refused. Meant for a child process (limited.py): what
torch raises for damage, and how long it takes over it, is not bounded here.
"""

import io
import pickle
import pickletools
import re
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from utils.system.errors import fail

MAX_ENTRIES = 100_000
MAX_PICKLE = 64 << 20  # bytes of program; published checkpoints have well under one MiB
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
# names that torch itself answers
WEIGHTS = re.compile(
    r"(collections\.(OrderedDict|Counter)|torch\.(Size|Tensor|device|nn\.parameter\.Parameter|\w+Storage)"
    r"|torch\.(float|bfloat|int|uint)\d+|torch\.bool|torch\._tensor\._rebuild_from_type_v2|_codecs\.encode"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)|(builtins|__builtin__)\.set)"
)
# standard classes that stand among options and records, and modules of torch; neither is built
RECORDS = re.compile(
    r"((builtins|__builtin__)\.(int|float|str|bool|list|dict|tuple|bytes|complex|slice|object|frozenset)"
    r"|numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)|numpy\.(dtype|ndarray|float64|float32|int64|int32|bool_)"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|argparse\.Namespace|types\.SimpleNamespace"
    r"|datetime\.(date|datetime|time|timedelta|timezone)|collections\.(defaultdict|deque)"
    r"|torch\.(dtype|strided|torch_version\.TorchVersion)"
    r"|torch\.(nn\.modules|nn\.functional|nn\.parallel|optim|amp)\.[\w.]+)"
)
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
UNKNOWN_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEWOBJ_EX"}


class Node:
    """Stand-in for an object of a foreign class: keeps the attributes that the file sets, and can do nothing."""

    __slots__ = ("state",)
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

    @property
    def name(self) -> str:
        """`module.Class` as the file has it."""
        return type(self).__name__

    def get(self, key: str) -> Any:
        """An attribute that the file stored, or None."""
        return self.state.get(key) if isinstance(self.state, dict) else None


def load(path: Path) -> Any:
    """What a .pt file describes: dicts, lists, numbers, texts, tensors, and Nodes for objects of foreign classes.

    UserError where the file is none of torch.save, or asks for what weights do not need; any exception of torch's
    where it is damaged.
    """
    with path.open("rb") as file:
        begins = file.read(8)
        file.seek(0)
        if begins[:4] == ZIP:
            program = look(path)
            content: Any = path
        elif begins[:1] == PICKLE:
            content, program = _stream(file)
        else:
            fail(f"not a checkpoint: it begins with {begins!r}; expected a PyTorch .pt file or a .safetensors file")
    names = sorted(name for name in _globals(program) - {CLASS_OF} if not WEIGHTS.fullmatch(name))
    answers = [(_stand_in(name), name.replace("__builtin__.", "builtins.")) for name in names]  # as torch reads them
    try:
        with torch.serialization.safe_globals([*answers, (_class_of, CLASS_OF)]):
            return torch.load(content, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # without torch's advice to trust the file
        reason = re.search(r"WeightsUnpickler error:\s*(\S.*)", str(error))
        raise pickle.UnpicklingError(reason[1][:200] if reason else "its description makes no sense") from None


def look(path: Path) -> bytes:
    """The program (pickle) of a zip of torch.save, after a look at the whole container: nothing compressed, doubled,
    overlapping or missing, every part as its checksum says. UserError, or zipfile's exceptions for damage."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [e.filename for e in entries]
        if any(n.endswith("/constants.pkl") for n in names):
            fail("a TorchScript archive; weights are read from checkpoints (torch.save), not from exported programs")
        if len(names) > MAX_ENTRIES or len(set(names)) != len(names):
            fail(f"{len(names)} entries with {len(set(names))} names: nothing that torch.save writes")
        # torch stores without compression: what the entries hold cannot be more than the file
        stored = all(e.compress_type == zipfile.ZIP_STORED and e.file_size == e.compress_size for e in entries)
        if not stored or sum(e.file_size for e in entries) > path.stat().st_size:
            fail("compressed or overlapping entries: nothing that torch.save writes")
        programs = [n for n in names if re.fullmatch(r"[^/]+/data\.pkl", n)]
        if len(programs) != 1:
            fail(f"a zip file without a data.pkl of torch.save; it holds {', '.join(names[:5])[:200] or 'nothing'}")
        if archive.getinfo(programs[0]).file_size > MAX_PICKLE:
            fail(f"a description of {archive.getinfo(programs[0]).file_size} bytes (limit {MAX_PICKLE})")
        if (wrong := archive.testzip()) is not None:
            fail(f"damaged: its part {wrong} is not what its checksum says")
        order = programs[0].removesuffix("data.pkl") + "byteorder"
        if order in names and archive.read(order) != b"little":
            fail("numbers in big-endian order, which is not supported")
        return archive.read(programs[0])


def _globals(program: bytes) -> set[str]:
    """The names that a pickle asks for; UserError for opcodes that torch.save does not write."""
    names: set[str] = set()
    texts = ["", ""]  # the last two on the stack, of which STACK_GLOBAL makes a name
    for opcode, arg, _ in pickletools.genops(program):
        if isinstance(arg, str) and opcode.name != "GLOBAL":
            texts = [texts[1], arg[:100]]
        if opcode.name in UNKNOWN_OPCODES:
            asked = f" (the file asks for {'.'.join(texts)})" if opcode.name == "STACK_GLOBAL" else ""
            fail(f"opcode {opcode.name}, which torch.save does not write{asked}; it was not read further")
        if opcode.name == "GLOBAL":
            names.add(str(arg).replace(" ", ".", 1))
    return names


def _stand_in(name: str) -> Any:
    """The answer to one name of a foreign program. UserError where it is not one that weights files have."""
    parts = name.split(".")
    foreign = parts[0] not in sys.stdlib_module_names and parts[0] not in ("__builtin__", "torch", "numpy")
    if name == "builtins.getattr":
        fail("the file asks for builtins.getattr: a fused model (convolutions and norms merged), or no weights file; "
             "save the model before it is fused")  # fmt: skip
    if not RECORDS.fullmatch(name) and not (foreign and all(p.isidentifier() and p not in HIDDEN for p in parts)):
        fail(f"the file asks for {name[:200]}, which weights do not need and which could run code; "
             "it was not read further")  # fmt: skip
    if name == "collections.defaultdict":
        return lambda *_: OrderedDict()
    return type(name, (Node,), {"__slots__": ()})


# Stream form. Beside storages, its pickles refer to classes with their source text, by a persistent id
# ("module", class, file, text), which torch.load(weights_only=True) does not take. Such an id becomes a call.
CLASS_OF = "thaw_reader.class_of"


def _class_of(*pid: object) -> Any:
    return pid[1] if len(pid) == 4 and isinstance(pid[1], type) and issubclass(pid[1], Node) else None


def _stream(file: BinaryIO) -> tuple[io.BytesIO, bytes]:
    """-> (the same stream with calls in place of persistent ids of classes, its program). The parts are: magic number,
    format number, facts of the machine, the program, list of storage keys, numbers."""
    ends = [0]
    for _ in range(5):
        keys = {arg for _, arg, _ in pickletools.genops(file) if isinstance(arg, str)}
        ends.append(file.tell())
    file.seek(0)
    whole = file.read()
    program, used = _calls(whole[ends[3] : ends[4]])
    if missing := used - keys:  # torch would take whatever lies in memory
        fail(f"storage {min(missing)[:40]!r} is missing; the file is incomplete")
    return io.BytesIO(whole[: ends[3]] + program + whole[ends[4] :]), program


def _calls(program: bytes) -> tuple[bytes, set[str]]:
    """-> (a pickle with persistent ids that begin with "module" written as calls of CLASS_OF, keys of its storages)."""
    edits: list[tuple[int, int, bytes]] = []  # from, to, what stands there then
    marks: list[tuple[int, list[str]]] = []  # place of each open MARK, and the texts behind it
    memo: dict[object, str | None] = {}
    text: str | None = None  # that the opcode before has put on the stack
    start, texts = 0, list[str]()  # of the tuple that ended last
    keys: set[str] = set()
    for opcode, arg, at in pickletools.genops(program):
        if "PUT" in opcode.name:
            memo[arg] = text
            continue
        pushed = arg if isinstance(arg, str) and opcode.name != "GLOBAL" else None
        text = memo.get(arg) if "GET" in opcode.name else pushed
        if opcode.name == "MARK":
            marks.append((at or 0, []))
        elif pickletools.markobject in opcode.stack_before and marks:
            start, texts = marks.pop()
        elif text is not None and marks:
            marks[-1][1].append(text)
        if opcode.name == "BINPERSID" and texts[:1] == ["module"]:
            edits += [(start, start, f"c{CLASS_OF.replace('.', chr(10))}\n".encode()), (at or 0, (at or 0) + 1, b"R")]
        elif opcode.name == "BINPERSID":
            keys |= set(texts[1:2])
    for start, end, code in sorted(edits, reverse=True):
        program = program[:start] + code + program[end:]
    return program, keys
