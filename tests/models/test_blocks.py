"""Every layer that a model YAML can name, against the original's output of the same weights and input."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks.attention import CBAM
from models.blocks.known import BLOCKS as KNOWN
from models.blocks.known import FORMULA, ORIGINAL
from models.catalog import FREE, LAYERS
from models.graph import Detector, GraphError
from tests.conformance.reference import filled
from tests.shared import SHARED, shared

DETECTORS = {"Detect", "IDetect", "IAuxDetect", FREE}  # test_forward.py, anchored/, free/
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
    channels = 16 if name in ("ReOrg", "Contract", "Expand") else args.pop(0)
    module = LAYERS[name](channels, *args)
    state = module.state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == {k: list(s) for k, s in stored(entry).items()}
    with torch.no_grad():
        got = with_filling(module)(image(channels))
    atol = 1e-4 * max(1.0, float(np.abs(wanted).max()))
    torch.testing.assert_close(got, torch.from_numpy(wanted), rtol=1e-4, atol=atol)


def stored(entry: dict[str, Any]) -> dict[str, Any]:
    return next(v for k, v in entry.items() if k.startswith("state"))  # type: ignore[no-any-return]


def test_no_layer_is_without_a_forward_test() -> None:
    """Those that claim the original's output have it above; the others have a formula below."""
    shared("golden/blocks/yolov7.json")
    assert {name for name, known in KNOWN.items() if known.test == ORIGINAL} == {
        *(key.split("[")[0] for _, key in BLOCKS),
        *WITHOUT_ANCHORS,
    }
    assert {name for name, known in KNOWN.items() if known.test == FORMULA} == {*OPERATORS, *FORMULAS, *WRITTEN_OUT}
    assert set(LAYERS) == {*KNOWN, *DETECTORS}


def through(module: Any, *names: str) -> Any:
    """Submodules in a row."""
    return nn.Sequential(*(module.get_submodule(name) for name in names))


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


OPERATORS: dict[str, tuple[list[Any], Any]] = {  # name: arguments, what it does to an input of 16 channels
    "MP": ([], lambda x: F.max_pool2d(x, 2, 2)),
    "SP": ([5], lambda x: F.max_pool2d(x, 5, 1, 2)),
    "nn.MaxPool2d": ([3, 2, 1], lambda x: F.max_pool2d(x, 3, 2, 1)),
    "nn.Upsample": ([None, 2, "nearest"], lambda x: F.interpolate(x, scale_factor=2)),
    "nn.ZeroPad2d": ([[0, 1, 0, 1]], lambda x: F.pad(x, (0, 1, 0, 1))),
    "Foldcut": ([], lambda x: sum(halves(x))),
    "SimAM": ([16], lambda x: x * gate_of_simam(x)),
}


def gate_of_simam(x: Tensor) -> Tensor:
    """Equation 5 of the paper: the inverse of the least energy, lambda 0.0001."""
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=True, keepdim=True)
    energy = 4 * (variance + 1e-4) / ((x - mean) ** 2 + 2 * variance + 2e-4)
    return (1 / energy).sigmoid()


@pytest.mark.parametrize("name", OPERATORS)
def test_layers_without_parameters_are_the_operators_that_they_name(name: str) -> None:
    args, wanted = OPERATORS[name]
    x = image(16)
    block = LAYERS[name](16, *args)
    torch.testing.assert_close(block(x), wanted(x))
    assert block.out_channels == wanted(x).shape[1] and not block.state_dict()


WRITTEN_OUT = {"Concat", "Shortcut", "Chuncat", "BiFPN_Concat2", "BiFPN_Concat3", "CBAM"}  # in tests of their own


def test_what_joins_several_inputs() -> None:
    x = image(4)
    other = x.flip(0, 2)
    torch.testing.assert_close(LAYERS["Concat"]([4, 4])([x, other]), torch.cat((x, other), 1))
    torch.testing.assert_close(LAYERS["Shortcut"]([4, 4])([x, other]), x + other)
    (a, b), (c, d) = halves(x), halves(other)
    torch.testing.assert_close(LAYERS["Chuncat"]([4, 4])([x, other]), torch.cat((a, c, b, d), 1))
    weighted = LAYERS["BiFPN_Concat3"]([4, 4, 4])
    weighted.load_state_dict({"w": torch.tensor([1.0, -2.0, 3.0])})
    wanted = torch.cat((x / 4.0001, other * 0, x * 3 / 4.0001), 1)
    torch.testing.assert_close(weighted([x, other, x]), wanted)


def csp(block: Any, x: Tensor, form: str, inner: Any) -> Tensor:
    """The three forms of a CSP block of inner blocks, by its own convolutions."""
    entry = block.cv1(x)
    y = entry
    for one in block.m:
        y = inner(one, y)
    beside = block.cv2(entry if form == "B" else x)
    y = block.cv3(y) if form == "C" else y
    return (block.cv4 if form == "C" else block.cv3)(torch.cat((y, beside), 1))  # type: ignore[no-any-return]


def residual(*names: str, groups: int = 1, add: bool = True) -> Any:
    def inner(one: Any, x: Tensor) -> Tensor:
        spatial = one.cv2.rbr_dense[0] if hasattr(one.cv2, "rbr_dense") else one.cv2.conv
        assert spatial.groups == groups and spatial.kernel_size == (3, 3)
        y: Tensor = through(one, *names)(x)
        return x + y if add else y

    return inner


def convnext(block: Any, x: Tensor) -> Tensor:
    y = F.conv2d(x, block.dwconv.weight, block.dwconv.bias, padding=3, groups=x.shape[1])
    y = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    y = y * block.norm.weight.view(1, -1, 1, 1) + block.norm.bias.view(1, -1, 1, 1)
    y = F.conv2d(y, block.pwconv1.weight[:, :, None, None], block.pwconv1.bias)
    y = F.conv2d(F.gelu(y), block.pwconv2.weight[:, :, None, None], block.pwconv2.bias)
    return x + y * block.gamma.view(1, -1, 1, 1)


def stem(block: Any, x: Tensor) -> Tensor:
    x = block.cv1(x)
    return block.cv4(torch.cat((block.cv3(block.cv2(x)), F.max_pool2d(x, 2)), 1))  # type: ignore[no-any-return]


def pools(block: Any, x: Tensor) -> list[Tensor]:
    return [x, *(F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13))]


def sppfcspc(block: Any, x: Tensor) -> Tensor:
    deep = through(block, "cv1", "cv3", "cv4")(x)
    deep = through(block, "cv5", "cv6")(torch.cat(pools(block, deep), 1))
    return block.cv7(torch.cat((deep, block.cv2(x)), 1))  # type: ignore[no-any-return]


def simsppf(block: Any, x: Tensor) -> Tensor:
    def relu(conv: Any, x: Tensor) -> Tensor:
        return conv.bn(conv.conv(x)).relu()  # type: ignore[no-any-return]

    return relu(block.cv2, torch.cat(pools(block, relu(block.cv1, x)), 1))


def se(block: Any, x: Tensor) -> Tensor:
    assert block.l1.weight.shape == (2, 16)  # ratio 8
    gate = (block.l2.weight @ (block.l1.weight @ x.mean((2, 3))[0]).relu()).sigmoid()
    return x * gate.view(1, -1, 1, 1)


def eca(block: Any, x: Tensor) -> Tensor:
    means = F.pad(x.mean((2, 3))[0], (1, 1))
    gate = sum(block.conv.weight[0, 0, i] * means[i : i + 16] for i in range(3))
    return x * torch.as_tensor(gate).sigmoid().view(1, -1, 1, 1)


def coordinates(block: Any, x: Tensor) -> Tensor:
    """Position by position: the gate of (row, column) is a function of the row's mean and of the column's."""

    def gate(means: Tensor, conv: Any) -> Tensor:  # means [C,L] -> [C,L]
        y = block.bn1(block.conv1(means[None, :, :, None]))
        return conv(y * F.relu6(y + 3) / 6).sigmoid()[0, :, :, 0]  # type: ignore[no-any-return]

    assert block.conv1.out_channels == 8
    rows, columns = gate(x.mean(3)[0], block.conv_h), gate(x.mean(2)[0], block.conv_w)
    return x * rows[None, :, :, None] * columns[None, :, None, :]


def gam(block: Any, x: Tensor) -> Tensor:
    first, _, second = block.channel_attention
    y = F.conv2d(x, first.weight[:, :, None, None], first.bias).relu()
    x = x * F.conv2d(y, second.weight[:, :, None, None], second.bias).sigmoid()
    one, norm, _, two, other = block.spatial_attention
    y = norm(F.conv2d(x, one.weight, one.bias, padding=3)).relu()
    return x * other(F.conv2d(y, two.weight, two.bias, padding=3)).sigmoid()  # type: ignore[no-any-return]


def shuffle(block: Any, x: Tensor) -> Tensor:
    """Stride 1 (figure 3c) or 2 (3d); channels of both branches alternate afterwards."""
    left, right = (block.branch1(x), x) if block.s == 2 else halves(x)
    right = block.branch2(right)
    wanted = torch.stack((left, right), 2).flatten(1, 2)
    kinds = [type(m).__name__ for m in block.branch2]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d", "ReLU"]
    assert block.branch2[3].groups == 16 and block.branch2[3].stride == (block.s, block.s)
    return wanted


def maxpool_stem(block: Any, x: Tensor) -> Tensor:
    conv, norm, _ = block.conv
    return F.max_pool2d(norm(F.conv2d(x, conv.weight, stride=2, padding=1)).relu(), 3, 2, 1)


def partial(block: Any, x: Tensor) -> Tensor:
    return torch.cat((F.conv2d(x[:, :4], block.partial_conv3.weight, padding=1), x[:, 4:]), 1)


def transposed(block: Any, x: Tensor) -> Tensor:
    return F.conv_transpose2d(x, block.weight, block.bias, 2)


def normed(block: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, block.running_mean, block.running_var, block.weight, block.bias, eps=1e-3)


RES, BOTTLE = ("cv1", "cv2", "cv3"), ("cv1", "cv2")
FORMULAS: dict[str, tuple[list[Any], Any]] = {  # name: arguments, input -> output by the block's own tensors
    "RepBottleneck": ([16, 16], residual(*BOTTLE)),
    "RepRes": ([16, 16], residual(*RES)),
    "RepResX": ([64, 64], residual(*RES, groups=32)),
    "ResXCSPA": ([64, 64, 2], lambda b, x: csp(b, x, "A", residual(*RES, groups=32))),
    "ResXCSPC": ([64, 64, 2], lambda b, x: csp(b, x, "C", residual(*RES, groups=32))),
    "RepBottleneckCSPA": ([16, 32, 2], lambda b, x: csp(b, x, "A", residual(*BOTTLE))),
    "RepBottleneckCSPB": ([16, 32, 2], lambda b, x: csp(b, x, "B", residual(*BOTTLE, add=False))),
    "RepBottleneckCSPC": ([16, 32, 2], lambda b, x: csp(b, x, "C", residual(*BOTTLE))),
    "RepResCSPA": ([16, 32, 2], lambda b, x: csp(b, x, "A", residual(*RES))),
    "RepResCSPC": ([16, 32, 2], lambda b, x: csp(b, x, "C", residual(*RES))),
    "RepResXCSPA": ([64, 128, 2], lambda b, x: csp(b, x, "A", residual(*RES, groups=32))),
    "RepResXCSPC": ([64, 128, 2], lambda b, x: csp(b, x, "C", residual(*RES, groups=32))),
    "GhostStem": ([16, 32], stem),
    "SPPFCSPC": ([16, 32], sppfcspc),
    "SimSPPF": ([16, 32], simsppf),
    "SE": ([16, 16, 8], se),
    "ECA": ([16, 16], eca),
    "CoordAtt": ([16, 16], coordinates),
    "GAM_Attention": ([16, 16], gam),
    "ShuffleV2Block": ([32, 32, 1], shuffle),
    "Shuffle_Block": ([16, 32, 2], shuffle),
    "conv_bn_relu_maxpool": ([16, 32], maxpool_stem),
    "PConv": ([16, 16], partial),
    "ConvNextBlock": ([16, 16], convnext),
    "CNeB": ([16, 32, 2], lambda b, x: csp(b, x, "A", convnext)),
    "nn.ConvTranspose2d": ([16, 8, 2, 2], transposed),
    "nn.BatchNorm2d": ([16], normed),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_layer_is_the_formula_of_its_paper(name: str) -> None:
    args, formula = FORMULAS[name]
    block, x = with_filling(LAYERS[name](*args)), image(args[0])
    with torch.no_grad():
        wanted = formula(block, x)
        torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-4)
    assert block.out_channels == wanted.shape[1]


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
