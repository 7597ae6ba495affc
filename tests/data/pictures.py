"""Small data sets for tests: black pictures with one white square each, whose place can be found again in any batch."""

from pathlib import Path

import cv2
import numpy as np
import yaml

SIZES = ((60, 80), (80, 60), (64, 64), (40, 96))


def marked(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """A black picture (h, w) with a white rectangle x0, y0, x1, y1."""
    image = np.zeros((*size, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def make_set(root: Path, count: int = 12, nc: int = 3, scale: int = 1) -> Path:
    """A data set of `count` marked pictures, the same for training and validation -> its YAML file."""
    (root / "images/train").mkdir(parents=True)
    (root / "labels/train").mkdir(parents=True)
    draw = np.random.default_rng(3)
    for i in range(count):
        h, w = (side * scale for side in SIZES[i % len(SIZES)])
        bw, bh = draw.integers(14 * scale, 25 * scale, 2)
        x, y = draw.integers(4, w - bw - 4), draw.integers(4, h - bh - 4)
        cv2.imwrite(str(root / f"images/train/{i:02d}.png"), marked((h, w), (x, y, x + bw, y + bh)))
        row = f"{i % nc} {(x + bw / 2) / w:.8f} {(y + bh / 2) / h:.8f} {bw / w:.8f} {bh / h:.8f}\n"
        (root / f"labels/train/{i:02d}.txt").write_text(row)
    content = {"path": ".", "train": "images/train", "val": "images/train", "nc": nc}
    content["names"] = [f"class {i}" for i in range(nc)]
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def white_boxes(image: np.ndarray) -> np.ndarray:
    """Extents [n,4] xyxy in pixels of the white regions of an RGB picture [3,H,W]."""
    _, _, stats, _ = cv2.connectedComponentsWithStats((image.min(0) > 127).astype(np.uint8))
    x, y, w, h = stats[1:, :4].T
    return np.stack([x, y, x + w, y + h], 1).astype(float)


def pixel_boxes(target: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Target rows [n,5] class, cx, cy, w, h in 0..1 -> xyxy pixels of a picture (h, w)."""
    scale = np.array([size[1], size[0]])
    centre, half = target[:, 1:3] * scale, target[:, 3:5] * scale / 2
    return np.concatenate([centre - half, centre + half], 1)
