"""Outputs of filled models: raw, decoded, with batch statistics, and gradients, against the original programs."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.graph import Detector
from models.head import Detect
from tests.conformance.reference import GAINS, Absent, Reference, dense, filled, filled_model, raw_outputs
from tests.golden import golden, keys, need
from tests.shared import SHARED

MODELS = sorted(f.stem for f in (SHARED / "golden/forward").glob("*.npz") if f.stem != "inputs")


def model_or_skip(name: str) -> tuple[Reference, Detector, Any]:
    ref = golden()
    need(f"forward/{name}.npz")
    try:
        return ref, filled_model(ref, name), ref.npz(f"forward/{name}.npz")
    except Absent as absent:
        pytest.skip(str(absent))


@pytest.mark.parametrize("family", ["yolov7", "yolov5", "1b4h"])
def test_the_filling_rule_is_the_references(family: str) -> None:
    """The rule is a stranger's description; its sums and first values show that it was understood."""
    book = golden().json(f"forward/fill_{family}.json")
    checked = 0
    for name, entry in book.items():
        assert entry["gain"] == GAINS.get(name, 2.0)
        for row in entry["keys"][:: 1 if family == "yolov5" else 4]:
            value = filled(row["key"], torch.Size(row["shape"]), entry["gain"]).double()
            assert value.flatten()[:3].tolist() == pytest.approx(row["first"], rel=1e-6)
            assert float(value.abs().sum()) == pytest.approx(row["abssum"], rel=1e-5)
            checked += 1
    assert checked > 70


@pytest.mark.parametrize("name", MODELS)
def test_raw_and_decoded_outputs_equal_the_original(name: str) -> None:
    """To 1e-4 of each output's spread; boxes in pixels and probabilities apart."""
    ref, model, want = model_or_skip(name)
    assert "a_raw0" in want.files
    for image in ("a", "b"):
        if f"{image}_raw0" not in want.files:
            continue
        with torch.no_grad():
            det = model(ref.inputs(image))["det"]
        raws = raw_outputs(model, det)
        assert len(raws) == sum(k.startswith(f"{image}_raw") for k in want.files)
        for i, raw in enumerate(raws):
            expected = want[f"{image}_raw{i}"]
            assert raw.shape == expected.shape
            np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=1e-4 * expected.std(), err_msg=f"{image}_raw{i}")
        decoded, expected = dense(model, det).numpy(), want[f"{image}_dec"]
        np.testing.assert_allclose(decoded[..., :4], expected[..., :4], rtol=1e-4, atol=2e-3, err_msg="pixels")
        np.testing.assert_allclose(decoded[..., 4:], expected[..., 4:], rtol=1e-4, atol=2e-6, err_msg="probabilities")


@pytest.mark.parametrize("name", [n for n in MODELS if n in ("yolov7-tiny", "yolov5n", "yolov7-tiny-1b4h-standard")])
def test_training_forward_and_statistics_equal_the_original(name: str) -> None:
    """Batch statistics in the forward pass, and running statistics after it.

    Ours in float64: batch statistics multiply rounding errors, of which the reference, float32, has its own share.
    """
    ref, model, want = model_or_skip(name)
    notes = ref.json(f"forward/{name}.json")
    with torch.no_grad():
        single = raw_outputs(model, deepcopy(model).train()(ref.inputs("b"))["det"])
        raws = raw_outputs(model, model.double().train()(ref.inputs("b").double())["det"])
    for i, (raw, float32) in enumerate(zip(raws, single, strict=True)):
        expected = want[f"b_trainbn_raw{i}"]
        torch.testing.assert_close(float32.double(), raw, rtol=1e-4, atol=5e-4 * float(expected.std()))
        np.testing.assert_allclose(raw, expected, rtol=1e-4, atol=2e-4 * expected.std(), err_msg=f"raw{i}")
    state = model.state_dict()
    after = [k for k in want.files if k.startswith("after_")]
    for key in after:
        np.testing.assert_allclose(state[key.removeprefix("after_")], want[key], rtol=1e-4, atol=1e-5, err_msg=key)
    for key, total in notes["bn_after_one_forward"].items():
        assert float(state[key].double().sum()) == pytest.approx(total, rel=1e-4, abs=1e-3), key
    assert len(after) == 4 and len(notes["bn_after_one_forward"]) > 100
    loss = torch.stack([(r**2).sum() for r in raws]).sum() / 1000
    assert float(loss) == pytest.approx(notes["sumsq_over_1000"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "within"), [("yolov7-tiny", 1.0), ("yolov5n", 1.0), ("yolov7-tiny-1b4h-standard", 0.9)]
)
def test_gradient_norms_of_all_parameters_equal_the_original(name: str, within: float) -> None:
    """In float64: in float32 an activation at a LeakyReLU kink falls on either side; norms then move by .3 % between
    one and two threads. The reference is float32 itself; of the 1B4H model a few of its norms carry that noise."""
    ref, model, _ = model_or_skip(name)
    notes = ref.json(f"forward/{name}.json")
    model.double().train()
    raws = raw_outputs(model, model(ref.inputs("b").double())["det"])
    (torch.stack([(r**2).sum() for r in raws]).sum() / 1000).backward()
    off = {
        k: abs(float(p.grad.norm()) / notes["grad_l2"][k] - 1)
        for k, p in model.named_parameters()
        if p.grad is not None
    }
    assert set(off) == set(notes["grad_l2"])
    assert np.mean([v < 1e-3 for v in off.values()]) >= within, sorted(off.items(), key=lambda item: -item[1])[:5]
    assert max(off.values()) < 5e-3


def test_decoding_by_hand() -> None:
    """Logit 0 is 1/2: the centre of the cell, the anchor's own size, probabilities 1/2."""
    head = Detect([4], 2, [[10, 20, 30, 40]])
    head.attach([16])
    det = [torch.zeros(1, 2, 3, 5, 7)]
    det[0][0, 1, 2, 4] = torch.tensor([50.0, -50, 50, -50, 50, -50, 0])
    (part,) = head.decode(det)
    assert part.pred.shape == (1, 30, 7) and part.classes.tolist() == [0, 1]
    grid = part.pred.view(2, 3, 5, 7)
    assert grid[0, 1, 3].tolist() == pytest.approx([56, 24, 10, 20, 0.5, 0.5, 0.5])
    # xy reaches half a cell beyond its cell on either side, sizes from 0 to 4 anchors
    assert grid[1, 2, 4].tolist() == pytest.approx([(4 + 1.5) * 16, (2 - 0.5) * 16, 120, 0, 1, 0, 0.5])


def test_decoding_keeps_the_number_type() -> None:
    head = Detect([4], 2, [[10, 20]])
    head.attach([8])
    for kind in (torch.float16, torch.float64):
        (part,) = head.decode([torch.zeros(1, 1, 2, 2, 7, dtype=kind)])
        assert part.pred.dtype == kind


def test_bfloat16_does_not_round_boxes_by_pixels() -> None:
    """At 640 px its neighbours are 4 px apart."""
    head = Detect([4], 2, [[10, 20]])
    head.attach([8])
    (part,) = head.decode([torch.zeros(1, 1, 80, 80, 7, dtype=torch.bfloat16)])
    assert part.pred.dtype == torch.float32
    assert part.pred[0, -1].tolist() == [79.5 * 8, 79.5 * 8, 10, 20, 0.5, 0.5, 0.5]


def test_a_checkpoint_of_the_original_decodes_as_it_did() -> None:
    """From the file's tensors alone (no code of it runs) to the original's decoded output."""
    from utils.weights.checkpoint import load_detector

    ref = golden()
    names = sorted(p.name.removesuffix("_expected.npz") for p in (ref.root / "ckpt").glob("*_expected.npz"))
    assert names
    for name in names:
        want = np.load(ref.path(f"ckpt/{name}_expected.npz"))
        model, meta = load_detector(Path(ref.path(f"ckpt/{name}_stripped.pt")))
        with torch.no_grad():
            decoded = dense(model, model(torch.from_numpy(want["x"]))["det"]).numpy()
        assert meta["nc"] == 3
        np.testing.assert_allclose(decoded, want["dec"], rtol=1e-4, atol=2e-3)


def test_tap_exposes_a_module_and_changes_nothing() -> None:
    from tests.models.test_zoo import spec

    model = Detector(spec("demo"), 5).eval()
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        before = model(image)
        channels = [model.tap(i) for i in (3, 10)]
        after = model(image)
    assert not before["feat"] and sorted(after["feat"]) == [3, 10]
    assert [after["feat"][i].shape[1] for i in (3, 10)] == channels
    assert all(torch.equal(a, b) for a, b in zip(before["det"], after["det"], strict=True))
    with torch.no_grad():
        x: Tensor = image
        for module in model.model[:3]:
            x = module(x)
        assert isinstance(model.model[2], nn.Module) and torch.equal(
            model(image)["feat"][3], model.model[3](kept(model, image))
        )


def kept(model: Detector, image: Tensor) -> Tensor:
    """Input of module 3, by running what comes before it along its own chain of rows."""
    outputs = {-1: image}
    for i, module in enumerate(model.model[:3]):
        inputs = [outputs[s] for s in model.sources[i]]
        outputs[i] = module(inputs if len(inputs) > 1 else inputs[0])
    return outputs[model.sources[3][0]]


def test_every_reference_model_is_compared() -> None:
    need("forward/inputs.npz")
    assert {"yolov7-tiny", "yolov5n", "yolov7-tiny-1b4h-standard"} <= set(MODELS)
    assert keys("forward/fill_1b4h.json")
