"""A model with an auxiliary head through the programs: trained, resumed, frozen, evaluated, deployed, refused."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import test as evaluation
import train_aux
from tests.shared import ROOT
from tests.toy import cut, resumed, same, toy, trained, unpainted
from tests.weights.test_detector_forms import plain, with_auxiliary, written
from utils.runs.record import read_rows
from utils.system.errors import UserError
from utils.weights.checkpoint import read_checkpoint

RECIPE = ("--hyp", "data/hyp.scratch.p6.yaml", "--mosaic", "0")


@pytest.fixture(scope="module", autouse=True)
def at_home() -> Iterator[None]:
    here = Path.cwd()
    os.chdir(ROOT)
    with unpainted():
        yield
    os.chdir(here)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(tmp_path_factory.mktemp("auxiliary"), with_auxiliary(plain("IDetect")))


@pytest.fixture(scope="module")
def whole(small_shapes: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("whole")
    trained(small_shapes, project, "whole", "--cfg", model, *RECIPE, epochs=2)
    return project / "whole"


def test_a_cut_run_resumes_to_the_bit(whole: Path, small_shapes: Path, model: str, tmp_path: Path) -> None:
    folder = cut(small_shapes, tmp_path, "cut", "--cfg", model, *RECIPE, epochs=2, step=4)
    resumed(folder)
    same(whole, folder)


def test_both_heads_learn_by_the_old_command_and_frozen_ones_do_not(
    whole: Path, small_shapes: Path, model: str, tmp_path: Path
) -> None:
    words = [*toy(small_shapes, tmp_path, "frozen"), "--cfg", model, *RECIPE]
    assert train_aux.main([*words, "--weights", str(whole / "weights/last.pt"), "--freeze", "77-79"]) is not None
    before, after = (read_checkpoint(p / "weights/last.pt")["ema"] for p in (whole, tmp_path / "frozen"))
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert not any(k.startswith(("model.77.", "model.78.", "model.79.")) for k in moved)
    assert {f"model.80.{m}.{i}.weight" for m in ("m", "m2") for i in range(3)} <= moved


def test_the_deployed_form_has_the_figures_of_the_trained_one(whole: Path, small_shapes: Path, tmp_path: Path) -> None:
    deployed = written(tmp_path, plain("Detect"))
    words = ["--weights", str(whole / "weights/last.pt"), "--data", str(small_shapes), "--img", "64", "--device", "cpu"]
    for name, more in (("trained", []), ("deployed", ["--cfg", deployed])):
        evaluation.main([*words, *more, "--project", str(tmp_path), "--name", name, "--conf", "0.0001"])
    one, two = (read_rows(tmp_path / name / "per_class.csv") for name in ("trained", "deployed"))
    assert len(one) == len(two) > 1
    for a, b in zip(one, two, strict=True):
        assert [float(a[k]) for k in ("R", "AP50", "AP")] == pytest.approx(
            [float(b[k]) for k in ("R", "AP50", "AP")], abs=1e-3
        ), a


def test_several_heads_are_refused_by_name(small_shapes: Path, model: str, tmp_path: Path) -> None:
    heads = ["--heads", "4", "--head-config", "data/shapes_1b4h.yaml"]
    with pytest.raises(UserError, match=r"IAuxDetect cannot be split.*cfg/deploy"):
        trained(small_shapes, tmp_path, "heads", "--cfg", model, *RECIPE, *heads)
    assert not (tmp_path / "heads/weights").exists()
