"""Containers of PyTorch weights: the zip form (since 1.6), the older stream form, safetensors. No code of theirs runs.

zip: `<prefix>/data.pkl` (a pickle whose tensors refer to storages by key) and `<prefix>/data/<key>` (raw numbers).
stream: five pickles one after the other (magic number, format number, machine facts, the content, the list of storage
keys), then per key an int64 element count and the raw numbers.
"""

import io
import math
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from utils.system.errors import UserError, fail
from utils.weights.torch_file import BAD_PICKLE, MAX_PICKLE, Storage, TensorRef, run_program

STREAM_MAGIC, STREAM_FORMAT = 0x1950A86A20F9469CFC6C, 1001
MAX_ENTRIES = 100_000
# what a damaged file makes the standard readers raise (RuntimeError: encrypted or unknown zip features, deep nesting)
BAD_FILE = (*BAD_PICKLE, zipfile.BadZipFile, struct.error, RuntimeError, MemoryError, OSError)


class Archive:
    """An opened weights file: `root` is what its pickle describes, `tensor(ref)` reads one tensor of it.

    read: storage key -> its bytes; KeyError where the file has none.
    """

    def __init__(self, path: Path, file: BinaryIO, root: Any, read: Callable[[str], bytes]) -> None:
        self.path, self.root = path, root
        self.bytes = path.stat().st_size
        self._file, self._read = file, read
        self._flat: dict[str, Tensor] = {}

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tensor(self, ref: TensorRef) -> Tensor:
        """A copy of the tensor in its stored type. Its numbers must all be in the file: no view that repeats them."""
        if math.prod(ref.size) > ref.storage.numel:
            fail(f"{self.path}: a tensor of size {list(ref.size)} over a storage of {ref.storage.numel} elements")
        if not math.prod(ref.size):
            return torch.empty(ref.size, dtype=ref.storage.dtype)
        return (
            self._storage(ref.storage)
            .as_strided(ref.size, ref.stride, ref.offset)
            .clone(memory_format=torch.contiguous_format)
        )

    def _storage(self, storage: Storage) -> Tensor:
        if storage.key not in self._flat:
            try:
                raw = self._read(storage.key)
            except KeyError:
                fail(f"{self.path}: storage {storage.key[:40]!r} is missing; the file is incomplete")
            except BAD_FILE as error:
                fail(f"{self.path}: storage {storage.key[:40]!r} cannot be read ({error})")
            wanted = storage.numel * storage.dtype.itemsize
            if len(raw) != wanted:
                numbers = f"{storage.numel} x {str(storage.dtype).removeprefix('torch.')}"
                fail(
                    f"{self.path}: storage {storage.key[:40]!r} should have {wanted} bytes ({numbers}), has {len(raw)}"
                )
            self._flat[storage.key] = torch.frombuffer(bytearray(raw), dtype=storage.dtype)
        return self._flat[storage.key]


def open_archive(path: Path) -> Archive:
    """Open a `.pt` file of either form and read its pickle; to be closed by `with`. Raises UserError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        begins = file.read(8)
        file.seek(0)
        if begins[:4] == b"PK\x03\x04":
            return _open_zip(path, file)
        if begins[:1] == b"\x80":
            return _open_stream(path, file)
        fail(f"not a checkpoint: it begins with {begins!r}; expected a PyTorch .pt file or a .safetensors file")
    except UserError as error:
        file.close()
        raise UserError(f"{path}: {error}") from None
    except BAD_FILE as error:
        file.close()
        raise UserError(f"{path}: damaged or not a checkpoint ({str(error)[:200] or type(error).__name__})") from None


def _open_zip(path: Path, file: BinaryIO) -> Archive:
    archive = zipfile.ZipFile(file)
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
        fail(f"a zip file without a data.pkl of torch.save; it holds {', '.join(names[:5]) or 'nothing'}")
    prefix = programs[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
        fail("numbers in big-endian order, which is not supported")
    if archive.getinfo(programs[0]).file_size > MAX_PICKLE:
        fail(f"a pickle of {archive.getinfo(programs[0]).file_size} bytes (limit {MAX_PICKLE})")
    root, _ = run_program(io.BytesIO(archive.read(programs[0])))
    return Archive(path, file, root, lambda key: archive.read(f"{prefix}data/{key}"))


def _open_stream(path: Path, file: BinaryIO) -> Archive:
    if run_program(file)[0] != STREAM_MAGIC:
        fail("a pickle, but not one of torch.save")
    if (version := run_program(file)[0]) != STREAM_FORMAT:
        fail(f"stream format {str(version)[:20]}; known is {STREAM_FORMAT}")
    machine = run_program(file)[0]
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        fail("numbers in big-endian order, which is not supported")
    root, storages = run_program(file)
    keys, size = run_program(file)[0], path.stat().st_size
    at: dict[str, tuple[int, int]] = {}
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in storages:
            fail(f"storage {str(key)[:40]!r} is listed, but nothing uses it")
        (numel,) = struct.unpack("<q", file.read(8))
        start, length = file.tell(), numel * storages[key].dtype.itemsize
        if numel < 0 or start + length > size:
            fail(f"the file ends within storage {key[:40]!r}")
        at[key] = (start, length)
        file.seek(start + length)

    def read(key: str) -> bytes:
        start, length = at[key]
        file.seek(start)
        return file.read(length)

    return Archive(path, file, root, read)


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """-> (tensors, text metadata). Raises UserError."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None
