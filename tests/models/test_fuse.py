"""Fusing: same outputs, published counts, the original left alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.blocks.layers import Conv, DWConv, RepConv
from models.fuse import fuse
from models.graph import Detector
from models.head import IDetect
from tests.conformance.reference import Absent, dense, filled_model
from tests.golden import golden

MODELS = [
    ("yolov7-tiny", "yolov7", "yolov7-tiny"),
    ("yolov5n", "yolov5", "yolov5n"),
    ("yolov7-tiny-1b4h-standard", "1b4h", "yolov7-tiny-1b4h-standard"),
    ("yolov7-tiny-1b4h-attn-standard", "1b4h", "yolov7-tiny-1b4h-attn-standard"),
    ("yolov7-tiny-1b4h-standard-fullhead", "1b4h", "yolov7-tiny-1b4h-standard-fullhead"),
    ("yolov7", "yolov7", "yolov7"),
]
FUSED = {"yolov7-tiny": 6_221_370, "yolov5n": 1_867_405, "yolov7": 36_907_898, "yolov7-tiny-1b4h-standard": 6_260_164}


def random_statistics(module: nn.Module, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            with torch.no_grad():
                for t, low in ((m.weight, 0.5), (m.bias, -0.5), (m.running_mean, -0.5), (m.running_var, 0.5)):
                    assert t is not None
                    t.copy_(torch.rand(t.shape, generator=g) + low)


@pytest.mark.parametrize(("name", "family", "entry"), MODELS)
def test_fused_outputs_and_counts(name: str, family: str, entry: str) -> None:
    ref = golden()
    try:
        model = filled_model(ref, name)
    except Absent as absent:
        pytest.skip(str(absent))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fused = fuse(model)
    info = ref.json(f"models/{family}_info.json")["models"][entry]
    count = sum(p.numel() for p in fused.parameters())
    assert count == info["fused_params"] == FUSED.get(name, count)
    assert len(fused.state_dict()) == info["fused_state_dict_len"]
    image = ref.inputs("a")
    with torch.no_grad():
        one, two = model(image)["det"], fused(image)["det"]
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * float(a.std()))
    torch.testing.assert_close(dense(fused, two)[..., 4:], dense(model, one)[..., 4:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dense(fused, two)[..., :4], dense(model, one)[..., :4], rtol=1e-4, atol=5e-3)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "the given model is left alone"
    assert not any(isinstance(m.bn, nn.BatchNorm2d) for m in fused.modules() if isinstance(m, Conv))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("block", [Conv(4, 6, 3, 2), DWConv(4, 8, 3), Conv(4, 6, 1, act=nn.LeakyReLU(0.1))])
def test_conv_and_norm(block: Conv, bias: bool) -> None:
    from models.fuse import with_norm

    random_statistics(block)
    conv, norm = block.conv, block.bn
    assert isinstance(norm, nn.BatchNorm2d)
    conv.bias = nn.Parameter(torch.randn(conv.out_channels)) if bias else None
    x = torch.randn(2, 4, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(with_norm(conv, norm)(x), norm.eval()(conv(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("c1", "c2", "s", "g"), [(8, 8, 1, 1), (8, 8, 1, 4), (8, 12, 1, 2), (8, 8, 2, 1)])
def test_repconv_becomes_one_convolution(c1: int, c2: int, s: int, g: int) -> None:
    from models.fuse import join_branches

    torch.manual_seed(0)
    rep = RepConv(c1, c2, 3, s, g=g).eval()
    assert (rep.rbr_identity is not None) == (c1 == c2 and s == 1)
    random_statistics(rep)
    x = torch.randn(2, c1, 8, 6)
    with torch.no_grad():
        before = rep(x)
        join_branches(rep.requires_grad_(False))
        torch.testing.assert_close(rep(x), before, rtol=1e-4, atol=1e-5)
    assert sorted(rep.state_dict()) == ["rbr_reparam.bias", "rbr_reparam.weight"]
    join_branches(rep)
    with torch.no_grad():
        torch.testing.assert_close(rep(x), before, rtol=1e-4, atol=1e-5)


def small(kind: str) -> Detector:
    spec: dict[str, Any] = {
        "nc": 3,
        "anchors": [[10, 13, 16, 30]],
        "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "BottleneckCSP", [8]], [-1, 1, "RepConv", [8, 3, 1]]],
        "head": [[[2], 1, kind, ["nc", "anchors"]]],
    }
    torch.manual_seed(0)
    model = Detector(spec, 3)
    random_statistics(model)
    return model


def run(model: Detector, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out: list[Tensor] = model(image)["det"]
        return out


@pytest.mark.parametrize("kind", ["Detect", "IDetect"])
def test_twice_is_once_and_joint_norms_stay(kind: str) -> None:
    model = small(kind).eval()
    once = fuse(model)
    twice = fuse(once)
    image = torch.rand(1, 3, 32, 48)
    wanted = run(model, image)
    for fused in (once, twice):
        torch.testing.assert_close(run(fused, image), wanted, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))
    norms = [name for name, m in once.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == ["model.1.bn"], "it follows a concatenation"


def test_implicit_constants_are_folded_and_left_neutral() -> None:
    model = small("IDetect").eval()
    head = model.head
    assert isinstance(head, IDetect)
    with torch.no_grad():
        head.ia[0].implicit.normal_()
        head.im[0].implicit.uniform_(0.5, 2)
    fused = fuse(model)
    assert isinstance(fused.head, IDetect)
    assert (fused.head.ia[0].implicit == 0).all() and (fused.head.im[0].implicit == 1).all()
    x = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(fused.head.m[0](x), head.level(x, 0), rtol=1e-4, atol=1e-5)


def test_a_copy_for_evaluation() -> None:
    model = small("Detect").train()
    fused = fuse(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in fused.modules()) and not any(p.requires_grad for p in fused.parameters())
