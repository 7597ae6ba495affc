"""Malicious and damaged weights files: refused with a message that says why, and without any effect.

Payloads that would run a command create a marker file when a plain unpickler reads them (checked), and must not here.
"""

import copy
import copyreg
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.shared import ROOT
from tests.weights.payloads import (
    COMMANDS,
    INDIRECT,
    called,
    module,
    named,
    refused,
    storage,
    stream,
    tensor,
    text,
    weights,
    write,
)
from utils.system.errors import UserError
from utils.weights.foreign import read_foreign


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("place", ["alone", "beside weights", "in a module"])
def test_commands_are_refused_and_do_not_run(name: str, place: str, tmp_path: Path, marker: Path) -> None:
    opcodes, message = COMMANDS[name]
    attack = opcodes(f"touch {marker}")
    good = tensor(storage())
    programs = {
        "alone": b"\x80\x04" + attack + b".",
        "beside weights": b"\x80\x04}("
        + text("ema")
        + attack
        + text("model")
        + b"}"
        + text("model.0.weight")
        + good
        + b"su.",
        "in a module": b"\x80\x04"
        + named("models.yolo", "Model")
        + b")\x81}("
        + text("_parameters")
        + b"}"
        + text("weight")
        + good
        + b"s"
        + text("hook")
        + attack
        + b"ub.",
    }
    path = write(tmp_path / "evil.pt", programs[place], {"0": bytes(16)})
    refused(path, message)
    assert not marker.exists()
    with pytest.raises(UserError):  # the older container takes the same road
        read_foreign(stream(tmp_path / "old.pt", programs[place]))
    assert not marker.exists()


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in INDIRECT])
def test_the_payloads_are_real(name: str, marker: Path) -> None:
    """A plain unpickler does run them; otherwise the tests above would prove nothing."""
    opcodes, _ = COMMANDS[name]
    try:
        pickle.loads(b"\x80\x04" + opcodes(f"touch {marker}") + b".")
    except (TypeError, AttributeError, pickle.UnpicklingError):
        assert name == "BUILD with a setter"
    assert marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.load",
        "torch.hub.load",
        "torch.hub._load_local",
        "torch.storage._load_from_bytes",
        "torch.jit.load",
        "torch.serialization.load",
        "torch.ops.load_library",
        "torch.utils.cpp_extension.load_inline",
        "torch.from_file",
        "torch._utils._rebuild_qtensor",
        "torch.nn.init.os",
        "numpy.load",
        "numpy.fromfile",
        "numpy.core.multiarray.fromfile",
        "numpy.testing._private.utils.runstring",
        "numpy.lib.npyio.load",
        "codecs.open",
        "_codecs.decode",
        "io.open",
        "_io.FileIO",
        "shutil.rmtree",
        "importlib.import_module",
        "operator.attrgetter",
        "marshal.loads",
        "ctypes.CDLL",
        "types.FunctionType",
        "types.CodeType",
        "copyreg._reconstructor",
        "copyreg.__newobj__",
        "builtins.__import__",
        "builtins.getattr",
        "builtins.open",
        "builtins.bytearray",
        "builtins.range",
        "builtins.type",
        "models.common.os.system",
        "models.os",
        "utils.subprocess.Popen",
        "webbrowser.open",
        "sys.modules",
        "collections.UserDict",
        "socket.socket",
    ],
)
@pytest.mark.parametrize("by_stack", [False, True])
def test_other_globals_are_refused_by_name(name: str, by_stack: bool, tmp_path: Path) -> None:
    module, _, attribute = name.rpartition(".")
    path = write(tmp_path / "evil.pt", weights(named(module, attribute, by_stack)))
    refused(path, rf"asks for {name}".replace(".", r"\."))


def test_extension_registry_is_out_of_reach(tmp_path: Path, marker: Path) -> None:
    copyreg.add_extension("os", "system", 240)
    try:
        attack = b"\x82\xf0(" + text(f"touch {marker}") + b"tR"
        refused(write(tmp_path / "evil.pt", b"\x80\x02" + attack + b"."), "EXT1")
        assert not marker.exists()
        pickle.loads(b"\x80\x02" + attack + b".")
        assert marker.exists()
    finally:
        copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize(
    ("pid", "message"),
    [
        (text("storage") + b"Q", ""),
        (b"(tQ", ""),
        (storage()[:-2] + b"(" + text("9") + b"K\x00K\x04ttQ", ""),  # a view into another storage
        (storage().replace(b"storage", b"stowage"), ""),
        (storage(key=b"K\x01"), ""),
        (storage(numel=-1), ""),
        (storage(kind=named("models.yolo", "FloatStorage")), ""),
        (storage(kind=named("collections", "OrderedDict")), ""),
        (b"(" + text("module") + text("a") + text("b") + text("c") + b"tQ", ""),
        (storage(key=text("../../../../etc/passwd")), "file not found|not found"),
        (storage(key=text("/etc/passwd")), "file not found|not found"),
        (storage(key=text("1")), "file not found|not found"),
        (storage(numel=1 << 50), ""),
        (storage(numel=5), ""),
        (storage(kind=named("torch", "DoubleStorage")), ""),
    ],
)
def test_persistent_ids_that_lie(pid: bytes, message: str, tmp_path: Path) -> None:
    refused(
        write(tmp_path / "evil.pt", weights(tensor(pid)), {"0": bytes(16)}), f"damaged or not a checkpoint.*({message})"
    )


def test_one_storage_declared_twice_and_differently(tmp_path: Path) -> None:
    twice = weights(tensor(storage()), tensor(storage(numel=1 << 40), size=(1 << 40,)))
    refused(write(tmp_path / "evil.pt", twice, {"0": bytes(16)}), "not resizable|out of bounds")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"size": (5,)}, "not resizable|out of bounds"),
        ({"offset": 1}, "not resizable|out of bounds"),
        ({"offset": -1}, "damaged or not a checkpoint"),
        ({"stride": (-1,)}, "damaged or not a checkpoint"),
        ({"size": (1 << 40,), "stride": (0,)}, "over a storage of 4 elements"),
        ({"size": (2, 2), "stride": (1,)}, "damaged or not a checkpoint"),
        ({"size": (1 << 70,), "stride": (1,)}, "damaged or not a checkpoint"),
        ({"size": (1 << 40, 0), "stride": (1, 1)}, None),
    ],
)
def test_tensors_that_leave_their_storage(description: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    path = write(tmp_path / "evil.pt", weights(tensor(storage(), **description)), {"0": bytes(16)})
    if message is None:  # without elements: harmless
        assert read_foreign(path).state["model.0.weight"].numel() == 0
    else:
        refused(path, message)


def test_many_tensors_cannot_multiply_one_storage(tmp_path: Path) -> None:
    path = write(
        tmp_path / "evil.pt", weights(*[tensor(storage(numel=1 << 16), size=(1 << 16,))] * 500), {"0": bytes(1 << 18)}
    )
    refused(path, "more numbers than the file can hold")


@pytest.mark.parametrize("index", [1 << 31, (1 << 32) - 1])
def test_memo_cannot_be_made_huge(index: int, tmp_path: Path) -> None:
    """Python's own reader would allot a memo of that length."""
    refused(write(tmp_path / "evil.pt", b"\x80\x02Nr" + struct.pack("<I", index) + b"."), "holds a NoneType")


def test_deep_nesting_ends_no_process_but_the_child(tmp_path: Path) -> None:
    """The hash of many nested tuples overflows the stack; lists are only walked as deep as makes sense."""
    depth = 200_000
    for name, key in {"plain": b"N" + b"\x85" * depth, "marks": b"(" * depth + b"t" * depth}.items():
        refused(write(tmp_path / f"{name}.pt", b"\x80\x02}" + key + b"Ns."), "damaged")
    names = text("names") + b"]" * depth + b"a" * (depth - 1)
    deep = write(tmp_path / "list.pt", weights(tensor(storage()))[:-1] + names + b"s.", {"0": bytes(16)})
    assert list(read_foreign(deep).state) == ["model.0.weight"]


def test_models_that_contain_themselves(tmp_path: Path) -> None:
    circular = (
        b"\x80\x02"
        + named("models.yolo", "Model")
        + b")\x81q\x00}"
        + text("_modules")
        + b"}"
        + text("0")
        + b"h\x00ssb."
    )
    refused(write(tmp_path / "circular.pt", circular), "contain themselves")
    levels = [module("Leaf") + b"q\x00"]  # on the stack one above the other; the last is the model
    for memo in range(1, 40):  # two references to the one before: 2^39 modules
        before = b"h" + bytes([memo - 1])
        levels.append(module("Twice", before, before) + b"q" + bytes([memo]))
    refused(write(tmp_path / "double.pt", b"\x80\x02" + b"".join(levels) + b"."), "contain themselves")


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    """A zip bomb needs compression, torch does not use it."""
    path = write(
        tmp_path / "bomb.pt", weights(tensor(storage())), {"0": bytes(1 << 22)}, compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 1 << 14
    refused(path, "compressed or overlapping")
    small = write(tmp_path / "s.pt", weights(tensor(storage())), {"0": bytes(16)}, compression=zipfile.ZIP_DEFLATED)
    refused(small, "compressed or overlapping")


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """Many entries of the directory that all point at the same numbers: the other kind of zip bomb."""
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr("archive/data.pkl", weights(tensor(storage())))
        archive.writestr("archive/data/0", bytes(1 << 16))
        for i in range(1, 50):
            again = copy.copy(archive.getinfo("archive/data/0"))
            again.filename = again.orig_filename = f"archive/data/{i}"
            archive.filelist.append(again)
    refused(tmp_path / "bomb.pt", "compressed or overlapping")


def test_doubled_entries_and_foreign_zip_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"N.")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", b"N.")
    refused(tmp_path / "twice.pt", "2 entries with 1 names")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "other.pt", "without a data.pkl.*readme.txt")
    with zipfile.ZipFile(tmp_path / "big.pt", "w") as archive:
        archive.writestr("archive/data.pkl", weights(tensor(storage())))
        archive.writestr("archive/byteorder", "big")
    refused(tmp_path / "big.pt", "big-endian")


@pytest.mark.parametrize("form", ["zip", "stream", "nested"])
def test_command_line_refuses_with_exit_code_2(form: str, tmp_path: Path, marker: Path) -> None:
    attack = called("posix", "system", text(f"touch {marker}"))
    evil, out = tmp_path / "evil.pt", tmp_path / "out.pt"
    if form == "stream":
        stream(evil, b"\x80\x02" + attack + b".")
    else:
        write(evil, weights(attack, tensor(storage())) if form == "nested" else b"\x80\x02" + attack + b".")
    run = subprocess.run(
        [sys.executable, "-m", "utils", "convert", str(evil), str(out)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert run.returncode == 2
    assert "asks for posix.system" in run.stderr and str(evil) in run.stderr and "Traceback" not in run.stderr
    assert not marker.exists() and not out.exists()


# ---- files that keep their reader busy, fill its memory or end it ----
