"""A trained detector loads into its deployed form and back, with the same outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from models.graph import Detector
from tests.conformance.reference import fill
from tests.shared import ROOT
from utils.system.errors import UserError
from utils.weights.checkpoint import load_detector, save_checkpoint
from utils.weights.detector_forms import as_built

IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def with_auxiliary(spec: dict[str, Any], detector: str = "IAuxDetect") -> dict[str, Any]:
    """The demo network with an auxiliary head on its top-down path."""
    sources = [[57, 1, "Conv", [48, 3]], [47, 1, "Conv", [72, 3]], [37, 1, "Conv", [96, 3]]]
    rows = [*spec["head"][:-1], *sources, [[*range(74, 80)], 1, detector, ["nc", "anchors"]]]
    return {**spec, "head": rows}


def plain(detector: str) -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((ROOT / "cfg/training/demo.yaml").read_text())
    return {**spec, "head": [*spec["head"][:-1], [[74, 75, 76], 1, detector, ["nc", "anchors"]]]}


def saved(folder: Path, spec: dict[str, Any]) -> tuple[Path, Detector]:
    model = Detector(spec, 12)
    model.load_state_dict(fill(model.state_dict(), 2.0))
    meta = {"spec": spec, "nc": 12, "names": [str(i) for i in range(12)]}
    save_checkpoint(folder / "x.pt", state=model.state_dict(), meta=meta)
    return folder / "x.pt", model.eval()


def written(folder: Path, spec: dict[str, Any]) -> str:
    (folder / "form.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return str(folder / "form.yaml")


def outputs(model: Detector) -> Tensor:
    with torch.no_grad():
        return model.decode(model(IMAGE)["det"])[0].pred


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ("IAuxDetect", "Detect", "auxiliary head is left out, the implicit constants of its detector are folded in"),
        ("IAuxDetect", "IDetect", "auxiliary head is left out"),
        ("IDetect", "Detect", "folded in"),
        ("Detect", "IDetect", "added to its detector at 0 and 1"),
    ],
)
def test_the_form_of_the_model_with_the_outputs_of_the_file(
    there: str, here: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auxiliary = there == "IAuxDetect"
    path, model = saved(tmp_path, with_auxiliary(plain("IDetect")) if auxiliary else plain(there))
    found, _ = load_detector(path, written(tmp_path, plain(here)))
    assert said in capsys.readouterr().out
    assert found.kinds[-1] == here
    torch.testing.assert_close(outputs(found), outputs(model), rtol=1e-5, atol=1e-4)


def test_the_same_form_is_taken_as_it_is_and_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, model = saved(tmp_path, with_auxiliary(plain("IDetect")))
    found, _ = load_detector(path)
    assert "form of the detector" not in capsys.readouterr().out
    assert torch.equal(outputs(found), outputs(model))


def test_an_auxiliary_head_that_the_file_lacks_is_missing_not_made_up(tmp_path: Path) -> None:
    path, model = saved(tmp_path, plain("IDetect"))
    with pytest.raises(UserError, match=r"12 missing in the file: model\.77\.conv.*model\.80\.m2|missing"):
        load_detector(path, written(tmp_path, with_auxiliary(plain("IDetect"))))
    target = Detector(with_auxiliary(plain("IDetect")), 12)
    state = as_built(model.state_dict(), target, "x.pt")
    fitting = {k for k, v in target.state_dict().items() if k in state and state[k].shape == v.shape}
    lacking = {k for k in target.state_dict() if k not in fitting}
    assert lacking and all(k.startswith(("model.77.", "model.78.", "model.79.", "model.80.m2.")) for k in lacking)
    target.load_state_dict({k: v for k, v in state.items() if k in fitting}, strict=False)
    torch.testing.assert_close(outputs(target.eval()), outputs(model), rtol=1e-5, atol=1e-4)


def test_another_network_is_left_as_it_is() -> None:
    model = Detector(plain("IDetect"), 12)
    state = {"model.5.m.0.weight": torch.zeros(1), "other": torch.zeros(2)}
    assert as_built(state, model, "x.pt") is state
