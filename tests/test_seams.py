"""What a patch may rely on: training through train.py's main, at toy size."""

import csv
import hashlib
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch

import patches
import test as evaluation
from models.graph import Detector
from tests.toy import FOUR_HEADS, STEPS, cut, resumed, same, toy, trained
from utils import seams
from utils.config.options import opt
from utils.data.listing.label_files import label_path
from utils.system.errors import UserError
from utils.train import optim
from utils.weights import checkpoint

ROOT = Path(__file__).resolve().parent.parent


def digest(model: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.state_dict().values())).hexdigest()


def test_base_runs_without_the_patches_folder(small_shapes: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    for part in ("models", "utils", "cfg"):
        shutil.copytree(ROOT / part, bare / part)
    for file in ("train.py", "data/hyp.demo.yaml"):
        (bare / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, bare / file)
    command = [sys.executable, "train.py", *toy(small_shapes, tmp_path, "r")]
    out = subprocess.run(command, cwd=bare, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert "features beyond plain training: none" in out.stdout


def test_the_same_run_twice_is_the_same_to_the_bit(small_shapes: Path, tmp_path: Path) -> None:
    a, b = (trained(small_shapes, tmp_path, n) for n in "ab")
    other = trained(small_shapes, tmp_path, "c", "--seed", "1")
    assert digest(a.model) == digest(b.model) != digest(other.model)


def test_checkpoint_holds_only_tensors_numbers_and_text(small_shapes: Path, tmp_path: Path) -> None:
    run = trained(small_shapes, tmp_path, "c")
    content = torch.load(run.dir / "weights/last.pt", weights_only=True)
    assert isinstance(content["meta"], str)
    assert all(isinstance(v, torch.Tensor) for v in content["ema"].values())


def test_every_parameter_is_in_one_group(small_shapes: Path, tmp_path: Path) -> None:
    run = trained(small_shapes, tmp_path, "g")
    optim.check_partition(run.optimizer.param_groups, run.loss_step)
    groups = [dict(g) for g in run.optimizer.param_groups]
    groups[0]["params"] = groups[0]["params"][1:]
    with pytest.raises(ValueError, match="missing"):
        optim.check_partition(groups, run.loss_step)


def test_a_run_that_ended_between_two_epochs_goes_on_to_the_bit(small_shapes: Path, tmp_path: Path) -> None:
    straight = trained(small_shapes, tmp_path, "straight", "--freeze", "10", epochs=3)
    stopped = cut(small_shapes, tmp_path, "cut", "--freeze", "10", epochs=3, step=STEPS)
    resumed(stopped)
    same(straight.dir, stopped)


def test_mismatched_weights_are_an_error_that_names_them(small_shapes: Path, tmp_path: Path) -> None:
    base = trained(small_shapes, tmp_path, "a")
    with pytest.raises(
        UserError, match=r"missing in the file: model\.77\.anchor|missing in the file: model\.77\.heads"
    ):
        four = [*FOUR_HEADS, "--weights", str(base.dir / "weights/best.pt")]
        trained(small_shapes, tmp_path, "b", *four)
    assert not (tmp_path / "b").exists()


def test_two_patches_may_not_give_one_loss_term() -> None:
    class Twice(seams.Patch[None]):
        def loss_terms(self, *_: object) -> seams.Terms:
            return {"x": torch.zeros(())}

    with pytest.raises(UserError, match="redefines"):
        seams.Patches({"a": Twice(None), "b": Twice(None)}).merge("loss_terms", {}, {}, None)


def test_weights_for_unknown_terms_are_an_error() -> None:
    with pytest.raises(UserError, match="unknown loss terms"):
        seams.weighted_sum({"a": torch.ones(())}, {"b": 2.0})


@dataclass(frozen=True, kw_only=True)
class ProbeFlags:
    probe: bool = opt(False, "a second output, its own metric, and a note of what it was shown")


class Probe(seams.Patch[ProbeFlags]):
    metrics = ("boxes",)
    steps = 0
    row: ClassVar[dict[str, float]] = {}

    def branches(self, model: Detector) -> Mapping[str, tuple[int, torch.nn.Module]]:
        pooled = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        return {"mean": (-1, pooled)}

    def on_step_end(self, model: Detector, average: Detector, at: seams.Progress) -> None:
        Probe.steps += 1

    def on_epoch_end(self, model: Detector, at: seams.Progress, row: Mapping[str, float]) -> dict[str, float]:
        Probe.row = dict(row)
        return {"seen": float(at.step)}

    def observe(self, batch: seams.Batch, out: seams.Output, model: Detector) -> seams.Observed:
        assert out["mean"].shape == (len(batch["image"]), 1)
        return {"boxes": torch.bincount(batch["target"][:, 0].long(), minlength=len(batch["image"]))}

    def figures(self, observed: seams.Observed) -> dict[str, float]:
        return {"boxes": float(observed["boxes"].sum())}

    def after_evaluation(self, result: seams.Measured, measure: seams.Measure, folder: Path) -> None:
        twice = measure(change=lambda batch: {**batch, "target": batch["target"][:0]})
        assert "boxes" in result.row and "boxes" not in twice.row
        assert math.isnan(twice.map50)
        (folder / "probe.txt").write_text(str(len(result.observed["boxes"])))


def test_a_patch_adds_an_output_and_a_metric(
    small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch is averaged, saved and rebuilt for test.py, and moves nothing else; what is observed covers every
    image in the result's order."""
    module = ModuleType("patches.probe")
    module.patch, module.Flags = Probe, ProbeFlags  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "patches.probe", module)
    monkeypatch.setitem(patches.TABLE, "probe", "probe")
    run, plain = trained(small_shapes, tmp_path, "probed", "--probe"), trained(small_shapes, tmp_path, "plain")
    own = run.model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in plain.model.state_dict().items())
    assert Probe.steps == 3
    (row,) = csv.DictReader((run.dir / "results.csv").read_text().splitlines())
    assert row["seen"] == "3.0"
    assert float(row["boxes"]) == Probe.row["boxes"] > 0 and float(row["mAP50"]) == Probe.row["mAP50"]
    assert (run.dir / "probe.txt").read_text() == "8"

    best = run.dir / "weights/best.pt"
    key, saved = "branches.mean.0.weight", checkpoint.read_checkpoint(best)["ema"]
    assert torch.equal(checkpoint.load_detector(best)[0].state_dict()[key], saved[key])
    size = ["--img", "64", "--workers", "0", "--batch", "3", "--device", "cpu"]
    result = evaluation.main(
        ["--weights", str(best), "--data", str(small_shapes), *size, "--project", str(tmp_path), "--name", "e"]
    )
    texts = [label_path(Path(p)).read_text() for p in result.paths]
    assert result.observed["boxes"].tolist() == [len(text.split("\n")) - 1 for text in texts]
    assert (tmp_path / "e/probe.txt").read_text() == "8"
