"""Evaluating several heads takes hardly more memory than one; half-precision predictions are never copied whole."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.catalog import LAYERS
from models.graph import Detector
from models.head import Part
from patches.multihead import Flags, patch
from tests.models.test_zoo import spec
from tests.shared import ROOT
from utils.config.settings import EvalSettings
from utils.evaluation.evaluate import evaluate
from utils.evaluation.nms import nms


class Peak(TorchDispatchMode):
    """Counts the bytes of all live tensors that operators made: `peak`, and `largest` for a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.largest = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # what was there before is not counted, nor are views of it
            if isinstance(tensor, torch.Tensor):
                self.known.add(tensor.untyped_storage()._cdata)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.largest = max(self.largest, storage.nbytes())
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_of_evaluation(model: Detector) -> int:
    batch = {
        "image": torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8),
        "target": torch.tensor([[0, 3, 0.5, 0.5, 0.2, 0.2]]),
        "path": list("abcd"),
        "shape": torch.tensor([[128, 128]] * 4),
        "gain_pad": torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 4),
    }
    with Peak() as peak:
        evaluate(model, [batch], torch.device("cpu"), EvalSettings(names=[str(i) for i in range(80)], progress=False))
    return peak.peak


def test_four_heads_take_at_most_1_3_times_the_memory_of_one() -> None:
    heads = patch(Flags(heads=4, head_config=str(ROOT / "data/coco_320_1b4h_anticonfusion.yaml")))
    one = peak_of_evaluation(Detector(spec("yolov7-tiny"), 80))
    four = peak_of_evaluation(Detector(spec("yolov7-tiny-1b4h"), 80, {**LAYERS, **heads.layers()}))
    decoded = 4 * 3 * (16**2 + 8**2 + 4**2) * 85 * 4
    assert one > decoded, "the tracker sees at least the decoded predictions"
    assert four <= 1.3 * one


def test_half_precision_is_thinned_before_it_is_widened() -> None:
    """One box in a hundred passes: nothing near the size of the predictions is made."""
    pred = torch.rand(2, 4000, 85, dtype=torch.float16)
    pred[..., 4] = (torch.arange(4000) % 100 == 0).half() * 0.5
    with Peak() as peak:
        found = nms([Part(pred, torch.arange(80))], 0.01, 0.5, multi_label=True)
    assert all(len(f) for f in found)
    assert peak.largest < pred.nbytes / 4
