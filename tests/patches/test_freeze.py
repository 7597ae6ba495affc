"""What --freeze freezes: the right modules, by every name; parameters and statistics stand still everywhere, the rest
moves."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from models.graph import Detector
from patches.freeze import Flags, Freeze
from tests.models.test_zoo import spec
from tests.shared import ROOT
from tests.toy import trained
from utils.runs.folder import Facts
from utils.system.errors import UserError
from utils.train import optim
from utils.train.modules import cut, parse_first
from utils.weights import checkpoint


@pytest.fixture(scope="module")
def demo() -> Detector:
    return Detector({**spec("demo"), "width_multiple": 0.25}, 12)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["0"], []),
        (["1"], [0]),
        (["10"], list(range(10))),
        (["50"], list(range(50))),
        (["77"], list(range(77))),
        (["3", "5"], [3, 5]),
        (["0-10"], list(range(11))),
        (["0-2", "7"], [0, 1, 2, 7]),
        (["backbone"], list(range(29))),
        (["neck"], list(range(29, 77))),
        (["backbone+neck"], list(range(77))),
        (["backbone,77"], [*range(29), 77]),
        (["head"], [77]),
    ],
    ids=lambda v: " ".join(v) if v and isinstance(v[0], str) else "",
)
def test_words_name_modules(demo: Detector, words: list[str], expected: list[int]) -> None:
    assert parse_first(words, demo, "--freeze") == expected
    model = Detector({**spec("demo"), "width_multiple": 0.25}, 12)
    Freeze(Flags(freeze=tuple(words))).on_model_built(model, ())
    frozen = {
        i
        for i, m in enumerate(model.model)
        if list(m.parameters()) and not any(p.requires_grad for p in m.parameters())
    }
    assert frozen == {i for i in expected if list(demo.model[i].parameters())}


@pytest.mark.parametrize(
    "words", [["79"], ["500"], ["78", "2"], ["5-78"], ["7-3"], ["trunk"], ["-1"], ["1.5"]], ids=" ".join
)
def test_what_is_not_there_is_refused_with_what_is(demo: Detector, words: list[str]) -> None:
    with pytest.raises(UserError, match=r"backbone \(0-28\), neck \(29-76\), head \(77-77\)"):
        parse_first(words, demo, "--freeze")


def test_freezing_everything_is_refused(demo: Detector) -> None:
    with pytest.raises(UserError, match="whole model"):
        Freeze(Flags(freeze=("78",))).on_model_built(Detector({**spec("demo"), "width_multiple": 0.25}, 12), ())


@pytest.mark.parametrize("count", [1, 10, 50, 78])
def test_only_the_first_modules_learn(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = Detector({**spec("demo"), "width_multiple": 0.25}, 12)
    Freeze(Flags(trainable_first=count)).on_model_built(model, ())
    assert {module_of(n) for n, p in model.named_parameters() if p.requires_grad} == {
        module_of(n) for n, _ in model.named_parameters() if module_of(n) < count
    }
    assert f"only the first {count} train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [({"trainable_first": n}, r"the model has 78 modules; valid: 1\.\.78") for n in (0, 79, -2)]
    + [({"trainable_first": 5, "freeze": ("5",)}, "give one of the two")],
)
def test_the_inverse_never_hides_behind_freeze(demo: Detector, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Freeze(Flags(**flags)).on_model_built(demo, ())


def test_a_table_of_stages_tells_the_ways_apart(tmp_path: Path) -> None:
    for patches, said in (
        ({}, "0"),
        ({"freeze": {"freeze": ["3", "5"]}}, "3 5"),
        ({"freeze": {"freeze": ["0"], "trainable_first": 10}}, "all but the first 10"),
        ({"freeze": {"freeze": ["9"], "trainable_first": -1}, "unfreeze": {}}, "9, --unfreeze"),
    ):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({"patches": patches}))
        assert Facts(tmp_path).frozen == said


def test_the_cut_is_said(demo: Detector) -> None:
    assert cut(range(29), demo) == "backbone frozen, neck learns, head learns"
    assert cut(range(50), demo) == "backbone frozen, neck frozen in part (21 of 48 modules), head learns"
    yolov7 = Detector(spec("yolov7"), 80)
    assert cut(range(50), yolov7) == "backbone frozen in part (50 of 51 modules), neck learns, head learns"


@pytest.fixture(scope="module")
def start(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return trained(small_shapes, tmp_path_factory.mktemp("start"), "s", epochs=2).dir / "weights/last.pt"


def module_of(key: str) -> int:
    return int(key.split(".")[1])


@pytest.mark.parametrize("count", [1, 10, 50, 77])
def test_frozen_stays_and_the_rest_moves(
    start: Path, small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """After two epochs, validation and a resume: in the model, the average, best.pt; and what is frozen gathers no
    momentum."""
    monkeypatch.chdir(ROOT)
    before = checkpoint.read_checkpoint(start)["ema"]
    done = trained(
        small_shapes, tmp_path, "f", "--weights", str(start), "--freeze", str(count), "--save_period", "1", epochs=2
    )
    last = checkpoint.read_checkpoint(done.dir / "weights/last.pt")
    best = checkpoint.read_checkpoint(done.dir / "weights/best.pt")
    for state in (last["model"], last["ema"], best["ema"]):
        for key, old in before.items():
            if key.endswith((".anchors", ".anchor_grid")):
                continue
            assert torch.equal(old, state[key]) == (module_of(key) < count), key
    for name, p in done.model.named_parameters():
        assert bool(done.optimizer.state[p]["momentum_buffer"].any()) == (module_of(name) >= count), name
    optim.check_partition(done.optimizer.param_groups, done.loss_step)


def test_the_rest_stands_still_where_only_the_first_learn(
    start: Path, small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    before = checkpoint.read_checkpoint(start)["ema"]
    words = ("--weights", str(start), "--trainable-first", "10", "--audit", "--lr0", "0.05")
    done = trained(small_shapes, tmp_path, "f", *words, epochs=1)
    for key, new in checkpoint.read_checkpoint(done.dir / "weights/best.pt")["ema"].items():
        if not key.endswith((".anchors", ".anchor_grid")):
            assert torch.equal(before[key], new) == (module_of(key) >= 10), key


def test_norms_are_in_eval_after_every_train(
    start: Path, small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = trained(small_shapes, tmp_path, "f", "--weights", str(start), "--freeze", "50")
    done.loss_step.train()
    optim.train_mode(done.loss_step)
    norms = [(module_of(n), m.training) for n, m in done.model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(training == (i >= 50) for i, training in norms)
    assert optim.norm_modes(done.model) == (21, 34)


def test_freeze_bn_train_lets_statistics_drift(
    start: Path, small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As YOLOv5 and YOLOv7: parameters stand still, every running tensor moves."""
    monkeypatch.chdir(ROOT)
    before = checkpoint.read_checkpoint(start)["ema"]
    done = trained(small_shapes, tmp_path, "f", "--weights", str(start), "--freeze", "50", "--freeze-bn", "train")
    state = done.model.state_dict()
    frozen = [k for k in before if module_of(k) < 50]
    moved = {k for k in frozen if not torch.equal(before[k], state[k])}
    assert moved == {k for k in frozen if k.endswith((".running_mean", ".running_var", ".num_batches_tracked"))}


def test_folding_leaves_no_trace_in_checkpoints(
    start: Path, small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and frozen tensors are those of a run without it; what learns differs in the last digits, not more."""
    monkeypatch.chdir(ROOT)
    flags = ("--weights", str(start), "--freeze", "50")
    folded = trained(small_shapes, tmp_path, "f", *flags)
    plain = trained(small_shapes, tmp_path, "p", *flags, "--no-fold-frozen")
    assert folded.model.stand_ins and not plain.model.stand_ins
    assert not folded.ema.model.stand_ins
    one, two = (torch.load(r.dir / "weights/last.pt", weights_only=True) for r in (folded, plain))
    assert one.keys() == two.keys()
    for part in ("model", "ema"):
        assert one[part].keys() == two[part].keys()
        for key, value in one[part].items():
            torch.testing.assert_close(value, two[part][key], rtol=1e-3, atol=1e-4)
            if module_of(key) < 50:
                assert torch.equal(value, two[part][key]), key
    assert one["optimizer"]["state"].keys() == two["optimizer"]["state"].keys()
    assert any(not torch.equal(value, two["model"][key]) for key, value in one["model"].items()), "it did fold"
