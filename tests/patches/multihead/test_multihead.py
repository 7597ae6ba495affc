"""Several heads: head files, layout, the two forms of the loss, what a head trains, checkpoints of another grouping."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.anchored.assign import Rows
from models.catalog import LAYERS
from models.graph import Detector, GraphError
from models.loss import DetectionLoss, LossSettings
from patches.multihead import Flags, MultiHead
from patches.multihead.head import MultiHeadDetect
from patches.multihead.head_file import HeadTable
from patches.multihead.loss import MultiHeadLoss, SummedHeadLoss
from tests.conformance.reference import head_table, items_of, router_case
from tests.golden import golden, keys, near
from tests.models.test_loss import ANCHORS, STRIDE, as_on_cuda, boxes
from tests.models.test_zoo import spec
from tests.shared import ROOT
from utils import seams
from utils.system.errors import UserError
from utils.weights.checkpoint import build_detector, check_groups, load_detector, read_source, save_checkpoint

GROUPS = ((3, 0), (1,), (5, 2, 4))


def table(weights: tuple[float, ...] = (1.0, 1.0, 1.0), full_head: bool = False) -> HeadTable:
    return head_table(GROUPS, weights, full_head)


def raw(batch: int, width: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, 64 // s, 96 // s, width, generator=g).requires_grad_() for s in (8, 16, 32)]


def mean_loss(weights: tuple[float, ...] = (1.0, 1.0, 1.0), full_head: bool = False, **settings: Any) -> MultiHeadLoss:
    return MultiHeadLoss(table(weights, full_head), ANCHORS, LossSettings(**settings), STRIDE)


def summed_loss(
    weights: tuple[float, ...] = (1.0, 1.0, 1.0), full_head: bool = False, **settings: Any
) -> SummedHeadLoss:
    return SummedHeadLoss(table(weights, full_head), ANCHORS, LossSettings(**settings), STRIDE)


WIDTH = 3 * 5 + 6


def test_flags_without_their_partner_and_models_without_heads() -> None:
    with pytest.raises(UserError, match="--heads needs --head-config FILE"):
        MultiHead(Flags(heads=4))
    with pytest.raises(UserError, match=r"there is no file 'nowhere\.yaml'"):
        MultiHead(Flags(heads=4, head_config="nowhere.yaml"))
    patch = MultiHead(Flags(head_config=str(ROOT / "data/shapes_1b4h.yaml")))
    with pytest.raises(UserError, match="detector IDetect cannot be split"), torch.device("meta"):
        patch.on_model_built(Detector(spec("demo"), 12), ())
    with pytest.raises(UserError, match="--head-config: 4 heads; the model YAML says nh: 3"), torch.device("meta"):
        patch.on_model_built(Detector({**spec("demo-1b4h"), "nh": 3}, 12, {**LAYERS, **patch.layers()}), ())
    with pytest.raises(GraphError, match="the head file is for 12 classes, the data has 80"), torch.device("meta"):
        Detector(spec("demo-1b4h"), 80, {**LAYERS, **patch.layers()})


@pytest.mark.parametrize("name", ["demo", "yolov5n"])
def test_a_plain_model_file_gives_the_model_of_the_1b4h_file(name: str) -> None:
    """Rows, tensors and their names, to the bit."""
    patch = MultiHead(Flags(head_config=str(ROOT / "data/shapes_1b4h.yaml")))
    models = []
    for file in (name, f"{name}-1b4h"):
        torch.manual_seed(0)
        models.append(Detector(spec(file), 12, {**LAYERS, **patch.layers()}))
        patch.on_model_built(models[-1], ())
    plain, own = models
    assert plain.kinds == own.kinds and plain.kinds[-1] == "MultiHeadDetect"
    assert list(plain.state_dict()) == list(own.state_dict())
    assert all(torch.equal(v, own.state_dict()[k]) for k, v in plain.state_dict().items())


def small(weights: tuple[float, ...] = (1.0, 1.0, 1.0), full_head: bool = False, loss: str = "mean") -> Detector:
    patch = MultiHead(Flags(head_table=dict(vars(table(weights, full_head))), head_loss=loss))
    torch.manual_seed(0)
    return Detector({**spec("demo-1b4h"), "width_multiple": 0.25}, 6, {**LAYERS, **patch.layers()})


@pytest.mark.parametrize("full_head", [False, True])
def test_joined_convolutions_equal_the_heads_own(full_head: bool) -> None:
    head = small(full_head=full_head).head
    assert isinstance(head, MultiHeadDetect)
    convs = head.convs(0)
    x = torch.randn(2, convs[0].in_channels, 4, 6)
    parts = head.per_head(head([x, *(torch.randn(2, head.convs(i)[0].in_channels, 2, 2) for i in (1, 2))]))
    for conv, (mine, *_) in zip(convs, parts, strict=True):
        want = conv(x).view(2, 3, -1, 4, 6).permute(0, 1, 3, 4, 2)
        torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-5)
    widths = [mine.shape[-1] for mine, *_ in parts]
    assert widths == ([11, 11, 11] if full_head else [7, 6, 8])


@pytest.mark.parametrize("full_head", [False, True])
def test_heads_cut_out_of_a_plain_detector_say_what_it_says(full_head: bool) -> None:
    """Class ids in any order within a head, implicit constants folded in: every column is the plain detector's."""
    torch.manual_seed(3)
    plain = Detector({**spec("demo"), "width_multiple": 0.25}, 6).eval()
    for name, p in plain.head.named_parameters():  # type: ignore[attr-defined]
        if "implicit" in name:
            torch.nn.init.normal_(p, mean=1.0 if ".im." in f".{name}" else 0.0, std=0.5)
    model = small(full_head=full_head).eval()
    assert isinstance(model.head, MultiHeadDetect)
    detector = {k.removeprefix("model.77."): v for k, v in plain.state_dict().items() if k.startswith("model.77.")}
    trunk = {k: v for k, v in plain.state_dict().items() if not k.startswith("model.77.")}
    heads = {f"model.77.{k}": v for k, v in model.head.sliced(detector, range(model.nc)).items()}
    model.load_state_dict({**model.state_dict(), **trunk, **heads})
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        ((want, *_), parts) = *plain.decode(plain(image)["det"]), model.decode(model(image)["det"])
    for pred, classes, _ in parts:
        torch.testing.assert_close(pred[..., :4], want[..., :4], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(pred[..., 4], want[..., 4], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(pred[..., 5:], want[..., 5 + classes], rtol=1e-4, atol=1e-6)


def test_decoding_gives_each_head_its_own_columns_and_no_more() -> None:
    model, wide = small().eval(), small(full_head=True).eval()
    for detector in (model, wide):
        with torch.no_grad():
            parts = detector.decode(detector(torch.rand(2, 3, 64, 96))["det"])
        assert [p.classes.tolist() for p in parts] == [list(g) for g in GROUPS]
        assert [tuple(p.pred.shape) for p in parts] == [(2, 378, 7), (2, 378, 6), (2, 378, 8)]
    assert model.group_names == ["head_0", "head_1", "head_2"] and model.nc == 6


@pytest.mark.parametrize("name", keys("loss/router.json", "configs") or ["absent"])
def test_summed_loss_equals_the_original(name: str) -> None:
    """Items, each head's own terms, and gradient norms; full heads (rf) and other weights (rw, r1) included."""
    ref = golden()
    results = {k: v for k, v in ref.json("loss/router.json")["results"].items() if k.startswith(f"{name}/")}
    for key, want in results.items():
        case = router_case(ref, key)
        terms = case.criterion(case.det, case.target)
        assert near(items_of(terms), case.items), f"{key}: {items_of(terms)} against {case.items}"
        loss: Any = case.criterion
        gains = dict(zip(("box", "obj", "cls"), loss.settings[:3], strict=True))
        for h, entry in enumerate(want["heads"]):
            for kind, gain in gains.items():
                mine = float(terms[f"{kind}/head_{h}"].detach()) / gain / loss.table.weights[h]
                assert mine == pytest.approx(entry[f"l{kind}"], rel=1e-4, abs=1e-7), f"{key} {kind}/head_{h}"
    assert len(results) == 20


@pytest.mark.parametrize("name", keys("loss/router.json", "configs") or ["absent"])
def test_gradients_of_the_summed_loss_equal_the_original(name: str) -> None:
    ref = golden()
    results = ref.json("loss/router.json")["results"]
    for key in [f"{name}/{case}/base" for case in ("typical", "border", "many400", "none")]:
        case = router_case(ref, key)
        (sum(case.criterion(case.det, case.target).values()) * case.batch).backward()
        loss: Any = case.criterion
        for h, entry in enumerate(results[key]["heads"]):
            columns = slice(loss.table.starts[h], loss.table.starts[h + 1])
            norms = [float(level.grad[..., columns].norm()) for level in case.det if level.grad is not None]
            assert near(norms, [g["l2"] for g in entry["grad"]]), f"{key} head {h}"


def test_rows_of_each_head_equal_the_original() -> None:
    """Which boxes a head gets, with which local class, in which cells."""
    ref = golden()
    arrays = ref.npz("loss/router.npz")
    compared = 0
    for key in ("rs/typical/base", "ra/typical/base", "rf/duplicates/base", "rg/border/base"):
        case = router_case(ref, key)
        loss: Any = case.criterion
        rows = loss.assign(case.det, case.target)
        of = case.target[rows.target, 1].long()
        local, owner = torch.tensor(loss.table.local)[of], torch.tensor(loss.table.owner)[of]
        index = torch.stack((rows.image, rows.anchor, rows.gy, rows.gx, local), 1)
        for h in range(loss.k):
            for i in range(len(case.det)):
                mine = index[(owner == h) & (rows.level == i)]
                np.testing.assert_array_equal(mine, arrays[f"{key}/h{h}/idx{i}"])
                compared += len(mine)
    assert compared > 300


@pytest.mark.parametrize("ota", [False, True])
@pytest.mark.parametrize("full_head", [False, True])
def test_per_head_terms_have_their_names_and_add_up(ota: bool, full_head: bool) -> None:
    for loss in (mean_loss(full_head=full_head, ota=ota), summed_loss(full_head=full_head, ota=ota)):
        terms = loss(raw(2, 33 if full_head else WIDTH), boxes(25, 2, 6))
        assert tuple(terms) == loss.terms == tuple(f"{k}/head_{h}" for k in ("box", "obj", "cls") for h in range(3))
        assert all(v.ndim == 0 and v.isfinite() and v >= 0 for v in terms.values())
        assert all(v > 0 for k, v in terms.items() if not k.startswith("cls"))


def sliced_levels(plain: list[Tensor], full_head: bool = False) -> list[Tensor]:
    """Raw output of heads cut out of a plain head's: every head its box and objectness, each class at its owner."""
    t = table(full_head=full_head)
    levels = []
    for level in plain:
        wide = torch.zeros(*level.shape[:4], t.starts[-1])
        for h, group in enumerate(t.groups):
            wide[..., [t.starts[h] + c for c in t.used(h)]] = level[..., [0, 1, 2, 3, 4, *(5 + c for c in group)]]
        levels.append(wide)
    return levels


@pytest.mark.parametrize("full_head", [False, True])
def test_on_the_scale_of_one_head(full_head: bool) -> None:
    """Heads that say what one head says: box and class terms are equal, objectness is a little above.

    A positive cell costs its head in full, as there, and the other heads their share of saying no, on top.
    """
    g = torch.Generator().manual_seed(0)
    plain = [torch.randn(2, 3, 64 // s, 96 // s, 11, generator=g) for s in (8, 16, 32)]
    target = boxes(25, 2, 6)
    want = DetectionLoss(6, ANCHORS, LossSettings(), STRIDE)(plain, target)
    for weights in ((1.0, 1.0, 1.0), (7.0, 7.0, 7.0)):
        box, obj, cls = items_of(mean_loss(weights, full_head)(sliced_levels(plain, full_head), target))
        assert box == pytest.approx(float(want["box"]), rel=1e-5)
        assert cls == pytest.approx(float(want["cls"]), rel=1e-5)
        assert 1.0 < obj / float(want["obj"]) < 1.5
    empty = mean_loss()(sliced_levels(plain), torch.zeros(0, 6))
    assert items_of(empty)[1] == pytest.approx(
        float(DetectionLoss(6, ANCHORS, LossSettings(), STRIDE)(plain, torch.zeros(0, 6))["obj"]), rel=1e-5
    )
    summed = items_of(summed_loss((1.0, 1.0, 1.0), full_head)(sliced_levels(plain, full_head), target))
    assert summed[0] > 2 * float(want["box"]), "the original's sum is not"


def test_head_weights_act() -> None:
    det, target = [level.detach() for level in raw(2, WIDTH)], boxes(25, 2, 6)
    even, heavy, scaled = (mean_loss(w)(det, target) for w in ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), (2.0, 8.0, 2.0)))
    assert all(float(heavy[k]) == pytest.approx(float(scaled[k]), rel=1e-6) for k in heavy), "only ratios count"
    for kind in ("box", "obj"):
        share = [
            float(t[f"{kind}/head_1"]) / sum(float(t[f"{kind}/head_{h}"]) for h in range(3)) for t in (even, heavy)
        ]
        assert share[1] > 1.3 * share[0]
    once, twice = summed_loss((1.0, 1.0, 1.0))(det, target), summed_loss((1.0, 2.0, 1.0))(det, target)
    assert float(twice["box/head_1"]) == pytest.approx(2 * float(once["box/head_1"]), rel=1e-6)
    assert float(twice["box/head_0"]) == float(once["box/head_0"])


@pytest.mark.parametrize("ota", [False, True])
def test_a_one_class_head_trains_its_class(ota: bool) -> None:
    """Head 1 owns class 1 alone; its class logit is pulled up at its own boxes and down at those of others."""
    det = raw(2, WIDTH)
    column = table().starts[1] + 5
    own, other = boxes(25, 2, 6), boxes(25, 2, 6)
    own[:, 1], other[:, 1] = 1, 4
    signs = []
    for target in (own, other):
        for level in det:
            level.grad = None
        sum(mean_loss(ota=ota)(det, target).values()).backward()
        gradient = torch.cat([level.grad[..., column].flatten() for level in det if level.grad is not None])
        assert gradient.abs().sum() > 0
        signs.append(float(gradient.sum()))
    assert signs[0] < 0 < signs[1]
    for level in det:
        level.grad = None
    sum(summed_loss(ota=ota)(det, own).values()).backward()
    assert all(level.grad is not None and level.grad[..., column].abs().max() == 0 for level in det), "not so there"


def test_every_head_learns_only_from_its_own_boxes() -> None:
    """Boxes of head 2 alone: no other head's box columns get a gradient; objectness of all and classes of all do."""
    det, target = raw(2, WIDTH), boxes(25, 2, 6)
    target[:, 1] = 5
    sum(mean_loss()(det, target).values()).backward()
    for h in range(3):
        start = table().starts[h]
        grad = torch.cat([level.grad[..., start : start + 5].reshape(-1, 5) for level in det if level.grad is not None])
        assert (grad[:, :4].abs().max() > 0) == (h == 2)
        assert grad[:, 4].abs().min() > 0


@pytest.mark.parametrize("full_head", [False, True])
def test_ota_of_a_head_is_that_of_a_plain_head_on_its_own_columns(full_head: bool) -> None:
    """Boxes compete within their image and head, at the costs of their own head's predictions."""
    det, target = raw(2, 33 if full_head else WIDTH), boxes(30, 2, 6)
    t = table(full_head=full_head)

    def cells(rows: Rows, target: Tensor) -> set[Any]:
        at = torch.stack((rows.level, rows.image, rows.anchor, rows.gy, rows.gx), 1).tolist()
        return {(*a, *box) for a, box in zip(at, target[rows.target, 2:].tolist(), strict=True)}

    per_head: set[Any] = set()
    for h, group in enumerate(t.groups):
        mine = target[torch.tensor(t.owner)[target[:, 1].long()] == h].clone()
        mine[:, 1] = torch.tensor(t.local)[mine[:, 1].long()]
        own = [level.detach()[..., [t.starts[h] + c for c in t.used(h)]] for level in det]
        per_head |= cells(DetectionLoss(len(group), ANCHORS, LossSettings(ota=True), STRIDE).assign(own, mine), mine)
    for loss in (mean_loss(full_head=full_head, ota=True), summed_loss(full_head=full_head, ota=True)):
        assert cells(loss.assign(det, target), target) == per_head
    assert len(per_head) > 30


@pytest.mark.parametrize("ota", [False, True])
def test_static_tables_as_on_cuda_give_the_same(ota: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    target, results = boxes(30, 2, 6), []
    for keep in (False, True):
        if keep:
            as_on_cuda(monkeypatch)
        det = raw(2, WIDTH)
        terms = mean_loss((1.0, 2.0, 3.0), ota=ota)(det, target)
        sum(terms.values()).backward()
        results.append((items_of(terms), [level.grad for level in det]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("ota", [False, True])
def test_no_boxes_or_those_of_one_head_only(ota: bool) -> None:
    one = boxes(9, 2, 6)
    one[:, 1] = 1
    for target in (torch.zeros(0, 6), one):
        for loss in (mean_loss(ota=ota), summed_loss(ota=ota)):
            det = raw(2, WIDTH)
            terms = loss(det, target)
            sum(terms.values()).backward()
            assert all(v.isfinite() for v in terms.values())
            assert all(level.grad is not None and level.grad.isfinite().all() for level in det)


def test_other_layouts_are_refused_with_their_shapes() -> None:
    for loss in (mean_loss(), summed_loss()):
        with pytest.raises(ValueError, match=r"\[B,3,H,W,21\].*\(2, 3, 8, 12, 20\)"):
            loss(raw(2, 20), torch.zeros(0, 6))


def test_the_flag_chooses_the_form_of_the_loss() -> None:
    assert isinstance(small().criterion(LossSettings()), MultiHeadLoss)
    assert isinstance(small(loss="sum").criterion(LossSettings()), SummedHeadLoss)


def saved(model: Detector, path: Path, patch: MultiHead) -> Path:
    meta = {"groups": model.groups, "spec": {**spec("demo-1b4h"), "width_multiple": 0.25}, "nc": 6}
    save_checkpoint(path, state=model.state_dict(), meta={**meta, "patches": {"multihead": patch.record()}})
    return path


def test_a_checkpoint_of_another_grouping_is_refused(tmp_path: Path) -> None:
    """Equal counts fit by shape; the classes would be permuted without a word."""
    patch = MultiHead(Flags(head_table=dict(vars(table()))))
    source = read_source(saved(small(), tmp_path / "one.pt", patch))
    check_groups(small(), source)
    for groups in (((0, 3), (1,), (5, 2, 4)), ((3, 1), (0,), (5, 2, 4)), ((3, 0, 1), (5, 2, 4))):
        other = MultiHead(Flags(head_table=dict(vars(head_table(groups, [1.0] * len(groups), False)))))
        model = build_detector(
            {**spec("demo-1b4h"), "width_multiple": 0.25}, 6, seams.Patches({"multihead": other}), "x"
        )
        with pytest.raises(UserError, match="trained with another grouping"):
            check_groups(model, source)


def test_a_checkpoint_carries_its_heads(tmp_path: Path) -> None:
    """No head file needed to use it again."""
    patch = MultiHead(Flags(head_table=dict(vars(table((1.0, 2.0, 3.0))))))
    model = small().eval()
    again, meta = load_detector(saved(model, tmp_path / "one.pt", patch))
    assert again.groups == [list(g) for g in GROUPS] and meta["nc"] == 6
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model(image)["det"], again(image)["det"], strict=True))
