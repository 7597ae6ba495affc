"""Images of five channels in 16 bits through train.py, test.py and detect.py; what is said where they do not fit."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect
import test as evaluation
import train
from tests.conftest import ROOT, CommandLine
from tests.toy import toy, trained
from utils.images.read import read_image
from utils.runs.record import read_rows
from utils.runs.replay import read
from utils.study.measure import measure
from utils.system.errors import UserError
from utils.weights.checkpoint import load_detector, read_checkpoint

COLOURLESS = ("--hsv-h", "0", "--hsv-s", "0")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data YAMLs of the embedded set: five.yaml in five channels of 16 bits, and rgb.yaml."""
    made = tmp_path_factory.mktemp("depth")
    text = (ROOT / "data/shapes.yaml").read_text().replace("{train: 320, val: 80}", "{train: 8, val: 4}")
    (made / "rgb.yaml").write_text(text.replace("path: shapes", "path: rgb"))
    (made / "five.yaml").write_text(text.replace("path: shapes", "path: five") + "channels: 5\nbits: 16\n")
    return made


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run on five channels, from the command line, with mosaic, --quad, --multi-scale and the cache."""
    words = [*toy(folder / "five.yaml", folder / "runs", "five", batch=8), *COLOURLESS]
    words += ["--quad", "--multi-scale", "--cache", "--mosaic", "1", "--mixup", "0.5", "--paste-in", "0.5"]
    out = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert "train: 8 images of 5 channels in 16 bits" in out.stdout
    return folder / "runs/five"


def test_a_run_and_its_checkpoint(run: Path) -> None:
    assert read_checkpoint(run / "weights/best.pt")["meta"]["channels"] == 5
    model, meta = load_detector(run / "weights/best.pt")
    assert model.in_channels == meta["channels"] == 5
    assert model.state_dict()["model.0.conv.weight"].shape[1] == 5
    for name in ("train_batch0.jpg", "val_batch0_labels.jpg", "val_batch0_pred.jpg"):
        picture = cv2.imread(str(run / name))
        assert picture is not None and picture.std() > 10  # the shapes can be seen


def test_evaluation_and_measurement_agree_with_training(run: Path, folder: Path) -> None:
    words = ["--data", str(folder / "five.yaml"), "--weights", str(run / "weights/best.pt"), "--img", "64"]
    words += ["--workers", "0", "--batch", "8", "--device", "cpu", "--project", str(folder), "--name", "test"]
    result = evaluation.main(words)
    assert result.map == pytest.approx(float(read_rows(run / "results.csv")[-1]["mAP"]), abs=1e-9)
    settings = {"config": read_checkpoint(run / "weights/best.pt")["meta"]["config"]}
    assert measure(run, settings, "cpu").result.map == result.map
    assert read(str(run)).cfg.data == str(folder / "five.yaml")


def test_detections_on_deep_pictures(run: Path, folder: Path) -> None:
    words = ["--weights", str(run / "weights/best.pt"), "--source", str(folder / "five/images/val"), "--img", "64"]
    detect.main([*words, "--conf", "0.9", "--device", "cpu", "--project", str(folder), "--name", "found"])
    for file in (folder / "five/images/val").iterdir():
        image, drawn = read_image(file, channels=5), read_image(folder / "found" / file.name)
        assert image is not None and drawn is not None
        assert np.array_equal(drawn, np.rint(image[..., :3] / 257))  # no box is that sure


def refused(words: list[str], main: object = train.main) -> str:
    with pytest.raises(UserError) as error:
        main(words)  # type: ignore[operator]
    return str(error.value)


def test_what_does_not_fit_is_said(run: Path, folder: Path, tmp_path: Path) -> None:
    best, rgb, five = str(run / "weights/best.pt"), folder / "rgb.yaml", folder / "five.yaml"
    said = refused(
        ["--data", str(rgb), "--weights", best, "--device", "cpu", "--project", str(tmp_path)], evaluation.main
    )
    assert best in said and "images of 5 channels" in said and str(rgb) in said and "images of 3" in said
    image = folder / "rgb/images/val/0000.png"
    said = refused(
        ["--source", str(image), "--weights", best, "--device", "cpu", "--project", str(tmp_path)], detect.main
    )
    assert str(image) in said and "has 3 channels; 5 are wanted" in said
    said = refused([*toy(rgb, tmp_path, "a"), "--weights", best])
    assert "--transfer-weights" in said and "model.0.conv.weight: [16, 5, 3, 3] in the file, [16, 3, 3, 3]" in said
    said = refused(toy(five, tmp_path, "a"))
    assert "--hsv-s 0.3" in said and str(five) in said and "5 channels" in said
    assert not list(tmp_path.glob("a/*")), "refused before anything is written"


def test_a_resume_on_other_channels(run: Path, folder: Path) -> None:
    text, result = (folder / "five.yaml").read_text(), run / "result.yaml"
    try:
        result.rename(folder / "result.yaml")  # as if killed after its last save
        (folder / "five.yaml").write_text((folder / "rgb.yaml").read_text())
        said = refused(["--resume", str(run)])
    finally:
        (folder / "five.yaml").write_text(text)
        (folder / "result.yaml").rename(result)
    assert "reads images of 5 channels" in said and "has images of 3" in said


def test_transfer_to_three_channels(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = trained(folder / "rgb.yaml", folder / "runs", "rgb", "--weights", str(run / "weights/best.pt"),
                    "--transfer-weights", "--epochs", "1")  # fmt: skip
    assert "adapted to 3 channels: model.0.conv.weight" in capsys.readouterr().out
    assert start.model.in_channels == 3


def test_videos_have_three_channels(run: Path, folder: Path, command_line: CommandLine) -> None:
    writer = cv2.VideoWriter(str(folder / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    words = ["--source", str(folder / "v.mp4"), "--weights", str(run / "weights/best.pt"), "--device", "cpu"]
    said = refused([*words, "--project", str(folder), "--name", "v"], detect.main)
    assert "videos have 3 channels, the model reads 5" in said
