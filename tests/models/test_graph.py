"""Model YAMLs of users: families that are not shipped, refusals that name the row, words that are never evaluated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from models.catalog import FREE, LAYERS
from models.fuse import fuse
from models.graph import Detector, GraphError, make_divisible, parse_word
from tests.golden import golden

Row = list[Any]


class Rows(list[Row]):
    """Rows of a model YAML, written down module by module; every call adds one row."""

    def add(self, kind: str, *args: Any, source: Any = -1, number: int = 1) -> "Rows":
        self.append([source, number, kind, list(args)])
        return self

    def conv(self, c: int, k: int = 1, s: int = 1, source: Any = -1) -> "Rows":
        return self.add("Conv", c, k, s, source=source)

    def cat(self, *source: int) -> "Rows":
        return self.add("Concat", 1, source=list(source))

    def up(self) -> "Rows":
        return self.add("nn.Upsample", "None", 2, "nearest")

    def convs(self, n: int, c: int) -> "Rows":
        for _ in range(n):
            self.conv(c, 3)
        return self

    def detect(self, kind: str, *source: int) -> "Rows":
        return self.add(kind, "nc", "anchors", source=list(source))


BOUNDS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda m: m["backbone"][1].__setitem__(1, 10**9), "number must be 1 or more, 1000 at most"),
    (lambda m: m.update(depth_multiple=1e9), "depth_multiple must be"),
    (lambda m: m.update(width_multiple=float("inf")), "width_multiple must be"),
    (lambda m: m["backbone"][1][3].__setitem__(0, 10**7), "may be 1,000,000 at most"),
    (lambda m: m["backbone"][0][3].__setitem__(1, 10**6), "parameters up to here"),
    (lambda m: m.update(width_multiple=900.0), "parameters up to here"),
    (lambda m: m.update(backbone=m["backbone"][:1] + [[-1, 1, "Conv", [8]]] * 3000), "3001 rows"),
    (lambda m: m["backbone"][0][3].__setitem__(2, 0), r"row 0 \(Conv\)"),
    (lambda m: m["backbone"][6].__setitem__(3, [9]), r"row 6 \(Concat\)"),
    (lambda m: m["backbone"].__setitem__(2, [-1, 1, "Contract", [0]]), r"row 2 \(Contract\)"),
    (lambda m: m["backbone"][0][3].__setitem__(1, [1, 1, 1]), r"\[rows, columns\]"),
    (lambda m: m.update(anchors=10**9), "from 1 to 100"),
    (lambda m: m["head"][-1][3].__setitem__(0, 999), "row says 999 classes, the data has 2"),
    (lambda m: m["backbone"][0].__setitem__(2, 5) or m["backbone"][0].__setitem__(3, ["x" * 10**6]), "backbone row 0"),
]


@pytest.mark.parametrize("case", range(len(BOUNDS)))
def test_absurd_sizes_are_refused_before_there_is_memory_for_them(case: int) -> None:
    change, said = BOUNDS[case]
    spec = yaml.safe_load(Path("cfg/training/demo.yaml").read_text())
    change(spec)
    with pytest.raises(GraphError, match=said) as error:
        Detector(spec, 2)
    assert len(str(error.value)) < 1000


P5 = [[12, 16, 19, 36, 40, 28], [36, 75, 76, 55, 72, 146], [142, 110, 192, 243, 459, 401]]
P6 = [
    [19, 27, 44, 40, 38, 94], [96, 68, 86, 152, 180, 137],
    [140, 301, 303, 264, 238, 542], [436, 615, 739, 380, 925, 792],
]  # fmt: skip
TINY = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


def csp_neck(rows: Rows, kind: str, skips: tuple[int, int, int], detector: str) -> Rows:
    """Top-down and bottom-up paths of the CSP baselines. skips: rows of the third, second and deepest level."""
    start = skips[2] + 1
    rows.conv(256).up().conv(256, source=skips[1]).cat(-1, -2).add(kind, 256, number=2)
    rows.conv(128).up().conv(128, source=skips[0]).cat(-1, -2).add(kind, 128, number=2)
    rows.conv(256, 3).conv(256, 3, 2, source=-2).cat(-1, start + 4).add(kind, 256, number=2)
    rows.conv(512, 3).conv(512, 3, 2, source=-2).cat(-1, skips[2]).add(kind, 512, number=2)
    rows.conv(1024, 3)
    return rows.detect(detector, start + 10, start + 14, start + 18)


def csp_darknet(detector: str) -> Rows:
    rows = Rows().conv(32, 3).conv(64, 3, 2).add("Bottleneck", 64)
    for c, n in ((128, 2), (256, 8), (512, 8), (1024, 4)):
        rows.conv(c, 3, 2).add("BottleneckCSPC", c, number=n)
    return csp_neck(rows.add("SPPCSPC", 512), "BottleneckCSPB", (6, 8, 11), detector)


def csp_resnet(stage: str, neck: str) -> Rows:
    rows = Rows().add("Stem", 128).add(stage, 128, number=3)
    for c, n in ((256, 4), (512, 6), (1024, 3)):
        rows.conv(c, 3, 2).add(stage, c, number=n)
    return csp_neck(rows.add("SPPCSPC", 512), neck, (3, 5, 8), "IDetect")


def yolov3(pyramid: bool) -> Rows:
    rows = Rows().conv(32, 3).conv(64, 3, 2).add("Bottleneck", 64)
    for c, n in ((128, 2), (256, 8), (512, 8), (1024, 4)):
        rows.conv(c, 3, 2).add("Bottleneck", c, number=n)
    rows.add("Bottleneck", 1024, False)
    rows = rows.add("SPP", 512, [5, 9, 13]) if pyramid else rows.conv(512)
    rows.conv(1024, 3).conv(512).conv(1024, 3).conv(256, source=-2).up().cat(-1, 8)
    rows.add("Bottleneck", 512, False).add("Bottleneck", 512, False).conv(256).conv(512, 3).conv(128, source=-2).up()
    rows.cat(-1, 6).add("Bottleneck", 256, False).add("Bottleneck", 256, False, number=2)
    return rows.detect("Detect", 27, 22, 15)


def elan(rows: Rows, hidden: int, out: int) -> Rows:
    return rows.conv(hidden).conv(hidden, source=-2).convs(4, hidden).cat(-1, -3, -5, -6).conv(out)


def elan_neck(rows: Rows, wide: int, narrow: int, out: int) -> Rows:
    return rows.conv(wide).conv(wide, source=-2).convs(4, narrow).cat(-1, -2, -3, -4, -5, -6).conv(out)


def w6() -> Rows:
    rows = elan(Rows().add("ReOrg").conv(64, 3).conv(128, 3, 2), 64, 128)
    for c, hidden in ((256, 128), (512, 256), (768, 384), (1024, 512)):
        elan(rows.conv(c, 3, 2), hidden, c)
    rows.add("SPPCSPC", 512)
    for c, narrow, skip in ((384, 192, 37), (256, 128, 28), (128, 64, 19)):
        elan_neck(rows.conv(c).up().conv(c, source=skip).cat(-1, -2), c, narrow, c)
    for c, narrow, skip in ((256, 128, 71), (384, 192, 59), (512, 256, 47)):
        elan_neck(rows.conv(c, 3, 2).cat(-1, skip), c, narrow, c)
    for c, source in ((256, 83), (512, 93), (768, 103), (1024, 113)):
        rows.conv(c, 3, source=source)
    return rows.detect("Detect", 114, 115, 116, 117)


def twin(rows: Rows, wide: int, narrow: int, out: int, join: tuple[int, ...]) -> Rows:
    """Two parallel ELAN groups on one input, added up (E-ELAN)."""
    for first in (-1, -11):
        rows.conv(wide, source=first).conv(wide, source=first - 1).convs(6, narrow).cat(*join).conv(out)
    return rows.add("Shortcut", 1, source=[-1, -11])


def e6e(detector: str) -> Rows:
    rows, body, neck = Rows().add("ReOrg").conv(80, 3), (-1, -3, -5, -7, -8), tuple(range(-1, -9, -1))
    for c, hidden in ((160, 64), (320, 128), (640, 256), (960, 384), (1280, 512)):
        twin(rows.add("DownC", c), hidden, hidden, c, body)
    rows.add("SPPCSPC", 640)
    for c, wide, skip in ((480, 384, 89), (320, 256, 67), (160, 128, 45)):
        twin(rows.conv(c).up().conv(c, source=skip).cat(-1, -2), wide, wide // 2, c, neck)
    for c, wide, skip in ((320, 256, 162), (480, 384, 137), (640, 512, 112)):
        twin(rows.add("DownC", c).cat(-1, skip), wide, wide // 2, c, neck)
    for c, source in ((320, 187), (640, 210), (960, 233), (1280, 256)):
        rows.conv(c, 3, source=source)
    if detector == "Detect":
        return rows.detect(detector, 257, 258, 259, 260)
    for c, source in ((320, 186), (640, 161), (960, 136), (1280, 112)):
        rows.conv(c, 3, source=source)
    return rows.detect(detector, *range(257, 265))


FAMILIES: dict[str, tuple[Callable[[], Rows], list[list[int]]]] = {
    "baseline_yolor-csp": (lambda: csp_darknet("IDetect"), P5),
    "baseline_yolov4-csp": (lambda: csp_darknet("Detect"), P5),
    "baseline_r50-csp": (lambda: csp_resnet("ResCSPC", "ResCSPB"), P5),
    "baseline_x50-csp": (lambda: csp_resnet("ResXCSPC", "ResXCSPB"), P5),
    "baseline_yolov3": (lambda: yolov3(False), TINY),
    "baseline_yolov3-spp": (lambda: yolov3(True), TINY),
    "deploy_yolov7-w6": (w6, P6),
    "deploy_yolov7-e6e": (lambda: e6e("Detect"), P6),
}


def as_yaml(rows: list[Row], anchors: Any = TINY, split: int = 3, **more: Any) -> dict[str, Any]:
    """The file as a user writes it, read back."""
    spec = {"nc": 80, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": anchors, **more}
    text = yaml.safe_dump({**spec, "backbone": list(rows[:split]), "head": list(rows[split:])})
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed


@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_are_not_shipped(name: str) -> None:
    """Rows, their parameters, strides, anchors and counts, plain and fused, as the original program builds them."""
    info = golden().json("models/yolov7_info_more.json")["models"][name]
    build, anchors = FAMILIES[name]
    spec = as_yaml(build(), anchors)
    with torch.device("meta"):
        model = Detector(spec, 80)
    rows = [*spec["backbone"], *spec["head"]]
    ours = [
        [i, row[0], row[2].removeprefix("nn."), sum(p.numel() for p in module.parameters())]
        for i, (row, module) in enumerate(zip(rows, model.model, strict=True))
    ]
    assert ours == info["layer_table"]
    assert sum(p.numel() for p in model.parameters()) == info["params"]
    stored = int(info["det_type"] == "Detect")  # YOLOv7's Detect stores the anchors twice, YOLOv5's and ours does not
    assert len(model.state_dict()) + stored == info["state_dict_len"]
    assert [128 / shape[-1] for shape in model.shapes(128)[-1]] == info["strides"]
    fused = fuse(model)
    assert sum(p.numel() for p in fused.parameters()) == info["fused_params"]
    assert len(fused.state_dict()) + stored == info["fused_state_dict_len"]


def test_one_of_them_runs() -> None:
    """Groups, stem, CSP blocks and implicit constants on real numbers, a tenth as wide."""
    spec = as_yaml(csp_resnet("ResXCSPC", "ResXCSPB"), P5, width_multiple=0.5, depth_multiple=0.34)
    model = Detector(spec, 3).eval()
    with torch.no_grad():
        out = model(torch.rand(1, 3, 64, 96))["det"]
    assert [tuple(r.shape) for r in out] == [(1, 3, 8, 12, 8), (1, 3, 4, 6, 8), (1, 3, 2, 3, 8)]
    assert all(r.isfinite().all() for r in out)


CONV, DETECT = [-1, 1, "Conv", [8, 3, 2]], [[0], 1, "Detect", ["nc", "anchors"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"backbone": [[-1, 1, "Convx", [8]]]},
            r"row 0 \(Convx.*unknown module; did you mean Conv or .*python -m utils modules",
        ),
        ({"backbone": [CONV, [-1, 1, "Swin", [8]]]}, r"row 1 \(Swin"),
        ({"head": [[[0], 1, "MultiHeadDetect", ["nc", "anchors"]]]}, r"row 1 .*--heads N --head-config"),
        ({"backbone": [[-1, 1, "Conv"]]}, r"backbone row 0: .* is not \[from, number, module, args\]"),
        ({"backbone": "Conv"}, "no list `backbone`"),
        ({"head": []}, "no list `head`"),
        ({"backbone": [["a", 1, "Conv", [8]]]}, "backbone row 0: .*from must be"),
        ({"backbone": [[[], 1, "Concat", [1]]]}, "backbone row 0: .*from must be"),
        ({"backbone": [[-1, "x", "Conv", [8]]]}, "backbone row 0: .*number must be 1 or more"),
        ({"backbone": [[-1, 0, "Conv", [8]]]}, "backbone row 0: .*number must be 1 or more"),
        ({"backbone": [[3, 1, "Conv", [8]]]}, r"row 0 \(Conv\): from 3 points outside"),
        ({"backbone": [[[-1], 1, "SP", [3]]]}, r"row 0 \(SP \[3\]\): it takes the output of one row, but `from` is"),
        ({"backbone": [[-2, 1, "Conv", [8]]]}, r"row 0 \(Conv\): from -2 points outside"),
        ({"backbone": [[-1, 1, "Conv", []]]}, r"row 0 \(Conv \[\]\): .*output channels"),
        ({"backbone": [[-1, 1, "Conv", ["wide", 3]]]}, r"row 0 .*output channels"),
        ({"backbone": [[-1, 1, "Conv", [8, 3, 1, None, 3]]]}, "row 0 .*divisible by groups"),
        ({"backbone": [CONV, [[-1, -2], 1, "Concat", [1]]]}, r"row 1 \(Concat\) at 128 px: .*[Ss]izes"),
        ({"backbone": [[-1, 1, "Conv", [8, 3, 3]]]}, r"\[43\] cells; strides must be powers of 2"),
        ({"head": [[-1, 1, "Conv", [8]]]}, "last row must be a detector"),
        ({"head": [[0, 1, "Detect", ["nc", "anchors"]]]}, "`from` must be a list"),
        ({"head": [[[0], 1, "Detect", ["nc"]]]}, r"row 1 .*this row does not take them: write \[nc, anchors\]"),
        ({"anchors": "x"}, "anchors are 'x': give a list of w,h pairs per level"),
        ({"anchors": [[10, 13], [16, 30]]}, "joins 1 levels"),
        ({"anchors": [[10, 13, 16]]}, "w,h pairs"),
        ({"width_multiple": "x"}, "width_multiple must be a number above 0"),
        ({"depth_multiple": 0}, "depth_multiple must be a number above 0"),
        ({"activation": "nn.Evil()"}, "unknown activation nn.Evil"),
        ({"activation": "os.system"}, "activation: 'os.system' is none of nn.LeakyReLU"),
    ],
)
def test_what_cannot_be_built_is_refused_by_row(change: dict[str, Any], said: str) -> None:
    spec = {"nc": 2, "anchors": [[10, 13]], "backbone": [CONV], "head": [DETECT]}
    with torch.device("meta"):
        assert len(Detector(spec, 2).model) == 2
        with pytest.raises(GraphError, match=said):
            Detector({**spec, **change}, 2)


@pytest.mark.parametrize(
    "word",
    ["__import__('pathlib').Path('{}').touch()", "(lambda: open('{}', 'w'))()", "nn.Conv2d(1,1,open('{}','w'))", "1+1"],
)
@pytest.mark.parametrize("place", ["argument", "first", "activation"])
def test_no_word_is_evaluated(word: str, place: str, tmp_path: Path) -> None:
    """Were any of them evaluated, the file would exist, or 1+1 be an argument."""
    trace = tmp_path / "ran"
    word = word.replace("{}", str(trace))
    args = {"argument": [8, 3, word], "first": [word, 3], "activation": [8, 3, 1, None, 1, word]}[place]
    spec = {"nc": 2, "anchors": [[10, 13]], "backbone": [[-1, 1, "Conv", args]], "head": [DETECT]}
    with torch.device("meta"), pytest.raises(GraphError, match="row 0"):
        Detector(spec, 2)
    assert not trace.exists()


def test_words() -> None:
    known = {"nc": 7, "anchors": TINY}
    assert parse_word("nc", known) == 7 and parse_word(["nc", 2], known) == [7, 2] and parse_word("None", known) is None
    assert parse_word("nearest", known) == "nearest" and parse_word(3, known) == 3
    assert (parse_word("True", known), parse_word("False", known)) == (True, False)
    for text in ("nn.LeakyReLU(0.1)", "nn.LeakyReLU(0.1, inplace=True)", "nn.LeakyReLU(negative_slope=0.1)"):
        act = parse_word(text, known)
        assert isinstance(act, nn.LeakyReLU) and act.negative_slope == 0.1 and not act.inplace
    assert isinstance(parse_word("nn.ReLU()", known), nn.ReLU)


def test_multiples_scale_channels_and_repeats() -> None:
    rows = Rows().conv(64, 3, 2).add("C3", 128, number=9).add("Conv", 100, number=3).detect("Detect", 2)
    model = Detector(as_yaml(rows, [[10, 13]], 2, width_multiple=0.3, depth_multiple=0.33), 2)
    assert [m.out_channels for m in list(model.model)[:3]] == [24, 40, 32], "up to a multiple of 8"
    assert len(model.model[1].get_submodule("m")) == 3, "9 * .33, inside of the block"
    assert not isinstance(model.model[2], nn.Sequential), "3 * .33 = 1"
    deep = Detector(as_yaml(Rows().add("C3", 8, number=5).detect("Detect", 0), [[10, 13]], 1, depth_multiple=0.5), 2)
    assert len(deep.model[0].get_submodule("m")) == 2, "2.5 is rounded half to even, as in the originals"
    twice = Detector(as_yaml(rows, [[10, 13]], 2, depth_multiple=0.6), 2)
    assert isinstance(twice.model[2], nn.Sequential) and len(twice.model[2]) == 2
    assert [make_divisible(c) for c in (1, 8, 8.1, 30.4)] == [8, 8, 16, 32]


def test_top_level_activation_replaces_the_default_only() -> None:
    rows = Rows().conv(8, 3, 2).add("Conv", 8, 1, 1, "None", 1, "nn.LeakyReLU(0.1)").add("C3", 8).detect("Detect", 2)
    model = Detector(as_yaml(rows, [[10, 13]], 2, activation="nn.ReLU()"), 2)
    acts = [type(m.act).__name__ for m in model.modules() if hasattr(m, "act")]
    assert acts[:2] == ["ReLU", "LeakyReLU"] and set(acts) == {"ReLU", "LeakyReLU"}


def test_anchors_listed_from_coarse_to_fine_are_turned_round() -> None:
    rows = Rows().conv(8, 3, 2).conv(8, 3, 2).detect("Detect", 0, 1)
    ways = [Detector(as_yaml(rows, anchors, 1), 2).head for anchors in ([[4, 5], [40, 50]], [[40, 50], [4, 5]])]
    assert torch.equal(ways[0].anchors, ways[1].anchors) and ways[0].anchors[0, 0].tolist() == [2, 2.5]


def test_number_of_classes_is_the_datas() -> None:
    rows = Rows().conv(8, 3, 2).detect("Detect", 0)
    model = Detector(as_yaml(rows, [[10, 13]], 1), 5)
    assert model.nc == 5 and model.head.groups == [[0, 1, 2, 3, 4]]
    assert model(torch.rand(1, 3, 32, 32))["det"][0].shape == (1, 1, 16, 16, 10)


def test_shapes_leave_mode_weights_and_statistics_alone() -> None:
    model = Detector(as_yaml(Rows().conv(8, 3, 2).detect("Detect", 0), [[10, 13]], 1), 2).train()
    norm = model.model[0].get_submodule("bn")
    norm.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert model.shapes(64) == [(8, 32, 32), [(8, 32, 32)]]
    assert model.training and not norm.training, "a frozen norm stays in eval"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [row.params for row in model.table(64)] == [8 * 27 + 16, 8 * 7 + 7]


def test_every_module_that_is_offered_can_be_built_and_run() -> None:
    rows = {
        "Concat": ([[-1, -1], [1]]), "Shortcut": ([[-1, -1], [1]]), "ReOrg": ([-1, []]), "Contract": ([-1, [2]]),
        "MP": ([-1, []]), "SP": ([-1, [5]]), "CBAM": ([-1, [64]]), "nn.Upsample": ([-1, ["None", 2, "nearest"]]),
        "nn.MaxPool2d": ([-1, [2, 2, 0]]), "nn.ZeroPad2d": ([-1, [[0, 2, 0, 2]]]), "Focus": ([-1, [32, 3]]),
        "Chuncat": ([[-1, -1], [1]]), "Foldcut": ([-1, [1]]), "Expand": ([-1, [2]]), "nn.BatchNorm2d": ([-1, []]),
        "BiFPN_Concat2": ([[-1, -1], [1]]), "BiFPN_Concat3": ([[-1, -1, -1], [1]]),
        "TransformerBlock": ([-1, [64, 4, 1]]), "ShuffleV2Block": ([-1, [64, 1]]), "Shuffle_Block": ([-1, [64, 2]]),
        "SimAM": ([-1, []]), "RepResXCSPA": ([-1, [128]]), "RepResXCSPC": ([-1, [128]]),
    }  # fmt: skip
    for kind in LAYERS:
        if kind in ("Detect", "IDetect", "IAuxDetect", FREE):
            continue
        source, args = rows.get(kind, [-1, [64]])
        layers = [[-1, 1, "Conv", [64, 3, 2]], [source, 1, kind, args]]
        if kind == "nn.ZeroPad2d":
            layers.append([-1, 1, "Conv", [64, 3, 1, 0]])
        spec = {"anchors": [[10, 13]], "backbone": layers, "head": [[[-1], 1, "Detect", ["nc", "anchors"]]]}
        model = Detector(spec, 2).eval()
        with torch.no_grad():
            (out,) = model(torch.rand(1, 3, 64, 64))["det"]
        size = 64 // int(model.stride[0])
        assert out.shape == (1, 1, size, size, 7) and out.isfinite().all(), kind
