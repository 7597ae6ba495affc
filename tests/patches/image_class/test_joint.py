"""--classify: a head on the detector's own features, in training, evaluation, checkpoints, detect.py; and what it must
leave alone."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest
import torch
import yaml
from torch import Tensor

import detect
import test as evaluation
from models.graph import Detector
from models.head import image_heads
from patches.image_class.joint import Flags, Joint, node_number
from patches.image_class.training import draw
from tests.models.test_zoo import spec
from tests.ranks import on_ranks
from tests.shared import ROOT
from tests.toy import trained
from utils import seams
from utils.config.train import parse as parse_flags
from utils.data.labels import class_line, parse
from utils.system import dist
from utils.system.errors import UserError
from utils.train.run import Run
from utils.weights import checkpoint

NAMES = ("dark", "bright", "other")
BRANCH = "branches.image_class."
TRAINING = ("--cls-weights", "balanced", "--cls-dropout", ".5", "--mosaic", "0", "--audit")
FLAGS = {"plain": (), "joint": ("--classify", *TRAINING)}


@pytest.fixture(scope="session")
def classed(small_shapes: Path) -> Path:
    """The small data set with image classes: every third image each, every fifth unknown; no mosaic hides them."""
    rows = ["image,class"]
    for split, count in (("train", 12), ("val", 8)):
        rows += [f"{split}/{i:04d}.png,{NAMES[i % 3]}" for i in range(count) if i % 5 != 4]
    (small_shapes.parent / "classes.csv").write_text("\n".join(rows) + "\n")
    text = small_shapes.read_text() + f"cls_names: [{', '.join(NAMES)}]\ncls_csv: {small_shapes.parent}/classes.csv\n"
    (small_shapes.parent / "classed.yaml").write_text(text)
    return small_shapes.parent / "classed.yaml"


@pytest.fixture(scope="module")
def runs(classed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Without classes, and two epochs with classes and the audit."""
    project = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield {
            name: trained(classed, project, name, *words, epochs=1 + (name == "joint")) for name, words in FLAGS.items()
        }


def weights(run: Run, name: str = "best") -> str:
    return str(run.dir / f"weights/{name}.pt")


def detector_part(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith("branches.")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_with_a_gain_it_does(runs: dict[str, Run]) -> None:
    plain, joint = (runs[k].model.state_dict() for k in ("plain", "joint"))
    assert not torch.equal(plain["model.0.conv.weight"], joint["model.0.conv.weight"])


def test_columns(runs: dict[str, Run]) -> None:
    rows = list(csv.DictReader((runs["joint"].dir / "results.csv").open()))
    assert len(rows) == 2
    for row in rows:
        assert float(row["image_known"]) == 7 and float(row["image_chance"]) == pytest.approx(1 / 3)
        assert float(row["image_majority"]) == pytest.approx(3 / 7)
        assert 0 <= float(row["image_acc"]) <= 1 and float(row["image_ce"]) > 0 and float(row["image_class"]) > 0
        assert (row["image_trained"], row["image_blank_steps"]) == ("10", "0")
    assert (runs["joint"].dir / "image_confusion.png").is_file()


def test_the_checkpoint_is_built_again_without_the_data(runs: dict[str, Run]) -> None:
    model, meta = checkpoint.load_detector(weights(runs["joint"]))
    record = meta["patches"]["joint"]
    assert record["cls_names"] == list(NAMES) and record["cls_node"] == "28"
    assert image_heads(model) == {"image_class": NAMES} and model.branch_inputs == {"image_class": 28}


def test_test_py_says_what_training_said(runs: dict[str, Run], classed: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--data", str(classed), "--weights", weights(runs["joint"], "last"), "--img", "64", "--batch", "8"]
    result = evaluation.main([*words, "--workers", "0", "--device", "cpu", "--project", str(tmp_path), "--save-txt"])
    row = list(csv.DictReader((runs["joint"].dir / "results.csv").open()))[-1]
    for name, value in result.figures.items():
        assert value == pytest.approx(float(row[name])), name
    assert f"image_acc {result.figures['image_acc']:.4g}" in capsys.readouterr().out
    assert (tmp_path / "exp/image_confusion.png").is_file()
    answers = result.observed["image_logits"].argmax(1).tolist()
    for path, answer in zip(result.paths, answers, strict=True):
        text = (tmp_path / f"exp/labels/{Path(path).stem}.txt").read_text()
        assert class_line(parse(text, "x")[0], NAMES, "x")[1:] == (answer, [])


def test_data_without_classes_or_with_others(
    runs: dict[str, Run], small_shapes: Path, classed: Path, tmp_path: Path
) -> None:
    words = ["--weights", weights(runs["joint"]), "--img", "64", "--workers", "0", "--device", "cpu"]
    result = evaluation.main(["--data", str(small_shapes), *words, "--project", str(tmp_path)])
    assert result.figures["image_known"] == 0
    other = tmp_path / "other.yaml"
    text = classed.read_text().replace("path: shapes", f"path: {classed.parent}/shapes")
    other.write_text(text.replace("[dark, bright, other]", "[bright, dark, other]"))
    with pytest.raises(UserError, match="cls_names of the data are bright dark other, those of the checkpoint dark br"):
        evaluation.main(["--data", str(other), *words, "--project", str(tmp_path)])
    with pytest.raises(UserError, match="cls_names dark bright other, this run has bright dark other"):
        trained(other, tmp_path, "a", "--classify", "--weights", weights(runs["joint"]))
    with pytest.raises(UserError, match="--classify: the data YAML names no image classes"):
        trained(small_shapes, tmp_path, "a", "--classify")


def test_detect_py_shows_the_class(runs: dict[str, Run], classed: Path, tmp_path: Path, capsys: Any) -> None:
    images = classed.parent / "shapes/images/val"
    words = ["--source", str(images), "--weights", weights(runs["joint"]), "--img", "64", "--device", "cpu"]
    detect.main([*words, "--project", str(tmp_path), "--save-txt", "--save-conf"])
    said = [line for line in capsys.readouterr().out.splitlines() if ".png: " in line]
    assert len(said) == 8
    for i, line in enumerate(said):
        shares = [float(v) for v in (tmp_path / f"exp/labels/{i:04d}.txt").read_text().splitlines()[-1].split()]
        assert sum(shares) == pytest.approx(1, abs=1e-5) and len(shares) == 3
        assert line.endswith(f"; image {NAMES[shares.index(max(shares))]} {max(shares):.2f}")
    drawn = cv2.imread(str(tmp_path / "exp/0000.png"))
    assert (drawn[:8, :20] == 255).all(2).mean() > 0.3, "a white bar at the upper left"


def stage(path: str, *flags: str) -> Detector:
    """The model of a new stage from these weights, as train.py builds it."""
    with torch.random.fork_rng(devices=[]):
        patches = seams.switched_on(parse_flags(flags).flags)
        patches.each("on_data_read", SimpleNamespace(cls_names=NAMES))
        source = checkpoint.read_source(path)
        built = checkpoint.build_detector(source.meta["spec"], 12, patches, path)
        checkpoint.load_into(built, patches.fold("load_weights", source.state, built, source), path)
    return built


@pytest.mark.parametrize("flags", [("--classify",), ("--classify", "--transfer-weights")], ids=" ".join)
def test_from_a_detector_the_head_starts_fresh(
    runs: dict[str, Run], capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    plain = weights(runs["plain"])
    state = stage(plain, *flags).state_dict()
    assert "has none; the head starts fresh (4 tensors)" in capsys.readouterr().out
    assert same(torch.load(plain, weights_only=True)["ema"], detector_part(state)) and BRANCH + "norm.bias" in state


def test_from_a_joint_checkpoint_all_is_taken(runs: dict[str, Run]) -> None:
    joint = weights(runs["joint"])
    assert same(torch.load(joint, weights_only=True)["ema"], stage(joint, "--classify").state_dict())


def test_back_to_a_detector(runs: dict[str, Run]) -> None:
    joint = weights(runs["joint"])
    with pytest.raises(UserError, match=r"4 not in the model: branches\.image_class\.norm\.weight"):
        stage(joint)
    assert not stage(joint, "--transfer-weights").branches


def test_a_head_read_elsewhere_is_another(runs: dict[str, Run]) -> None:
    joint = weights(runs["joint"])
    with pytest.raises(UserError, match="cls_node 28, this run has 76"):
        stage(joint, "--classify", "--cls-node", "neck")
    with pytest.raises(UserError, match="dual_spec missing, this run has another one"):
        stage(joint, "--dual-backbone")


def test_linear_probe(runs: dict[str, Run], classed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole detector frozen: to the bit, while the head learns."""
    plain = weights(runs["plain"])
    flags = ("--classify", "--freeze", "0-77", "--weights", plain, "--audit")
    probe = trained(classed, tmp_path, "p", *flags)
    assert "nothing of the detector trains: take last.pt" in capsys.readouterr().out
    before, after = torch.load(plain, weights_only=True)["ema"], probe.model.state_dict()
    assert same(before, detector_part(after)) and same(before, detector_part(probe.ema.model.state_dict()))
    moved = probe.optimizer.state[probe.model.get_parameter(BRANCH + "linear.weight")]["momentum_buffer"]
    assert moved.any()
    with pytest.raises(UserError, match="nothing would train"):
        trained(classed, tmp_path, "q", "--freeze", "0-77", "--weights", plain)


@pytest.fixture(scope="module")
def model() -> Detector:
    torch.manual_seed(0)
    return Detector({**spec("demo"), "width_multiple": 0.25}, 12)


def joined(model: Detector, **flags: Any) -> tuple[Detector, Joint]:
    """A model with the head of a patch for NAMES."""
    patch = Joint(Flags(classify=True, cls_names=NAMES, **flags))
    built = Detector({**spec("demo"), "width_multiple": 0.25}, 12)
    built.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    for name, (row, head) in patch.branches(built).items():
        built.add_branch(name, row, head)
    patch.on_epoch_start(built, [], seams.Progress(0, 1, 0))
    return built.train(), patch


def batch_of(target: list[int], share: float = 1.0) -> dict[str, Any]:
    return {"image_class": torch.tensor(target), "share": share, "images": len(target)}


@pytest.mark.parametrize(("word", "row"), [("backbone", 28), ("neck", 76), ("14", 14), ("0", 0)])
def test_gradient_reaches_the_backbone(model: Detector, word: str, row: int) -> None:
    built, patch = joined(model, cls_node=word)
    assert node_number(word, built) == row and built.branch_inputs == {"image_class": row}
    out = built(torch.rand(2, 3, 64, 64))
    patch.loss_terms(batch_of([0, 2]), out, built)["image_class"].backward()
    first = built.get_parameter("model.0.conv.weight").grad
    assert first is not None and first.any()
    assert built.get_parameter("model.77.m.0.weight").grad is None


@pytest.mark.parametrize("word", ["77", "78", "head", "-1", "trunk"])
def test_rows_without_features_are_refused(model: Detector, word: str) -> None:
    with pytest.raises(UserError, match=r"valid: 0\.\.76, backbone \(28\), neck \(76\)"):
        node_number(word, model)


def test_no_known_image_is_counted_and_costs_nothing(model: Detector) -> None:
    built, patch = joined(model)
    out = built(torch.rand(2, 3, 64, 64))
    loss = patch.loss_terms(batch_of([-1, -1]), out, built)["image_class"]
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in built.parameters())
    for target in ([1, -1], [-1, -1]):
        patch.loss_terms(batch_of(target), out, built)
    row = patch.on_epoch_end(built, seams.Progress(0, 1, 2), {})
    assert row == {"image_trained": 1, "image_blank_steps": 2}
    assert not any(patch.on_epoch_end(built, seams.Progress(1, 2, 2), {}).values()), "counted anew in each epoch"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", "b", "c"), "expected none, balanced, or a number"),
        (("1", "-1", "1"), "expected none, balanced, or a number"),
        (("1", "nan", "1"), "expected none, balanced, or a number"),
        (("1", "2"), "2 class weights for 3 classes: dark bright other"),
    ],
)
def test_wrong_class_weights(words: tuple[str, ...], message: str) -> None:
    class Data:
        cls_names = NAMES

    with pytest.raises(UserError, match=message):
        Joint(Flags(classify=True, cls_weights=words)).on_data_read(Data())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--cls-dropout must lie in 0\.\.0\.99, got 1"):
        Flags(cls_dropout=1.0)


def test_dropout_differs_by_seed_step_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    first = draw(0, 0, (2, 50))
    assert torch.equal(first, draw(0, 0, (2, 50)))
    assert not torch.equal(first, draw(1, 0, (2, 50))) and not torch.equal(first, draw(0, 1, (2, 50)))
    monkeypatch.setattr(dist, "rank", lambda: 1)
    assert not torch.equal(first, draw(0, 0, (2, 50)))


TARGETS = [0, -1, 2, 1, -1, 0]
PARTS = [slice(0, 4), slice(4, 6)]  # three known images on one rank, one on the other


def on_rank(rank: int) -> Any:
    """Gradient of the head's last layer on a rank's part of the batch."""
    torch.manual_seed(0)
    plain = Detector({**spec("demo"), "width_multiple": 0.25}, 12)
    built, patch = joined(plain, cls_dropout=0.0)
    images = torch.rand(6, 3, 64, 64)
    part = PARTS[rank] if dist.world() > 1 else slice(0, 6)
    own = len(range(6)[part])
    out = built.eval()(images[part])
    terms = patch.loss_terms(batch_of(TARGETS[part], own / 6), out, built)
    (terms["image_class"] * own).backward()
    optimizer = torch.optim.SGD([{"params": list(built.branches.parameters())}], lr=0.1)
    dist.sum_gradients(optimizer)
    mean = dist.mean_terms({k: v.detach() for k, v in terms.items()}, own / 6)
    return {"grad": built.get_parameter(BRANCH + "linear.weight").grad, "terms": mean, "counted": patch.counted}


def test_two_ranks_have_the_gradient_of_one(tmp_path: Path) -> None:
    alone = on_rank(0)
    for found in on_ranks(on_rank, tmp_path):
        torch.testing.assert_close(found["grad"], alone["grad"])
        torch.testing.assert_close(found["terms"]["image_class"], alone["terms"]["image_class"])
        assert found["counted"].tolist() == alone["counted"].tolist() == [4, 0]


def test_record_makes_the_same_patch_again(runs: dict[str, Run]) -> None:
    """Through JSON and YAML, without the data."""
    records = runs["joint"].patches.records()
    again = seams.revive(json.loads(json.dumps(records)))["joint"]
    assert isinstance(again, Joint) and again.names == NAMES
    assert again.flags.cls_node == "28" and again.flags.cls_weights == ("balanced",) and again.settings.gain == 1
    assert yaml.safe_load((runs["joint"].dir / "run.yaml").read_text())["patches"]["joint"]["cls_names"] == list(NAMES)
