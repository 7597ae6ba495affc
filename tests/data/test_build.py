"""Loaders of a data YAML: what is said about the splits together."""

from pathlib import Path

import pytest
import yaml

from utils.config.train import Config
from utils.data.build import make_loaders
from utils.data.spec import read_data
from utils.seams import Patches


@pytest.mark.parametrize("val", ["images/val", "images"])
def test_validation_on_training_images_is_said(
    small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], val: str
) -> None:
    spec = read_data(small_shapes)
    content = {"path": str(spec.root), "train": "images/train", "val": val, "names": list(spec.names)}
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content))
    cfg = Config(data=str(tmp_path / "d.yaml"), batch_size=4, workers=0, img_size=(64,))
    make_loaders(cfg, read_data(cfg.data), Patches(), 64, 32)
    said = "warning: 12 of the 20 validation images are training images as well"
    assert (said in capsys.readouterr().out) == (val == "images")
