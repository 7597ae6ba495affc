"""Several heads without anchors: cut out of a plain detector they detect what it does, and train on its scale."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.catalog import LAYERS
from models.free.loss import KINDS, FreeLoss
from models.graph import Detector, GraphError
from models.loss import LossSettings
from patches.multihead import Flags, MultiHead
from patches.multihead.free import BOX, MultiHeadFreeDetect, MultiHeadFreeLoss
from patches.multihead.head_file import HeadTable
from patches.transfer import Flags as TransferFlags
from patches.transfer import Transfer
from tests.conformance.reference import head_table
from tests.models.free.test_head import filled_model
from tests.models.free.test_loss import SETTINGS, STRIDE
from tests.models.test_zoo import spec
from tests.patches.test_transfer import real_batch
from tests.shared import ROOT
from utils.evaluation.nms import nms
from utils.seams import Source, State
from utils.weights import class_rows
from utils.weights.model_files import read_model

GROUPINGS = ("standard", "geometry", "anticonfusion")
GROUPS = ((3, 0), (1,), (5, 2, 4))


def several(name: str, patch: MultiHead, nc: int) -> Detector:
    torch.manual_seed(1)
    model = Detector(read_model(f"{name}.yaml"), nc, {**LAYERS, **patch.layers()})
    patch.on_model_built(model, ())
    return model


def of_file(name: str, nc: int = 80) -> MultiHead:
    return MultiHead(Flags(heads=4, head_config=str(ROOT / f"data/{name}.yaml")))


def small(weights: tuple[float, ...] = (1.0, 1.0, 1.0), full_head: bool = False, loss: str = "mean") -> Detector:
    patch = MultiHead(Flags(head_table=dict(vars(table(weights, full_head))), head_loss=loss))
    return several("demo-free", patch, 6)


def table(weights: tuple[float, ...] = (1.0, 1.0, 1.0), full_head: bool = False) -> HeadTable:
    return head_table(GROUPS, weights, full_head)


def transferred(model: Detector, source: Source) -> Detector:
    patch = Transfer(TransferFlags(transfer_weights=True))
    model.load_state_dict(patch.load_weights(dict(source.state), model, source))
    return model


def plain(nc: int = 6) -> Detector:
    """demo-free whose classes and boxes differ from cell to cell."""
    torch.manual_seed(0)
    model = Detector(spec("demo-free"), nc)
    for name, p in model.head.named_parameters():  # type: ignore[attr-defined]
        if p.dim() == 4:
            torch.nn.init.normal_(p, 0, 2 / p[0].numel() ** 0.5)
        elif name.endswith("2.bias"):
            torch.nn.init.normal_(p, 0, 1)
    return model.eval()


def per_class(found: Tensor, c: int) -> Tensor:
    return found[found[:, 5] == c, :5]


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("name", ["yolo11n", "yolov8n"])
def test_same_detections_right_after_transfer(name: str, grouping: str) -> None:
    """Every grouping shipped: after NMS, boxes in pixels and scores are the plain detector's to 1e-4."""
    one = filled_model(name)
    four = transferred(several(name, of_file(f"coco_320_1b4h_{grouping}"), 80), Source("x.pt", one.state_dict(), {}))
    image = torch.rand(2, 3, 128, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = (nms(m.eval().decode(m(image)["det"]), 0.05, 0.7, multi_label=True) for m in (one, four))
    assert sum(map(len, old)) > 100
    for mine, theirs in zip(old, new, strict=True):
        assert len(mine) == len(theirs)
        for c in range(80):
            torch.testing.assert_close(per_class(mine, c), per_class(theirs, c), rtol=0, atol=1e-4)


@pytest.mark.parametrize("full_head", [False, True])
def test_heads_cut_out_of_a_plain_detector_say_what_it_says(full_head: bool) -> None:
    """Class ids in any order within a head: every output is the plain detector's; views, too, and head by head."""
    one = plain()
    four = transferred(small(full_head=full_head), Source("x.pt", one.state_dict(), {})).eval()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        det, dets = one(image)["det"], four(image)["det"]
    (want,), parts = one.decode(det), four.decode(dets)
    assert [part.classes.tolist() for part in parts] == [list(g) for g in GROUPS]
    for pred, classes, objectness in parts:
        assert not objectness
        torch.testing.assert_close(pred[..., :4], want.pred[..., :4], rtol=0, atol=1e-4)
        torch.testing.assert_close(pred[..., 4:], want.pred[..., 4 + classes], rtol=0, atol=1e-5)
    for mine, theirs in zip(four.head.views(dets), one.head.views(det), strict=True):
        assert mine.obj is theirs.obj is None and mine.box.shape[4] == 3
        torch.testing.assert_close(mine.cls, theirs.cls)
        torch.testing.assert_close(mine.box, theirs.box.expand_as(mine.box))


def test_a_plain_model_file_gives_the_model_of_the_1b4h_file() -> None:
    models = [several(name, of_file("shapes_1b4h"), 12) for name in ("demo-free", "demo-free-1b4h")]
    one, other = (model.state_dict() for model in models)
    assert models[0].kinds == models[1].kinds and models[0].kinds[-1] == "MultiHeadFreeDetect"
    assert list(one) == list(other) and all(torch.equal(v, other[k]) for k, v in one.items())
    assert one["model.23.heads.3.cv3.0.2.bias"].shape == (3,) and one["model.23.heads.3.cv2.2.2.weight"].dim() == 4
    with pytest.raises(GraphError, match="switch several heads on with --heads N"):
        Detector(spec("demo-free-1b4h"), 12)
    with pytest.raises(GraphError, match="the head file is for 12 classes, the data has 80"):
        several("demo-free", of_file("shapes_1b4h"), 80)


def trunk_norms(model: Detector, image: Tensor, target: Tensor) -> dict[str, float]:
    """L2 norm of each kind of term's gradient over all modules but the head, BatchNorm in eval."""
    terms: dict[str, Any] = model.eval().criterion(SETTINGS)(model(image)["det"], target)
    trunk = [p for module in list(model.model)[:-1] for p in module.parameters()]
    norms = {}
    for kind in KINDS:
        value = sum(v for k, v in terms.items() if k.split("/")[0] == kind)
        grads = torch.autograd.grad(value, trunk, retain_graph=True, allow_unused=True)
        norms[kind] = float(torch.sqrt(sum((g**2).sum() for g in grads if g is not None)))
    return norms


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_gradient_in_the_trunk_is_on_the_scale_of_one_head(grouping: str) -> None:
    """Within 1.5x of 1B1H, term by term, right after slicing, on the same batch; a sum of heads is not."""
    torch.manual_seed(0)
    one = Detector(read_model("yolo11n.yaml"), 80)
    four = transferred(several("yolo11n", of_file(f"coco_320_1b4h_{grouping}"), 80), Source("x", one.state_dict(), {}))
    batch = real_batch(4)
    old, new = trunk_norms(one, *batch), trunk_norms(four, *batch)
    ratios = {kind: new[kind] / old[kind] for kind in KINDS}
    assert all(1 / 1.5 < r < 1.5 for r in ratios.values()), ratios
    four.head.loss = "sum"  # type: ignore[attr-defined]
    summed = trunk_norms(four, *batch)
    assert all(summed[kind] > 1.5 * old[kind] for kind in ("box", "dfl")), (summed, old)


def boxes(count: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    where, size = torch.rand(count, 2, generator=g), torch.rand(count, 2, generator=g) * 0.4 + 0.05
    image, cls = (torch.randint(n, (count, 1), generator=g).float() for n in (2, 6))
    return torch.cat((image, cls, where, size), 1)


def levels(width: int, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, width, 64 // s, 96 // s, generator=g) for s in STRIDE]


def loss_of(
    weights: tuple[float, ...] = (1.0, 1.0, 1.0), full: bool = False, summed: bool = False
) -> MultiHeadFreeLoss:
    return MultiHeadFreeLoss(table(weights, full), SETTINGS, STRIDE, summed)


def kinds(terms: dict[str, Tensor]) -> list[float]:
    return [sum(float(v) for k, v in terms.items() if k.split("/")[0] == kind) for kind in KINDS]


def cut(det: list[Tensor], full: bool) -> list[Tensor]:
    """Raw output of heads that were cut out of a detector with this one."""
    heads = [range(6) if full else group for group in GROUPS]
    return [torch.cat([raw[:, [*range(BOX), *(BOX + c for c in own)]] for own in heads], 1) for raw in det]


@pytest.mark.parametrize("full", [False, True])
def test_a_head_alone_with_its_boxes_has_the_loss_of_a_plain_detector(full: bool) -> None:
    """Boxes of one head's classes: the terms are one detector's, and add up to it whatever the heads' weights."""
    det, target = levels(BOX + 6), boxes(25)
    target[:, 1] = torch.tensor([5.0, 2.0, 4.0])[torch.arange(25) % 3]
    want = FreeLoss(6, SETTINGS, STRIDE)(det, target)
    for weights in ((1.0, 1.0, 1.0), (7.0, 7.0, 7.0)):
        terms = loss_of(weights, full)(cut(det, full), target)
        assert kinds(terms) == pytest.approx([float(want[k]) for k in KINDS], rel=1e-5)
        assert float(terms["box/head_2"]) == pytest.approx(float(want["box"]), rel=1e-5)
    none = torch.zeros(0, 6)
    assert kinds(loss_of(full=full)(cut(det, full), none)) == pytest.approx(
        [float(v) for v in FreeLoss(6, SETTINGS, STRIDE)(det, none).values()], rel=1e-5
    )


@pytest.mark.parametrize("full", [False, True])
def test_summed_it_is_a_loss_for_each_head(full: bool) -> None:
    det, target = levels(3 * BOX + (18 if full else 6)), boxes(25)
    head = MultiHeadFreeDetect([8, 8, 8], 6, False, table=table(full_head=full), loss="sum")
    terms = loss_of((1.0, 3.0, 1.0), full, summed=True)(det, target)
    for h, (own, group) in enumerate(zip(head.per_head(det), GROUPS, strict=True)):
        mine = target[torch.isin(target[:, 1], torch.tensor(group, dtype=torch.float32))].clone()
        mine[:, 1] = torch.tensor([group.index(int(c)) for c in mine[:, 1]])
        used = list(group) if full else range(len(group))
        own = [raw[:, [*range(BOX), *(BOX + c for c in used)]] for raw in own]
        want = FreeLoss(len(group), SETTINGS, STRIDE)(own, mine)
        for kind in KINDS:
            assert float(terms[f"{kind}/head_{h}"]) == pytest.approx((1, 3, 1)[h] * float(want[kind]), rel=1e-5)


def test_weights_act_and_every_head_learns_from_its_own_boxes_alone() -> None:
    target = boxes(25)
    even, heavy, scaled = (loss_of(w)(levels(3 * BOX + 6), target) for w in ((1, 1, 1), (1, 4, 1), (2, 8, 2)))
    assert all(float(heavy[k]) == pytest.approx(float(scaled[k]), rel=1e-6) for k in heavy), "only ratios count"
    assert float(heavy["box/head_1"]) / kinds(heavy)[0] > 1.3 * float(even["box/head_1"]) / kinds(even)[0]
    target[:, 1] = 5
    det = [level.requires_grad_() for level in levels(3 * BOX + 6)]
    sum(loss_of()(det, target).values()).backward()
    for h, start in enumerate(loss_of().starts[:-1]):
        grad = [level.grad for level in det if level.grad is not None]
        assert any(bool(g[:, start : start + BOX].abs().max() > 0) for g in grad) == (h == 2)
        assert all(bool(g[:, start + BOX].abs().min() > 0) for g in grad), "classes say no wherever none is"


def test_the_flag_chooses_the_form_of_the_loss() -> None:
    forms = [small(loss=form).criterion(LossSettings()) for form in ("mean", "sum")]
    assert [form.summed for form in forms if isinstance(form, MultiHeadFreeLoss)] == [False, True]


def test_class_rows_go_by_name_and_what_does_not_fit_starts_fresh(capsys: pytest.CaptureFixture[str]) -> None:
    """A file of other classes: those it has keep their rows, at the head that owns them; another width is said."""
    one, four = plain(8), small()
    columns = (7, None, 0, 1, 2, 3)
    fresh = {k: v.clone() for k, v in four.state_dict().items()}
    now = transferred(four, Source("x.pt", one.state_dict(), {}, columns)).state_dict()
    rows = one.state_dict()["model.23.cv3.1.2.weight"]
    assert torch.equal(now["model.23.heads.0.cv3.1.2.weight"], rows[[1, 7]])
    assert torch.equal(now["model.23.heads.1.cv3.1.2.weight"], fresh["model.23.heads.1.cv3.1.2.weight"])
    assert torch.equal(now["model.23.heads.2.cv3.1.2.weight"], rows[[3, 0, 2]])
    transferred(small(), Source("x.pt", one.state_dict(), {}))
    assert "the detector of x.pt has 8 classes, this data has 6" in capsys.readouterr().out


def test_a_checkpoint_with_its_classes_in_another_order() -> None:
    """Of several heads into several: every head keeps its branches, its class rows follow the names."""
    mine = small()
    state: State = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in mine.state_dict().items()}
    theirs = [[2, 5], [0], [4, 1, 3]]  # of the file, whose class c is (5, 0, ...)
    columns = (5, 0, 1, 2, 3, 4)  # of our classes the numbers there
    moved = class_rows.by_name(Source("x.pt", state, {"groups": theirs}, columns), mine)
    key = "model.23.heads.{}.cv3.0.2.weight"
    assert torch.equal(moved[key.format(0)], state[key.format(0)])  # 3, 0 were 2, 5
    assert torch.equal(moved[key.format(2)], state[key.format(2)])  # 5, 2, 4 were 4, 1, 3
    turned = [[5, 2], [0], [1, 3, 4]]
    moved = class_rows.by_name(Source("x.pt", state, {"groups": turned}, columns), mine)
    assert torch.equal(moved[key.format(0)], state[key.format(0)][[1, 0]])
    assert torch.equal(moved[key.format(2)], state[key.format(2)][[2, 0, 1]])
    assert torch.equal(moved["model.23.heads.0.cv2.0.2.weight"], state["model.23.heads.0.cv2.0.2.weight"])
    swapped = [[0], [2, 5], [4, 1, 3]]  # heads of the file in another order
    state = {k.replace("heads.0", "h").replace("heads.1", "heads.0").replace(".h.", ".heads.1."): v
             for k, v in state.items()}  # fmt: skip
    moved = class_rows.by_name(Source("x.pt", state, {"groups": swapped}, columns), mine)
    for k in (key.format(0), "model.23.heads.0.cv2.0.2.weight", "model.23.heads.0.cv3.1.0.0.conv.weight"):
        assert torch.equal(moved[k], state[k.replace("heads.0", "heads.1")]), k
