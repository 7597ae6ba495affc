"""cfg/hub: models of YOLOv5's hub folder and its P6 sizes, equal to the original program in counts and outputs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.graph import Detector
from tests.conformance.reference import fill
from tests.shared import ROOT
from utils.system.yaml_file import read_yaml
from utils.train.anchors import per_level
from utils.weights.model_files import read_model

# name: rows, parameters, state tensors (80 classes), sum of the decoded output for a picture of 128 pixels. Measured
# with the program itself (YOLOv5 7.0.14, torch 2.14): weights by the fill rule of the reference values, gain 2, the
# picture RandomState(8).random_sample, anchors of files that name none as `no_anchors` makes them.
ORIGINAL = {
    "yolov3-spp": (29, 62_998_749, 445, 323753.120263),
    "yolov3-tiny": (21, 8_852_366, 71, 75621.201847),
    "yolov3": (29, 61_949_149, 439, 309272.592079),
    "yolov5-bifpn": (25, 46_825_853, 613, 311227.165350),
    "yolov5-fpn": (20, 41_117_565, 547, 357145.257375),
    "yolov5-p2": (32, 47_493_372, 711, 916530.030355),
    "yolov5-p34": (22, 5_331_518, 311, 192323.735465),
    "yolov5-p6": (34, 76_770_172, 795, 245881.618505),
    "yolov5-p7": (43, 144_281_723, 977, 241912.920961),
    "yolov5-panet": (25, 46_563_709, 613, 324703.921344),
    "yolov5l6": (34, 76_770_172, 795, 542383.681511),
    "yolov5m6": (34, 35_731_932, 627, 387693.175385),
    "yolov5n6": (34, 3_246_940, 459, 325702.264112),
    "yolov5s-LeakyReLU": (25, 7_235_389, 349, 322605.032636),
    "yolov5s-ghost": (25, 3_897_605, 529, 339127.621843),
    "yolov5s-transformer": (25, 7_235_645, 348, 251092.945296),
    "yolov5s6": (34, 12_626_620, 459, 335793.869121),
    "yolov5x6": (34, 140_794_780, 963, 395726.702036),
}
SMALL = ("yolov3-tiny", "yolov5-p34", "yolov5n6", "yolov5s-LeakyReLU", "yolov5s-ghost", "yolov5s-transformer")


def no_anchors(levels: int) -> list[list[int]]:
    return [[(5 + 3 * j) * 2**level for j in range(6)] for level in range(levels)]


def test_every_file_is_covered() -> None:
    assert {f.stem for f in (ROOT / "cfg/hub").glob("*.yaml")} == ORIGINAL.keys()


@pytest.mark.parametrize("name", ORIGINAL)
def test_counts(name: str) -> None:
    """By the bare name, as a user asks for it."""
    rows, params, tensors, _ = ORIGINAL[name]
    with torch.device("meta"):
        model = Detector(per_level(read_model(f"{name}.yaml"), 0), 80)
    assert (len(model.model), len(model.state_dict())) == (rows, tensors)
    assert sum(p.numel() for p in model.parameters()) == params
    head = (ROOT / f"cfg/hub/{name}.yaml").read_text().splitlines()[1]
    assert head == f"# {rows} modules, {params:,} parameters, {tensors} state tensors with 80 classes."


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in SMALL)) for n in ORIGINAL])
def test_outputs(name: str) -> None:
    spec = read_yaml(Path(f"cfg/hub/{name}.yaml"))
    if isinstance(spec["anchors"], int):
        spec["anchors"] = no_anchors(len(spec["head"][-1][0]))
    model = Detector(spec, 80).eval()
    model.load_state_dict(fill(model.state_dict(), 2.0))
    image = torch.from_numpy(np.random.RandomState(8).random_sample((1, 3, 128, 128))).float()
    with torch.no_grad():
        found = torch.cat([part.pred for part in model.decode(model(image)["det"])], 1).double().sum().item()
    assert found == pytest.approx(ORIGINAL[name][3], rel=1e-6)
