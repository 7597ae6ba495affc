"""Training, chaining, testing and detecting as a user does it, at toy size."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import detect
from tests.conftest import ROOT, CommandLine
from tests.shared import shared
from tests.toy import FOUR_HEADS, toy, trained
from utils import __main__ as tools
from utils.evaluation.nms import nms
from utils.images.letterbox import letterbox
from utils.runs.record import read_rows
from utils.system.errors import UserError
from utils.weights.checkpoint import load_detector, read_checkpoint

FILES = {
    "run.yaml", "results.csv", "results.txt", "timing.csv", "results.png", "labels.png", "train_batch0.jpg",
    "val_batch0_labels.jpg", "val_batch0_pred.jpg", "PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png",
    "confusion_matrix.png", "weights",
}  # fmt: skip


@pytest.fixture(scope="session")
def base_run(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a 1B1H model trained for two epochs."""
    import subprocess
    import sys

    project = tmp_path_factory.mktemp("runs")
    words = [sys.executable, "train.py", *toy(small_shapes, project, "base", epochs=2), "--audit"]
    words += ["--save_period", "1"]
    out = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return project / "base"


def test_a_run_folder_is_complete(base_run: Path) -> None:
    found = {p.name for p in base_run.iterdir()}
    assert found >= FILES - {"PR_curve.png", "F1_curve.png", "P_curve.png", "R_curve.png"}, FILES - found
    assert {p.name for p in (base_run / "weights").iterdir()} == {
        "last.pt",
        "previous.pt",
        "best.pt",
        "epoch_000.pt",
        "epoch_001.pt",
    }
    rows = read_rows(base_run / "results.csv")
    assert [r["epoch"] for r in rows] == ["0", "1"]
    assert all(float(r["val_box"]) > 0 and r["match"] == "coco" for r in rows)
    timing = read_rows(base_run / "timing.csv")
    assert [r["epoch"] for r in timing] == ["0", "1"]
    assert all(0 < float(r["data_wait"]) < 1 and float(r["seconds"]) > 0 for r in timing)
    lines = (base_run / "results.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [15, 15]
    run = yaml.safe_load((base_run / "run.yaml").read_text())
    assert run["config"]["lr0"] == 0.002 and run["environment"]["torch"] == torch.__version__
    assert len(run["data"]["fingerprint"]) >= 16 and "train.py" in run["command"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--rect"],
        ["--multi-scale", "--image-weights"],
        ["--quad", "--adam", "--linear-lr"],
        ["--single-cls", "--cache-images", "--label-smoothing", "0.1"],
        ["--loss-ota", "1", "--notest", "--nosave", "--compat", "v7"],
        ["--mosaic", "1", "--mixup", "1", "--copy-paste", "1", "--paste-in", "1", "--degrees", "10", "--shear", "5"],
        ["--multi-scale", "--loss-ota", "1", *FOUR_HEADS],
        ["--rect", "--adam", *FOUR_HEADS],
        ["--head-loss", "sum", "--quad", *FOUR_HEADS],
    ],
    ids=lambda f: f[0] + (" 1B4H" if "--heads" in f else ""),
)
def test_flags_of_the_base(small_shapes: Path, tmp_path: Path, flags: list[str]) -> None:
    trained(small_shapes, tmp_path, "a", "--audit", *flags)
    row = read_rows(tmp_path / "a/results.csv")[-1]
    box = sum(float(v) for k, v in row.items() if k.split("/")[0] == "box")
    assert box > 0 and row["mAP"] != ""


def test_four_heads_chain_from_one(
    base_run: Path, small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transfer, then a second stage from the first: what is printed, logged, frozen."""
    start = ["--weights", str(base_run / "weights/best.pt"), "--transfer-weights", "--freeze", "50", "--loss-ota", "1"]
    trained(small_shapes, tmp_path, "s1", *FOUR_HEADS, *start, "--audit")
    said = capsys.readouterr().out
    for words in (
        "25 are parts of its head (sliced), 0 start fresh; 0 of the file's are left over",
        "backbone frozen, neck frozen in part (21 of 48 modules)",
        "learning rate: 0.002 to 0.0002; warm-up: ",
        "--loss-ota: 0.0 -> 1.0",
        " train, 34 stand still",
    ):
        assert words in said, said
    row = read_rows(tmp_path / "s1/results.csv")[-1]
    assert all(f"{kind}/head_{h}" in row for kind in ("box", "obj", "cls", "val_box", "mAP50") for h in range(4))
    old, new = read_checkpoint(base_run / "weights/best.pt")["ema"], read_checkpoint(tmp_path / "s1/weights/last.pt")
    assert all(
        torch.equal(old[k], new["ema"][k]) == (int(k.split(".")[1]) < 50)
        for k in old
        if k in new["ema"] and k.endswith("weight")
    )
    assert new["meta"]["groups"][0] == [0, 4, 7]

    first = str(tmp_path / "s1/weights/last.pt")
    trained(small_shapes, tmp_path, "s2", *FOUR_HEADS, "--weights", first, "--freeze", "30", "--audit")
    said = capsys.readouterr().out
    assert "  --freeze: 50 -> 30\n" in said and "  --transfer-weights: True -> off\n" in said

    heads = yaml.safe_load((ROOT / "data/shapes_1b4h.yaml").read_text())
    a, b = (heads["head_assignments"][h]["classes"] for h in ("head_0", "head_1"))
    a[0], b[0] = b[0], a[0]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(heads))
    swap = ["--head-config", str(tmp_path / "other.yaml"), "--weights", first]
    with pytest.raises(UserError, match="another grouping"):
        trained(small_shapes, tmp_path, "s3", *FOUR_HEADS, *swap)


def test_test_py(command_line: CommandLine, base_run: Path, small_shapes: Path, tmp_path: Path) -> None:
    words = [
        "--data",
        str(small_shapes),
        "--weights",
        str(base_run / "weights/best.pt"),
        "--img",
        "64",
        "--batch-size",
        "4",
    ]
    more = [
        "--workers",
        "0",
        "--project",
        str(tmp_path),
        "--name",
        "t",
        "--save-txt",
        "--save-conf",
        "--no-trace",
        "--conf-thres",
        "0.0001",
    ]
    out = command_line(
        "test.py", *words, *more, "--save-per-class-ap", str(tmp_path / "ap.json"), "--match", "v7", "--save-json"
    )
    assert out.returncode == 0, out.stderr
    assert "YOLOv7 matching" in out.stdout and "circle" in out.stdout
    ap = json.loads((tmp_path / "ap.json").read_text())
    assert ap["match"] == "v7" and set(ap["per_class"]["0"]) == {"ap50", "ap", "name"}
    line = next((tmp_path / "t/labels").glob("*.txt")).read_text().splitlines()[0].split()
    assert len(line) == 6 and all(0 <= float(v) <= 1 for v in line[1:])
    found = json.loads(next((tmp_path / "t").glob("*.json")).read_text())
    assert {"image_id", "category_id", "bbox", "score"} <= set(found[0])


def test_detect_on_images_and_video(
    command_line: CommandLine, base_run: Path, small_shapes: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    writer = cv2.VideoWriter(str(source / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 64))
    for i in range(5):
        writer.write(np.full((64, 96, 3), 40 * i, np.uint8))
    writer.release()
    cv2.imwrite(str(source / "a.png"), np.full((50, 80, 3), 128, np.uint8))
    words = [
        "--weights",
        str(base_run / "weights/best.pt"),
        "--img",
        "64",
        "--project",
        str(tmp_path),
        "--conf-thres",
        "0.0001",
    ]
    out = command_line("detect.py", *words, "--source", str(source), "--name", "d", "--save-txt")
    assert out.returncode == 0, out.stderr
    assert "6 images" in out.stdout
    capture = cv2.VideoCapture(str(tmp_path / "d/clip.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 5
    assert cv2.imread(str(tmp_path / "d/a.png")).shape == (50, 80, 3)
    out = command_line("detect.py", *words, "--source", str(tmp_path / "nothing*"), "--name", "e")
    assert out.returncode == 2 and "--source" in out.stderr and not (tmp_path / "e").exists()


def test_detect_sees_the_picture_that_test_py_sees(base_run: Path, small_shapes: Path, tmp_path: Path) -> None:
    """A still picture keeps its colours, and its detections are those of the same weights in evaluation."""
    red = np.zeros((64, 64, 3), np.uint8)
    red[:, :, 2] = 255
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "red.png"), red)
    words = ["--weights", str(base_run / "weights/best.pt"), "--img", "64", "--project", str(tmp_path)]
    detect.main([*words, "--source", str(tmp_path), "--name", "d", "--conf-thres", "0.9"])
    assert {p.name for p in (tmp_path / "d").glob("*.png")} == {"red.png", "red_2.png"}
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "d/red.png")), red)

    source = sorted((small_shapes.parent / "shapes/images/val").iterdir())[0]
    low = ["--conf-thres", "0.0001", "--iou-thres", "0.65", "--save-txt", "--save-conf"]
    detect.main([*words, *low, "--source", str(source), "--name", "one", "--nosave"])
    model, _ = load_detector(base_run / "weights/best.pt")
    picture = cv2.cvtColor(cv2.imread(str(source)), cv2.COLOR_BGR2RGB)
    fitted, _, _ = letterbox(picture, 64)
    tensor = torch.from_numpy(fitted.transpose(2, 0, 1).copy())[None].float() / 255
    with torch.no_grad():
        best = float(nms(model.decode(model(tensor)["det"]), 0.0001, 0.65, multi_label=False)[0][0, 4])
    lines = next((tmp_path / "one/labels").glob("*.txt")).read_text().splitlines()
    assert float(lines[0].split()[5]) == pytest.approx(best, abs=2e-6)


def test_epochs_without_evaluation(small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(small_shapes, tmp_path, "n", "--notest", epochs=2)
    first, last = read_rows(tmp_path / "n/results.csv")
    assert first.keys() == last.keys() and first["mAP"] == "" and last["mAP"] != ""
    capsys.readouterr()
    tools.main(["stages", "table", str(tmp_path / "n"), str(tmp_path / "nothing")])
    said = capsys.readouterr().out
    assert "| n " in said and "missing" in said


def test_help_lists_patches_and_modules(command_line: CommandLine) -> None:
    out = command_line("train.py", "--help", "--cfg", "cfg/training/yolov5n.yaml")
    assert out.returncode == 0, out.stderr
    assert "--freeze" in out.stdout and "--transfer-heads" in out.stdout and "SPPF" in out.stdout


@pytest.mark.slow
def test_gradual_chain_stops_and_can_be_told_to_go_on(
    command_line: CommandLine, base_run: Path, small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two stages of one epoch; a threshold no run can meet stops the chain after the first, CONTINUE=1 finishes it."""
    import subprocess
    import sys

    settings: dict[str, str] = {
        "WEIGHTS": str(base_run / "weights/best.pt"), "DATA": str(small_shapes), "CFG": FOUR_HEADS[1],
        "HEAD_CONFIG": FOUR_HEADS[5], "IMG": "64", "BATCH": "4", "WORKERS": "0", "DEVICE": "cpu",
        "PROJECT": str(tmp_path), "PREFIX": "g",
        "FREEZE": "50 0", "EPOCHS": "1 1", "HYPS": "data/hyp.demo.yaml data/hyp.demo.stage2.yaml", "MAX_LOSS_JUMP": "0",
        "PYTHON": sys.executable,
    }  # fmt: skip
    run: Callable[[dict[str, str]], subprocess.CompletedProcess[str]] = lambda extra: subprocess.run(  # noqa: E731
        ["bash", "scripts/gradual_unfreeze.sh"], cwd=ROOT, env={**os.environ, **settings, **extra},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    out = run({})
    assert out.returncode == 1 and "stopped after stage 1" in out.stderr and "loss jumped" in out.stderr
    assert not (tmp_path / "g_stage2_freeze0").exists()
    out = run({"CONTINUE": "1"})
    assert out.returncode == 0, out.stderr
    said = " ".join(out.stdout.split())
    assert "| stage1_freeze50 | finished | 50 |" in said and "| stage2_freeze0 | finished | 0 |" in said
    out = run({"CONTINUE": "1", "MAX_DROP": "7"})
    assert out.returncode == 2 and "--max-drop must lie in 0..1" in out.stderr, "a wrong limit is no collapse"


def test_published_weights_start_a_run(small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = shared("data/weights/yolov5n.pt")
    words = ["--cfg", "cfg/training/yolov5n.yaml", "--weights", str(weights), "--transfer-weights"]
    trained(small_shapes, tmp_path, "v5", *words, "--freeze", "backbone")
    assert "of the model's 349 tensors 343 are taken" in capsys.readouterr().out
