"""--dual-backbone: two disjoint networks in one run, neither of which notices the other."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from models.graph import Detector
from patches.image_class.dual_backbone import DualBackbone, Flags, cost
from patches.image_class.head import ImageHead
from tests.models.test_zoo import spec
from tests.patches.image_class.test_joint import NAMES, batch_of, classed, detector_part, same, stage, weights
from tests.shared import ROOT
from tests.toy import trained
from utils import seams
from utils.system.errors import UserError
from utils.train import optim
from utils.train.run import Run
from utils.weights import checkpoint
from utils.weights.convert import convert

__all__ = ["classed"]
FLAGS = ("--dual-lr-scale", "2", "--dual-weight-decay", "0.01", "--dual-dropout", ".5", "--audit")


@pytest.fixture(scope="module")
def runs(classed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """The same training of the demo detector without and with a second network, half as wide."""
    project = tmp_path_factory.mktemp("dual")
    (project / "half.yaml").write_text(yaml.safe_dump({**spec("demo"), "width_multiple": 0.5}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        dual = trained(classed, project, "dual", "--dual-backbone", str(project / "half.yaml"), *FLAGS)
        (project / "half.yaml").unlink()
        yield {"plain": trained(classed, project, "plain"), "dual": dual}


def test_the_detector_trains_to_the_bit_as_alone(runs: dict[str, Run]) -> None:
    plain, dual = (torch.load(weights(r, "last"), weights_only=True) for r in (runs["plain"], runs["dual"]))
    for which in ("model", "ema"):
        assert same(plain[which], detector_part(dual[which]))
    momenta = [r.optimizer.state[p]["momentum_buffer"] for r in runs.values() for p in r.model.model.parameters()]
    half = len(momenta) // 2
    assert all(torch.equal(a, b) for a, b in zip(momenta[:half], momenta[half:], strict=True))


def test_the_other_network_learns(runs: dict[str, Run]) -> None:
    model, ema = runs["dual"].model, runs["dual"].ema.model
    for name, p in model.branches.named_parameters():
        assert runs["dual"].optimizer.state[p]["momentum_buffer"].any(), name
        assert not torch.equal(p, ema.branches.get_parameter(name)), "the average lags behind"
    assert model.branch_inputs == {"image_class": -1}


def test_no_tensor_is_shared(runs: dict[str, Run]) -> None:
    model = runs["dual"].model
    own = {t.data_ptr() for t in [*model.branches.parameters(), *model.branches.buffers()]}
    theirs = {t.data_ptr() for t in [*model.model.parameters(), *model.model.buffers()]}
    assert not own & theirs and len(own) > 100


def test_groups_of_its_own(runs: dict[str, Run]) -> None:
    run = runs["dual"]
    optim.check_partition(run.optimizer.param_groups, run.loss_step)
    own = {id(p) for p in run.model.branches.parameters()}
    settings = {g["name"]: (g["lr_scale"], g["weight_decay"]) for g in run.optimizer.param_groups}
    decay = run.cfg.scaled_decay
    assert settings == {
        "norm": (1, 0), "weight": (1, decay), "bias": (1, 0), "norm_dual": (2, 0), "weight_dual": (2, 0.01),
        "bias_dual": (2, 0),
    }  # fmt: skip
    for group in run.optimizer.param_groups:
        assert all((id(p) in own) == group["name"].endswith("_dual") for p in group["params"])
    assert run.optimizer.param_groups[3]["lr"] == 2 * run.optimizer.param_groups[0]["lr"]


def test_the_checkpoint_needs_no_other_file(runs: dict[str, Run]) -> None:
    """The YAML of the second network is gone by now."""
    path = weights(runs["dual"])
    model, _ = checkpoint.load_detector(path)
    assert same(dict(model.state_dict()), torch.load(path, weights_only=True)["ema"])
    head = model.branches["image_class"]
    assert isinstance(head, ImageHead) and head.names == NAMES


def test_the_detector_alone(runs: dict[str, Run], tmp_path: Path) -> None:
    """Loads strictly where there are no image classes, and finds what it found before."""
    path, out = Path(weights(runs["dual"])), tmp_path / "det.pt"
    convert(path, out, only_det=True)
    alone, meta = checkpoint.load_detector(out)
    assert not alone.branches and "dual_backbone" not in meta["patches"] and meta["names"][0] == "circle"
    assert same(dict(alone.state_dict()), detector_part(torch.load(path, weights_only=True)["ema"]))
    assert not stage(str(out)).branches and not stage(str(path), "--transfer-weights").branches
    with pytest.raises(UserError, match=r"not in the model: branches\.image_class"):
        stage(str(path))
    with pytest.raises(UserError, match="can be converted to"):
        convert(path, tmp_path / "again.pt")


def made(**flags: Any) -> tuple[Detector, DualBackbone]:
    torch.manual_seed(0)
    patch = DualBackbone(Flags(dual_backbone="same", cls_names=NAMES, **flags))
    model = Detector({**spec("demo"), "width_multiple": 0.25}, 12)
    for name, (row, head) in patch.branches(model).items():
        model.add_branch(name, row, head)
    patch.image_size = 64
    patch.on_epoch_start(model, [], seams.Progress(0, 1, 1))
    return model.train(), patch


def gradients(model: nn.Module) -> dict[str, torch.Tensor | None]:
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def test_one_backward_of_the_sum_is_two() -> None:
    model, patch = made(dual_dropout=0.0)
    image = torch.rand(2, 3, 64, 64)
    out = model(image)
    det = sum(level.square().mean() for level in out["det"])
    classes = patch.loss_terms(batch_of([1, 2]), out, model)["image_class"]
    (det + classes).backward()
    both = gradients(model)
    assert all(g is not None for g in both.values())
    for part, prefix in ((det, "model."), (classes, "branches.")):
        model.zero_grad(set_to_none=True)
        out = model(image)
        det = sum(level.square().mean() for level in out["det"])
        classes = patch.loss_terms(batch_of([1, 2]), out, model)["image_class"]
        (det if prefix == "model." else classes).backward()
        for name, gradient in gradients(model).items():
            if name.startswith(prefix):
                assert gradient is not None and torch.equal(gradient, both[name]), name  # type: ignore[arg-type]
            else:
                assert gradient is None, name
        assert part.item() > 0


def test_same_is_the_detectors_own_backbone() -> None:
    model, patch = made()
    head = model.branches["image_class"]
    shapes = {k: v.shape for k, v in head.trunk.state_dict().items()}
    assert shapes == {k: v.shape for k, v in model.state_dict().items() if k in shapes}
    assert "head" not in patch.record()["dual_spec"] and not torch.equal(
        head.trunk.get_parameter("model.0.conv.weight"), model.get_parameter("model.0.conv.weight")
    )


def test_cost_is_measured_beside_the_parameters() -> None:
    model, _ = made()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    said = cost(model, 64, rounds=1)
    own, theirs = (sum(p.numel() for p in m.parameters()) for m in (model.branches, model.model))
    assert f"a network of {own:,} parameters beside the detector's {theirs:,}" in said
    assert same(state, model.state_dict()) and all(p.grad is None for p in model.parameters())
    assert model.branches["image_class"].dropout.step == 1, "measuring takes no step"


def test_two_image_heads_are_refused(classed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="branches redefines"):
        trained(classed, tmp_path, "a", "--classify", "--dual-backbone")
