"""Damaged weights files: every kind of damage is noticed and said, none is read as something else."""

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.shared import shared
from tests.weights.payloads import refused, storage, stream, tensor, weights, write
from utils.system.errors import UserError
from utils.weights.foreign import read_foreign


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("file", ["zip", "stream"])
def test_truncated_files(share: float, file: str, tmp_path: Path) -> None:
    state = {"model.0.weight": torch.randn(40, 10), "model.1.weight": torch.randn(9)}
    torch.save(state, whole := tmp_path / "whole.pt", _use_new_zipfile_serialization=file == "zip")
    data = whole.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
    refused(tmp_path / "cut.pt", "damaged|ends within|not a checkpoint")


def test_a_flipped_bit_in_the_numbers_is_noticed(tmp_path: Path) -> None:
    torch.save({"model.0.weight": torch.full((1000,), 7.5)}, whole := tmp_path / "w.pt")
    data = bytearray(whole.read_bytes())
    data[data.index(struct.pack("<f", 7.5) * 8) + 100] ^= 1
    whole.write_bytes(data)
    refused(whole, "its part w/data/0 is not what its checksum says")


def test_stream_with_a_storage_beyond_the_file(tmp_path: Path) -> None:
    program = weights(tensor(storage()[:-2] + b"NtQ"))  # this form's ids end in a view, here none
    keys = pickle.dumps(["0"], 2)
    refused(stream(tmp_path / "a.pt", program, keys, struct.pack("<q", 1 << 50)), "damaged or not a checkpoint")
    refused(stream(tmp_path / "b.pt", program, keys, struct.pack("<q", -4)), "damaged or not a checkpoint")
    refused(stream(tmp_path / "c.pt", program, pickle.dumps(["9"], 2)), "'0' is missing")
    refused(stream(tmp_path / "d.pt", program), "'0' is missing")
    good = stream(tmp_path / "e.pt", program, keys, struct.pack("<q4f", 4, 1, 2, 3, 4))
    assert read_foreign(good).state["model.0.weight"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "program",
    [b"", b".", b"\x80\x02", b"\x80\x02(", b"\x80\x02K\x01K\x02R.", b"\x80\x02h\x05.", b"\x80\x02}}}s.",
     b"\x80\x02Nb.", b"\x80\x02N)R.", b"\x80\x02X\xff\xff\xff\xffab.", b"I" + b"9" * 5000 + b"\n.", b"\xff" * 30],
)  # fmt: skip
def test_programs_that_make_no_sense(program: bytes, tmp_path: Path) -> None:
    refused(write(tmp_path / "bad.pt", program), "damaged or not a checkpoint")


def test_random_damage_never_escapes_as_anything_but_a_user_error(tmp_path: Path) -> None:
    """Hundreds of variants of a real program, each with a few random bytes changed."""
    with zipfile.ZipFile(shared("golden/ckpt/yolov7-tiny-w025-nc3_stripped.pt")) as archive:
        program = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    draws = np.random.default_rng(0)
    failed = 0
    for _ in range(150):
        data = bytearray(program)
        for at in draws.integers(0, len(data), 3):
            data[at] = draws.integers(0, 256)
        try:
            read_foreign(write(tmp_path / "w.pt", bytes(data)))
        except UserError:
            failed += 1
    assert failed == 150  # at the latest for want of storages
