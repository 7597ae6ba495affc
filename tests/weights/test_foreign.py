"""Weights of other programs: what is read equals what they hold, whatever container it comes in."""

import json
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from models.graph import Detector
from tests.shared import ROOT, shared
from utils.system.errors import UserError
from utils.weights.foreign import find_groups, name_list, read_foreign

TINY = "golden/ckpt/yolov7-tiny-w025-nc3"
ANCHORS_640 = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


def shapes(state: dict[str, Tensor]) -> dict[str, list[int]]:
    return {k: list(t.shape) for k, t in state.items()}


class Detect(nn.Module):
    """Stands for a foreign program's detector: a partition of the classes among its attributes."""

    def __init__(self, nc: int) -> None:
        super().__init__()
        self.nc, self.stride = nc, torch.tensor([8.0, 16.0])
        self.config = {"head_0": {"classes": [0, 2]}, "head_1": {"classes": [1]}}
        self.register_buffer("anchors", torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
        self.register_buffer("transient", torch.zeros(2), persistent=False)
        self.m = nn.ModuleList(nn.Conv2d(4, 5 + nc, 1) for _ in range(2))


class Model(nn.Module):
    """Stands for a foreign program's model."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), Detect(3))
        self.names = {0: "a", 1: "b", 2: "c"}
        self.yaml = {"nc": 3, "anchors": [[1, 2]], "backbone": [[-1, 1, "Conv", [4, 3]]], "head": []}
        self.stride = torch.tensor([8.0, 16.0])


@pytest.fixture
def foreign_model(monkeypatch: pytest.MonkeyPatch) -> type[Model]:
    """Model and Detect under the module name that the original programs use, for torch.save to find."""
    module = types.ModuleType("models.yolo")
    for cls in (Model, Detect):
        monkeypatch.setattr(cls, "__module__", "models.yolo")
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "models.yolo", module)
    return Model


@pytest.mark.parametrize("form", ["full", "stripped"])
def test_yolov7_pickle_has_every_tensor_of_the_reference(form: str) -> None:
    wanted = json.loads(shared("golden/ckpt/yolov7.json").read_text())["yolov7-tiny-w025-nc3"]
    found = read_foreign(shared(f"{TINY}_{form}.pt"))
    assert shapes(found.state) == {k: shape for k, (shape, _) in wanted["state_dict"].items()}
    assert list(found.state) == list(wanted["state_dict"])
    assert {t.dtype for t in found.state.values()} == {torch.float32, torch.int64}
    assert (found.nc, found.names, found.detector) == (3, ["n0", "n1", "n2"], "IDetect")
    assert found.anchors is not None and found.anchors.flatten(1).tolist() == ANCHORS_640
    assert found.stride is not None and found.stride.tolist() == [8, 16, 32]
    assert found.yaml is not None and found.yaml["width_multiple"] == 0.25
    assert found.source.startswith("YOLOv7 pickle of models.yolo.Model")
    assert ("EMA" in found.source) == (form == "full")


def test_yolov7_pickle_gives_the_original_programs_output() -> None:
    """The values, not only the shapes: the model built from the file's own YAML decodes as the original did."""
    found = read_foreign(shared(f"{TINY}_stripped.pt"))
    expected = np.load(shared(f"{TINY}_expected.npz"))
    assert found.yaml is not None
    model = Detector(found.yaml, 3)
    model.load_state_dict(found.state)
    with torch.no_grad():
        (part,) = model.eval().decode(model.eval()(torch.from_numpy(expected["x"]))["det"])
    torch.testing.assert_close(part.pred, torch.from_numpy(expected["dec"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("file", "nc", "tensors", "parameters", "first"),
    [
        ("yolov5n.pt", 80, 349, 1_872_157, "person"),
        ("yolov5n_v60.pt", 80, 350, 1_872_157, "person"),
        ("yolov5n_face_nc1.pt", 1, 349, 1_765_270, "face"),
    ],
)
def test_published_yolov5_weights(file: str, nc: int, tensors: int, parameters: int, first: str) -> None:
    found = read_foreign(shared(f"data/weights/{file}"))
    assert (found.nc, len(found.state), found.parameters) == (nc, tensors, parameters)
    assert found.names is not None and len(found.names) == nc and found.names[0] == first
    assert found.anchors is not None and found.anchors.flatten(1).tolist() == ANCHORS_640
    assert "half precision" in found.source and found.source.startswith("YOLOv5")
    assert all(t.dtype in (torch.float32, torch.int64) and bool(t.isfinite().all()) for t in found.state.values())
    assert all(bool((t > 0).all()) for k, t in found.state.items() if k.endswith("running_var"))
    if nc == 80:
        wanted = json.loads(shared("golden/models/yolov5_state_dict.json").read_text())["yolov5n"]
        grid = {"model.24.anchor_grid": [3, 1, 3, 1, 1, 2]} if tensors == 350 else {}
        assert shapes(found.state) == {k: shape for k, (shape, _) in wanted.items()} | grid


def test_average_is_preferred_and_the_model_taken_without_one(foreign_model: type[Model], tmp_path: Path) -> None:
    model, ema = foreign_model(1), foreign_model(2)
    torch.save({"epoch": 7, "model": model, "ema": ema}, tmp_path / "both.pt")
    torch.save({"epoch": -1, "model": model, "ema": None}, tmp_path / "one.pt")
    for file, epoch, wanted in (("both.pt", 7, ema), ("one.pt", -1, model)):
        found = read_foreign(tmp_path / file)
        assert found.epoch == epoch
        assert list(found.state) == list(wanted.state_dict())
        assert all(torch.equal(found.state[k], v) for k, v in wanted.state_dict().items())
    assert not torch.equal(model.model[0].weight, ema.model[0].weight)


def test_attributes_of_a_pickled_model(foreign_model: type[Model], tmp_path: Path) -> None:
    torch.save({"model": foreign_model(0)}, tmp_path / "m.pt")
    found = read_foreign(tmp_path / "m.pt")
    assert found.names == ["a", "b", "c"] and found.nc == 3
    assert found.yaml == Model(0).yaml
    assert found.groups == [[0, 2], [1]]
    assert found.anchors is not None and found.anchors.tolist() == [[[8, 16]], [[48, 64]]]
    assert "model.2.transient" not in found.state  # a buffer that state dicts leave out


def test_half_precision_becomes_float32_without_loss(foreign_model: type[Model], tmp_path: Path) -> None:
    model = foreign_model(0).half()
    torch.save({"model": model}, tmp_path / "half.pt")
    found = read_foreign(tmp_path / "half.pt")
    assert found.state["model.0.weight"].dtype == torch.float32
    assert torch.equal(found.state["model.0.weight"], model.model[0].weight.float())
    assert found.state["model.1.num_batches_tracked"].dtype == torch.int64
    assert "half precision" in found.source


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("form", ["zip", "stream", "safetensors"])
def test_plain_state_dicts_in_every_container(wrapper: str, form: str, tmp_path: Path) -> None:
    state = {k: v.detach().clone() for k, v in Model(3).state_dict().items()}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({wrapper: state} if wrapper else state, path, _use_new_zipfile_serialization=form == "zip")
    found = read_foreign(path)
    assert list(found.state) == sorted(state) if form == "safetensors" else list(state)
    assert all(torch.equal(found.state[k], v) for k, v in state.items())
    assert found.nc == 3 and found.names is None
    assert found.anchors is not None and found.anchors.tolist() == [[[8, 16]], [[48, 64]]]
    assert any("strides" in note for note in found.notes)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_stream_form_of_a_pickled_model(foreign_model: type[Model], tmp_path: Path) -> None:
    model = foreign_model(4)
    torch.save({"model": model}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    found = read_foreign(tmp_path / "old.pt")
    assert all(torch.equal(found.state[k], v) for k, v in model.state_dict().items())
    assert found.names == ["a", "b", "c"]


def test_views_into_one_storage_are_read_apart(tmp_path: Path) -> None:
    whole = torch.arange(24.0)
    views = {
        "model.0.a": whole[2:14].view(3, 4).t(),
        "model.0.b": whole[20:],
        "model.0.c": whole[5],
        "model.0.d": whole[:0],
    }
    torch.save(views, tmp_path / "views.pt")
    found = read_foreign(tmp_path / "views.pt").state
    assert all(torch.equal(found[k], v) and found[k].is_contiguous() for k, v in views.items())


@pytest.mark.parametrize(
    ("prefix", "said"), [("module.", "module."), ("_orig_mod.", "_orig_mod."), ("model.", "model."), (None, "before")]
)
def test_wrappers_prefixes_are_taken_away(prefix: str | None, said: str, tmp_path: Path) -> None:
    state = {k: v.detach() for k, v in Model(0).state_dict().items()}
    torch.save(
        {k.removeprefix("model.") if prefix is None else prefix + k: v for k, v in state.items()}, tmp_path / "w.pt"
    )
    found = read_foreign(tmp_path / "w.pt")
    assert list(found.state) == list(state)
    assert any(said in note for note in found.notes)


def test_names_come_as_list_or_map() -> None:
    assert name_list(["x", "y"]) == ["x", "y"]
    assert name_list({i: f"n{i}" for i in reversed(range(12))}) == [f"n{i}" for i in range(12)]
    assert name_list({0: "x", 2: "z"}) is None
    assert name_list(None) is None and name_list([]) is None


def test_groups_are_found_only_where_there_is_one_partition() -> None:
    assert find_groups({"a": [[0, 1], [2]], "b": {"x": [[0, 1], [2]]}}, 3) == [[0, 1], [2]]
    assert find_groups({"a": [[0, 1], [2]], "b": [[0], [1, 2]]}, 3) is None  # two different answers are none
    assert find_groups({"a": [[0, 1], [1]]}, 3) is None
    assert find_groups({"a": [[2, 0, 1]]}, 3) is None  # one list is no grouping
    assert find_groups({"a": [[2, 0], [1]]}, 3) == [[2, 0], [1]]  # list order = local ids


def test_no_foreign_class_is_built_or_imported(foreign_model: type[Model], tmp_path: Path) -> None:
    torch.save({"model": foreign_model(0)}, tmp_path / "m.pt")
    del sys.modules["models.yolo"]
    found = read_foreign(tmp_path / "m.pt")
    assert "models.yolo" not in sys.modules
    assert all(type(t) is Tensor for t in found.state.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {}}, "no weights under ema, model, state_dict.*the file has epoch, optimizer"),
        ([1, 2], "neither a model nor a state dict"),
        ({}, "the file has nothing"),
    ],
)
def test_files_without_weights_say_what_they_hold(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message):
        read_foreign(tmp_path / "x.pt")


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_foreign(tmp_path / "absent.pt")
    for name, data in {
        "a.pt": b"GIF89a....",
        "b.pt": b"",
        "c.safetensors": b"\xff" * 40,
        "d.pt": b"\x80\x02K\x05.",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            read_foreign(tmp_path / name)


def test_exported_programs_are_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"script/{name}", b"\x80\x02N.", zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="TorchScript"):
        read_foreign(tmp_path / "script.pt")


def test_shipped_models_state_survives_a_round_trip(tmp_path: Path) -> None:
    spec = yaml.safe_load((ROOT / "cfg/training/demo.yaml").read_text())
    model = Detector(spec, 12)
    torch.save(model.state_dict(), tmp_path / "demo.pt")
    found = read_foreign(tmp_path / "demo.pt")
    assert found.nc == 12 and found.anchors is not None
    assert found.anchors.flatten(1).tolist() == spec["anchors"]
    model.load_state_dict(found.state)
