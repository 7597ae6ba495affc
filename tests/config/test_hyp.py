"""A hyp file is a recipe: what it leaves out has the value of the program it comes from, and is said."""

from pathlib import Path

import pytest

from tests.shared import ROOT
from utils.config.hyp import OF_ANCHORS, fill_in, read_hyp
from utils.config.train import HYP_KEYS, Config, parse
from utils.system.errors import UserError

V5 = [  # the keys of YOLOv5's files
    "lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr", "box", "cls",
    "cls_pw", "obj", "obj_pw", "iou_t", "anchor_t", "fl_gamma", "hsv_h", "hsv_s", "hsv_v", "degrees", "translate",
    "scale", "shear", "perspective", "flipud", "fliplr", "mosaic", "mixup", "copy_paste",
]  # fmt: skip
VALUES = dict.fromkeys(V5, 0.0) | {"lr0": 0.01, "anchor_t": 4.0}


def hyp(folder: Path, **values: object) -> str:
    (folder / "h.yaml").write_text("".join(f"{k}: {v}\n" for k, v in values.items()))
    return str(folder / "h.yaml")


@pytest.mark.parametrize(
    ("more", "ota", "paste", "said"),
    [
        ({}, 0.0, 0.0, "YOLOv5's form, without loss_ota and paste_in; filled in: paste_in 0, loss_ota 0"),
        ({"paste_in": 0.05}, 1.0, 0.05, "YOLOv7's form, where no loss_ota means OTA; filled in: loss_ota 1"),
        ({"loss_ota": 1}, 1.0, 0.0, "filled in: paste_in 0"),
        ({"loss_ota": 1, "paste_in": 0.1}, 1.0, 0.1, ""),
    ],
)
def test_forms(
    tmp_path: Path, more: dict[str, float], ota: float, paste: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hyp(tmp_path, **VALUES, **more)
    cfg = parse(["--hyp", path]).cfg
    assert (cfg.loss_ota, cfg.paste_in) == (ota, paste)
    assert capsys.readouterr().out == (f"{path}: {said}\n" if said else "")


def test_a_short_file_of_yolov5s_form_has_yolov5s_values(tmp_path: Path) -> None:
    filled, said = fill_in(read_hyp(hyp(tmp_path, lr0=0.02), Config), Config, {"cls"})
    assert (filled["obj"], filled["mixup"], filled["lrf"], filled["scale"]) == (1.0, 0.0, 0.01, 0.5)
    assert "cls" not in filled and all(f" {k} " in said for k in filled), "all that is filled in is said"


@pytest.mark.parametrize("file", sorted((ROOT / "data").glob("hyp*.yaml")), ids=lambda p: str(p.name))
def test_the_shipped_recipes_are_complete(file: Path) -> None:
    filled, said = fill_in(read_hyp(str(file), Config), Config)
    assert filled.keys() <= OF_ANCHORS and not said  # which a recipe for heads without them need not have


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    assert read_hyp(hyp(tmp_path, lr0="2e-3", lrf="1E+0", anchors=3.412), Config) == {
        "lr0": 0.002, "lrf": 1.0, "anchors": 3.412,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lr0: fast", "lr0 must be a number, got 'fast'"),
        ("lr0: true", "lr0 must be a number, got True"),
        ("lr0: .inf", "lr0 must be a finite number, got inf"),
        ("warmup_epochs: 1e400", "warmup_epochs must be a finite number"),
        ("fliplr: 1.5", "fliplr must lie in 0..1, got 1.5"),
        ("lr00: 1", "unknown hyper-parameter 'lr00'"),
        ("lr0: 1\nlr0: 2", "line 2: key 'lr0' is given twice, first in line 1"),
    ],
)
def test_what_is_wrong_names_file_and_key(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "h.yaml").write_text(line)
    with pytest.raises(UserError) as error:
        read_hyp(str(tmp_path / "h.yaml"), Config)
    assert f"{tmp_path / 'h.yaml'}: {said}" in str(error.value)


def test_every_key_of_yolov5_is_known() -> None:
    assert set(V5) <= set(HYP_KEYS)
