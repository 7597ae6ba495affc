"""Auxiliary heads: losses, matches and gradients of the original, and the training model of yolov7-w6."""

import numpy as np
import pytest
import torch
import yaml

from models.anchored.assign import level_sizes
from models.anchored.aux_head import REACH, TOP, AuxiliaryLoss, IAuxDetect
from models.fuse import fuse
from models.graph import Detector, GraphError
from models.head import IDetect
from models.loss import LossSettings
from tests.conformance.reference import ROOT, fill, items_of
from tests.golden import close, golden, keys, near

BOOK = "aux/aux_ota.json"


@pytest.mark.parametrize("key", keys(BOOK, "results"))
def test_losses_matches_and_gradients_equal_the_original(key: str) -> None:
    ref = golden()
    book, (group, case) = ref.json(BOOK), key.split("/")
    want, stride = book["results"][key], torch.tensor(book["strides"], dtype=torch.float32)
    images, height, width = want["shape"]
    random = np.random.RandomState(want["seed"])
    det = []
    for step in book["strides"] * 2:
        raw = random.standard_normal((images, 3, height // step, width // step, 5 + book["nc"]))
        raw[..., 4] -= 3
        det.append(torch.from_numpy(raw.astype(np.float32)).requires_grad_())
    anchors = torch.tensor(book["anchors"]).view(4, 3, 2) / stride.view(-1, 1, 1)
    gains = {name: value for name, value in book["hyp"].items() if name in LossSettings._fields}
    criterion = AuxiliaryLoss(book["nc"], anchors, LossSettings(**gains, ota=True), stride)
    target = torch.from_numpy(ref.npz("loss/inputs.npz")[f"T_{group}_{case}"]).float().view(-1, 6)

    lead = criterion.assign(det[:4], target, top=TOP)
    auxiliary = criterion.assign(det[:4], target, reach=REACH, top=TOP)
    assert level_sizes(lead, 4) == want["n_lead"]
    assert level_sizes(auxiliary, 4) == want["n_aux"]
    terms = criterion(det, target)
    assert near(items_of(terms), want["items"][:3])
    (sum(terms.values()) * images).backward()
    assert near([float(raw.grad.norm()) for raw in det], want["grad_l2"])
    assert near(items_of(criterion(det[:4], target)), items_of(criterion.measure(det[:4], lead, target)), 1e-7)


@pytest.mark.parametrize("name", ["yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e"])
def test_shipped_training_models_equal_the_original_row_by_row(name: str) -> None:
    ref = golden()
    info = ref.json(f"models/yolov7_info{'' if name.endswith('w6') else '_more'}.json")
    want = info.get("models", info)[name]
    spec = yaml.safe_load((ROOT / f"cfg/training/{name}.yaml").read_text())
    with torch.device("meta"):
        model = Detector(spec, 80)
    rows = [*spec["backbone"], *spec["head"]]
    ours = [
        [i, row[0], row[2].removeprefix("nn."), sum(p.numel() for p in module.parameters())]
        for i, (row, module) in enumerate(zip(rows, model.model, strict=True))
    ]
    assert ours == want["layer_table"]
    assert sum(p.numel() for p in fuse(model).parameters()) == want["fused_params"]
    assert sum(p.numel() for p in model.parameters()) == want["params"]
    assert len(model.state_dict()) == want["state_dict_len"]
    assert [128 / shape[-1] for shape in model.shapes(128)[-1]] == [8, 16, 32, 64] * 2


def test_outputs_of_the_training_model_equal_the_original() -> None:
    ref = golden()
    want, arrays = ref.json(BOOK)["models"]["w6_w025_nc10"], ref.npz("aux/w6_w025_nc10.npz")
    spec = yaml.safe_load((ROOT / "cfg/training/yolov7-w6.yaml").read_text())
    model = Detector({**spec, "width_multiple": 0.25}, 10)
    state = model.state_dict()
    assert (sum(p.numel() for p in model.parameters()), len(state)) == (want["params"], want["state_dict_len"])
    model.load_state_dict(fill(state, want["gain"]))
    image = torch.from_numpy(np.random.RandomState(9).random_sample((1, 3, 128, 192)).astype(np.float32))
    with torch.no_grad():
        model.eval()
        raw = model(image)["det"]
        (part,) = model.decode(raw)
        model.model[-1].training = True  # the detector alone: norms keep their statistics
        both = model(image)["det"]
        again = model.decode(both)[0]
    assert [list(r.shape) for r in both] == want["raws_in_training"]
    close(part.pred, arrays["dec"], rtol=1e-4, atol=1e-4)
    for i, r in enumerate(both):
        close(r, arrays[f"train_raw{i}"], rtol=1e-4, atol=1e-4, what=f"raw {i}")
    assert len(raw) == 4 and torch.equal(again.pred, part.pred)


def test_a_wrong_list_of_rows_is_named() -> None:
    anchors = [[10, 13], [30, 61]]
    with pytest.raises(ValueError, match="lead head's rows, then as many"):
        IAuxDetect([8, 8, 8], 2, anchors)
    rows = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]]
    spec = {"anchors": anchors, "backbone": rows, "head": [[[0, 1, 1, 0], 1, "IAuxDetect", ["nc", "anchors"]]]}
    with pytest.raises(GraphError, match=r"strides are \[2, 4\], the auxiliary head's \[4, 2\]"):
        Detector(spec, 2)


def test_of_one_class_the_class_term_is_nothing_in_both_heads() -> None:
    head = IAuxDetect([4, 4], 1, [[10, 13]])
    assert isinstance(head, IDetect)
    head.attach([8, 8])
    terms = head.criterion(LossSettings())(
        head([torch.rand(1, 4, 4, 4)] * 2), torch.tensor([[0, 0, 0.5, 0.5, 0.3, 0.4]])
    )
    assert terms["cls"].item() == 0 and terms["box"].item() > 0
