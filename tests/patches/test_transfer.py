"""--transfer-weights: what is taken, sliced, left; a sliced model detects what the plain one did; its gradients are on
its scale."""

from pathlib import Path
from typing import Any

import pytest
import torch

from models.catalog import LAYERS
from models.graph import Detector
from models.loss import LossSettings, scale_gains
from patches.multihead import Flags as HeadFlags
from patches.multihead import MultiHead
from patches.transfer import Flags, Transfer, mixed
from tests.conformance.reference import fill
from tests.models.test_zoo import spec
from tests.shared import ROOT, shared
from utils.evaluation.nms import nms
from utils.seams import Source, State
from utils.system.errors import UserError
from utils.weights.foreign import read_foreign

GROUPINGS = ("standard", "geometry", "anticonfusion")
TERMS = ("box", "obj", "cls")


def four_heads(cfg: str, grouping: str, nc: int = 80) -> Detector:
    file = f"data/coco_320_1b4h_{grouping}.yaml" if grouping in GROUPINGS else f"data/{grouping}.yaml"
    patch = MultiHead(HeadFlags(heads=4, head_config=str(ROOT / file)))
    torch.manual_seed(1)
    return Detector(spec(cfg), nc, {**LAYERS, **patch.layers()})


def plain(cfg: str, weights: str = "") -> Detector:
    """Published weights, fresh ones, or the reference's filling, whose implicit constants make folding matter."""
    torch.manual_seed(0)
    model = Detector(spec(cfg), 80)
    if weights.endswith(".pt"):
        state = read_foreign(shared(weights)).state
        model.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()})
    elif not weights:
        model.load_state_dict(fill(model.state_dict(), 2.4))
        model.head.anchors.mul_(1.1)
        with torch.no_grad():
            for conv in model.model[-1].m:
                conv.weight.mul_(0.1)  # no saturated scores: equal ones would be listed in any order
    return model.eval()


def transfer(model: Detector, state: State, heads: str = "sliced") -> State:
    new = Transfer(Flags(transfer_weights=True, transfer_heads=heads)).load_weights(
        dict(state), model, Source("x.pt", state, {})
    )
    model.load_state_dict(new)
    return new


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(("one", "four"), [("yolov7-tiny", "yolov7-tiny-1b4h"), ("yolov5n", "yolov5n-1b4h")])
def test_same_detections_right_after_transfer(one: str, four: str, grouping: str) -> None:
    a, b = plain(one), four_heads(four, grouping).eval()
    transfer(b, a.state_dict())
    g = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 128, 192, generator=g)
    with torch.no_grad():
        old, new = ([*nms(m.decode(m(image)["det"]), 0.05, 0.65, multi_label=True, max_det=30_000)] for m in (a, b))
    assert sum(map(len, old)) > 100
    for x, y in zip(old, new, strict=True):
        alone = 0  # a score or an overlap within a rounding of its threshold may fall on either side, by processor
        for c in range(80):  # within a class: the same boxes; scores a rounding apart may change places
            mine, theirs = x[x[:, 5] == c], y[y[:, 5] == c]
            if not len(mine) or not len(theirs):
                alone += len(mine) + len(theirs)
                continue
            apart = torch.cdist(mine[:, :5], theirs[:, :5], p=float("inf"))
            scale = mine[:, :4].abs().amax(1).clamp(min=1)
            alone += int((apart.amin(1) > 1e-4 * scale).sum() + (apart.amin(0) > 1e-4 * scale.max()).sum())
        assert alone <= 1e-4 * (len(x) + len(y)), f"{alone} of {len(x)} and {len(y)} detections have no equal"


def test_same_detections_from_published_weights() -> None:
    import cv2

    a, b = plain("yolov5n", "data/weights/yolov5n.pt"), four_heads("yolov5n-1b4h", "anticonfusion").eval()
    transfer(b, a.state_dict())
    file = sorted(shared("data/coco128/images/train2017").glob("*.jpg"))[9]
    image = (
        torch.from_numpy(cv2.resize(cv2.imread(str(file)), (320, 256))[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255
    )
    with torch.no_grad():
        old, new = (nms(m.decode(m(image)["det"]), 0.001, 0.65, multi_label=True)[0] for m in (a, b))
    assert len(old) > 20 and len(old) == len(new)
    torch.testing.assert_close(old, new, rtol=1e-4, atol=1e-3)


def trunk_norms(model: Detector, image: torch.Tensor, target: torch.Tensor, ota: bool) -> dict[str, float]:
    """L2 norm of each kind of term's gradient over all modules but the head, BatchNorm in eval."""
    criterion = model.eval().criterion(scale_gains(LossSettings(ota=ota), 3, 80, 320))
    terms: dict[str, Any] = criterion(model(image)["det"], target)
    trunk = [p for module in list(model.model)[:-1] for p in module.parameters()]
    norms = {}
    for kind in TERMS:
        value = sum(v for k, v in terms.items() if k.split("/")[0] == kind)
        grads = torch.autograd.grad(value, trunk, retain_graph=True, allow_unused=True)
        norms[kind] = float(torch.sqrt(sum((g**2).sum() for g in grads if g is not None)))
    return norms


def real_batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    import cv2

    images, rows = [], []
    for i, file in enumerate(sorted(shared("data/coco128/images/train2017").glob("*.jpg"))[:count]):
        picture = cv2.resize(cv2.imread(str(file)), (320, 320))[:, :, ::-1].copy()
        images.append(torch.from_numpy(picture).permute(2, 0, 1) / 255)
        label = Path(str(file).replace("images", "labels")).with_suffix(".txt")
        for line in label.read_text().splitlines() if label.exists() else []:
            rows.append([i, *map(float, line.split())])
    return torch.stack(images), torch.tensor(rows)


@pytest.mark.parametrize("ota", [False, True], ids=["plain", "ota"])
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(
    ("one", "weights"),
    [
        pytest.param("yolov7-tiny", "fresh", marks=pytest.mark.slow, id="tiny fresh"),
        pytest.param("yolov5n", "fresh", id="yolov5n fresh"),
        pytest.param("yolov5n", "data/weights/yolov5n.pt", id="yolov5n published"),
    ],
)
def test_gradient_in_the_trunk_is_on_the_scale_of_one_head(one: str, weights: str, grouping: str, ota: bool) -> None:
    """Within 1.5x of 1B1H, term by term, right after a sliced transfer, on the same batch; a plain sum of heads is far
    outside."""
    image, target = real_batch(4)
    a, b = plain(one, weights), four_heads(f"{one}-1b4h", grouping)
    transfer(b, a.state_dict())
    old, new = trunk_norms(a, image, target, ota), trunk_norms(b, image, target, ota)
    ratios = {kind: new[kind] / old[kind] for kind in TERMS}
    assert all(1 / 1.5 < r < 1.5 for r in ratios.values()), ratios
    if grouping == "geometry":
        b.head.loss = "sum"
        summed = trunk_norms(b, image, target, ota)
        assert sum(summed[kind] > 3 * old[kind] for kind in TERMS) >= 2, summed


def test_account_is_printed_and_true(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = plain("yolov7-tiny"), four_heads("yolov7-tiny-1b4h", "standard")
    own = {k: v.clone() for k, v in b.state_dict().items()}
    new = transfer(b, a.state_dict())
    out = capsys.readouterr().out
    assert "356 tensors 331 are taken from x.pt, 25 are parts of its head (sliced), 0 start fresh; 0 of the file" in out
    assert all(torch.equal(new[k], v) for k, v in a.state_dict().items() if not k.startswith("model.77."))
    transfer(b, a.state_dict(), heads="fresh")
    out = capsys.readouterr().out
    assert "0 are parts of its head (sliced), 24 start fresh" in out, out
    b.load_state_dict(own)


def test_heads_start_fresh_where_the_classes_differ(capsys: pytest.CaptureFixture[str]) -> None:
    b = four_heads("demo-1b4h", "shapes_1b4h", nc=12)
    transfer(b, Detector(spec("demo"), 11).state_dict())
    out = capsys.readouterr().out
    assert "heads start fresh" in out and "0 are parts of its head" in out


def test_nothing_that_fits_is_refused() -> None:
    with pytest.raises(UserError, match="no tensor"):
        transfer(Detector(spec("demo"), 12), {"other.weight": torch.zeros(3)})


RULES = {
    (3, 1): [[1, 1, 1]],
    (3, 2): [[1, 0, 1], [0, 1, 0]],
    (3, 5): [[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1], [0.5, 0, 0], [0, 0.5, 0]],
    (1, 3): [[1 / 3], [1 / 3], [1 / 3]],
    (5, 3): [[1, 0, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0]],
}


@pytest.mark.parametrize("counts", RULES)
def test_kernels_for_other_channels_by_hand(counts: tuple[int, int]) -> None:
    before, now = counts
    weight = torch.rand(4, 4 * before, 3, 3, generator=torch.Generator().manual_seed(0))
    rule = torch.tensor(RULES[counts])
    for group in range(4):  # space to depth: four groups of the image's channels
        old = weight[:, group * before : (group + 1) * before]
        new = mixed(weight, before, now)[:, group * now : (group + 1) * now]
        assert torch.allclose(new, torch.stack([(old * row.view(1, -1, 1, 1)).sum(1) for row in rule], 1))


@pytest.mark.parametrize("channels", [1, 2, 5, 8])
@pytest.mark.parametrize("cfg", ["yolov5n", "yolov7-tiny"])
def test_a_picture_of_equal_channels_gets_the_same_answer(cfg: str, channels: int) -> None:
    """From three channels to others, and the first layer alone differs."""
    old = plain(cfg)
    model = Detector(spec(cfg), 80, channels=channels)
    new = transfer(model, old.state_dict())
    grey = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pairs = zip(old.eval()(grey.repeat(1, 3, 1, 1))["det"], model.eval()(grey.repeat(1, channels, 1, 1))["det"],
                    strict=True)  # fmt: skip
        for one, other in pairs:
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    state = old.state_dict()
    assert [k for k in new if new[k].shape != state[k].shape] == ["model.0.conv.weight"]
    assert all(torch.equal(new[k], state[k]) for k in new if k != "model.0.conv.weight")


def test_the_first_layer_behind_space_to_depth() -> None:
    """ReOrg (no weights) and Focus: the convolution behind it is the one that is adapted; a later one of the same shape
    is not."""
    head = [[[0], 1, "Detect", ["nc", "anchors"]]]
    anchors = [[10, 13, 16, 30, 33, 23]]
    for rows, key in (
        ([[-1, 1, "ReOrg", []], [-1, 1, "Conv", [16, 3, 1]], [-1, 1, "Conv", [12, 3, 2]]], "model.1.conv.weight"),
        ([[-1, 1, "Focus", [16, 3]], [-1, 1, "Conv", [16, 3, 2]]], "model.0.conv.conv.weight"),
    ):
        graph = {"anchors": anchors, "backbone": rows, "head": [[[len(rows) - 1], *head[0][1:]]]}
        old, model = Detector(graph, 2), Detector(graph, 2, channels=1)
        new, state = transfer(model, old.state_dict()), old.state_dict()
        assert [k for k in new if new[k].shape != state[k].shape] == [key]
        assert torch.equal(new[key], mixed(state[key], 3, 1))


def test_nothing_is_adapted_where_the_channels_agree(capsys: pytest.CaptureFixture[str]) -> None:
    old = plain("yolov5n")
    state = old.state_dict()
    narrow = {k: v[:, :2] if k == "model.1.conv.weight" else v for k, v in state.items()}  # fits nowhere: stays fresh
    model = Detector(spec("yolov5n"), 80)
    before = model.state_dict()["model.1.conv.weight"].clone()
    new = transfer(model, narrow)
    assert "adapted" not in capsys.readouterr().out
    assert torch.equal(new["model.0.conv.weight"], state["model.0.conv.weight"])
    assert torch.equal(new["model.1.conv.weight"], before)


def test_a_transfer_of_little_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """Tensors of another architecture fit by chance of their row numbers."""
    model = Detector({**spec("demo"), "width_multiple": 0.25}, 3)
    own = model.state_dict()
    some = dict(list(own.items())[:100])
    transfer = Transfer(Flags(transfer_weights=True))
    transfer.load_weights(some, model, Source("x.pt", some, {}))
    assert "warning: only 100 of 344 tensors of x.pt fit, perhaps by chance" in capsys.readouterr().out
    transfer.load_weights(dict(own), model, Source("x.pt", own, {}))
    assert "warning" not in capsys.readouterr().out
