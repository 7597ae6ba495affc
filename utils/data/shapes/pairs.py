"""The embedded data set as visible and infrared pairs (data/shapes_pairs.yaml): the same scenes, drawn twice.

In the infrared an object shows its temperature, which its colour does not tell, on a ground of nearly one temperature;
it is grey, a little blurred, and knows nothing of the light. Of the visible pictures of train and val a stated share is
taken in the dark: a tenth of the light, noise of the sensor, the same infrared. The split `dark` holds the scenes of
val, all of them in the dark, so that detection there can be measured.
Layout: images/{visible,infrared}/SPLIT/0000.png, labels/visible/SPLIT/0000.txt. shuffled.csv gives every image the
partner of another one of its size: a control in which alignment has nothing to learn.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from utils.data.shapes import scenes as shapes
from utils.data.shapes.scenes import Scene, describe, mask, render, write_image
from utils.system.rng import rng

DARK_SHARE = 0.5  # of train and val
Image = npt.NDArray[np.uint8]


def infrared(scene: Scene) -> Image:
    """uint8 [h,w,1]: objects from cold (darker than the ground) to hot, blurred by the optics, with noise."""
    draw = np.random.Generator(np.random.PCG64([scene.background.texture, 1]))
    h, w = scene.size
    coarse = draw.uniform(-1, 1, (4, 4)).astype(np.float32)
    picture = 96 + 10 * np.asarray(cv2.resize(coarse, (w, h), interpolation=cv2.INTER_CUBIC), np.float32)
    for thing in scene.things:
        warmth = 20 + 160 * thing.temperature
        warmth += 70 if warmth > 60 else 0  # nothing is as warm as the ground
        cover = mask(thing, scene.size)
        picture += cover * (np.float32(warmth) - picture)
    picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), 0.8), np.float32)
    picture += draw.normal(0, 2, (h, w)).astype(np.float32)
    return np.asarray(np.rint(picture).clip(0, 255)[..., None], np.uint8)


def darkened(image: Image, seed: int, split: str, index: int) -> Image:
    """The picture with 6 to 14 % of its light and the noise of a sensor that has to make do with it."""
    draw = rng(seed, f"shapes/{split}/dark", 1, index)
    light = image.astype(np.float32) * np.float32(draw.uniform(0.06, 0.14))
    noise = draw.normal(0, 1, image.shape).astype(np.float32) * np.sqrt(1.5 + 0.15 * light)
    return np.asarray(np.rint(light + noise).clip(0, 255), np.uint8)


def write_pairs(folder: Path, settings: dict[str, Any]) -> None:
    """Render all pairs and labels into `folder`, which is made here."""
    seed, counts = settings["seed"], settings["images"]
    splits = {**counts, "dark": counts["val"]}
    rows = ["visible,infrared"]
    for split, count in splits.items():
        source = "val" if split == "dark" else split
        stems = {kind: folder / kind / split for kind in ("images/visible", "images/infrared", "labels/visible")}
        for stem in stems.values():
            stem.mkdir(parents=True)
        by_size: dict[tuple[int, int], list[int]] = {}
        for i in range(count):
            scene = describe(seed, source, i)
            by_size.setdefault(scene.size, []).append(i)
            image, labels = render(scene)
            visible = np.asarray(image, np.uint8)
            if split == "dark" or rng(seed, f"shapes/{split}/dark", 0, i).random() < settings["dark"]:
                visible = darkened(visible, seed, source, i)
            write_image(stems["images/visible"] / f"{i:04d}", visible)
            write_image(stems["images/infrared"] / f"{i:04d}", infrared(scene))
            lines = (f"{int(row[0])} {row[1]:.6f} {row[2]:.6f} {row[3]:.6f} {row[4]:.6f}\n" for row in labels)
            (stems["labels/visible"] / f"{i:04d}.txt").write_text("".join(lines))
        for numbers in by_size.values():  # a round trip through the images of a size: nobody keeps its own
            order = rng(seed, f"shapes/{split}/shuffled").permutation(numbers).tolist()
            for a, b in zip(order, [*order[1:], order[0]], strict=True):
                rows.append(f"images/visible/{split}/{a:04d}.png,images/infrared/{split}/{b:04d}.png")
    (folder / "shuffled.csv").write_text("\n".join(rows) + "\n")
    (folder / shapes.MARK).write_text(shapes.marked(settings))


def ensure(folder: Path, settings: dict[str, object]) -> None:
    """`shapes.ensure` for the pairs."""
    shapes.ensure(folder, {**settings, "dark": DARK_SHARE}, write_pairs)
