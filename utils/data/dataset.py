"""The data set that a loader reads: one picture with its boxes per `Sample`.

Evaluation: the picture letterboxed into a square, or with `rect` into the batch's common shape. Training with
`augment`: mosaic or letterbox -> warp -> mixup -> paste-in -> colour -> flips. Every draw comes from (seed, purpose,
epoch, index): geometry and colour from separate streams, so that a second image of the same scene can share the
geometry alone.

Item: see utils.seams.Item. A picture of parts of several images has no class of its own (utils/data/image_classes.py
says why). `with_partners()`: also the partner, by the same geometry, its brightness jittered by a draw of its own. With
"infrared" or "both", `image` is the partner in the visible one's channels, or [2C,H,W] of both, and the partner is not
there a second time.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset as TorchDataset

from utils.config.settings import DataSettings
from utils.data import augment
from utils.data.augment import AugmentParams, AugmentPlan, Change, Objects
from utils.data.labels import UNKNOWN, Labels
from utils.data.pairs import seen
from utils.data.scan import Scan
from utils.images.cache import ImageCache
from utils.images.letterbox import fit, place
from utils.images.pixels import CHANNELS, Image, Pixels, empty, resized, widened
from utils.images.read import read_image, reduced, reduction
from utils.images.tiff import Scale
from utils.seams import Item, Sample
from utils.system.errors import UserError
from utils.system.rng import rng

MOSAIC_9 = 0.2  # share of the mosaics that have nine tiles


def batch_shapes(
    sizes: npt.NDArray[np.int64], batch_size: int, img_size: int, stride: int, pad: float
) -> npt.NDArray[np.int64]:
    """The common (h, w) of each batch [batches,2] for native sizes [n,2] in order of aspect ratio: the long side about
    img_size, the other just enough for the batch, both ceil(x / stride + pad) * stride."""
    ratio = sizes[:, 0] / sizes[:, 1]
    starts = np.arange(0, len(ratio), batch_size)
    low, high = np.minimum.reduceat(ratio, starts), np.maximum.reduceat(ratio, starts)
    height = np.where(high < 1, high, 1.0)
    width = np.where(low > 1, 1 / low, 1.0)
    relative = np.stack([height, width], 1) * img_size / stride + pad
    return np.asarray(np.ceil(relative - 1e-9).astype(np.int64) * stride)


def masked_share(params: AugmentParams | None, *, rect: bool = False, quad: bool = False) -> float:
    """Expected share of the training pictures that have no image class because they are composed of several images."""
    if params is None:
        return 0.0
    mosaic = 0.0 if rect else params.mosaic
    return 1 - (1 - mosaic) * (1 - params.paste_in) * (0.5 if quad else 1.0)


class DetectionDataset(TorchDataset[Item]):
    """See the module's docstring. With `rect` the images are put in order of aspect ratio (`files`, `labels`, `sizes`
    follow), `shapes` holds each batch's (h, w), and mosaic is off.

    like "v5" or "v7": three habits of that program, without which its mAP cannot be met to the third digit. Images of
    equal aspect ratio come in the order of numpy's unstable sort (which depends on the kind of CPU), so that other
    images share a batch and its shape; half a pixel of padding counts in coordinates though no picture can be moved by
    it; and v7 rounds the resized image down."""

    def __init__(self, scan: Scan, settings: DataSettings, augment: AugmentParams | AugmentPlan | None = None) -> None:
        s = settings
        order = np.arange(len(scan.files))
        if s.rect:
            order = np.argsort(scan.sizes[:, 0] / scan.sizes[:, 1], kind=None if s.like else "stable")
        self.files: list[Path] = [scan.files[i] for i in order]
        self.labels: list[Labels] = [scan.labels[i] for i in order]
        self.objects = Objects.of_all(self.labels)
        self.sizes = scan.sizes[order]  # [n,2] native (h, w)
        self.cls_names = scan.cls_names  # of whole images; empty: there are none
        self.image_classes = scan.image_classes[order]  # [n], -1 = unknown
        self.partners = scan.partners
        self.paired, self.reads = False, "visible"  # whether partners are loaded, of these pixels; what detection reads
        self.grey = ""  # which of the two pictures is taken away
        self.visible = self.infrared = scan.pixels
        self.augment = AugmentPlan(augment) if isinstance(augment, AugmentParams) else augment
        self.img_size, self.seed, self.quad = s.img_size, s.seed, s.quad
        self.pixels, self.scale = scan.pixels, scan.scale
        self.rect, self.batch_size, self.like = s.rect, s.batch_size, s.like
        self.shapes = batch_shapes(self.sizes, s.batch_size, s.img_size, s.stride, s.pad) if s.rect else None
        self._cache: ImageCache | None = None
        if s.cache_images:
            self._cache = self._cached()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, sample: Sample) -> Item:
        epoch, index = sample
        others: list[int] = []
        if self.augment is None:
            item = self._plain(index)
        else:
            item, others = self._augmented(epoch, index, self.augment.at(epoch))
        if self.cls_names:
            item["image_class"] = torch.tensor(UNKNOWN if others else int(self.image_classes[index]))
        if self.paired:
            visible, infrared = item["image"].split([self.visible.channels, self.infrared.channels])
            item["image"] = seen(visible, infrared, self.reads, self.grey)
            if self.reads == "visible":
                item["infrared"] = infrared
            item["paired"] = torch.tensor(all(self._partner(i) is not None for i in (index, *others)))
            item["number"] = torch.tensor(index)
        if self.quad:
            item["quad"] = bool(rng(self.seed, "quad", epoch, index).random() < 0.5)
        return item

    def changing(self, changes: Sequence[Change]) -> "DetectionDataset":
        """The same pictures, for training, with other augmentation from some epochs on."""
        assert self.augment is not None
        for epoch, values in changes:
            augment.check_colour(values, self.pixels.colour, f"these channels are none (from epoch {epoch} on)")
        other = copy(self)
        other.augment = self.augment.changed(changes)
        return other

    def with_partners(self, reads: str = "visible", grey: str = "") -> "DetectionDataset":
        """The same pictures with their infrared partners. Both are one picture of more channels on the way, so that
        every geometric draw is shared. reads: what `image` shall be, see utils/data/pairs.py; where it holds the
        infrared picture, the item does not hold it a second time. grey: "visible" or "infrared", a picture that `both`
        is to do without."""
        if self.partners is None:
            raise UserError("the data YAML names no infrared partners: add the key `pairs`, e.g. `pairs: llvip`")
        if self.quad:
            raise UserError("--quad does not know pairs of images")
        own, theirs = self.pixels.channels, self.partners.channels
        if own + theirs > CHANNELS or theirs not in (1, own):
            raise UserError(f"the images have {own} channels and their infrared partners {theirs}: make these grey")
        other = copy(self)
        other.paired, other.reads, other.grey = True, reads, grey
        other.infrared = Pixels(self.partners.channels, self.partners.bits, colour=False)
        bits = max(self.pixels.bits, self.partners.bits)
        other.pixels = Pixels(self.pixels.channels + self.partners.channels, bits, self.pixels.colour)
        if self._cache is not None:
            other._cache = None
            other._cache = other._cached()
        return other

    def _cached(self) -> ImageCache:
        loaded = np.array([self._loaded_size(i) for i in range(len(self))])
        return ImageCache(loaded, self.pixels, self.load, f"{len(self)} images at {self.img_size} px")

    def _partner(self, index: int) -> Path | None:
        assert self.partners is not None
        return self.partners.files[self.files[index]]

    def _plain(self, index: int) -> Item:
        image, gain, pad = self._letterboxed(index)
        boxes = self.labels[index].boxes.copy()
        height, width = image.shape[:2]
        native = self.sizes[index, ::-1].astype(np.float32)
        whole = np.array([width, height], np.float32)
        scale = native * np.array(gain, np.float32) / whole
        boxes[:, 1:3] = boxes[:, 1:3] * scale + np.array(pad, np.float32) / whole
        boxes[:, 3:5] *= scale
        return self._item(index, image, boxes, (*gain, *pad))

    def _augmented(self, epoch: int, index: int, params: AugmentParams) -> tuple[Item, list[int]]:
        """The item, and which other images are part of its picture."""
        draw = rng(self.seed, "geometry", epoch, index)
        others: list[int] = []
        if not self.rect and draw.random() < params.mosaic:
            image, objects, others = self._mosaic(draw, index, params)
            if draw.random() < params.mixup:
                other, more, tiles = self._mosaic(draw, int(draw.integers(len(self))), params)
                image, objects = augment.mixup(draw, image, other), augment.joined([objects, more])
                others += tiles
        else:
            image, gain, pad = self._letterboxed(index)
            native = self.sizes[index]
            objects = self.objects[index].moved((native[1] * gain[0], native[0] * gain[1]), pad)
            if params.copy_paste:
                image = image.copy()
                objects = augment.copy_paste(draw, image, objects, params.copy_paste)
            size = (image.shape[0], image.shape[1])
            image, objects = augment.warp(image, objects, augment.warp_matrix(draw, params, size, size), size)
        if draw.random() < params.paste_in:
            image = image.copy()
            pasted = draw.integers(len(self), size=3).tolist()
            objects = augment.paste_in(draw, image, objects, [self._tile(i) for i in pasted])
            others += pasted
        image = self._coloured(epoch, index, image, params)
        image, boxes = augment.flip(draw, image, objects.boxes(), params)
        target = _to_target(objects.classes, boxes, image.shape[1], image.shape[0])
        return self._item(index, image, target, (0, 0, 0, 0)), others

    def _coloured(self, epoch: int, index: int, image: Image, params: AugmentParams) -> Image:
        """Colour jitter; of a pair, that of the visible picture as if it were alone, and of the infrared one only the
        brightness, by a stream of its own."""
        draw = rng(self.seed, "colour", epoch, index)
        if not self.paired:
            return augment.hsv(draw, image, params, self.pixels.colour)
        count = self.visible.channels
        visible = augment.hsv(draw, np.ascontiguousarray(image[..., :count]), params, self.visible.colour)
        bright = replace(params, hsv_h=0.0, hsv_s=0.0)
        own = rng(self.seed, "colour/infrared", epoch, index)
        infrared = augment.hsv(own, np.ascontiguousarray(image[..., count:]), bright, False)
        return np.concatenate([visible, infrared], 2)

    def _mosaic(self, draw: np.random.Generator, index: int, params: AugmentParams) -> tuple[Image, Objects, list[int]]:
        """Four or nine pictures on a canvas of twice the size, warped to img_size squared; and which they are."""
        s = self.img_size
        tiles = [index, *draw.integers(len(self), size=8 if draw.random() < MOSAIC_9 else 3).tolist()]
        if len(tiles) == 9:
            tiles[0], tiles[4] = tiles[4], tiles[0]  # the picture itself is the middle one
        sizes = [self._loaded_size(i) for i in tiles]
        offsets = augment.mosaic_offsets(draw, sizes, s)
        parts = [self.objects[i].moved((w, h), at) for i, (h, w), at in zip(tiles, sizes, offsets, strict=True)]
        objects = augment.joined(parts).clipped(2 * s, 2 * s)
        if params.copy_paste:  # what is copied may come from anywhere on the canvas
            canvas = self._canvas(tiles, offsets, (0, 0, 2 * s, 2 * s))
            objects = augment.copy_paste(draw, canvas, objects, params.copy_paste)
            matrix = augment.warp_matrix(draw, params, (2 * s, 2 * s), (s, s))
        else:
            matrix = augment.warp_matrix(draw, params, (2 * s, 2 * s), (s, s))
            canvas = self._canvas(tiles, offsets, augment.visible(matrix, (2 * s, 2 * s), (s, s)))
        return *augment.warp(canvas, objects, matrix, (s, s)), tiles

    def _canvas(
        self, tiles: Sequence[int], offsets: Sequence[tuple[int, int]], seen: tuple[int, int, int, int]
    ) -> Image:
        """The pictures with their upper left corners at `offsets`, where they touch the part x0, y0, x1, y1 that will
        be seen; the others would be decoded for nothing."""
        x0, y0, x1, y1 = seen
        canvas = empty((2 * self.img_size, 2 * self.img_size), self.pixels)
        for index, (x, y) in zip(tiles, offsets, strict=True):
            h, w = self._loaded_size(index)
            if x < x1 and y < y1 and x + w > x0 and y + h > y0:
                augment.paste(canvas, self.load(index), x, y)
        return canvas

    def _tile(self, index: int) -> tuple[Image, Objects]:
        """A picture with its long side img_size, and its objects in its pixels."""
        image = self.load(index)
        return image, self.objects[index].moved((image.shape[1], image.shape[0]), (0, 0))

    def _letterboxed(self, index: int) -> tuple[Image, tuple[float, float], tuple[float, float]]:
        """The picture in its square or batch shape -> (image, gain (x, y) from native pixels, pad (x, y))."""
        image = self.load(index)
        height, width = self._native_size(index)
        target = self.img_size if self.shapes is None else tuple(self.shapes[index // self.batch_size].tolist())
        placed = fit((image.shape[0], image.shape[1]), target, auto=False, scaleup=self.augment is not None)
        pad = placed.pad if self.like else (float(placed.left), float(placed.top))
        return place(image, placed), (placed.inner[1] / width, placed.inner[0] / height), pad

    def load(self, index: int) -> Image:
        """[h,w,C], the long side img_size, in the depth of the data set. From the cache it is read-only. For training a
        large JPEG is decoded at a reduced size, for evaluation whole. A partner that is missing is grey."""
        if self._cache is not None:
            return self._cache[index]
        if not self.paired:
            return self._read(self.files[index], index, self.pixels.channels, self.scale)
        file = self._partner(index)
        grey = Pixels(self.infrared.channels, self.pixels.bits)
        infrared = self._read(file, index, grey.channels, None) if file else empty(self._loaded_size(index), grey)
        visible = self._read(self.files[index], index, self.visible.channels, self.scale)
        return np.concatenate([visible, infrared], 2)

    def _read(self, file: Path, index: int, channels: int, scale: Scale | None) -> Image:
        """A file of image `index`, as `load` gives it."""
        native, size = self._native_size(index), self._loaded_size(index)
        factor = 1 if self.augment is None else reduction(native, size)
        image = read_image(file, factor, channels, scale)
        if image is None or image.shape[:2] not in (native, reduced(native, factor)):
            raise UserError(f"{file}: the image has changed or vanished since the run began")
        if self.pixels.bits > 8:
            image = widened(image)
        if image.shape[:2] == size:
            return image
        shrinks = size[0] < native[0] or size[1] < native[1]
        how = cv2.INTER_AREA if shrinks and self.augment is None else cv2.INTER_LINEAR
        return resized(image, size, how)

    def _native_size(self, index: int) -> tuple[int, int]:
        height, width = self.sizes[index].tolist()
        return height, width

    def _loaded_size(self, index: int) -> tuple[int, int]:
        h, w = self._native_size(index)
        long = max(h, w)
        if self.like == "v7":
            return max(int(h * (self.img_size / long)), 1), max(int(w * (self.img_size / long)), 1)
        return -(-h * self.img_size // long), -(-w * self.img_size // long)  # rounded up, in whole numbers

    def _item(self, index: int, image: Image, target: npt.NDArray[np.float32], gain_pad: tuple[float, ...]) -> Item:
        planes = np.empty((image.shape[2], *image.shape[:2]), image.dtype)
        cv2.split(image, list(planes))  # writes into them, several times as fast as copying the transposed picture
        return {
            "image": torch.from_numpy(planes),
            "target": torch.from_numpy(target),
            "gain_pad": torch.tensor(gain_pad, dtype=torch.float32),
            "path": str(self.files[index]),
            "shape": torch.from_numpy(self.sizes[index]),
        }


def _to_target(
    classes: npt.NDArray[np.float32], boxes: npt.NDArray[np.float32], width: int, height: int
) -> npt.NDArray[np.float32]:
    """Classes [n] and xyxy boxes [n,4] in pixels -> [n,5] class, cx, cy, w, h in 0..1."""
    whole = np.array([width, height], np.float32)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2 / whole, (boxes[:, 2:] - boxes[:, :2]) / whole
    return np.concatenate([classes[:, None], centre, size], 1, dtype=np.float32)
