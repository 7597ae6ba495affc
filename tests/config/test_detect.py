"""Flags of detect.py."""

import pytest

from utils.config.detect import PROGRAM
from utils.system.errors import UserError


def test_what_is_left_unsaid() -> None:
    cfg = PROGRAM.parse(["--weights", "w.pt", "--source", "0"]).cfg
    assert (cfg.conf_thres, cfg.nms_iou, cfg.classes, cfg.on_bad_data, cfg.project) == (
        0.25,
        0.45,
        (),
        "skip",
        "runs/detect",
    )


def test_a_source_is_needed() -> None:
    with pytest.raises(UserError, match="--source is needed: image, folder"):
        PROGRAM.parse(["--weights", "w.pt"])
