"""evaluate(): a made-up detector with known answers."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.head import Part
from utils.config.settings import EvalSettings
from utils.evaluation.evaluate import evaluate
from utils.evaluation.nms import nms
from utils.system.errors import UserError

CPU = torch.device("cpu")


class Told(nn.Module):
    """A detector that answers with what it was told: per image rows [M, 5+nc] for each head."""

    def __init__(self, answers: list[list[Tensor]], groups: list[list[int]]) -> None:
        super().__init__()
        self.answers, self.groups, self.nc = answers, groups, sum(map(len, groups))
        self.group_names = [f"head_{i}" for i in range(len(groups))]
        self.norm, self.seen = nn.BatchNorm2d(3), 0
        self.modes: list[bool] = []

    def forward(self, image: Tensor) -> dict[str, Any]:
        assert torch.is_inference_mode_enabled()
        self.modes.append(self.training or self.norm.training)
        b = image.shape[0]
        self.seen += b
        return {"det": [torch.stack(head[self.seen - b : self.seen]) for head in self.answers], "feat": {}}

    def decode(self, det: list[Tensor]) -> list[Part]:
        return [Part(pred, torch.tensor(ids)) for pred, ids in zip(det, self.groups, strict=True)]


def batches(targets: list[list[list[float]]], size: int = 100, per_batch: int = 2) -> list[dict[str, Any]]:
    """Images of 50 x 40 native pixels, enlarged twice to the middle of the input. targets: class, x, y, w, h native."""
    out = []
    for start in range(0, len(targets), per_batch):
        part = targets[start : start + per_batch]
        rows = [
            [i, c, (2 * x) / size, (2 * y + 10) / size, 2 * w / size, 2 * h / size]
            for i, image in enumerate(part)
            for c, x, y, w, h in image
        ]
        out.append(
            {
                "image": torch.zeros(len(part), 3, size, size, dtype=torch.uint8),
                "target": torch.tensor(rows).reshape(-1, 6),
                "path": [f"{start + i}.jpg" for i in range(len(part))],
                "shape": torch.tensor([[40, 50]] * len(part)),
                "gain_pad": torch.tensor([[2.0, 2.0, 0.0, 10.0]] * len(part)),
            }
        )
    return out


def answer(targets: list[list[float]], ids: list[int], score: float = 0.9, rows: int = 4) -> Tensor:
    """Predictions [rows, 5+n] in input pixels that hit the targets of the classes `ids` exactly."""
    out = torch.zeros(rows, 5 + len(ids))
    for k, (c, x, y, w, h) in enumerate(t for t in targets if t[0] in ids):
        out[k, :5] = torch.tensor([2 * x, 2 * y + 10, 2 * w, 2 * h, score])
        out[k, 5 + ids.index(int(c))] = 1.0
    return out


TARGETS = [
    [[0, 10, 10, 8, 8], [1, 30, 20, 12, 12]],
    [[2, 25, 20, 20, 10]],
    [],
    [[0, 40, 30, 10, 10], [3, 12, 25, 10, 20]],
]
NAMES = ["a", "b", "c", "d", "never"]


@pytest.mark.parametrize("match", ["coco", "v7", "v5"])
def test_a_perfect_detector_over_two_heads(match: str) -> None:
    groups = [[3, 0], [1, 2, 4]]
    model = Told([[answer(t, ids) for t in TARGETS] for ids in groups], groups)
    result = evaluate(model, batches(TARGETS), CPU, EvalSettings(names=NAMES, match=match, progress=False))  # type: ignore[arg-type]
    full = 0.995 if match == "v5" else 1.0  # YOLOv5's curve falls to precision 0 at recall 1
    assert result.map50 == pytest.approx(full, abs=1e-3) and result.map == pytest.approx(full, abs=1e-3)
    assert result.mp == pytest.approx(1) and result.mr == pytest.approx(1) and result.f1 == pytest.approx(1)
    assert result.n_gt.tolist() == [2, 1, 1, 1, 0] and np.isnan(result.ap[4]) and not np.isnan(result.ap[:4]).any()
    assert {k: v.n_gt for k, v in result.per_head.items()} == {"head_0": 3, "head_1": 2}
    assert result.per_head["head_1"].map50 == pytest.approx(full, abs=1e-3)
    assert result.images == 4 and result.paths == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert result.confusion.trace() == 5 == result.confusion.sum()
    np.testing.assert_allclose(result.detections[1], [[15, 15, 35, 25, 0.9, 2]], rtol=1e-5)
    assert {"coco": "COCO", "v7": "YOLOv7", "v5": "YOLOv5"}[match] in result.rule


def test_a_blind_head_pulls_down_its_own_classes_only() -> None:
    groups = [[0, 3], [1, 2, 4]]
    model = Told([[answer(t, ids) * (ids != groups[1]) for t in TARGETS] for ids in groups], groups)
    result = evaluate(model, batches(TARGETS), CPU, EvalSettings(names=NAMES, progress=False))  # type: ignore[arg-type]
    assert result.per_head["head_0"].map == pytest.approx(1) and result.per_head["head_1"].map == 0
    assert result.map == pytest.approx(0.5) and result.ap[:4].tolist() == [1, 0, 0, 1]
    assert result.confusion[5].tolist() == [0, 1, 1, 0, 0, 0], "missed objects are in the background row"


def test_loose_boxes_count_at_low_thresholds_only() -> None:
    """Boxes 1.3 times as wide: IoU 1 / 1.3 = .77 passes .50 to .75, six of ten thresholds."""
    ids = list(range(5))
    wide = torch.tensor([1, 1, 1.3, 1, 1, *[1.0] * 5])
    model = Told([[answer(t, ids) * wide for t in TARGETS]], [ids])
    result = evaluate(model, batches(TARGETS), CPU, EvalSettings(names=NAMES, progress=False))  # type: ignore[arg-type]
    assert result.ap50[:4].tolist() == [1, 1, 1, 1] and result.map50 == pytest.approx(1)
    assert result.ap[2] == pytest.approx(0.6) and result.fitness == pytest.approx(0.1 + 0.9 * result.map)


def test_coco_leaves_out_what_comes_after_a_hundred_of_a_class() -> None:
    """150 detections in one image, apart from each other; the only right one is the worst."""
    target = [[[0, 25, 20, 10, 10]]]
    pred = torch.zeros(150, 10)
    pred[:, 0], pred[:, 1] = torch.arange(150) % 15 * 6.0 + 3, torch.arange(150) // 15 * 1.0 + 1
    pred[:, 2:4], pred[:, 4], pred[:, 5] = 1.0, torch.linspace(0.9, 0.5, 150), 1.0
    pred[149, :4] = torch.tensor([50.0, 50.0, 20.0, 20.0])
    for match, low, high in (("coco", 0.0, 0.0), ("v5", 0.001, 0.05)):
        model = Told([[pred]], [list(range(5))])
        result = evaluate(model, batches(target), CPU, EvalSettings(names=NAMES, match=match, progress=False))  # type: ignore[arg-type]
        assert len(result.detections[0]) == 150
        assert low <= result.map50 <= high, match


@pytest.mark.parametrize(("match", "offset", "conf"), [
    ("coco", None, "obj"), ("v7", 4096.0, "obj"), ("v5", 7680.0, "product"),
])  # fmt: skip
def test_each_rule_has_its_nms(match: str, offset: float | None, conf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def spy(*args: Any, **options: Any) -> list[Tensor]:
        asked.update(options)
        return nms(*args, **options)

    monkeypatch.setattr("utils.evaluation.evaluate.nms", spy)
    model = Told([[answer(t, [0]) for t in TARGETS]], [[0]])
    evaluate(model, batches(TARGETS), CPU, EvalSettings(names=["a"], match=match, progress=False, single_cls=True))  # type: ignore[arg-type]
    assert (asked["offset"], asked["single_class_conf"]) == (offset, conf)


def test_head_without_objects_is_nan() -> None:
    groups = [[0, 1, 2, 3], [4]]
    model = Told([[answer(t, ids) for t in TARGETS] for ids in groups], groups)
    result = evaluate(model, batches(TARGETS), CPU, EvalSettings(names=NAMES, progress=False))  # type: ignore[arg-type]
    assert (
        np.isnan(result.per_head["head_1"].map)
        and result.per_head["head_1"].n_gt == 0
        and result.map == pytest.approx(1)
    )


def test_single_cls_merges_the_classes() -> None:
    """The right boxes with wrong classes are right when all classes count as one."""
    wrong = [[[(c + 1) % 4, *box] for c, *box in image] for image in TARGETS]
    ids = [0, 1, 2, 3, 4]

    def run(single: bool) -> float:
        model = Told([[answer(t, ids) for t in wrong]], [ids])
        judging = EvalSettings(names=NAMES, single_cls=single, progress=False)
        return evaluate(model, batches(TARGETS), CPU, judging).map  # type: ignore[arg-type]

    assert run(False) == 0 and run(True) == pytest.approx(1)


def test_losses_are_means_over_images_and_flags_are_restored() -> None:
    ids = [0, 1, 2, 3, 4]
    model = Told([[answer(t, ids) for t in TARGETS]], [ids])
    model.train()
    model.norm.eval()  # as a frozen one

    def criterion(det: Any, target: Tensor, most: int) -> dict[str, Tensor]:
        return {"box": torch.tensor(float(len(target))), "n": torch.tensor(float(det[0].shape[0]))}

    loader = batches(TARGETS[:3])  # two images, then one
    result = evaluate(model, loader, CPU, EvalSettings(names=NAMES, progress=False), criterion=criterion)  # type: ignore[arg-type]
    assert result.losses == {"box": pytest.approx((2 * 3 + 1 * 0) / 3), "n": pytest.approx((2 * 2 + 1 * 1) / 3)}
    assert not any(model.modes), "evaluated in eval mode"
    assert model.training and not model.norm.training


def test_first_batch_sink_sees_the_first_batch_alone() -> None:
    ids = [0, 1, 2, 3, 4]
    model = Told([[answer(t, ids) for t in TARGETS]], [ids])
    seen: list[tuple[list[str], list[Tensor]]] = []

    def sink(batch: dict[str, Any], dets: list[Tensor]) -> None:
        seen.append((batch["path"], dets))

    evaluate(model, batches(TARGETS), CPU, EvalSettings(names=NAMES, progress=False), first_batch_sink=sink)  # type: ignore[arg-type]
    assert len(seen) == 1 and seen[0][0] == ["0.jpg", "1.jpg"]
    np.testing.assert_allclose(seen[0][1][1][:, :4], [[30, 40, 70, 60]], rtol=1e-5)


def test_nothing_found_and_nothing_there() -> None:
    ids = [0, 1, 2, 3, 4]
    blind = Told([[answer(t, ids) * 0 for t in TARGETS]], [ids])
    for match in ("coco", "v7", "v5"):
        blind.seen = 0
        result = evaluate(blind, batches(TARGETS), CPU, EvalSettings(names=NAMES, match=match, progress=False))  # type: ignore[arg-type]
        assert result.map == result.mp == result.mr == 0 and result.ap[0] == 0
    seeing = Told([[answer(t, ids) for t in TARGETS]], [ids])
    result = evaluate(seeing, batches([[], [], [], []]), CPU, EvalSettings(names=NAMES, progress=False))  # type: ignore[arg-type]
    assert not result.measured and np.isnan([result.map, result.map50, result.mp, result.mr]).all()
    assert np.isnan(result.ap).all() and result.confusion[:, 5].sum() == 5
    with pytest.raises(UserError, match="no images"):
        evaluate(seeing, [], CPU, EvalSettings(names=NAMES, progress=False))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--match v8"):
        evaluate(seeing, [], CPU, EvalSettings(names=NAMES, match="v8", progress=False))  # type: ignore[arg-type]
