"""--teacher: the terms against hand-computed values and closed forms, one head and several, and whole runs."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from models.catalog import LAYERS
from models.graph import Detector
from models.head import View
from patches.distill import Distill, Flags, check_match, coin_kl, free_terms, output_terms, owner_of
from patches.multihead import Flags as HeadFlags
from patches.multihead import MultiHead
from tests.conformance.reference import fill
from tests.conftest import CommandLine
from tests.models.test_zoo import spec
from tests.shared import ROOT, shared
from tests.toy import FOUR_HEADS, STEPS, cut, resumed, same, toy, trained
from utils.runs.fingerprint import of_tensors
from utils.seams import Progress
from utils.system.errors import UserError
from utils.weights import checkpoint
from utils.weights.model_files import read_model

ONE, FOUR = [list(range(12))], [[0, 4, 7], [1, 6, 10], [2, 5, 8], [3, 9, 11]]


def four_heads(full: bool = False) -> Detector:
    patch = MultiHead(HeadFlags(heads=4, head_config=str(ROOT / "data/shapes_1b4h.yaml")))
    patch.table = patch.table.__class__(**{**vars(patch.table), "full_head": full})
    return Detector(spec("demo-1b4h"), 12, {**LAYERS, **patch.layers()})


def demo(gain: float = 2.4) -> Detector:
    model = Detector(spec("demo"), 12)
    model.load_state_dict(fill(model.state_dict(), gain))
    return model.eval()


def cut_from(plain: Detector, full: bool = False) -> Detector:
    """Several heads that detect what the plain detector does."""
    model, number = four_heads(full), "model.77."
    state = plain.state_dict()
    heads: Any = model.head
    rows = {k.removeprefix(number): v for k, v in state.items() if k.startswith(number)}
    trunk = {k: v for k, v in state.items() if not k.startswith(number)}
    cut = heads.sliced(rows, range(heads.nc))
    model.load_state_dict({**model.state_dict(), **trunk, **{number + k: v for k, v in cut.items()}})
    return model.eval()


def image() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def terms(student: Detector, teacher: Detector, temperature: float = 2.0) -> tuple[Tensor, Tensor]:
    views = [model.head.views(model(image())["det"]) for model in (student, teacher)]
    owners = owner_of(student.groups), owner_of(teacher.groups)
    return output_terms(views[0], views[1], owners, teacher.head.anchors, temperature)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def single(box: list[float], obj: float, cls: list[float]) -> View:
    """One cell, one anchor, one head."""
    return View(torch.tensor(box).view(1, 1, 1, 1, 1, 4), torch.full((1, 1, 1, 1, 1), obj), cell(cls))


def cell(cls: list[float]) -> Tensor:
    return torch.tensor(cls).view(1, 1, 1, 1, -1)


def test_class_term_by_hand() -> None:
    """T = 2: the teacher's coin is 3/4, the student's 1/2."""
    kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    got = coin_kl(*torch.tensor([0.0, 2 * math.log(3.0)], dtype=torch.float64), 2.0)
    assert got.item() == pytest.approx(4 * kl, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_gradient_of_the_class_term_is_the_closed_form(temperature: float) -> None:
    g = torch.Generator().manual_seed(0)
    s, t = (torch.randn(50, generator=g, dtype=torch.float64) * 6 for _ in range(2))
    s.requires_grad_(True)
    (grad,) = torch.autograd.grad(coin_kl(s, t, temperature).sum(), s)
    want = temperature * ((s / temperature).sigmoid() - (t / temperature).sigmoid())
    torch.testing.assert_close(grad, want.detach(), rtol=1e-9, atol=1e-12)


def test_terms_are_means_weighted_by_the_teachers_objectness() -> None:
    """Two cells on two levels, objectness 0.9 and 0.6; boxes of 2 x 2 cells that are half a cell apart on one axis."""
    anchors = torch.full((2, 1, 2), 2.0)
    teacher = [single([0.0] * 4, logit(0.9), [0.0, 2.0]), single([0.0] * 4, logit(0.6), [1.0, -1.0])]
    student = [single([0.0] * 4, 7.0, [0.0, 0.0]), single([logit(0.75), 0.0, 0.0, 0.0], -7.0, [1.0, -1.0])]
    owners = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    cls, box = output_terms(student, teacher, owners, anchors, 1.0)
    p = 1 / (1 + math.exp(-2.0))
    kl = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert cls.item() == pytest.approx(0.9 * kl / 1.5, rel=1e-5)
    apart = 1 - 3 / 5 + 0.25 / (2.5**2 + 2**2)  # 1 - IoU + squared distance / squared diagonal of the hull
    assert box.item() == pytest.approx(0.6 * apart / 1.5, rel=1e-5)


def test_faint_weights_are_not_blown_up() -> None:
    """A batch in which the teacher sees nothing: divided by 1, not by the sum of the weights."""
    teacher, student = [single([0.0] * 4, logit(0.01), [0.0, 2.0])], [single([0.0] * 4, 0.0, [0.0, 0.0])]
    owners = torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    cls, _ = output_terms(student, teacher, owners, torch.ones(1, 1, 2), 1.0)
    want = coin_kl(torch.tensor(0.0), torch.tensor(2.0), 1.0) * 0.01
    assert cls.item() == pytest.approx(want.item(), rel=1e-5)


def test_the_head_of_the_likeliest_class_counts() -> None:
    """Two heads of a student, one of its teacher, and the reverse: only one head's box is compared."""
    anchors = torch.full((1, 1, 2), 2.0)
    one, two = torch.zeros(2, dtype=torch.long), torch.tensor([1, 0])  # class 0 belongs to head 1
    boxes = torch.zeros(1, 1, 1, 1, 2, 4, requires_grad=True)
    several = View(boxes, torch.tensor([logit(0.5), logit(0.8)]).view(1, 1, 1, 1, 2), cell([3.0, 1.0]))
    alone = View(torch.ones(1, 1, 1, 1, 1, 4), torch.full((1, 1, 1, 1, 1), logit(0.8)), cell([3.0, 1.0]))
    _, box = output_terms([several], [alone], (two, one), anchors, 1.0)
    (grad,) = torch.autograd.grad(box, boxes)
    assert (grad[..., 0, :] == 0).all() and (grad[..., 1, :2] != 0).all()

    taught = torch.stack((torch.ones(4), torch.zeros(4))).view(1, 1, 1, 1, 2, 4)
    mine = View(torch.zeros(1, 1, 1, 1, 1, 4), torch.zeros(1, 1, 1, 1, 1), cell([0.0, 0.0]))
    for obj, likeliest in (([0.5, 0.8], 1), ([0.9, 0.1], 0)):  # class 0 by head 1, or class 1 by head 0
        theirs = View(taught, torch.tensor([logit(p) for p in obj]).view(1, 1, 1, 1, 2), cell([3.0, 1.0]))
        cls, box = output_terms([mine], [theirs], (one, two), anchors, 1.0)
        assert (box.item() < 1e-6) == (likeliest == 1)
        whole = coin_kl(torch.zeros(2), torch.tensor([3.0, 1.0]), 1.0).sum() * max(obj)
        assert cls.item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_equal_detectors_with_any_heads_have_nothing_to_teach(full: bool) -> None:
    """1B1H, and heads cut from it: the same, each way. Then one class row moves, and the class term sees it."""
    one = demo()
    four = cut_from(one, full)
    assert one.groups == ONE and four.groups == FOUR
    with torch.no_grad():
        for student, teacher in ((one, one), (four, four), (four, one), (one, four)):
            cls, box = terms(student, teacher)
            assert abs(cls.item()) < 1e-5 and abs(box.item()) < 1e-5, (cls, box)
        bias = four.model[77].heads[1][0].bias  # type: ignore[index,union-attr]
        bias.view(3, -1)[:, 6 if full else 5] += 1.0  # class 1
        assert all(terms(a, b)[0].item() > 1e-3 for a, b in ((four, one), (one, four)))


def test_views_list_classes_in_global_order() -> None:
    """A column that carries its own number is found in its place."""
    for full in (False, True):
        heads: Any = four_heads(full).head
        width = heads.table.starts[-1]
        (view,) = heads.views([torch.arange(width).float().expand(1, 1, 1, 1, width)])
        for h, group in enumerate(FOUR):
            start = heads.table.starts[h]
            assert view.box[0, 0, 0, 0, h].tolist() == [start, start + 1, start + 2, start + 3]
            assert view.obj[0, 0, 0, 0, h] == start + 4
            for i, c in enumerate(group):
                assert view.cls[0, 0, 0, 0, c] == start + 5 + (c if full else i)


def test_a_published_teacher() -> None:
    """YOLOv5's own file, as its own student."""
    path = str(shared("data/weights/yolov5n.pt"))
    model, meta = checkpoint.load_detector(path)
    patch = Distill(Flags(teacher=path, distill_temperature=(3.0,)))
    patch.names = meta["names"]
    patch.on_model_built(model, ())
    with torch.no_grad():
        found = patch.loss_terms({"image": image()}, model(image()), model)
    assert [k for k, v in found.items() if abs(v.item()) > 1e-6] == []
    assert patch.pairs == [(17, 17), (20, 20), (23, 23)] and not list(patch.parameters())
    assert patch.hidden[0] not in list(patch.modules())


def test_the_temperature_falls_by_a_cosine() -> None:
    patch = Distill(Flags(teacher="x.pt", distill_temperature=(4.0, 1.0)))
    found = []
    for epoch in range(5):
        patch.on_epoch_start(None, [], Progress(epoch, 5, 0))  # type: ignore[arg-type]
        found.append(patch.temperature)
    root = 1.5 * math.sqrt(0.5)
    assert found == pytest.approx([4.0, 2.5 + root, 2.5, 2.5 - root, 1.0])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"distill_temperature": (0.0,)}, "numbers above 0"),
        ({"distill_temperature": (1.0, 2.0, 3.0)}, "one or two"),
        ({"distill_gain": -1.0}, "--distill-gain must be at least 0, got -1"),
        ({"teacher": ""}, "needs a checkpoint"),
    ],
)
def test_flags_out_of_range(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Flags(**{"teacher": "x.pt", **flags})


@pytest.fixture(scope="module")
def runs(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teacher; of half its width: plain, taught, and taught but ended after the first of two epochs."""
    folder = tmp_path_factory.mktemp("distill")
    teacher = trained(small_shapes, folder, "teacher", epochs=2).dir / "weights/best.pt"
    half = {**spec("demo"), "width_multiple": 0.5}
    (folder / "half.yaml").write_text(yaml.safe_dump(half))
    base = ["--cfg", str(folder / "half.yaml"), "--freeze", "10", "--loss_ota", "1", "--multi-scale", "--noautoanchor"]
    taught = [*base, "--audit", "--teacher", str(teacher), "--distill-temperature", "4", "1"]
    trained(small_shapes, folder, "plain", *base, epochs=2)
    trained(small_shapes, folder, "taught", *taught, epochs=2)
    cut(small_shapes, folder, "cut", *taught, epochs=2, step=STEPS)
    return folder


def last(folder: Path) -> dict[str, Any]:
    return checkpoint.read_checkpoint(folder / "weights/last.pt")


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_terms_and_the_teachers_map_have_columns(runs: Path) -> None:
    found = rows(runs / "taught")
    assert len(found) == 2
    for row in found:
        assert all(float(row[k]) > 0 for k in ("distill_cls", "distill_box", "distill_feat"))
    same = {(row["teacher_mAP50"], row["teacher_mAP"]) for row in found}
    assert len(same) == 1


def test_the_teachers_map_is_that_of_an_evaluation(runs: Path, small_shapes: Path) -> None:
    """As test.py finds it, given the batch size of the run's validation."""
    import test as evaluation

    words = ["--weights", str(runs / "teacher/weights/best.pt"), "--data", str(small_shapes), "--img", "64"]
    words += ["--batch-size", "8", "--workers", "0", "--device", "cpu", "--project", str(runs), "--name", "evaluation"]
    result = evaluation.main(words)
    row = rows(runs / "taught")[0]
    assert result.map50 > 0
    assert float(row["teacher_mAP50"]) == pytest.approx(result.map50, rel=1e-6)
    assert float(row["teacher_mAP"]) == pytest.approx(result.map, rel=1e-6)


def test_the_teacher_is_neither_saved_nor_moved_and_projectors_train(
    runs: Path, small_shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One more run, whose parts are looked at; it also has a 1B4H student that starts as its teacher, by slices."""
    before = checkpoint.load_detector(runs / "teacher/weights/best.pt")[0].state_dict()
    start = str(runs / "teacher/weights/best.pt")
    flags = ["--weights", start, "--transfer-weights", "--teacher", start, "--distill-nodes", "57:57", "75:65"]
    run = trained(small_shapes, runs, "heads", *FOUR_HEADS, *flags)
    said = capsys.readouterr().out
    assert "features 57:57, 75:65" in said
    assert "warning: the teacher is not better than the student at its start" in said
    patch: Any = run.patches["distill"]
    teacher = patch.hidden[0]
    after = teacher.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(m.training for m in teacher.modules()) and not any(p.requires_grad for p in teacher.parameters())
    optimised = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in teacher.parameters()}
    assert optimised >= {id(p) for p in patch.parameters()}
    saved = last(run.dir)
    assert set(saved["patches"]) == {"distill.known", "distill.project.1.weight", "distill.project.1.bias"}
    assert list(saved["patches"]["distill.project.1.weight"].shape) == [56, 72, 1, 1]
    assert all(run.optimizer.state[p]["momentum_buffer"].any() for p in patch.parameters())
    assert len(saved["ema"]) == len(run.model.state_dict())


def test_terms_are_float32_under_autocast(runs: Path) -> None:
    """Close to the full-precision values, and equal to what the rounded outputs give in float32."""
    half = Detector({**spec("demo"), "width_multiple": 0.5}, 12).eval()
    patch = Distill(Flags(teacher=str(runs / "teacher/weights/best.pt"), distill_nodes=("57:57",)))
    patch.names = checkpoint.load_detector(runs / "teacher/weights/best.pt")[1]["names"]
    patch.on_model_built(half, ())
    found = []
    for lower in (False, True):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=lower):
            out = half(image())
            found.append(patch.loss_terms({"image": image()}, out, half))
            assert (out["feat"][57].dtype == torch.bfloat16) == lower
    for name, value in found[1].items():
        assert value.dtype == torch.float32 and value.item() == pytest.approx(found[0][name].item(), rel=0.05)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        views = [m.head.views(m(image())["det"]) for m in (half, patch.hidden[0])]
    cls, box = output_terms(views[0], views[1], (patch.owners[0], patch.owners[1]), half.head.anchors, 1.0)
    assert found[1]["distill_cls"].item() == pytest.approx(cls.item() * 0.5 / 80, rel=1e-5)
    assert found[1]["distill_box"].item() == pytest.approx(box.item() * 0.05, rel=1e-5)


def test_the_record_names_file_and_fingerprint(runs: Path) -> None:
    record = yaml.safe_load((runs / "taught/run.yaml").read_text())
    teacher = checkpoint.load_detector(runs / "teacher/weights/best.pt")[0]
    flags = record["patches"]["distill"]
    assert flags["teacher"] == str(runs / "teacher/weights/best.pt")
    assert flags["teacher_sha256"] == of_tensors(teacher.state_dict())


def test_no_resume_with_another_teacher(runs: Path) -> None:
    file = runs / "teacher/weights/best.pt"
    content = file.read_bytes()
    teacher = torch.load(file, weights_only=True)
    teacher["ema"]["model.0.conv.weight"] += 1
    torch.save(teacher, file)
    with pytest.raises(UserError, match="its weights are others now"):
        resumed(runs / "cut")
    file.write_bytes(content)
    resumed(runs / "cut")
    same(runs / "taught", runs / "cut")


@pytest.mark.parametrize("case", ["classes", "names", "anchors", "stride", "node", "words", "file"])
def test_a_teacher_that_does_not_match_stops_before_training(case: str, runs: Path, small_shapes: Path) -> None:
    good, flags = str(runs / "teacher/weights/best.pt"), []
    if case == "classes":
        model = Detector(spec("demo"), 3)
        checkpoint.save_checkpoint(
            runs / "three.pt", state=model.state_dict(), meta={"spec": spec("demo"), "nc": 3, "names": ["a", "b", "c"]}
        )
        good, said = str(runs / "three.pt"), "has 3 classes, the data has 12"
    elif case == "names":
        content = checkpoint.read_checkpoint(good)
        content["meta"]["names"][0] = "sphere"
        good, said = str(runs / "other.pt"), "are not those of the data: 0 sphere, here circle"
        checkpoint.save_checkpoint(Path(good), state=content["ema"], meta=content["meta"])
    elif case == "anchors":
        wide = {**spec("demo"), "anchors": [[10, 13, 20, 15, 16, 22], *spec("demo")["anchors"][1:]]}
        (runs / "wide.yaml").write_text(yaml.safe_dump(wide))
        flags, said = ["--cfg", str(runs / "wide.yaml")], "other anchors"
    elif case == "stride":
        flags, said = ["--distill-nodes", "57:65"], "stride 8, the teacher's 16"
    elif case == "node":
        flags, said = ["--distill-nodes", "57:77"], "modules 0..76"
    elif case == "words":
        flags, said = ["--distill-nodes", "57"], "STUDENT:TEACHER"
    else:
        good, said = str(runs / "none.pt"), "there is no checkpoint"
    with pytest.raises(UserError, match=said):
        trained(small_shapes, runs, f"wrong_{case}", "--noautoanchor", "--teacher", good, *flags)
    assert not (runs / f"wrong_{case}").exists()


def test_the_command_line_says_what_is_wrong(runs: Path, small_shapes: Path, command_line: CommandLine) -> None:
    words = ["train.py", *toy(small_shapes, runs, "cli"), "--noautoanchor", "--teacher", str(runs / "plain/run.yaml")]
    done = command_line(*words)
    assert done.returncode == 2 and "--teacher" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_ranks_are_taught_as_one_run(runs: Path, small_shapes: Path, command_line: CommandLine) -> None:
    """--audit compares the ranks before every checkpoint."""
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    words = [*toy(small_shapes, runs, "ranks", epochs=2), "--noautoanchor", "--audit", "--teacher"]
    words += [str(runs / "teacher/weights/best.pt"), "--cfg", str(runs / "half.yaml")]
    done = command_line(*ranks, *words)
    assert done.returncode == 0, done.stderr
    assert "as declared" in done.stdout and done.stdout.count("/best.pt: mAP@.5 ") == 1
    assert [row["teacher_mAP"] for row in rows(runs / "ranks")] == [r["teacher_mAP"] for r in rows(runs / "taught")]


def free(cfg: str = "demo-free", heads: bool = False) -> Detector:
    """A detector without anchors whose outputs differ from cell to cell."""
    patch = MultiHead(HeadFlags(heads=4, head_config=str(ROOT / "data/shapes_1b4h.yaml")))
    torch.manual_seed(0)
    model = Detector(read_model(f"{cfg}.yaml"), 12, {**LAYERS, **(patch.layers() if heads else {})})
    for p in model.model[-1].parameters():
        torch.nn.init.normal_(p, 0, 2 / max(p[0].numel(), 4) ** 0.5)
    return model.eval()


def terms_of_free(student: Detector, teacher: Detector) -> tuple[Tensor, Tensor]:
    views = [model.head.views(model(image())["det"]) for model in (student, teacher)]
    return free_terms(views[0], views[1], (owner_of(student.groups), owner_of(teacher.groups)), 2.0)


def test_terms_without_anchors_by_hand() -> None:
    """T = 2: coins of 3/4 and 1/2; of one side's 16 bins the teacher holds one with 1/2, the student all equal."""
    p = logit(0.75) * 2
    box = torch.zeros(1, 1, 1, 1, 1, 64)
    mine, theirs = View(box, None, cell([0.0, 0.0])), View(box.clone(), None, cell([p, 0.0]))
    theirs.box[..., 5] = math.log(15)
    cls, side = free_terms([mine], [theirs], (torch.zeros(2).long(), torch.zeros(2).long()), 2.0)
    weight = 1 / (1 + math.exp(-p))  # of the one cell; the sum of weights counts as 1 at least
    coin = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    bins = 0.5 * math.log(0.5 * 16) + 0.5 * math.log(0.5 / 15 * 16)
    assert float(cls) == pytest.approx(weight * coin, rel=1e-5)
    assert float(side) == pytest.approx(weight * bins / 4, rel=1e-5)


def test_terms_without_anchors_are_zero_where_both_say_the_same() -> None:
    """A copy, and several heads cut out of the teacher, on either side; another model is not."""
    one, four = free(), free(heads=True)
    heads: Any = four.head
    state = one.state_dict()
    rows = {k.removeprefix("model.23."): v for k, v in state.items() if k.startswith("model.23.")}
    trunk = {k: v for k, v in state.items() if not k.startswith("model.23.")}
    cut = heads.sliced(rows, range(12))
    four.load_state_dict({**four.state_dict(), **trunk, **{f"model.23.{k}": v for k, v in cut.items()}})
    for student, teacher in ((one, one), (four, one), (one, four), (four, four)):
        assert [float(v.detach()) for v in terms_of_free(student, teacher)] == pytest.approx([0, 0], abs=1e-5)
    other = free()
    torch.nn.init.normal_(other.model[-1].cv2[0][2].weight)  # type: ignore[index,union-attr]
    assert float(terms_of_free(other, one)[1].detach()) > 0.01


def test_a_free_teacher_of_another_width_and_of_another_kind(tmp_path: Path) -> None:
    """yolo11s teaches yolo11n: features by a projection; a teacher with anchors is refused by name."""
    with torch.random.fork_rng():
        spec_s = read_model("yolo11s.yaml")
        teacher = Detector(spec_s, 12)
    meta = {"spec": spec_s, "nc": 12, "groups": teacher.groups}
    checkpoint.save_checkpoint(tmp_path / "t.pt", state=teacher.state_dict(), meta=meta)
    patch, student = Distill(Flags(teacher=str(tmp_path / "t.pt"))), Detector(read_model("yolo11n.yaml"), 12)
    patch.names = [str(i) for i in range(12)]
    patch.on_model_built(student, ())
    assert [tuple(conv.weight.shape[:2]) for conv in patch.project] == [(128, 64), (256, 128), (512, 256)]
    batch: Any = {"image": image()}
    found = patch.loss_terms(batch, student(image()), student)
    assert list(found) == list(Distill.terms) and all(float(v.detach()) > 0 for v in found.values())
    with pytest.raises(UserError, match="cannot be compared; the teacher has none, the student has some"):
        check_match(demo(), teacher, "t.pt")
    with pytest.raises(UserError, match="the student has none, the teacher has some"):
        check_match(student, demo(), "t.pt")
