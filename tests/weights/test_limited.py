"""Files that would keep their reader for ever, or fill the memory."""

import os
from pathlib import Path

import pytest

from tests.weights.payloads import named, refused, storage, tensor, text, weights, write
from utils.system.errors import UserError
from utils.weights import checkpoint, foreign, limited


def tower(levels: int) -> bytes:
    """Opcodes that push a tuple whose two parts are the tuple below it: its hash and its text cost 2^levels."""
    steps = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(levels))
    return b"](K\x01q\x00" + steps + b"eh" + bytes([levels])


BUSY = {
    "hash of a tower": b"}" + tower(60) + b"K\x00s",
    "set of a tower": named("builtins", "set") + b"(](" + tower(60) + b"etR",
    "text of a tower": tower(60) + b"Q",
    "copies": b"](](" + b"K\x01" * 200_000 + b"eq\x00" + (named("torch", "Size") + b"(h\x00tR") * 5000 + b"e",
}


@pytest.mark.parametrize("name", BUSY)
@pytest.mark.parametrize("own", [False, True])
def test_files_that_never_end_are_given_up(
    name: str, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited, "SECONDS", 2)
    words = text("format") + text("thaw-1") if own else b""  # by which ours are known
    path = write(tmp_path / "busy.pt", b"\x80\x02](" + words + BUSY[name] + b"e.")
    with pytest.raises(UserError, match=r"busy\.pt"):
        checkpoint.read_source(path)


def test_a_program_that_ends_its_reader_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_read", lambda _: os._exit(1))
    refused(write(tmp_path / "w.pt", weights(tensor(storage()))), "made to break its reader")


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_read", lambda _: bytearray(8 << 30))
    refused(write(tmp_path / "w.pt", weights(tensor(storage()))), "MemoryError|made to break its reader")
