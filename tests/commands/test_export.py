"""export.py through the command line: what the file holds, computes and says, and what is refused."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import export
from models.graph import Detector
from tests.conftest import ROOT, CommandLine
from utils import seams
from utils.config.train import Config
from utils.system.errors import UserError
from utils.weights.checkpoint import build_detector, load_detector, save_checkpoint

HEADS = ("head_0", "head_1", "head_2", "head_3")


@pytest.fixture(scope="module")
def joint(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four heads and image classes, its norms and implicit constants as if it had been trained."""
    kinds = seams.kinds(["multihead", "joint"])
    flags: dict[str, Any] = {
        "multihead": {"heads": 4, "head_config": str(ROOT / "data/shapes_1b4h.yaml")},
        "joint": {"classify": True, "cls_names": ("plain", "striped", "noisy")},
    }
    patches = seams.Patches({name: kind.patch(kind.Flags(**flags[name])) for name, kind in kinds.items()})
    spec = yaml.safe_load((ROOT / "cfg/training/demo-1b4h.yaml").read_text())
    torch.manual_seed(0)
    model = build_detector(spec, 12, patches, "demo-1b4h")
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    out = tmp_path_factory.mktemp("export") / "joint.pt"
    meta = {"config": dataclasses.asdict(Config(data=str(small_shapes))), "patches": patches.records(), "img_size": 96}
    meta |= {"spec": spec, "nc": 12, "names": yaml.safe_load(small_shapes.read_text())["names"], "groups": model.groups}
    save_checkpoint(out, state=model.state_dict(), meta=meta)
    return out


@pytest.fixture(scope="module")
def runtime() -> Any:
    return pytest.importorskip("onnxruntime", reason="requirements-dev.txt is not installed")


def read(runtime: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session, {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}


@pytest.mark.slow
def test_heads_and_branches_for_any_batch(
    runtime: Any, joint: Path, small_shapes: Path, command_line: CommandLine
) -> None:
    out = joint.with_name("dynamic.onnx")
    done = command_line("export.py", "--weights", str(joint), "--batch", "dynamic", "--out", str(out))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for kind in ("random images", f"images of {small_shapes}"):
        for count in (1, 3):
            assert any(f"onnxruntime against torch, {count} {kind}: largest difference of" in line for line in lines)
    session, told = read(runtime, out)
    names = [*(f"boxes_{head}" for head in HEADS), "image_class"]
    assert [v.name for v in session.get_outputs()] == names
    assert [v.shape for v in session.get_inputs()] == [["batch", 3, 96, 96]]
    model, meta = load_detector(joint)
    assert told["names"] == meta["names"] and told["stride"] == model.stride.tolist() and told["img_size"] == 96
    assert told["objectness"] is True
    assert told["groups"] == {f"boxes_{head}": group for head, group in zip(HEADS, model.groups, strict=True)}
    assert told["image_classes"] == {"image_class": ["plain", "striped", "noisy"]}

    image = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    got = dict(zip(names, session.run(names, {"image": image.numpy()}), strict=True))
    with torch.no_grad():
        expected = model(image)
    for head, part in zip(HEADS, model.decode(expected["det"]), strict=True):
        assert got[f"boxes_{head}"].shape == (2, 3 * (12**2 + 6**2 + 3**2), 5 + len(part.classes))
        np.testing.assert_allclose(got[f"boxes_{head}"], part.pred, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(got["image_class"], expected["image_class"], rtol=1e-4, atol=1e-5)


def test_a_head_without_anchors_has_no_objectness(
    runtime: Any, tmp_path: Path, small_shapes: Path, command_line: CommandLine
) -> None:
    spec = yaml.safe_load((ROOT / "cfg/training/demo-free.yaml").read_text())
    torch.manual_seed(0)
    state, names = Detector(spec, 12).state_dict(), yaml.safe_load(small_shapes.read_text())["names"]
    meta = {"config": dataclasses.asdict(Config(data=str(small_shapes))), "img_size": 64, "spec": spec, "nc": 12}
    save_checkpoint(tmp_path / "free.pt", state=state, meta={**meta, "names": names, "groups": [list(range(12))]})
    done = command_line("export.py", "--weights", str(tmp_path / "free.pt"))
    assert done.returncode == 0, done.stderr
    session, told = read(runtime, tmp_path / "free.onnx")
    assert told["objectness"] is False and [v.shape for v in session.get_outputs()] == [[1, 8**2 + 4**2 + 2**2, 4 + 12]]


@pytest.mark.slow
def test_the_detector_alone(runtime: Any, joint: Path, command_line: CommandLine) -> None:
    content, moved = torch.load(joint, weights_only=True), joint.with_name("moved.pt")  # to where its data are not
    torch.save({**content, "meta": content["meta"].replace("small.yaml", "gone.yaml")}, moved)
    words = ["export.py", "--weights", str(moved), "--img", "64", "--batch", "2", "--only-det"]
    done = command_line(*words)
    assert done.returncode == 0, done.stderr
    assert "not compared on real images" in done.stdout and "gone.yaml" in done.stdout
    session, told = read(runtime, moved.with_suffix(".onnx"))
    assert [v.name for v in session.get_outputs()] == [f"boxes_{head}" for head in HEADS]
    assert [v.shape for v in session.get_inputs()] == [[2, 3, 64, 64]] and told["image_classes"] == {}
    written = moved.with_suffix(".onnx").read_bytes()
    assert b"branches" not in written and str(ROOT).encode() not in written
    again = command_line(*words)
    assert again.returncode == 2 and "moved.onnx exists" in again.stderr and "--exist-ok" in again.stderr


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(
    runtime: Any, joint: Path, command_line: CommandLine
) -> None:
    """Weights that are off by a hundredth in one head's convolution."""
    code = (
        "import sys, runpy, models.fuse as f\n"
        "def wrong(model, right=f.fuse):\n"
        "    copy = right(model)\n"
        "    copy.model[-1].heads[1][0].bias += 0.01\n"
        "    return copy\n"
        "f.fuse = wrong\n"
        "runpy.run_path('export.py', run_name='__main__')"
    )
    out = joint.with_name("wrong.onnx")
    done = command_line("-c", code, "--weights", str(joint), "--img", "64", "--out", str(out))
    assert done.returncode == 2 and "does not compute what the model does" in done.stderr, done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch", "0"], "--batch-size 0: expected a number of images, or dynamic"),
        (["--batch", "many"], "--batch-size many: expected"),
        (["--out", "nowhere/x.onnx"], "there is no folder nowhere"),
        (["--out", "README.md"], "README.md exists"),
    ],
)
def test_flags(flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=said):
        export.main(["--weights", "any.pt", *flags])


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript.*: pip install onnx onnxscript onnxruntime"):
        export.main(["--weights", "any.pt"])
