"""How a step is computed: type, memory order and form are settings that are recorded, kept, and change no name."""

from pathlib import Path

import pytest
import torch

from models.anchored import assign, ota
from models.graph import Detector
from models.loss import LossSettings
from tests.conftest import ROOT
from tests.models.test_zoo import spec
from tests.toy import STEPS, cut, resumed, same, trained
from utils.config.train import Config
from utils.seams import Patches
from utils.system.errors import UserError
from utils.train.loss_step import LossStep, compile_model, compute_type, place
from utils.train.optim import train_mode
from utils.train.run import Run
from utils.weights.checkpoint import read_checkpoint

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def test_mixed_precision_is_a_matter_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert compute_type(Config(amp_dtype="bf16"), CPU) is None
    assert compute_type(Config(), CUDA) == torch.float16
    assert compute_type(Config(amp_dtype="bf16"), CUDA) == torch.bfloat16
    assert compute_type(Config(amp_dtype="bf16", amp=False), CUDA) is None


def test_bf16_is_refused_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    with pytest.raises(UserError, match="--amp-dtype bf16: Card"):
        compute_type(Config(amp_dtype="bf16"), CUDA)
    assert compute_type(Config(amp_dtype="fp16"), CUDA) == torch.float16


@pytest.mark.parametrize(
    "flags",
    [
        ("--img", "32", "--batch", "11"),  # of 12 pictures
        ("--img", "64", "--batch", "11", "--multi-scale"),
        ("--img", "32", "--batch", "11", "--multi-scale", "--quad"),
        ("--img", "32", "--batch", "1"),
        ("--img", "32", "--batch", "11", "--epochs", "2", "--unfreeze", "0:77, 1:0-76"),
    ],
)
def test_a_batch_that_leaves_a_norm_one_value_is_refused_at_the_start(
    flags: tuple[str, ...], small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"leaves BatchNorm model.* one value per channel.*--batch-size"):
        trained(small_shapes, tmp_path, "a", *flags)
    assert not (tmp_path / "a/results.csv").exists()


def test_norms_that_stand_still_take_a_single_value(
    small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert trained(small_shapes, tmp_path, "a", "--img", "32", "--batch", "11", "--freeze", "77").epoch == 1


@pytest.fixture(scope="module")
def straight(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two epochs in NHWC order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return trained(small_shapes, tmp_path_factory.mktemp("nhwc"), "a", "--channels-last", epochs=2)


def test_checkpoints_hold_the_usual_order(straight: Run) -> None:
    weight = straight.model.model[0].get_submodule("conv").weight
    assert isinstance(weight, torch.Tensor) and weight.is_contiguous(memory_format=torch.channels_last)
    best = read_checkpoint(straight.dir / "weights/best.pt")
    assert all(v.is_contiguous() for v in best["ema"].values()) and best["meta"]["config"]["channels_last"]
    assert torch.equal(best["ema"]["model.0.conv.weight"], straight.ema.model.state_dict()["model.0.conv.weight"])


def test_a_resume_keeps_the_order_and_every_bit(straight: Run, small_shapes: Path, tmp_path: Path) -> None:
    again = resumed(cut(small_shapes, tmp_path, "cut", "--channels-last", epochs=2, step=STEPS))
    assert again.cfg.channels_last
    same(straight.dir, again.dir)
    for p, state in again.optimizer.state.items():
        assert state["momentum_buffer"].stride() == p.stride()


@pytest.mark.parametrize(("name", "frozen"), [("demo", 0), ("demo", 10), ("yolov7-tiny", 0)])
def test_the_model_compiles_as_one_graph(name: str, frozen: int) -> None:
    model = Detector(spec(name), 12)
    for i in range(frozen):
        model.model[i].requires_grad_(False)
    train_mode(model, fold_frozen=True)
    assert model.prefix() == frozen and bool(model.stand_ins) == bool(frozen)
    image = torch.rand(2, 3, 64, 64)
    plain = model(image)["det"]
    det = torch.compile(model, backend="eager", fullgraph=True)(image)["det"]
    assert all(torch.allclose(a, b, atol=1e-5) and a.requires_grad for a, b in zip(det, plain, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("ota_on", [False, True])
def test_model_and_loss_compile_as_one_graph_on_cuda(ota_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tables that CUDA gets; on a CPU the loss looks at its values, which a graph cannot."""
    for module in (assign, ota):
        monkeypatch.setattr(module, "may_look", lambda tensor: False)
    model = Detector(spec("demo"), 12).train()
    step = LossStep(model, model.criterion(LossSettings(ota=ota_on)), Patches({}))
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    draw = torch.Generator().manual_seed(0)
    for boxes in (9, 4):
        target = torch.rand(boxes, 6, generator=draw)
        target[:, 0], target[:, 1] = torch.arange(boxes) % 2, torch.arange(boxes) % 12
        batch = {"image": torch.rand(2, 3, 64, 64, generator=draw), "target": target, "images": 2, "most": boxes}
        loss, terms = compiled(batch)
        assert loss.isfinite() and tuple(terms) == step.terms


def test_the_usual_order_unless_asked() -> None:
    model = Detector(spec("demo"), 3)
    place(LossStep(model, model.criterion(LossSettings()), Patches({})), Config(), CPU)
    assert all(v.is_contiguous() for v in model.state_dict().values())


def test_a_compiled_step_keeps_every_name() -> None:
    model = Detector(spec("demo"), 3)
    step = place(LossStep(model, model.criterion(LossSettings()), Patches({})), Config(channels_last=True), CPU)
    before = list(step.state_dict()), [n for n, _ in step.named_parameters()]
    compile_model(step)
    assert (list(step.state_dict()), [n for n, _ in step.named_parameters()]) == before
    assert list(model.state_dict()) == [k.removeprefix("model.") for k in before[0] if k.startswith("model.")]
