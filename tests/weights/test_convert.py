"""python -m utils convert: other programs' weights become ours (or safetensors) without changing a number."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import nn

from models.catalog import LAYERS
from models.graph import Detector, replace_activation
from patches.multihead import Flags, patch
from patches.multihead.head_file import HeadTable
from tests.shared import ROOT, shared
from utils.system.errors import UserError
from utils.weights.checkpoint import load_detector, load_into, read_checkpoint, read_model
from utils.weights.convert import convert
from utils.weights.foreign import as_meta, read_foreign
from utils.weights.guess import guess_model


def spec(name: str) -> dict[str, Any]:
    parsed = yaml.safe_load((ROOT / f"cfg/training/{name}.yaml").read_text())
    assert isinstance(parsed, dict)
    return parsed


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A plain state dict of the demo model with 5 classes."""
    torch.manual_seed(0)
    torch.save(Detector(spec("demo"), 5).state_dict(), tmp_path / "demo.pt")
    return tmp_path / "demo.pt"


def test_published_weights_become_a_checkpoint_that_loads(tmp_path: Path) -> None:
    source, out = shared("data/weights/yolov5n.pt"), tmp_path / "ours.pt"
    text = convert(source, out)
    for said in (
        "349: model.0.conv.weight",
        "1,872,157",
        "80: person",
        "stride 8: 10,13 16,30 33,23",
        "all 349 tensors fit",
    ):
        assert said in text
    state = read_foreign(source).state
    ours = read_checkpoint(out)
    assert ours["meta"]["names"][:2] == ["person", "bicycle"] and ours["meta"]["nc"] == 80
    assert all(torch.equal(ours["ema"][k], v) for k, v in state.items())
    model, _ = load_detector(out)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())


def test_a_state_dict_gets_the_model_file_that_fits(demo: Path, tmp_path: Path) -> None:
    text = convert(demo, tmp_path / "ours.pt")
    assert "cfg/training/demo.yaml: all 343 tensors fit" in text  # 344 less anchor_grid, which repeats the anchors
    model, meta = load_detector(tmp_path / "ours.pt")
    assert meta["spec"] == spec("demo") and model.nc == 5


def test_anchors_decide_between_files_of_one_structure(tmp_path: Path) -> None:
    for name in ("yolov7-tiny", "yolov7-tiny-320"):
        torch.save(Detector(spec(name), 80).state_dict(), tmp_path / f"{name}.pt")
        guess = guess_model(read_foreign(tmp_path / f"{name}.pt"))
        assert guess is not None and guess.where == f"cfg/training/{name}.yaml"


def test_unknown_structure_is_said(demo: Path, tmp_path: Path) -> None:
    state = torch.load(demo, weights_only=True)
    del state["model.0.conv.weight"]
    torch.save(state, tmp_path / "part.pt")
    assert "nearest is cfg/training/demo.yaml: 342 of 342 tensors fit, 1 missing" in convert(
        tmp_path / "part.pt", tmp_path / "a.pt"
    )
    assert "spec" not in read_checkpoint(tmp_path / "a.pt")["meta"]
    torch.save({"model.0.other": torch.ones(3)}, tmp_path / "none.pt")
    assert "none of the shipped model files fits" in convert(tmp_path / "none.pt", tmp_path / "b.pt")


def test_safetensors_and_back(demo: Path, tmp_path: Path) -> None:
    convert(demo, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.pt")
    convert(tmp_path / "b.pt", tmp_path / "c.safetensors")
    wanted = read_foreign(demo).state
    for file in ("a.safetensors", "c.safetensors"):
        found = read_foreign(tmp_path / file)
        assert found.state.keys() == wanted.keys() and found.nc == 5
        assert all(torch.equal(found.state[k], v) and found.state[k].dtype == v.dtype for k, v in wanted.items())
    with safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {"nc", "names", "yaml", "groups", "source"}
    assert read_foreign(tmp_path / "c.safetensors").yaml == spec("demo")


def test_existing_and_impossible_targets_are_refused(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "there.pt").write_bytes(b"precious")
    for target, message in {
        "there.pt": "exists already",
        "x.onnx": "must end in",
        "no/such/folder.pt": "there is no folder",
        "demo.pt": "exists already",
    }.items():
        with pytest.raises(UserError, match=message):
            convert(demo, tmp_path / target)
    assert (tmp_path / "there.pt").read_bytes() == b"precious"
    convert(demo, tmp_path / "ours.pt")
    with pytest.raises(UserError, match="already"):
        convert(tmp_path / "ours.pt", tmp_path / "again.pt")
    assert not (tmp_path / "again.pt").exists() and not list(tmp_path.glob("*.part"))


def test_command_line(demo: Path, tmp_path: Path) -> None:
    def run(*args: Path) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "utils", "convert", *map(str, args)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)

    good = run(demo, tmp_path / "o.pt")
    assert good.returncode == 0 and "wrote" in good.stdout and (tmp_path / "o.pt").is_file()
    bad = run(tmp_path / "absent.pt", tmp_path / "p.pt")
    assert (
        bad.returncode == 2 and "error:" in bad.stderr and "absent.pt" in bad.stderr and "Traceback" not in bad.stderr
    )


class Model(nn.Module):
    """A pickled 1B4H model as a foreign program would store it: the heads' classes are an attribute of the detector."""

    def __init__(self, detector: Detector, description: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.yaml = nn.Sequential(*detector.model), description
        self.names, self.nc, self.stride = [f"c{i}" for i in range(detector.nc)], detector.nc, detector.stride


@pytest.mark.parametrize("full_head", [False, True])
def test_several_heads_are_found_and_built_again(full_head: bool, tmp_path: Path) -> None:
    groups = [[0, 3], [1], [4, 2]]
    table = HeadTable(("a", "b", "c"), tuple(map(tuple, groups)), (1.0, 1.0, 1.0), full_head=full_head)
    several = patch(Flags(heads=3, head_table=dataclasses.asdict(table)))
    detector = Detector(spec("demo-1b4h"), 5, {**LAYERS, **several.layers()}).eval()
    torch.save({"model": Model(detector, spec("demo-1b4h"))}, tmp_path / "theirs.pt")
    found = read_foreign(tmp_path / "theirs.pt")
    assert found.groups == groups
    assert as_meta(found)["patches"]["multihead"]["head_table"]["full_head"] == full_head
    assert "3 with 2, 1, 2 classes" in convert(tmp_path / "theirs.pt", tmp_path / "ours.pt")
    convert(tmp_path / "theirs.pt", tmp_path / "theirs.safetensors")
    convert(tmp_path / "theirs.safetensors", tmp_path / "again.pt")
    assert read_checkpoint(tmp_path / "again.pt")["meta"]["groups"] == groups
    ours, _ = load_detector(tmp_path / "ours.pt")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted, got = (m.decode(m(image)["det"]) for m in (detector, ours))
    assert [p.classes.tolist() for p in got] == groups
    assert all(torch.equal(a.pred, b.pred) for a, b in zip(wanted, got, strict=True))


def test_meta_leaves_out_what_is_not_known(demo: Path) -> None:
    found = dataclasses.replace(read_foreign(demo), nc=None)
    assert as_meta(found).keys() == {"from"}


SMALL = {**spec("yolov5n"), "width_multiple": 0.125}


def pickled(path: Path, detector: Detector, description: dict[str, Any] = SMALL) -> Path:
    torch.save({"model": Model(detector, description)}, path)
    return path


def test_the_activation_of_a_pickled_model_is_that_of_the_model_built(tmp_path: Path) -> None:
    """Set in code, as programs of the family allow; their YAML does not know of it."""
    detector = Detector(SMALL, 3).eval()
    replace_activation(detector, nn.LeakyReLU(0.1))
    pickled(tmp_path / "leaky.pt", detector)
    convert(tmp_path / "leaky.pt", tmp_path / "ours.pt")
    image = torch.rand(1, 3, 64, 64)
    for file in ("leaky.pt", "ours.pt"):
        built, meta = load_detector(tmp_path / file)
        assert meta["spec"]["activation"] == "nn.LeakyReLU(0.1)"
        with torch.no_grad():
            assert all(torch.equal(a, b) for a, b in zip(built(image)["det"], detector(image)["det"], strict=True))


def test_activations_and_norms_that_cannot_be_built_are_refused(tmp_path: Path) -> None:
    detector = Detector(SMALL, 3)
    detector.model[1].act = nn.Hardswish()
    with pytest.raises(UserError, match=r"1 activations .* model\.1\.act is Hardswish in the file, SiLU here"):
        load_detector(pickled(tmp_path / "one.pt", detector))
    detector = Detector(SMALL, 3)
    for norm in (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eps = 1e-5
    with pytest.raises(UserError, match=r"BatchNorms have eps 1e-05, those here 0\.001"):
        load_detector(pickled(tmp_path / "eps.pt", detector))


def test_a_model_that_cannot_be_built_is_not_converted(tmp_path: Path) -> None:
    rows = [[-1, 1, "C9", [8]], *SMALL["backbone"][1:]]
    pickled(tmp_path / "x.pt", Detector(SMALL, 3), {**SMALL, "backbone": rows})
    with pytest.raises(UserError, match=r"x\.pt: row 0 \(C9.*unknown module"):
        convert(tmp_path / "x.pt", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_a_fused_state_says_so(tmp_path: Path) -> None:
    state = {k: v for k, v in Detector(SMALL, 3).state_dict().items() if ".bn." not in k}
    state |= {
        k.replace("conv.weight", "conv.bias"): torch.zeros(len(v)) for k, v in state.items() if "conv.weight" in k
    }
    torch.save(state, tmp_path / "fused.pt")
    with pytest.raises(UserError, match=r"fused\.pt: a fused model"):
        load_into(Detector(SMALL, 3), read_foreign(tmp_path / "fused.pt").state, str(tmp_path / "fused.pt"))


def test_a_plain_state_of_a_shipped_model_needs_no_model_yaml(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, meta = load_detector(demo)
    assert meta["spec"] == spec("demo") and model.nc == 5
    assert "all of its tensors fit cfg/training/demo.yaml" in capsys.readouterr().out


def test_unknown_keys_of_a_model_yaml_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.yaml").write_text(yaml.safe_dump({**SMALL, "flavour": 3}))
    read_model(str(tmp_path / "m.yaml"))
    assert "m.yaml: flavour: not known in a model YAML" in capsys.readouterr().out
