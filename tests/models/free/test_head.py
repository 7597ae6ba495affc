"""Filled models without anchors against the original program, and what their head says of itself."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.free.loss import BINS, flat
from models.fuse import fuse
from models.graph import Detector
from tests.conformance.reference import filled
from tests.golden import golden
from utils.weights.model_files import read_model


def filled_model(name: str) -> Detector:
    model = Detector(read_model(f"{name}.yaml"), 80).eval()
    kept = ("num_batches_tracked", "dfl.conv.weight")
    state = {k: v if k.endswith(kept) else filled(k, v.shape, 2.0) for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    return model


def close(got: Tensor, want: Any, noise: float) -> None:
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=10 * noise)


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n"])
def test_outputs_equal_the_original_within_ten_times_the_noise_of_float32(name: str) -> None:
    ref = golden()
    want, notes, model = ref.npz(f"free/forward_{name}.npz"), ref.json(f"free/forward_{name}.json"), filled_model(name)
    for image in ("a", "b"):
        with torch.no_grad():
            det = model(ref.inputs(image))["det"]
        raw, noise = flat(det), notes[image]["f32_vs_f64_raw_maxabs"]
        close(raw[:, : 4 * BINS], want[f"{image}_boxes"], noise)
        close(raw[:, 4 * BINS :], want[f"{image}_scores"], noise)
        (part,) = model.decode(det)
        close(part.pred.transpose(1, 2), want[f"{image}_dec"], notes[image]["f32_vs_f64_dec_maxabs"])
        assert part.classes.tolist() == list(range(80)) and not part.objectness
        (folded,) = fuse(model).decode(fuse(model)(ref.inputs(image))["det"])
        torch.testing.assert_close(folded.pred, part.pred, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["yolo11n", "yolov8n"])
def test_training_outputs_and_gradients_equal_the_original(name: str) -> None:
    """With batch statistics. In float32: in float64 the pools find other maxima of nearly equal ones."""
    ref = golden()
    want, notes = ref.npz(f"free/forward_{name}.npz"), ref.json(f"free/forward_{name}.json")
    model = filled_model(name).train()
    raw = torch.cat([level.flatten(2) for level in model(ref.inputs("b"))["det"]], 2)
    for part, expected in ((raw[:, : 4 * BINS], "boxes"), (raw[:, 4 * BINS :], "scores")):
        np.testing.assert_allclose(part.detach().numpy(), want[f"b_trainbn_{expected}"], rtol=1e-4, atol=2e-4)
    total = (raw**2).sum() / 1000
    assert total.item() == pytest.approx(notes["sumsq_over_1000"], rel=1e-5)
    total.backward()
    norms = {k: p.grad.norm().item() for k, p in model.named_parameters() if p.grad is not None}
    largest = max(norms.values())
    assert norms == {k: pytest.approx(notes["grad_l2"][k], rel=1e-4, abs=1e-6 * largest) for k in norms}
    assert notes["grad_l2"].keys() - norms.keys() <= {f"model.{len(model.model) - 1}.dfl.conv.weight"}


def test_biases_start_with_few_objects_and_the_bins_never_learn() -> None:
    model = Detector(read_model("demo-free.yaml"), 12)
    state = model.state_dict()
    assert state["model.23.cv2.0.2.bias"].eq(1).all()
    assert state["model.23.cv3.1.2.bias"].tolist() == pytest.approx([np.log(5 / 12 / (640 / 16) ** 2)] * 12)
    assert state["model.23.dfl.conv.weight"].flatten().tolist() == list(range(16))
    assert not [name for name, _ in model.named_parameters() if "dfl" in name]
    assert model.head.priors() is None and model.head.loss_kinds() == ("box", "cls", "dfl")
