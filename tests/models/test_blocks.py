"""Every layer that a model YAML can name, against the original's output of the same weights and input."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.layers import CBAM
from models.graph import LAYERS, Detector, GraphError
from tests.conformance.reference import filled
from tests.shared import SHARED, shared

# without a row of their own in golden/blocks: parameter-free, tested below, or the same code with other numbers
HERE = {"Concat", "Shortcut", "MP", "SP", "nn.Upsample", "nn.MaxPool2d", "nn.ZeroPad2d", "CBAM", "ResXCSPA", "ResXCSPC"}
DETECTORS = {"Detect", "IDetect"}  # tests/models/test_forward.py
WITHOUT_ANCHORS = {"C2f", "C3k", "C3k2", "C2PSA"}  # tests/models/free/test_head.py


def book(program: str) -> dict[str, Any]:
    path = SHARED / f"golden/blocks/{program}.json"
    return json.loads(path.read_text()) if path.is_file() else {}  # type: ignore[no-any-return]


BLOCKS = [(p, key) for p in ("yolov5", "yolov7") for key in book(p) if key.split("[")[0] in LAYERS]


def with_filling(module: nn.Module) -> nn.Module:
    state = module.state_dict()
    new = {k: v if k.endswith("num_batches_tracked") else filled(k, v.shape, 2.0) for k, v in state.items()}
    module.load_state_dict(new)
    return module.eval()


def image(channels: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(5).standard_normal((1, channels, 12, 16)).astype(np.float32))


@pytest.mark.parametrize(("program", "key"), BLOCKS)
def test_a_layer_gives_the_originals_output(program: str, key: str) -> None:
    entry, wanted = book(program)[key], np.load(shared(f"golden/blocks/{program}.npz"))[key]
    name, args = key.split("[")[0], list(entry["args"])
    channels = 16 if name in ("ReOrg", "Contract") else args.pop(0)
    module = LAYERS[name](channels, *args)
    state = module.state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == {k: list(s) for k, s in stored(entry).items()}
    with torch.no_grad():
        got = with_filling(module)(image(channels))
    torch.testing.assert_close(got, torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)


def stored(entry: dict[str, Any]) -> dict[str, Any]:
    return next(v for k, v in entry.items() if k.startswith("state"))  # type: ignore[no-any-return]


def test_no_layer_is_without_a_forward_test() -> None:
    shared("golden/blocks/yolov7.json")
    assert set(LAYERS) == {key.split("[")[0] for _, key in BLOCKS} | HERE | DETECTORS | WITHOUT_ANCHORS


def test_layers_without_parameters_are_the_operators_that_they_name() -> None:
    x = image(4)
    other = x.flip(0, 2)
    torch.testing.assert_close(LAYERS["Concat"]([4, 4])([x, other]), torch.cat((x, other), 1))
    torch.testing.assert_close(LAYERS["Shortcut"]([4, 4])([x, other]), x + other)
    torch.testing.assert_close(LAYERS["MP"](4)(x), F.max_pool2d(x, 2, 2))
    torch.testing.assert_close(LAYERS["SP"](4, 5)(x), F.max_pool2d(x, 5, 1, 2))
    torch.testing.assert_close(LAYERS["nn.MaxPool2d"](4, 3, 2, 1)(x), F.max_pool2d(x, 3, 2, 1))
    torch.testing.assert_close(LAYERS["nn.Upsample"](4, None, 2, "nearest")(x), F.interpolate(x, scale_factor=2))
    torch.testing.assert_close(LAYERS["nn.ZeroPad2d"](4, [0, 1, 0, 1])(x), F.pad(x, (0, 1, 0, 1)))


@pytest.mark.parametrize("name", ["ResXCSPA", "ResXCSPC"])
def test_the_32_group_variants_have_residuals_and_groups(name: str) -> None:
    block = with_filling(LAYERS[name](64, 64, 2))
    x = image(64)
    with torch.no_grad():
        y = block.cv1(x)  # type: ignore[operator]
        for inner in block.m:  # type: ignore[union-attr]
            assert inner.cv2.conv.groups == 32
            y = y + inner.cv3(inner.cv2(inner.cv1(y)))
        y = block.cv3(y) if name == "ResXCSPC" else y  # type: ignore[operator]
        joined = torch.cat((y, block.cv2(x)), 1)  # type: ignore[operator]
        wanted = (block.cv4 if name == "ResXCSPC" else block.cv3)(joined)  # type: ignore[operator]
        torch.testing.assert_close(block(x), wanted)


def test_cbam_takes_its_channel_count_first() -> None:
    """As the YAMLs of forks have it: ratio 16, kernel 7."""
    block = CBAM(64, 64)
    assert [tuple(p.shape) for p in block.parameters()] == [(4, 64, 1, 1), (64, 4, 1, 1), (1, 2, 7, 7)]
    x = image(64)
    with torch.no_grad():
        net = block.channel_attention.fc
        y = x * (net(x.mean((2, 3), keepdim=True)) + net(x.amax((2, 3), keepdim=True))).sigmoid()
        pooled = torch.stack((y.mean(1), y.amax(1)), 1)
        gate = F.conv2d(pooled, block.spatial_attention.conv.weight, padding=3).sigmoid()
        torch.testing.assert_close(block(x), y * gate)


def spec(rows: list[Any], **keys: Any) -> dict[str, Any]:
    detect = [[-1], 1, "Detect", ["nc", "anchors"]]
    return {"nc": 2, "anchors": [[10, 13, 16, 30]], "backbone": rows, "head": [detect], **keys}


def test_cbam_in_a_yaml_is_scaled_with_the_width() -> None:
    rows = [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "CBAM", [64]]]
    model = Detector(spec(rows, width_multiple=0.5), 2)
    assert model.model[1].get_submodule("channel_attention.fc.0").weight.shape == (2, 32, 1, 1)
    with pytest.raises(GraphError, match=r"row 1 \(CBAM.*keeps its 32 channels, but its first argument makes 512"):
        Detector(spec([rows[0], [-1, 1, "CBAM", [1024]]], width_multiple=0.5), 2)


@pytest.mark.parametrize("text", ["torch.nn.ReLU()", "nn.ReLU()", "nn.ReLU(inplace=True)", "nn.ReLU(True)"])
def test_spellings_of_an_activation(text: str) -> None:
    model = Detector(spec([[-1, 1, "Conv", [8, 3, 2]]], activation=text), 2)
    assert isinstance(model.model[0].get_submodule("act"), nn.ReLU)


@pytest.mark.parametrize("text", ["nn.LeakyReLU(x)", "nn.LeakyReLU(size=3)"])
def test_an_activation_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(GraphError, match=r"cannot read the activation nn\.LeakyReLU"):
        Detector(spec([[-1, 1, "Conv", [8, 3, 2]]], activation=text), 2)


def two_levels(anchors: Any) -> dict[str, Any]:
    rows = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]]
    return {**spec(rows, anchors=anchors), "head": [[[0, 1], 1, "Detect", ["nc", "anchors"]]]}


@pytest.mark.parametrize(
    ("anchors", "message"),
    [
        ([[1, 2, 3, 4], [5, 6]], "the levels have 2, 1 anchors; every level needs as many"),
        ([[1, 2], [0, 6]], "anchors hold 0: widths and heights are numbers of pixels above 0"),
        ([[1, 2], [float("inf"), 6]], "anchors hold inf"),
        ([[1, 2], ["a", 6]], "anchors hold 'a'"),
        (0, "anchors: as a number, of each level, from 1 to 100; got 0"),
    ],
)
def test_anchors_that_make_no_sense_are_named(anchors: Any, message: str) -> None:
    with pytest.raises(GraphError, match=re.escape(message)):
        Detector(two_levels(anchors), 2)


def test_a_number_of_anchors_leaves_their_sizes_open() -> None:
    model = Detector(two_levels(4), 2)
    assert model.head.anchors.shape == (2, 4, 2) and model.head.anchors.isnan().all()


@pytest.mark.parametrize("key", ["channel_multiple", "kpt_shape", "end2end", "reg_max"])
def test_keys_that_make_another_network_are_refused(key: str) -> None:
    with pytest.raises(GraphError, match=f"the key '{key}'"):
        Detector(spec([[-1, 1, "Conv", [8, 3, 2]]], **{key: [1]}), 2)


def test_a_channel_count_that_is_the_detectors_is_not_scaled() -> None:
    """Two anchors, 11 classes: 32 outputs per level. YOLOv5 and YOLOv7 leave such a count as it is."""
    rows = [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [64, 3, 2]]]
    model = Detector(spec(rows, width_multiple=0.25), 11)
    assert [row.out_channels for row in model.model[:2]] == [32, 16]
    assert Detector(spec(rows, width_multiple=0.25), 10).model[0].out_channels == 8
