"""Smaller views of a picture, and their boxes back in its pixels."""

import torch

from utils.evaluation.predict import restored, smaller


def test_a_view_is_flipped_resized_and_filled() -> None:
    image = torch.rand(1, 3, 64, 96)
    view = smaller(image, 0.67, False, 32)
    assert view.shape == (1, 3, 64, 64) and (view[..., 42:, :] == 0.447).all()
    assert torch.equal(smaller(image, 1.0, True, 32), image.flip(3))


def test_boxes_come_back() -> None:
    box = torch.tensor([[[83.0, 8.3, 16.6, 8.3, 0.5, 0.1]]])
    assert torch.allclose(restored(box, 0.83, True, 640)[0, 0], torch.tensor([540.0, 10, 20, 10, 0.5, 0.1]))
