"""The frozen prefix: found from the modules at every step, run without a graph to the same bits, folded on request."""

import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.blocks import layers, pooling
from models.blocks.layers import Conv
from models.catalog import LAYERS
from models.fuse import folded
from models.graph import Detector
from models.loss import LossSettings
from patches.multihead import Flags, patch
from tests.models.test_fuse import random_statistics
from tests.models.test_zoo import spec
from tests.shared import ROOT
from utils.seams import Patches
from utils.train.loss_step import LossStep
from utils.train.optim import Ema, param_groups, train_mode

FOUR = {**LAYERS, **patch(Flags(heads=4, head_config=str(ROOT / "data/shapes_1b4h.yaml"))).layers()}


def demo(frozen: Iterable[int] = (), name: str = "demo") -> Detector:
    """The demo model at half its width, its norms away from the identity."""
    torch.manual_seed(0)
    model = Detector({**spec(name), "width_multiple": 0.25}, 12, FOUR)
    random_statistics(model)
    for i in frozen:
        model.model[i].requires_grad_(False)
    return model


def batch() -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    boxes = torch.rand(12, 4, generator=g) * 0.5 + 0.2
    rows = (torch.arange(12)[:, None] % 2, torch.randint(12, (12, 1), generator=g), boxes)
    return {"image": torch.rand(2, 3, 64, 96, generator=g), "target": torch.cat(rows, 1), "images": 2}


def learn(model: Detector, freeze_bn: str = "eval", fold: bool = False, steps: int = 3) -> dict[str, Tensor]:
    """Losses of these steps, gradients of the last, and all tensors after it."""
    step = LossStep(model, model.criterion(LossSettings(ota=False)), Patches({}))
    optimizer = torch.optim.SGD(param_groups(step, 5e-4), lr=0.01, momentum=0.9)
    train_mode(step, freeze_bn, fold)
    seen: dict[str, Tensor] = {}
    for i in range(steps):
        optimizer.zero_grad()
        loss, _ = step(batch())
        loss.backward()
        optimizer.step()
        seen[f"loss {i}"] = loss.detach()
    seen |= {f"gradient {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return seen | model.state_dict()


def test_counts_the_leading_rows_in_which_nothing_learns() -> None:
    model = demo(range(50))
    train_mode(model)
    assert model.prefix() == 50
    model.model[50].requires_grad_(False)
    assert model.prefix() == 50, "its norm still uses the batch"
    train_mode(model)
    assert model.prefix() == 52, "51 joins its inputs and has no parameters"
    model.model[7].requires_grad_(True)
    assert model.prefix() == 7, "thawed: seen at once"
    model.model[0].requires_grad_(True)
    assert model.prefix() == 0


def test_norms_that_use_the_batch_end_it() -> None:
    model = demo(range(50))
    train_mode(model, "train")
    assert model.prefix() == 0
    train_mode(model, "eval")
    model.model[9].train()
    assert model.prefix() == 9


@pytest.mark.parametrize("frozen", [range(20, 40), range(5, 50), [77], []], ids=str)
def test_no_prefix_without_the_first_row(frozen: Iterable[int]) -> None:
    model = demo(frozen)
    train_mode(model, fold_frozen=True)
    assert model.prefix() == 0 and not model.stand_ins


@pytest.mark.parametrize(
    ("frozen", "freeze_bn", "name"),
    [
        (range(50), "eval", "demo"),
        (range(77), "eval", "demo"),
        (range(50), "train", "demo"),
        (range(20, 40), "eval", "demo"),
        (range(50), "eval", "demo-1b4h"),
    ],
    ids=["50", "77", "50 with batch statistics", "20-39", "1B4H 50"],
)
def test_the_same_bits_as_without_it(frozen: range, freeze_bn: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every row run alike, with the operator's pools: losses, gradients, weights, statistics."""
    with monkeypatch.context() as plain:
        plain.setattr(Detector, "prefix", lambda self: 0)
        for module in (layers, pooling):
            plain.setattr(module, "max_pool", torch.nn.functional.max_pool2d)
        wanted = learn(demo(frozen, name), freeze_bn)
    found = learn(demo(frozen, name), freeze_bn)
    assert found.keys() == wanted.keys()
    assert [k for k in wanted if not torch.equal(found[k], wanted[k])] == []
    learns = {int(k.split(".")[1]) for k in found if k.startswith("gradient")}
    assert not learns & set(frozen) and learns == {
        i for i, m in enumerate(demo().model) if i not in frozen and any(True for _ in m.parameters())
    }


def test_no_graph_before_the_first_row_that_learns() -> None:
    model = demo(range(50))
    train_mode(model)
    recorded = []
    for i in (49, 50):
        model.tap(i)
        model.model[i].register_forward_hook(lambda *_: recorded.append(torch.is_grad_enabled()))
    feat = model(batch()["image"])["feat"]
    assert not feat[49].requires_grad and feat[50].requires_grad
    assert recorded == [False, True]


def test_a_gradient_asked_of_the_image_arrives() -> None:
    model = demo(range(50))
    train_mode(model, fold_frozen=True)
    image = batch()["image"].requires_grad_()
    model(image)["det"][0].sum().backward()
    assert image.grad is not None and image.grad.any()


@pytest.mark.parametrize("fold", [False, True])
def test_outputs_nobody_reads_later_are_dropped(fold: bool) -> None:
    model = demo(range(50))
    train_mode(model, fold_frozen=fold)
    made: dict[int, weakref.ref[Tensor]] = {}
    alive: dict[int, set[int]] = {}

    def note(i: int, out: Tensor) -> None:
        made[i] = weakref.ref(out)
        alive[i] = {k for k, output in made.items() if output() is not None}

    for i in range(50):
        row = model.stand_ins.get(i, model.model[i])
        row.register_forward_hook(lambda _m, _in, out, i=i: note(i, out))
    model.tap(5)
    model(batch()["image"])
    for now in (12, 33, 49):
        assert alive[now] == {s for s in range(now + 1) if s in (5, now) or model.last_reader[s] >= now}


def error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Relative root mean square over all entries."""
    off = sum(float((found[k].double() - wanted[k]).square().sum()) for k in wanted)
    return (off / sum(float(wanted[k].square().sum()) for k in wanted)) ** 0.5


def features_and_gradients(
    frozen: range, name: str, dtype: torch.dtype, fold: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the prefix hands on, and the gradients of one step, in this type."""
    model = demo(frozen, name)
    step = LossStep(model, model.criterion(LossSettings(ota=False)), Patches({})).to(dtype)
    train_mode(step, fold_frozen=fold)
    assert len(model.stand_ins) == (sum(any(True for _ in model.model[i].parameters()) for i in frozen) if fold else 0)
    read = [s for s in frozen if model.last_reader[s] >= frozen.stop]
    for i in read:
        model.tap(i)
    given = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in batch().items()}
    features = {str(i): x for i, x in model(given["image"])["feat"].items()}
    step(given)[0].backward()
    return features, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("count", "name"), [(10, "demo"), (50, "demo"), (77, "demo"), (50, "demo-1b4h")])
def test_folded_copies_are_off_by_rounding_alone(count: int, name: str) -> None:
    """Rows and copies against float64: errors of one size, in the features and, behind train-mode norms, in the
    gradients."""
    wanted = features_and_gradients(range(count), name, torch.float64, False)
    rows = features_and_gradients(range(count), name, torch.float32, False)
    copies = features_and_gradients(range(count), name, torch.float32, True)
    assert 0 < error(copies[0], wanted[0]) < 2 * error(rows[0], wanted[0]) < 1e-5
    assert copies[1].keys() == wanted[1].keys()
    assert error(copies[1], wanted[1]) < 4 * error(rows[1], wanted[1]) < 4e-3


def test_copies_belong_to_no_state() -> None:
    model, plain = demo(range(50)), demo(range(50))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    drawn = torch.get_rng_state()
    train_mode(model, fold_frozen=True)
    train_mode(plain)
    assert torch.equal(torch.get_rng_state(), drawn), "no random number is drawn"
    assert len(model.stand_ins) == 34
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    for a, b in ((model, plain), (Ema(model).model, Ema(plain).model)):
        assert list(a.state_dict()) == list(b.state_dict())
        assert [n for n, _ in a.named_parameters()] == [n for n, _ in b.named_parameters()]
    model(batch()["image"])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if int(k.split(".")[1]) < 50)


def test_evaluation_takes_the_rows() -> None:
    model, plain, image = demo(range(50)), demo(range(50)), batch()["image"]
    train_mode(model, fold_frozen=True)
    for a, b in zip(model.eval()(image)["det"], plain.eval()(image)["det"], strict=True):
        assert torch.equal(a, b)


def test_a_thawed_row_is_itself_again() -> None:
    """Though nobody folded anew: rows from it on are run as they are, and it learns."""
    model, plain = demo(range(50)), demo(range(50))
    train_mode(model, fold_frozen=True)
    train_mode(plain)
    grads = []
    for m in (model, plain):
        m.model[0].requires_grad_(True)
        m(batch()["image"])["det"][0].square().sum().backward()
        grads.append({name: p.grad for name, p in m.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and grads[0]["model.0.conv.weight"].any()
    assert all(torch.equal(grads[0][k], grads[1][k]) for k in grads[0])


def test_copies_follow_the_rows() -> None:
    """Loading drops them; folding anew takes over whatever changed, in the same modules."""
    model, plain, image = demo(range(50)), demo(range(50)), batch()["image"]
    step = LossStep(model, model.criterion(LossSettings()), Patches({}))
    train_mode(plain)
    train_mode(step, fold_frozen=True)
    copy = model.stand_ins[0]
    with torch.no_grad():
        model.model[0].get_submodule("conv").weight *= -1  # type: ignore[operator]
    train_mode(step, fold_frozen=True)
    assert model.stand_ins[0] is copy
    plain.load_state_dict(model.state_dict())
    for a, b in zip(model(image)["det"], plain(image)["det"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    step.load_state_dict({k: v / 2 if v.is_floating_point() else v for k, v in step.state_dict().items()})
    assert not model.stand_ins
    plain.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model(image)["det"], plain(image)["det"], strict=True))
    train_mode(step, fold_frozen=True)
    assert model.stand_ins
    train_mode(step)
    assert not model.stand_ins


def test_what_is_not_folded_keeps_its_mode() -> None:
    """Dropout in frozen rows goes on dropping."""
    copy = folded(nn.Sequential(Conv(3, 4).eval(), nn.Dropout()))
    assert copy[1].training and not isinstance(copy[0].get_submodule("bn"), nn.BatchNorm2d)


@pytest.mark.parametrize("fold", [False, True])
def test_compiles_as_one_graph_that_outlasts_folding_anew(fold: bool) -> None:
    conv = [-1, 1, "Conv", [8, 3, 1]]
    rows = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "MP", []], conv, conv]
    head = [[[2, 3], 1, "Concat", [1]], [[4], 1, "Detect", ["nc", "anchors"]]]
    model = Detector({"nc": 3, "anchors": [[10, 13, 16, 30]], "backbone": rows, "head": head}, 3)
    model.model[:3].requires_grad_(False)
    graphs = []

    def keep(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=keep, fullgraph=True)
    for _ in range(3):
        train_mode(model, fold_frozen=fold)
        image = torch.rand(2, 3, 32, 32)
        wanted, found = model(image)["det"], compiled(image)["det"]
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert len(graphs) == 1
