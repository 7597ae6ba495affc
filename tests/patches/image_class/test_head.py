"""The head for classes of whole images: batches of one, its dropout, its loss and figures, against hand calculation."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from models.catalog import LAYERS
from models.fuse import fuse
from models.graph import Backbone, Detector
from models.head import image_heads
from patches.image_class.head import Dropout, ImageHead, balanced_weights, confusion, figures, image_loss
from tests.models.test_zoo import spec

NAMES = ("a", "b", "c")


def uniform(step: int, shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(step).random(shape))


def count(target: Tensor) -> Tensor:
    return (target >= 0).sum()


def test_a_batch_of_one_trains() -> None:
    head = ImageHead(8, NAMES, 0.0).train()
    alone, both = torch.randn(1, 8, 3, 5), torch.randn(2, 8, 3, 5)
    logits = head(alone)
    assert logits.shape == (1, 3)
    logits.sum().backward()
    assert head.linear.weight.grad is not None and head.linear.weight.grad.any()
    both[1] = alone[0]
    torch.testing.assert_close(head(both)[1], logits[0])  # no image depends on the others
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in head.modules())


def test_a_fresh_head_knows_nothing() -> None:
    torch.manual_seed(0)
    logits = ImageHead(64, NAMES, 0.0)(torch.randn(3000, 64, 2, 2))
    target = torch.arange(3000) % 3
    assert image_loss(logits, target, None, count(target)).item() == pytest.approx(math.log(3), abs=0.02)


def test_dropout_is_a_function_of_the_step() -> None:
    x = torch.ones(4, 500)
    drop = Dropout(0.3).train()
    with pytest.raises(RuntimeError, match="random numbers"):
        drop(x)
    drop.draw, drop.step = uniform, 7
    first, second = drop(x), drop(x)
    assert drop.step == 9 and not torch.equal(first, second)
    drop.step = 7
    assert torch.equal(drop(x), first)
    assert sorted(first.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert float(first.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x) and drop.step == 8, "evaluation drops nothing and takes no step"


def test_dropout_draws_nothing_of_torch() -> None:
    head = ImageHead(8, NAMES, 0.5).train()
    head.dropout.draw = uniform
    before = torch.get_rng_state()
    head(torch.ones(2, 8, 1, 1))
    assert torch.equal(before, torch.get_rng_state())


def test_compiled_once_for_all_steps() -> None:
    head = ImageHead(8, NAMES, 0.5).train()
    head.dropout.draw = uniform
    counter = CompileCounter()
    compiled = torch.compile(head, backend=counter)
    x = torch.randn(4, 8, 2, 2)
    outs, frames = [compiled(x)], counter.frame_count
    outs += [compiled(x) for _ in range(12)]
    head.dropout.step = 0
    assert all(torch.equal(out, head(x)) for out in outs)
    assert counter.frame_count == frames


def test_loss_is_the_mean_over_known_images() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    target = torch.tensor([2, -1, 0, -1])
    loss = image_loss(logits, target, None, count(target))
    each = -logits.log_softmax(1)
    assert loss.item() == pytest.approx((each[0, 2] + each[2, 0]).item() / 2)
    loss.backward()
    assert logits.grad is not None and not logits.grad[[1, 3]].any() and logits.grad[[0, 2]].all()


def test_without_known_images_the_loss_is_zero_with_a_graph() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    target = torch.tensor([-1, -1])
    loss = image_loss(logits, target, torch.ones(3), count(target))
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None and not logits.grad.any()


def test_class_weights_count_in_a_batch_of_one() -> None:
    logits, target, weights = torch.randn(1, 3), torch.tensor([1]), torch.tensor([1.0, 5.0, 1.0])
    plain = image_loss(logits, target, None, count(target))
    assert float(image_loss(logits, target, weights, count(target)) / plain) == pytest.approx(5)


def test_balanced_weights() -> None:
    counts = torch.tensor([6, 3, 0, 1])
    weights = balanced_weights(counts)
    assert (weights * counts)[[0, 1, 3]].tolist() == pytest.approx([10 / 3] * 3), "each class that occurs counts alike"
    assert float((weights * counts).sum() / 10) == pytest.approx(1) and float(weights[2]) == 0


def test_figures_by_hand() -> None:
    """Answered x true: a is taken for a twice and for b once; b once right; c never occurs and is answered once."""
    answers, target = torch.tensor([0, 0, 1, 1, 2, 0]), torch.tensor([0, 0, 0, 1, 1, -1])
    logits = nn.functional.one_hot(answers, 3).double() * math.log(2)
    assert confusion(logits, target).tolist() == [[2, 0, 0], [1, 1, 0], [0, 1, 0]]
    found = figures(logits, target)
    assert found.acc == pytest.approx(3 / 5) and found.bacc == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.f1 == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    assert found.ce == pytest.approx((3 * math.log(2) + 2 * math.log(4)) / 5)  # 2/4 where right, 1/4 where wrong
    assert (found.known, found.chance, found.majority) == (5, pytest.approx(1 / 3), pytest.approx(3 / 5))


def test_figures_without_known_images_are_no_numbers() -> None:
    found = figures(torch.zeros(2, 3), torch.tensor([-1, -1]))
    assert found.known == 0 and all(math.isnan(v) for v in (found.acc, found.bacc, found.f1, found.ce, found.majority))


def test_a_backbone_is_that_of_the_detector() -> None:
    """Same rows, same keys: the detector's numbers give the detector's features."""
    model = Detector(spec("demo"), 12).eval()
    model.tap(28)
    trunk = Backbone(spec("demo")).eval()
    assert trunk.out_channels == 112
    assert list(trunk.state_dict()) == [k for k in model.state_dict() if k.startswith("model.") and key_row(k) < 29]
    trunk.load_state_dict({k: model.state_dict()[k] for k in trunk.state_dict()})
    image = torch.rand(2, 3, 64, 64)
    assert torch.equal(trunk(image), model(image)["feat"][28])


def key_row(key: str) -> int:
    return int(key.split(".")[1])


def test_branches_are_folded_and_found_with_the_detector() -> None:
    model = Detector(spec("demo"), 12)
    model.add_branch("image_class", -1, ImageHead(112, NAMES, 0.2, Backbone(spec("demo"))))
    model.eval()
    fused = fuse(model)
    assert image_heads(fused) == {"image_class": NAMES}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.branches.modules())
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        one, two = (m(image) for m in (model, fused))
    torch.testing.assert_close(one["image_class"], two["image_class"], rtol=1e-4, atol=1e-5)


def test_a_backbone_takes_the_builders_of_patches() -> None:
    built: list[Any] = []

    def conv(*args: Any) -> nn.Module:
        built.append(args)
        return LAYERS["Conv"](*args)

    Backbone(spec("demo"), {**LAYERS, "Conv": conv})
    assert len(built) == 2 * 22  # first without memory
