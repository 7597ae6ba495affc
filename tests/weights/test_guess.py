"""Which model file a bare state belongs to: all of its tensors, or none is named."""

import pytest
import torch

from models.graph import Detector
from tests.models.test_zoo import spec
from utils.weights import guess


def test_a_state_is_known_by_all_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guess, "shipped", lambda: [("cfg/training/a.yaml", spec("demo"))])  # one, not all
    state = Detector(spec("demo"), 5).state_dict()
    found = guess.guess_exactly(state)
    assert found is not None and found.where == "cfg/training/a.yaml" and found.missing == 0
    less = {k: v for k, v in state.items() if k != "model.0.conv.weight"}
    assert guess.guess_exactly(less) is None
    assert guess.guess_exactly({**state, "model.0.more": torch.zeros(1)}) is None
