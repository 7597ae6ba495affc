"""Every shipped model file builds, with the published numbers, keys and shapes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import test
import train
from models.catalog import LAYERS
from models.graph import Detector
from patches.multihead import Flags, patch
from tests.models.test_hub import no_anchors
from tests.shared import ROOT, shared
from tests.toy import toy
from utils.system.yaml_file import read_yaml
from utils.weights.model_files import read_model, shipped

# name: modules, parameters, state tensors (80 classes, unfused)
PUBLISHED = {
    "yolov7-tiny": (78, 6_228_762, 344),
    "yolov7-tiny-320": (78, 6_228_762, 344),
    "yolov7": (106, 37_622_682, 566),
    "yolov7x": (122, 71_347_394, 644),
    "yolov5n": (25, 1_872_157, 349),
    "yolov5s": (25, 7_235_389, 349),
    "yolov5m": (25, 21_190_557, 481),
    "yolov5l": (25, 46_563_709, 613),
    "yolov5x": (25, 86_749_405, 745),
}
# name: modules, parameters that learn, state tensors (80 classes) of the models without anchors
FREE = {
    "yolov8n": (23, 3_157_184, 355),
    "yolov8s": (23, 11_166_544, 355),
    "yolov8m": (23, 25_902_624, 475),
    "yolov8l": (23, 43_691_504, 595),
    "yolov8x": (23, 68_229_632, 595),
    "yolo11n": (24, 2_624_064, 499),
    "yolo11s": (24, 9_458_736, 499),
    "yolo11m": (24, 20_114_672, 649),
    "yolo11l": (24, 25_372_144, 1015),
    "yolo11x": (24, 56_966_160, 1015),
    "yolov5nu": (25, 2_654_800, 427),
}
SIZED = {"yolov8", "yolo11", "yolov5u"}  # files that describe five sizes each
# several heads on one trunk: the plain model it is made from
MULTI = {
    "yolov7-tiny-1b4h": "yolov7-tiny",
    "yolov7-tiny-1b4h-attn": "yolov7-tiny",
    "yolov7-tiny-1b4h-320": "yolov7-tiny-320",
    "yolov5n-1b4h": "yolov5n",
    "yolov5s-1b4h": "yolov5s",
    "demo-1b4h": "demo",
}
WITH_AUX = ("w6", "e6", "d6", "e6e")
OTHERS = [
    *(f"training/yolov7-{size}" for size in WITH_AUX),
    *(
        f"{folder}/{f.stem}"
        for folder in ("deploy", "baseline")
        for f in sorted((ROOT / "cfg" / folder).glob("*.yaml"))
    ),
]
DETECTORS = {"yolov7-tiny-1b4h-attn": "MultiHeadDetectAttn"}


def spec(name: str) -> dict[str, Any]:
    parsed = yaml.safe_load((ROOT / f"cfg/training/{name}.yaml").read_text())
    assert isinstance(parsed, dict)
    return parsed


def build(name: str) -> Detector:
    """On the meta device: shapes without memory. (`model.0` then exists with all its sizes, and no number is drawn.)"""
    with torch.device("meta"):
        return Detector(spec(name), spec(name)["nc"])


def build_several(name: str, grouping: str) -> Detector:
    """A model with several heads, classes shared out as one of the shipped head files says."""
    heads = patch(Flags(heads=4, head_config=str(ROOT / f"data/coco_320_1b4h_{grouping}.yaml")))
    with torch.device("meta"):
        return Detector(spec(name), 80, {**LAYERS, **heads.layers()})


def reference(kind: str, name: str) -> Any:
    """An entry of golden/models/*_<kind>.json."""
    for family in ("yolov7", "yolov5"):
        for suffix in ("", "_more"):
            path = Path(f"golden/models/{family}_{kind}{suffix}.json")
            if suffix and (kind, family) != ("info", "yolov7"):
                continue
            table = json.loads(shared(str(path)).read_text())
            table = table.get("models", table)
            if name in table:
                return table[name]
    pytest.fail(f"no reference for {name}")


def test_every_model_file_is_covered_by_this_test() -> None:
    known = {
        *PUBLISHED,
        *MULTI,
        *SIZED,
        *(f"yolov7-{size}" for size in WITH_AUX),
        "demo",
        "demo-free",
        "demo-free-1b4h",
    }
    assert {f.stem for f in (ROOT / "cfg/training").glob("*.yaml")} == known


@pytest.mark.parametrize("file", OTHERS)
def test_yolov7s_other_files_equal_the_original_programs(file: str) -> None:
    """Rows and parameters of each, strides and anchors. YOLOv7 stores the anchors of a plain Detect twice."""
    folder, name = file.split("/")
    info = reference("info", name if folder == "training" else f"{folder}_{name}")
    read = read_yaml(ROOT / f"cfg/{file}.yaml")
    with torch.device("meta"):
        model = Detector(read, 80)
    rows = [row for part in ("backbone", "head") for row in read[part]]
    counts = [sum(p.numel() for p in module.parameters()) for module in model.model]
    table = list(zip(range(len(rows)), [row[2].removeprefix("nn.") for row in rows], counts, strict=True))
    assert table == [(i, kind, n) for i, _, kind, n in info["layer_table"]]
    assert [list(s) for s in model.sources] == [absolute(i, source) for i, source, _, _ in info["layer_table"]]
    twice = not hasattr(model.head, "anchor_grid")
    assert len(model.state_dict()) + twice == info["state_dict_len"]
    assert [256 / shape[-1] for shape in model.shapes(256)[-1]][: len(info["strides"])] == info["strides"]
    pixels = torch.tensor(read["anchors"], dtype=torch.float32).view(len(info["strides"]), -1, 2)
    wanted = torch.tensor(info["anchors_grid_units"])
    assert torch.equal(pixels / torch.tensor(info["strides"]).view(-1, 1, 1), wanted)


def absolute(row: int, source: int | list[int]) -> list[int]:
    return [row + s if s < 0 else s for s in (source if isinstance(source, list) else [source])]


@pytest.mark.slow
@pytest.mark.parametrize("file", [*OTHERS, *(f"hub/{f.stem}" for f in sorted((ROOT / "cfg/hub").glob("*.yaml")))])
def test_a_step_of_training_and_an_evaluation(file: str, small_shapes: Path, tmp_path: Path) -> None:
    """At a quarter of the width, or half where rows have 32 groups: the rows, not their size."""
    small = {**read_yaml(ROOT / f"cfg/{file}.yaml"), "width_multiple": 0.5 if "x50" in file else 0.25}
    if isinstance(small["anchors"], int):  # to be found in the boxes, of which these are too few
        small["anchors"] = no_anchors(len(small["head"][-1][0]))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    more = ["--cfg", str(tmp_path / "small.yaml"), "--img", "128", "--noautoanchor"]
    run = train.main([*toy(small_shapes, tmp_path, "run", batch=12), *more])
    assert run is not None
    best = str(tmp_path / "run/weights/best.pt")
    test.main(["--weights", best, "--data", str(small_shapes), "--device", "cpu", "--project", str(tmp_path)])


@pytest.mark.parametrize("name", PUBLISHED)
def test_modules_parameters_and_tensors_are_as_published(name: str) -> None:
    model = build(name)
    modules, params, tensors = PUBLISHED[name]
    assert len(model.model) == modules
    assert sum(p.numel() for p in model.parameters()) == params
    assert len(model.state_dict()) == tensors


@pytest.mark.parametrize("name", [n for n in PUBLISHED if not n.endswith("-320")])
def test_layer_table_equals_the_original_programs(name: str) -> None:
    info = reference("info", name)
    model = build(name)
    rows = [row for part in ("backbone", "head") for row in spec(name)[part]]
    ours = [
        [i, row[0], row[2].removeprefix("nn."), sum(p.numel() for p in module.parameters())]
        for i, (row, module) in enumerate(zip(rows, model.model, strict=True))
    ]
    assert ours == info["layer_table"]
    assert [128 / shape[-1] for shape in model.shapes(128)[-1]] == info["strides"]


@pytest.mark.parametrize("name", [n for n in PUBLISHED if n not in ("yolov7x", "yolov7-tiny-320")])
def test_state_keys_shapes_and_types_equal_the_original_programs(name: str) -> None:
    wanted = reference("state_dict", name)
    ours = {k: [list(t.shape), str(t.dtype).removeprefix("torch.")] for k, t in build(name).state_dict().items()}
    assert ours == wanted


@pytest.mark.parametrize("name", [n for n in PUBLISHED if not n.endswith("-320")])
def test_anchors_equal_the_original_programs(name: str) -> None:
    pixels = torch.tensor(spec(name)["anchors"], dtype=torch.float32).view(3, -1, 2)
    info = reference("info", name)
    stride = torch.tensor(info["strides"]).view(3, 1, 1)
    assert torch.equal(pixels / stride, torch.tensor(info["anchors_grid_units"]))


def test_anchors_for_320_px_inputs_are_the_documented_ones() -> None:
    wanted = [[5, 8, 13, 12, 14, 32], [33, 27, 35, 59, 73, 49], [69, 123, 161, 105, 222, 188]]
    assert spec("yolov7-tiny-320")["anchors"] == wanted
    assert spec("yolov7-tiny-1b4h-320")["anchors"] == wanted


@pytest.mark.parametrize("name", FREE)
def test_models_without_anchors_are_as_published(name: str) -> None:
    """Rows, parameters, tensors, the layer table, what --freeze N freezes, and, where the reference has them, keys and
    shapes in their order. The original counts the 16 numbers of the bins as parameters."""
    with torch.device("meta"):
        model = Detector(read_model(f"{name}.yaml"), 80)
    state = model.state_dict()
    assert (len(model.model), sum(p.numel() for p in model.parameters()), len(state)) == FREE[name]
    want = json.loads(shared("golden/free/models.json").read_text())[name]
    assert (want["rows"], want["learnable"], want["state_dict_len"]) == FREE[name]
    counts = [sum(p.numel() for p in row.parameters()) for row in model.model]
    counts[-1] += 16
    rows = [row for part in ("backbone", "head") for row in model.spec[part]]
    ours = [[i, row[0], row[2].removeprefix("nn."), n] for i, (row, n) in enumerate(zip(rows, counts, strict=True))]
    assert ours == want["layer_table"]
    assert {n: sum(counts[: int(n)]) for n in want["freeze_params"]} == want["freeze_params"]
    assert [128 / shape[-1] for shape in model.shapes(128)[-1]] == want["strides"]
    if "state_dict" in want:
        assert {k: list(t.shape) for k, t in state.items()} == want["state_dict"]
        assert list(state) == list(want["state_dict"])


def test_every_size_of_a_file_has_a_name() -> None:
    names = {where.removeprefix("cfg/training/").removesuffix(".yaml") for where, _ in shipped()}
    assert set(FREE) < names and {"yolov5su", "yolov5xu", "demo"} < names
    assert not names & SIZED


@pytest.mark.parametrize("name", MULTI)
def test_several_heads_share_the_plain_models_trunk(name: str) -> None:
    ours, plain = spec(name), spec(MULTI[name])
    last, plain_last = ours["head"].pop(), plain["head"].pop()
    assert ours == plain
    assert last[:2] + last[3:] == plain_last[:2] + plain_last[3:]
    assert last[2] == DETECTORS.get(name, "MultiHeadDetect")


@pytest.mark.parametrize("grouping", ["standard", "geometry", "anticonfusion"])
@pytest.mark.parametrize(
    ("name", "params", "tensors"),
    [
        ("yolov7-tiny-1b4h", 6_267_556, 356),
        ("yolov7-tiny-1b4h-320", 6_267_556, 356),
        ("yolov7-tiny-1b4h-attn", 6_440_764, 392),
        ("yolov5n-1b4h", 1_892_452, 368),
        ("yolov5s-1b4h", 7_275_844, 368),  # (896 + 3) * 300 in the heads, 899 * 255 before
    ],
)
def test_parameters_and_tensors_with_four_heads(name: str, params: int, tensors: int, grouping: str) -> None:
    model = build_several(name, grouping)
    assert sum(p.numel() for p in model.parameters()) == params
    assert len(model.state_dict()) == tensors


@pytest.mark.parametrize("grouping", ["standard", "geometry"])
@pytest.mark.parametrize("name", ["yolov7-tiny-1b4h", "yolov7-tiny-1b4h-attn"])
def test_state_with_four_heads_equals_the_original_programs(name: str, grouping: str) -> None:
    table = json.loads(shared("golden/models/1b4h_state_dict.json").read_text())
    ours = {
        k: [list(t.shape), str(t.dtype).removeprefix("torch.")]
        for k, t in build_several(name, grouping).state_dict().items()
    }
    assert ours == table[f"{name}-{grouping}"]


def test_demo_is_small_and_has_the_freeze_points_of_yolov7_tiny() -> None:
    model, tiny = build("demo"), spec("yolov7-tiny")
    params = sum(p.numel() for p in model.parameters())
    assert 300_000 < params < 500_000
    assert [row[:3] for row in spec("demo")["backbone"]] == [row[:3] for row in tiny["backbone"]]
    assert [row[:3] for row in spec("demo")["head"]] == [row[:3] for row in tiny["head"]]
    assert all(out % 8 == 0 for row in spec("demo")["backbone"] if row[2] == "Conv" for out in row[3][:1])


def test_strides_come_from_the_rows_and_not_from_the_parameters_alone() -> None:
    """Kernel sizes and channels leave no trace of strides; output shapes do."""
    for name, at in {"yolov7-tiny": {14: 80, 21: 40, 28: 20}, "yolov7": {3: 160, 24: 80, 37: 40, 50: 20}}.items():
        shapes = build(name).shapes(640)
        assert {i: shapes[i][-1] for i in at} == at
        assert [s[-1] for s in shapes[-1]] == [80, 40, 20]
