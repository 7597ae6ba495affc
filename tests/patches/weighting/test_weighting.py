"""--mtl: weights of tasks in real training steps and runs."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import patches.weighting as weighting
from models.graph import Detector
from models.loss import LossSettings
from patches.weighting import Flags, Weighting
from tests.conftest import ROOT
from tests.ranks import on_ranks
from tests.toy import trained
from utils.seams import Patches, Progress
from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml
from utils.train.loss_step import LossStep

TERMS = ("box", "obj", "cls")
MTL = ("--mtl-tasks", "box", "obj", "cls")
AT = Progress(0, 3, 0)


class Toy(nn.Module):
    """Rows as in a Detector: a shared one, and a `detector` with an output for each of three terms."""

    def __init__(self) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        self.model = nn.ModuleList([nn.Linear(4, 3, bias=False), nn.Linear(3, 3, bias=False)])
        for row in self.model:
            row.weight.data = torch.randn(row.weight.shape, generator=gen)
        self.sources, self.kinds = [(-1,), (0,)], ["Linear", "Detect"]

    def terms(self, x: Tensor) -> dict[str, Tensor]:
        """[B,4] -> mean over B of each term."""
        out = (self.model[1](torch.tanh(self.model[0](x))) ** 2).mean(0)
        return {name: v * scale for name, v, scale in zip(TERMS, out.unbind(), (1.0, 5.0, 0.1), strict=True)}


def patch_for(model: Any, **flags: Any) -> Weighting:
    patch = Weighting(Flags(mtl_tasks=TERMS, **flags))
    patch.on_model_built(model, TERMS)
    patch.on_epoch_start(model, [], AT)
    return patch


def feed(patch: Weighting, model: Any, x: Tensor) -> Tensor:
    """One micro-batch -> its loss."""
    terms = model.terms(x)
    weights = patch.loss_weights(terms, {"images": len(x)}, model)
    return torch.stack([terms[k] * weights[k] for k in terms]).sum() * len(x)


def inputs(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def plain_gradients(model: Toy, x: Tensor) -> Tensor:
    """[T,12] of the unweighted terms at the shared row."""
    found = [torch.autograd.grad(v, model.model[0].weight, retain_graph=True)[0] for v in model.terms(x).values()]
    return torch.stack(found).flatten(1)


# one window


def test_network_gradients_are_those_of_the_plain_weighted_loss() -> None:
    """In the real network, weights away from 1, every window measured: no trace of L_grad."""
    torch.manual_seed(0)
    model = Detector(read_yaml(ROOT / "cfg/training/demo.yaml", "--cfg"), 3).train()
    criterion = model.criterion(LossSettings())
    patch = patch_for(model)
    patch.w.copy_(torch.tensor([0.5, 2.2, 0.3]))
    target = torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.3], [1, 2, 0.3, 0.6, 0.5, 0.4]])
    batch = {"image": torch.rand(2, 3, 64, 64), "target": target, "images": 2}
    step = LossStep(model, criterion, Patches({"weighting": patch}))
    loss, terms = step(batch)
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    own = [p.grad for p in model.parameters()]
    assert patch.grad_sum is not None and tuple(terms) == TERMS

    model.zero_grad()
    values = criterion(model(batch["image"])["det"], target)
    (2 * (0.5 * values["box"] + 2.2 * values["obj"] + 0.3 * values["cls"])).backward()
    for mine, p in zip(own, model.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-4, atol=1e-7)


def test_a_window_is_the_mean_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches of 2 and 6: weights stand still within the window; at its end norms and cosines are those of all 8
    images' mean gradient."""
    monkeypatch.setattr(weighting, "FIRST", 0)
    model, x = Toy(), inputs(8)
    patch = patch_for(model)
    patch.first[0].fill_(1.0), patch.first[1].fill_(1.0)
    for part in (x[:2], x[2:]):
        feed(patch, model, part)
        assert patch.w.tolist() == [1.0, 1.0, 1.0]
    patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
    grads = plain_gradients(model, x)
    losses = torch.stack(list(model.terms(x).values())).detach()
    torch.testing.assert_close(patch.norm_sums[0], grads.norm(dim=1))
    unit = grads / grads.norm(dim=1, keepdim=True)
    torch.testing.assert_close(patch.cosine_sums[0], unit @ unit.T)
    size = grads.norm(dim=1)  # of weights 1
    want = size.mean() * (losses / losses.mean()) ** 1.5
    moved = torch.exp(-0.025 * (size - want).sign() * size / size.mean())
    torch.testing.assert_close(patch.w, moved * 3 / moved.sum())
    assert abs(float(patch.w.sum()) - 3) < 1e-6 and len(set(patch.w.tolist())) == 3
    row = patch.on_epoch_end(model, AT, {})  # type: ignore[arg-type]
    assert row["weight/cls"] == float(patch.w[2]) and row["grad_norm/obj"] == pytest.approx(float(size[1]))
    assert row["cosine/box:cls"] == pytest.approx(float((unit @ unit.T)[0, 2]), abs=1e-6) and len(row) == 9
    assert not patch.norm_sums.any() and not patch.cosine_sums.any(), "the next epoch starts anew"


def test_the_first_windows_set_what_losses_are_compared_with() -> None:
    model, patch, seen = Toy(), patch_for(Toy()), []
    for i in range(weighting.FIRST + 1):
        patch = patch if i else patch_for(model)
        feed(patch, model, inputs(4, i))
        patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
        seen.append(torch.stack(list(model.terms(inputs(4, i)).values())).detach())
        assert (patch.w.tolist() == [1.0] * 3) == (i < weighting.FIRST)
    torch.testing.assert_close(patch.first[0] / patch.first[1], torch.stack(seen[:-1]).mean(0))


def test_measured_in_every_nth_window_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(len(taken)) or real(*a, **k))
    model, taken = Toy(), []  # type: ignore[var-annotated]
    patch = patch_for(model, gradnorm_every=3)
    for i in range(7):
        feed(patch, model, inputs(2, i)).backward()
        patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
        taken.append(i)
    assert calls == [0] * 3 + [3] * 3 + [6] * 3
    assert patch.norm_sums[1].tolist() == [3.0] * 3


def test_a_window_without_a_tasks_labels_moves_only_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks, one of them without loss and gradient: nothing moves, and no number is lost."""
    monkeypatch.setattr(weighting, "FIRST", 0)
    model = Toy()
    patch = Weighting(Flags(mtl_tasks=("box+obj", "cls")))
    patch.on_model_built(model, TERMS)  # type: ignore[arg-type]
    patch.on_epoch_start(model, [], AT)  # type: ignore[arg-type]
    patch.first.fill_(1.0)
    patch.velocity.fill_(3.0)
    terms = model.terms(inputs(2))
    patch.loss_weights({**terms, "cls": terms["cls"] * 0}, {"images": 2}, model)  # type: ignore[arg-type]
    patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
    assert patch.w.tolist() == [1.0, 1.0] and patch.velocity.tolist() == [3.0, 3.0]
    assert patch.norm_sums[1].tolist() == [1.0, 1.0] and patch.cosine_sums[1][0, 1] == 0


def test_small_gradients_survive_fp16_and_an_overflow_is_left_out() -> None:
    """The loss's gradient 2e-8 is 0 in fp16, unscaled; one of 1e6 is infinite, scaled."""

    class Half(Toy):
        factor = 1e-8

        def terms(self, x: Tensor) -> dict[str, Tensor]:
            out = self.model[1](torch.tanh(self.model[0](x)))
            assert out.dtype == torch.float16 or not torch.is_autocast_enabled("cpu")
            return {k: (v.float() ** 2).mean() * self.factor for k, v in zip(TERMS, out.unbind(1), strict=True)}

    model, x = Half(), inputs(1)
    exact = plain_gradients(model, x)
    patch = patch_for(model)
    patch.first.fill_(weighting.FIRST)
    with torch.autocast("cpu", dtype=torch.float16):
        feed(patch, model, x)
        assert patch.grad_sum is not None
        torch.testing.assert_close(patch.grad_sum, exact, rtol=0.01, atol=float(exact.abs().max()) / 1000)
        patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
        assert patch.scale == 65536
        weights, model.factor = patch.w.clone(), 1e6
        feed(patch, model, x)
        patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
    assert patch.scale == 32768 and patch.norm_sums[1].tolist() == [1.0] * 3
    patch.note(torch.ones(3), torch.full((3, 12), torch.inf))
    assert torch.equal(patch.w, weights) and patch.norm_sums.isfinite().all()


def rank_case(rank: int) -> Any:
    """Three windows; rank 0 has 2 images of each window, rank 1 has 4."""
    weighting.FIRST = 1
    model = Toy()
    patch = patch_for(model)
    for i in range(3):
        x = inputs(6, i)
        feed(patch, model, x[:2] if rank == 0 else x[2:])
        patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
    return {"w": patch.w, "norms": patch.norm_sums, "cosines": patch.cosine_sums, "first": patch.first}


def test_two_ranks_have_the_weights_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = on_ranks(rank_case, tmp_path)
    assert all(torch.equal(one[k], two[k]) for k in one)
    monkeypatch.setattr(weighting, "FIRST", 1)
    model = Toy()
    patch = patch_for(model)
    for i in range(3):
        feed(patch, model, inputs(6, i))
        patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
    assert patch.w.tolist() != [1.0] * 3
    torch.testing.assert_close(one["w"], patch.w)
    torch.testing.assert_close(one["norms"], patch.norm_sums)


def test_uncertainty_moves_in_every_window_and_adds_no_term() -> None:
    model, x = Toy(), inputs(4)
    patch = patch_for(model, mtl="uncertainty", gradnorm_every=1000)
    loss = feed(patch, model, x)
    plain = torch.stack(list(model.terms(x).values())).sum() * 4
    assert torch.equal(loss, plain), "+ s / 2 is no part of the network's loss"
    patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
    feed(patch, model, x)
    patch.on_step_end(model, model, AT)  # type: ignore[arg-type]
    losses, s = torch.stack(list(model.terms(x).values())).detach(), torch.zeros(3)
    for _ in range(2):
        s = s + 0.025 * (torch.exp(-s) * losses - 0.5)
    torch.testing.assert_close(patch.w, torch.exp(-s))


def test_dwa_needs_two_epochs() -> None:
    patch, means = patch_for(Toy(), mtl="dwa"), [(1.0, 2.0, 3.0), (0.5, 2.0, 1.5), (0.5, 1.0, 1.5)]
    for epoch, values in enumerate(means):
        row = patch.on_epoch_end(Toy(), Progress(epoch, 3, 0), dict(zip(TERMS, values, strict=True)))  # type: ignore[arg-type]
        shown = [row[f"weight/{t}"] for t in TERMS]
        assert (shown == [1.0] * 3) == (epoch < 2)
    rate = torch.tensor([1.0, 0.5, 1.0])
    torch.testing.assert_close(patch.w, 3 * torch.softmax(rate / 2, 0))


# what is refused


def test_a_frozen_or_foreign_shared_layer_is_an_error() -> None:
    frozen = Toy()
    frozen.model[0].requires_grad_(False)
    with pytest.raises(UserError, match=r"no module that trains is shared by box and obj and cls.*--freeze"):
        feed(patch_for(frozen), frozen, inputs(2))
    with pytest.raises(UserError, match="--gradnorm-node 0 is frozen"):
        feed(patch_for(frozen, gradnorm_node=(0,)), frozen, inputs(2))
    with pytest.raises(UserError, match=r"--gradnorm-node 1: the model has modules 0\.\.0"):
        patch_for(Toy(), gradnorm_node=(1,))
    patch = patch_for(frozen, mtl="fixed")
    feed(patch, frozen, inputs(2))
    assert patch.grad_sum is None
    compiled = Toy()
    compiled._compiled_call_impl = compiled.terms  # type: ignore[assignment]
    with pytest.raises(UserError, match="leave out --compile"):
        feed(patch_for(compiled), compiled, inputs(2))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"mtl": "dwa", "mtl_weights": (1.0, 1.0)}, "--mtl-weights goes with --mtl fixed"),
        ({"mtl": "fixed", "mtl_weights": (1.0, -1.0)}, "must not be below 0"),
        ({"mtl": "best"}, "mtl must be one of fixed, uncertainty, dwa, gradnorm"),
        ({"gradnorm_min": 2.0}, r"--gradnorm-min must lie in 1e-06\.\.1, got 2"),
        ({"gradnorm_max": 0.5}, "--gradnorm-max must be at least 1, got 0.5"),
    ],
)
def test_wrong_flags_are_errors(flags: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Flags(**flags)


def test_a_weight_for_every_task() -> None:
    with pytest.raises(UserError, match=r"2 weights for 3 tasks \(box, obj, cls\)"):
        patch_for(Toy(), mtl="fixed", mtl_weights=(1.0, 2.0))


# whole runs


def test_what_a_run_writes(small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fixed weights, and with weights that move in every epoch."""
    monkeypatch.setattr(weighting, "FIRST", 1)
    histories = {}
    for method in ("fixed", "gradnorm"):
        run = trained(
            small_shapes, tmp_path, method, "--mtl", method, *MTL, "--gradnorm-every", "2", "--audit", epochs=2
        )
        histories[method] = json.loads((run.dir / "history.json").read_text())
        assert [h["epoch"] for h in histories[method]] == [0, 1]
        assert all(h["grad_norm"]["box"] > 0 and -1 <= h["cosine"]["box:cls"] <= 1 for h in histories[method])
        assert (run.dir / "history.png").is_file()
    assert all(h["weight"] == {"box": 1.0, "obj": 1.0, "cls": 1.0} for h in histories["fixed"])
    assert all(x["weight"] != y["weight"] for x, y in pairwise(histories["gradnorm"]))


def test_a_task_that_depends_on_no_weight_is_named(
    small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one class there is no class loss."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"cls depends on no weight .*leave it out of --mtl-tasks"):
        trained(small_shapes, tmp_path, "a", "--single-cls", "--mtl", "gradnorm", *MTL)
