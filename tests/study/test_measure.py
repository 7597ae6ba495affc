"""What is measured again of a run."""

import numpy as np
import pytest
import torch

from utils.study.measure import by_size


def test_average_precision_by_object_size() -> None:
    """One object of each size; the small one is found, the medium one missed, a large one is not there."""

    class Found:
        names = ["a"]  # noqa: RUF012
        paths = ["x.png"]  # noqa: RUF012
        detections = [torch.tensor([[10.0, 10.0, 30.0, 30.0, 0.9, 0.0]])]  # noqa: RUF012

    truth = {"x.png": np.array([[10.0, 10.0, 30.0, 30.0, 0.0], [100.0, 100.0, 160.0, 160.0, 0.0]])}
    sizes = by_size(Found(), truth, {"x.png": [200, 300]})  # type: ignore[arg-type]
    assert sizes == {"small": pytest.approx(1.0), "medium": 0.0, "large": -1.0}
