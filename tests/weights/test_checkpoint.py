"""Checkpoints: what is written is read back, nothing is lost on the way, what does not fit is listed."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.graph import Detector
from tests.models.test_zoo import spec
from utils.seams import Source
from utils.system.errors import UserError
from utils.weights import checkpoint
from utils.weights.checkpoint import (
    FORMAT,
    check_groups,
    load_detector,
    load_into,
    model_yaml,
    read_checkpoint,
    read_source,
    save_checkpoint,
    try_own,
)

SMALL = {**spec("demo"), "width_multiple": 0.25}


def small(nc: int = 3) -> Detector:
    torch.manual_seed(0)
    return Detector(SMALL, nc)


def saved(path: Path, model: Detector, **meta: Any) -> Path:
    save_checkpoint(path, state=model.state_dict(), meta={"spec": SMALL, "nc": model.nc, **meta})
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    model = small()
    meta = {"names": ["a", "b", "c"], "epoch": 3, "best": 0.25, "patches": {}, "nested": {"list": [1, [2.5, None]]}}
    training = {"model": model.state_dict(), "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}}}
    path = tmp_path / "last.pt"
    save_checkpoint(path, state=model.state_dict(), meta=meta, training=training)
    back = read_checkpoint(path)
    assert back["meta"] == meta and back["format"] == FORMAT
    assert set(back) == {"format", "meta", "ema", "model", "optimizer"}
    for part in ("ema", "model"):
        assert list(back[part]) == list(model.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(back[part].values(), model.state_dict().values(), strict=True))
    assert torch.equal(back["optimizer"]["state"][0]["momentum_buffer"], torch.ones(2))
    assert os.listdir(tmp_path) == ["last.pt"]


def test_the_file_holds_tensors_numbers_and_text_only(tmp_path: Path) -> None:
    """It opens with the loader that builds no objects, and its description is readable without this program."""
    content = torch.load(saved(tmp_path / "x.pt", small()), weights_only=True)
    assert isinstance(content["meta"], str) and json.loads(content["meta"])["nc"] == 3


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "last.pt", small(), epoch=1)

    def full(content: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(UserError, match=r"last\.pt cannot be written: No space left on device"):
        saved(path, small(), epoch=2)
    monkeypatch.undo()
    assert read_checkpoint(path)["meta"]["epoch"] == 1 and os.listdir(tmp_path) == ["last.pt"]


def test_the_file_is_flushed_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    saved(tmp_path / "last.pt", small())
    assert order == ["fsync", "replace", "fsync"], "the file, its name, the folder"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken"])
def test_other_files_are_not_ours(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert try_own(path) is None
    with pytest.raises(UserError, match=r"x\.pt is not a checkpoint of this program .*utils convert"):
        read_checkpoint(path)


def test_a_plain_state_dict_is_not_ours_and_a_missing_file_is_said(tmp_path: Path) -> None:
    torch.save({"model.0.weight": torch.zeros(2)}, tmp_path / "state.pt")
    assert try_own(tmp_path / "state.pt") is None
    for read in (try_own, read_checkpoint, read_source, load_detector):
        with pytest.raises(UserError, match=r"there is no checkpoint .*nowhere\.pt"):
            read(tmp_path / "nowhere.pt")
    (tmp_path / "run/weights").mkdir(parents=True)
    (tmp_path / "run/weights/last.pt").touch()
    with pytest.raises(UserError, match=r"no checkpoint .*run'; the run folder holds .*run/weights/last\.pt"):
        try_own(tmp_path / "run")


def test_a_cut_off_checkpoint_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", small())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"x\.pt"):
        read_source(path)


@pytest.mark.parametrize("damage", [{"meta": "{"}, {"meta": None}, {"meta": "[]"}, {"ema": None}, {"ema": {"a": 1}}])
def test_a_checkpoint_with_damaged_parts_is_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", small())
    content = torch.load(path, weights_only=True) | damage
    torch.save({k: v for k, v in content.items() if v is not None}, path)
    with pytest.raises(UserError, match=r"x\.pt is damaged"):
        read_source(path)


def test_a_damaged_checkpoint_of_ours_is_never_read_as_a_foreign_file(tmp_path: Path) -> None:
    """Its weights may be whole, but names, heads and patches would be lost."""
    whole = saved(tmp_path / "x.pt", small(), names=["a", "b", "c"]).read_bytes()
    draws = np.random.default_rng(0)
    directory = whole.rindex(b"PK\x01\x02", 0, len(whole) - 2000)
    refused = 0
    for trial in range(40):
        data = bytearray(whole)
        at = int(draws.integers(directory if trial % 2 else 0, len(data)))
        data[at : at + 16] = bytes(16)
        (tmp_path / "y.pt").write_bytes(data)
        try:
            assert read_source(tmp_path / "y.pt").meta["names"] == ["a", "b", "c"]
        except UserError as error:
            refused += "y.pt" in str(error)
    assert refused > 20


def test_ours_without_a_readable_description_is_damaged(tmp_path: Path) -> None:
    for meta in ("[" * 100_000, '{"epoch": ' + "9" * 5000 + "}"):
        path = tmp_path / "x.pt"
        torch.save({"format": FORMAT, "meta": meta, "ema": {"a": torch.zeros(1)}}, path)
        with pytest.raises(UserError, match="description cannot be read"):
            read_source(path)


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.99])
def test_a_cut_off_safetensors_file_is_one_error(share: float, tmp_path: Path) -> None:
    save_file({k: v.clone() for k, v in small().state_dict().items()}, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    for name in ("cut.safetensors", "cut.pt"):
        (tmp_path / name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UserError, match=rf"{name}"):
            load_detector(tmp_path / name, "cfg/training/demo.yaml")


def test_a_detector_comes_back_with_its_own_graph_and_names(tmp_path: Path) -> None:
    model = small().eval()
    again, meta = load_detector(saved(tmp_path / "x.pt", model, names=["a", "b", "c"]))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(image)["det"], again(image)["det"], strict=True))
    assert not again.training and meta["names"] == ["a", "b", "c"] and meta["spec"] == SMALL
    _, meta = load_detector(saved(tmp_path / "y.pt", model))
    assert meta["names"] == ["0", "1", "2"]


def test_a_model_yaml_is_asked_for_where_none_is_known(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, state=small().state_dict(), meta={"nc": 3})
    with pytest.raises(UserError, match="--cfg"):
        load_detector(path)
    with pytest.raises(UserError, match=r"--cfg MODEL\.yaml is needed: there are no --weights"):
        model_yaml("", None)
    with pytest.raises(UserError, match="--weights do not carry a model YAML"):
        model_yaml("", read_source(path))
    assert model_yaml("", Source("x", {}, {"spec": SMALL})) == SMALL
    assert model_yaml("cfg/training/demo.yaml", Source("x", {}, {"spec": SMALL})) == spec("demo"), "--cfg wins"


def test_loading_is_strict_and_lists_what_does_not_fit() -> None:
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state: dict[str, Tensor] = {k: v.clone() + 1 for k, v in before.items()}
    del state["model.3.bn.bias"]
    state["model.99.weight"], state["model.0.conv.weight"] = torch.zeros(1), torch.zeros(2, 3)
    with pytest.raises(UserError) as caught:
        load_into(model, state, "x.pt")
    said = str(caught.value)
    assert "--weights x.pt does not fit the model" in said and "--transfer-weights" in said
    assert "1 missing in the file: model.3.bn.bias" in said
    assert "1 not in the model: model.99.weight" in said
    assert f"model.0.conv.weight: [2, 3] in the file, {list(before['model.0.conv.weight'].shape)} in the model" in said
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "nothing was loaded"


@pytest.mark.parametrize("fault", ["missing in the file", "not in the model"])
def test_one_tensor_too_few_or_too_many_is_enough(fault: str) -> None:
    state = dict(small().state_dict())
    if fault == "missing in the file":
        del state["model.3.bn.bias"]
    else:
        state["model.99.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=f"1 {fault}: model"):
        load_into(small(), state, "x.pt")


def test_another_number_of_classes_is_said_by_shape() -> None:
    with pytest.raises(UserError, match=r"of another shape: model\.77\.m\.0\.weight"):
        load_into(small(4), small(5).state_dict(), "x.pt")


@pytest.mark.parametrize("stored", [True, False])
def test_pixel_anchors_follow_the_anchors_of_the_file(stored: bool) -> None:
    """`anchor_grid` may be absent (YOLOv5's files) or stale; it is always anchors * stride."""
    model = small()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    key = next(k for k in state if k.endswith("anchor_grid"))
    state[key.replace("anchor_grid", "anchors")] *= 2
    if not stored:
        del state[key]
    load_into(model, state, "x.pt")
    head = model.head
    assert torch.equal(model.state_dict()[key].view(3, -1, 2), head.anchors * head.stride.view(3, 1, 1))
    plain = Detector({**SMALL, "head": [*SMALL["head"][:-1], [[74, 75, 76], 1, "Detect", ["nc", "anchors"]]]}, 3)
    extra = {**plain.state_dict(), key: state.get(key, torch.zeros(1))}
    load_into(plain, extra, "x.pt")


def test_groups_are_compared_where_there_are_several() -> None:
    model = small()
    for groups in (None, [[0, 1, 2]], [[2, 1, 0]]):
        check_groups(model, Source("x.pt", {}, {} if groups is None else {"groups": groups}))
    with pytest.raises(UserError, match=r"x\.pt was trained with another grouping.*\[1, 2\]"):
        model.head.groups = [[0, 1], [2]]
        check_groups(model, Source("x.pt", {}, {"groups": [[0, 2], [1]]}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("own", [True, False])
def test_weights_that_are_no_numbers_are_refused(value: float, own: bool, tmp_path: Path) -> None:
    """Ours, and a state dict: the model would detect nothing, without a word."""
    model, path = small(), tmp_path / "a.pt"
    with torch.no_grad():
        next(model.parameters()).view(-1)[3] = value
    saved(path, model) if own else torch.save(model.state_dict(), path)
    with pytest.raises(UserError, match=r"a\.pt: 1 of its tensors hold NaN or infinity: model\.0\.conv\.weight"):
        read_source(path)
