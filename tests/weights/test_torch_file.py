"""What stands in for the objects of a file, which are not made."""

import struct
import sys
from collections import OrderedDict
from pathlib import Path

import pytest

from tests.weights.payloads import called, named, storage, tensor, text, weights, write
from utils.system.errors import UserError
from utils.weights import torch_file
from utils.weights.foreign import read_foreign
from utils.weights.torch_file import Node


def test_calls_of_model_code_give_inert_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of model code is neither imported nor called, even where it exists and is importable."""
    (tmp_path / "somemodel.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    call = called("somemodel", "Net", text("x")) + b"}" + text("__setstate__") + named("somemodel", "hook") + b"sb"
    program = (
        b"\x80\x02}("
        + text("opt")
        + call
        + text("model")
        + weights(tensor(storage()))[3 + len(text("model")) : -2]
        + b"u."
    )
    found = read_foreign(write(tmp_path / "w.pt", program, {"0": struct.pack("<4f", 1, 2, 3, 4)}))
    assert found.state["model.0.weight"].tolist() == [1, 2, 3, 4]
    assert "somemodel" not in sys.modules


def test_setting_state_on_our_own_operations_changes_nothing(tmp_path: Path) -> None:
    """BUILD writes attributes where an object has no __setstate__; a class is no object that takes any."""
    before = OrderedDict.__dict__.keys(), vars(Node).keys()
    state = b"(N}" + text("call") + text("x") + text("__call__")[:0] + b"st"
    for target in (named("collections", "OrderedDict"), named("torch", "FloatStorage"), named("models.yolo", "Model")):
        with pytest.raises(UserError):
            read_foreign(write(tmp_path / "evil.pt", weights(target + state + b"b")))
    assert (OrderedDict.__dict__.keys(), vars(Node).keys()) == before


def test_attributes_of_a_dict_cannot_replace_its_methods(tmp_path: Path) -> None:
    hung = called("collections", "OrderedDict") + b"}" + text("items") + named("models.yolo", "Trap") + b"sb"
    program = b"\x80\x02" + hung + b"(" + text("model.0.weight") + tensor(storage()) + b"u."
    assert list(read_foreign(write(tmp_path / "w.pt", program, {"0": bytes(16)})).state) == ["model.0.weight"]


def test_names_are_answered_by_stand_ins() -> None:
    """No class of a foreign program and none of torch's modules is ever imported or built."""
    for name in (
        "torch.nn.modules.conv.Conv2d",
        "models.yolo.Model",
        "pathlib.PosixPath",
        "numpy.core.multiarray.scalar",
    ):
        answer = torch_file._stand_in(name)
        assert issubclass(answer, Node) and isinstance(answer("touch", x=1), Node)
