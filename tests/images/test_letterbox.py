"""Letterbox against the reference values of both YOLO programs, and by hand."""

import json

import numpy as np
import pytest

from tests.shared import shared
from utils.images.letterbox import fit, letterbox


def test_every_reference_case() -> None:
    cases = json.loads(shared("golden/geometry/yolov7.json").read_text())["letterbox"]
    arrays = np.load(shared("golden/geometry/yolov7.npz"))
    pictures = 0
    for case in cases:
        options = dict(case["kw"])
        if "scaleFill" in options:
            options["scale_fill"] = options.pop("scaleFill")
        name = f"img_{case['h']}x{case['w']}"
        image = np.random.RandomState(case["h"] * 1000 + case["w"]).randint(0, 256, (case["h"], case["w"], 3))
        if name in arrays:
            assert (arrays[name] == image).all()
        new = case["new_shape"] if isinstance(case["new_shape"], int) else tuple(case["new_shape"])
        out, ratio, pad = letterbox(image.astype(np.uint8), new, **options)
        assert list(out.shape) == case["out_shape"], case
        assert list(ratio) == case["ratio"], case
        assert list(pad) == case["pad"], case
        if case.get("key") in arrays:
            assert (out == arrays[case["key"]]).all(), case
            pictures += 1
    assert len(cases) == 255
    assert pictures == sum(key.startswith("lb") for key in arrays) > 0


@pytest.mark.parametrize(
    ("size", "options", "inner", "outer", "offset"),
    [
        ((480, 640), {"auto": False}, (240, 320), (320, 320), (0, 40)),
        ((480, 640), {"auto": True}, (240, 320), (256, 320), (0, 8)),
        ((100, 100), {"auto": False, "scaleup": False}, (100, 100), (320, 320), (110, 110)),
        ((99, 100), {"auto": False, "scaleup": False}, (99, 100), (320, 320), (110, 110)),
        ((100, 50), {"auto": False, "scale_fill": True}, (320, 320), (320, 320), (0, 0)),
    ],
)
def test_by_hand(
    size: tuple[int, int],
    options: dict[str, bool],
    inner: tuple[int, int],
    outer: tuple[int, int],
    offset: tuple[int, int],
) -> None:
    placed = fit(size, 320, **options)
    assert (placed.inner, placed.outer, (placed.left, placed.top)) == (inner, outer, offset)


@pytest.mark.parametrize("size", [(5000, 2), (1, 3000), (3000, 1)])
def test_a_very_narrow_picture_keeps_a_pixel(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 7, np.uint8)
    placed = fit(size, 128)
    assert min(placed.inner) == 1 and max(placed.outer) == 128
    assert (letterbox(image, 128)[0] == 7).all(2).sum() == placed.inner[0] * placed.inner[1]
