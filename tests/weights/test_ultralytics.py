"""Files of Ultralytics: pickled detectors without anchors, through the same safe reader."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.graph import Detector
from tests.models.test_zoo import spec
from tests.weights.test_convert import Model
from utils.system.errors import UserError
from utils.weights.checkpoint import load_detector
from utils.weights.convert import convert
from utils.weights.foreign import read_foreign

IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def saved(path: Path, detector: Detector, description: dict[str, Any], **more: nn.Module) -> Path:
    """more: modules that the last row has beside its detector."""
    model = Model(detector, description)
    for name, module in more.items():
        model.model[-1].add_module(name, module)
    torch.save({"epoch": -1, "model": model.half()}, path)
    return path


def decoded(model: Detector) -> torch.Tensor:
    with torch.no_grad():
        (part,) = model.eval().decode(model(IMAGE)["det"])
    return part.pred


def test_a_pickled_detector_is_read_converted_and_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = Detector(spec("demo-free"), 5)
    file = saved(tmp_path / "theirs.pt", plain, spec("demo-free"))
    want = decoded(plain.float())  # of the halves that were written
    model, meta = load_detector(file)
    assert meta["nc"] == 5 and meta["names"] == ["c0", "c1", "c2", "c3", "c4"]
    assert torch.equal(decoded(model), want)
    assert "its own model description: all" in convert(file, tmp_path / "ours.pt")
    convert(tmp_path / "ours.pt", tmp_path / "ours.safetensors")
    for again in ("ours.pt", "ours.safetensors"):
        assert torch.equal(decoded(load_detector(tmp_path / again)[0]), want)
    torch.save(load_detector(file)[0].state_dict(), tmp_path / "state.pt")  # tensors alone: known by all of them
    assert torch.equal(decoded(load_detector(tmp_path / "state.pt")[0]), want)


def test_a_pooling_row_without_activation_is_built_as_it_is(tmp_path: Path) -> None:
    """Some releases build SPPF so, from the same YAML."""
    torch.manual_seed(0)
    theirs = Detector(spec("demo-free"), 5)
    usual = decoded(Detector(spec("demo-free"), 5))
    theirs.model[9].cv1.act = nn.Identity()  # type: ignore[union-attr]
    file = saved(tmp_path / "theirs.pt", theirs, spec("demo-free"))
    model, meta = load_detector(file)
    assert meta["spec"]["backbone"][9][3] == [96, 5, False]
    assert torch.equal(decoded(model), decoded(theirs.float())) and not torch.equal(decoded(model), usual)


@pytest.mark.parametrize(("kind", "parts"), [("Segment", ("cv4", "proto")), ("Pose", ("cv4",))])
def test_of_masks_and_key_points_the_detector_is_taken(kind: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, description = Detector(spec("demo-free"), 5), spec("demo-free")
    description["head"][-1] = [*description["head"][-1][:2], kind, ["nc", 32]]
    description |= {"kpt_shape": [17, 3]} if kind == "Pose" else {}
    file = saved(tmp_path / "theirs.pt", plain, description, **{part: nn.Conv2d(4, 4, 1) for part in parts})
    assert torch.equal(decoded(load_detector(file)[0]), decoded(plain.float()))
    assert read_foreign(file).notes[-1] == f"{2 * len(parts)} tensors of masks or key points are left out: " \
        "the detector alone"  # fmt: skip


@pytest.mark.parametrize("kind", ["OBB", "Classify", "v10Detect"])
def test_other_heads_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    description = spec("demo-free")
    description["head"][-1] = [*description["head"][-1][:2], kind, ["nc"]]
    file = saved(tmp_path / "theirs.pt", Detector(spec("demo-free"), 5), description)
    with pytest.raises(UserError, match=rf"theirs\.pt: row 23 \({kind} .*of the heads without anchors only Detect"):
        load_detector(file)


# A trained yolo11s for parts of user interfaces, in a package of PyPI. Figures of Ultralytics 8.4.190 in float32.
UITAG = ("uitag==0.6.0", "uitag/models/yolo-ui.pt", "a1b6237dd636592a")
FIGURES = (604857.8136, 4.953077681, 373.3517, 0.5691013)


@pytest.mark.slow
def test_a_trained_yolo11s_finds_what_the_original_finds(tmp_path: Path) -> None:
    package, inside, digest = UITAG
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), package]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip(f"{package} could not be downloaded")
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        file = Path(wheel.extract(inside, tmp_path))
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(digest)
    model, meta = load_detector(file)
    assert meta["nc"] == 9 and meta["spec"]["scale"] == "s" and meta["names"][0] == "Button"
    with torch.no_grad():
        image = torch.rand((1, 3, 256, 256), generator=torch.Generator().manual_seed(1))
        (part,) = model.decode(model(image)["det"])
    boxes, scores = part.pred[..., :4].double(), part.pred[..., 4:].double()
    assert part.pred.shape == (1, 1344, 13)
    found = (boxes.sum().item(), scores.sum().item(), boxes.max().item(), scores.max().item())
    assert found[0] == pytest.approx(FIGURES[0], abs=0.05)  # of 5,376 numbers: 1e-5 px each
    assert found[1] == pytest.approx(FIGURES[1], abs=1e-4)
    assert found[2] == pytest.approx(FIGURES[2], abs=1e-3)
    assert found[3] == pytest.approx(FIGURES[3], abs=1e-5)
