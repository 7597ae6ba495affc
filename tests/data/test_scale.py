"""`scale: [lo, hi]` of a data YAML: TIFFs of floating point numbers, from the file to the batch."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

import test as program
from tests.conftest import ROOT
from tests.toy import trained
from utils.config.settings import DataSettings
from utils.data.build import make_dataset
from utils.data.scan import fingerprint
from utils.data.spec import read_data
from utils.system.errors import UserError


def float_set(root: Path, scale: str) -> Path:
    (root / "images").mkdir()
    (root / "labels").mkdir()
    for i in range(2):
        ramp = np.linspace(10, 30, 64 * 64 * 3, dtype=np.float32).reshape(64, 64, 3)
        tifffile.imwrite(root / f"images/{i}.tif", ramp, photometric="rgb")
        (root / f"labels/{i}.txt").write_text("0 .5 .5 .2 .2\n")
    (root / "data.yaml").write_text(f"train: images\nval: images\nnames: [a]\n{scale}\n")
    return root / "data.yaml"


def opened(source: Path) -> np.ndarray:
    dataset = make_dataset(read_data(source), "val", DataSettings(img_size=64, batch_size=2))
    return np.asarray(dataset[(0, 0)]["image"])


def test_values_become_shares_of_the_scale(tmp_path: Path) -> None:
    image = opened(float_set(tmp_path, "scale: [10, 50]"))
    assert image.dtype == np.uint16
    want = np.rint(np.linspace(0, 0.5, 64 * 64 * 3).reshape(64, 64, 3) * 65535)
    assert np.abs(image.transpose(1, 2, 0) - want).max() <= 1
    prints = set()
    for scale in ("[10, 50]", "[10, 51]"):
        (tmp_path / "data.yaml").write_text(f"train: images\nval: images\nnames: [a]\nscale: {scale}\n")
        prints.add(fingerprint(read_data(tmp_path / "data.yaml")))
    assert len(prints) == 2


def test_without_a_scale_they_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0\.tif: the image holds floating point numbers; .*scale: \[0, 1\]"):
        opened(float_set(tmp_path, ""))


def test_a_scale_is_not_for_whole_numbers(tmp_path: Path) -> None:
    source = float_set(tmp_path, "scale: [0, 1]")
    tifffile.imwrite(tmp_path / "images/1.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    with pytest.raises(UserError, match=r"1\.tif: the image holds whole numbers of 8 bits, .*`scale`"):
        opened(source)


@pytest.mark.parametrize("scale", ["[1, 1]", "[2, 1]", "[0]", "1", "[0, .inf]", "[.nan, 1]", "[a, b]", "[true, 2]"])
def test_a_wrong_scale_is_refused(tmp_path: Path, scale: str) -> None:
    source = float_set(tmp_path, f"scale: {scale}")
    with pytest.raises(UserError, match="scale: expected"):
        read_data(source)


def test_another_scale_than_in_training_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By test.py, which would show the model other shades; a new stage says it. The same one is taken."""
    monkeypatch.chdir(ROOT)
    data = float_set(tmp_path, "scale: [10, 50]")
    weights = trained(data, tmp_path, "a", "--batch", "2").dir / "weights/best.pt"
    words = ["--weights", str(weights), "--data", str(data), "--device", "cpu", "--project", str(tmp_path / "t")]
    assert program.main(words)
    data.write_text(data.read_text().replace("50", "51"))
    with pytest.raises(UserError, match=r"was trained with `scale: \[10\.0, 50\.0\]`.*\[10\.0, 51\.0\]"):
        program.main(words)
    trained(data, tmp_path, "b", "--batch", "2", "--weights", str(weights))
    assert "scale of the images: [10.0, 50.0]" in capsys.readouterr().out
