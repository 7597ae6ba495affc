"""Alignment on two ranks is alignment of the global batch: same values, same gradients, same memory."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.catalog import LAYERS
from models.graph import Detector
from patches.align import Align, Flags
from tests.ranks import on_ranks
from utils import seams

SPEC = {
    "nc": 2,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[-1, 1, "Conv", [16, 3, 2]], [[-1], 1, "Detect", ["nc", "anchors"]]],
}
COUNT = 6  # images, of which the fifth has no partner


def everything() -> tuple[Align, Detector, dict[str, Any]]:
    torch.manual_seed(3)
    patch, model = (
        Align(Flags(align_bank=8, align_dim=16, align_weight=0.1, align_node=(1, 0))),
        Detector(SPEC, 2, LAYERS),
    )
    for name, (row, module) in patch.branches(model).items():
        model.add_branch(name, row, module)
    patch.on_model_built(model, ())
    patch.on_epoch_start(model, [], seams.Progress(0, 1, 0))
    for bank in (patch.visible_bank, patch.infrared_bank):
        bank.add(torch.nn.functional.normalize(torch.randn(5, 16), dim=1), torch.tensor([0, 1, 2, 9, 9]))
    target = torch.tensor([[i, 0, 0.5, 0.5, 0.2 + 0.1 * i, 0.4] for i in (0, 0, 1, 3, 4, 5)])
    target[1, 2:4] = 0.3
    batch = {
        "image": torch.rand(COUNT, 3, 32, 32),
        "infrared": torch.randint(0, 255, (COUNT, 1, 32, 32), dtype=torch.uint8),
        "paired": torch.arange(COUNT) != 4,
        "number": torch.arange(COUNT) + 1,
        "target": target,
    }
    return patch, model.eval(), batch


def part(batch: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    mine = {k: v[first:last] for k, v in batch.items() if k != "target"}
    own = (batch["target"][:, 0] >= first) & (batch["target"][:, 0] < last)
    target = batch["target"][own] - torch.tensor([first, 0, 0, 0, 0, 0])
    return {**mine, "target": target, "share": (last - first) / COUNT}


def step(rank: int, places: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    patch, model, whole = everything()
    first, last = places[rank]
    batch = part(whole, first, last)
    terms = patch.loss_terms(batch, model(batch["image"]), model)
    (torch.stack(list(terms.values())).sum() * (last - first)).backward()
    parameters = {**dict(model.named_parameters()), "log_scale": patch.log_scale}
    grads = {k: p.grad if p.grad is not None else torch.zeros_like(p) for k, p in parameters.items()}
    patch.on_step_end(model, model, seams.Progress(0, 1, 1))
    state = {k: v for k, v in patch.state_dict().items() if "bank" in k or k == "counts"}
    return {"terms": {k: v.detach() for k, v in terms.items()}, "grads": grads, "state": state}


def two(rank: int) -> Any:
    return step(rank, ((0, 4), (4, 6)))


def test_two_ranks_are_one_batch(tmp_path: Path) -> None:
    alone = step(0, ((0, COUNT),))
    found = on_ranks(two, tmp_path)
    assert alone["state"]["counts"].tolist() == [5, 5, 1, 0]
    for rank in found:
        assert all(torch.allclose(v, alone["terms"][k], rtol=1e-5) for k, v in rank["terms"].items())
        assert rank["terms"].keys() == {"align", "align_box", "align_bank"}
        assert all(torch.allclose(v.float(), alone["state"][k].float(), atol=1e-6) for k, v in rank["state"].items())
    summed: dict[str, Tensor] = {k: found[0]["grads"][k] + found[1]["grads"][k] for k in alone["grads"]}
    assert float(alone["grads"]["log_scale"].abs()) > 1e-5
    for k, v in summed.items():
        assert torch.allclose(v, alone["grads"][k], rtol=1e-3, atol=1e-7), k
