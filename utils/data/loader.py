"""Samplers, collation and loaders: which pictures make up a batch, in which order.

Order: a permutation from (seed, epoch), the same for any number of workers. `loader.order.set_epoch(e)` before each
epoch; the epoch then travels inside each `Sample`. Batch: see utils.seams.Batch.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from utils.data.labels import UNKNOWN
from utils.images.pixels import fractions
from utils.seams import Annotations, Batch, Collated, Dataset, Item, Sample
from utils.system.errors import UserError
from utils.system.processes.program import ask
from utils.system.processes.workers import LOOK, WorkerLost, check_room, drop, fetched, start_worker
from utils.system.rng import rng

Collate = Callable[[list[Item]], Collated]


class Order(Sampler[list[Sample]]):
    """The batches of an epoch, as lists of samples; of several ranks, those of one.

    Rect batches (`grouped`) stay together and only change places, the short last one staying last. With `weights` [n]
    the samples are drawn by weight, with replacement. `set_epoch(e, start)` skips the first `start` batches (after a
    resume).

    batch_size is global: the sequence of samples does not depend on the number of ranks. In training each rank takes
    a run of equal length out of every batch (of a short last one about that; a rank left without repeats the last
    sample, which then counts nothing). With `whole`, for evaluation, batch i goes to rank i modulo ranks.
    """

    def __init__(
        self, count: int, *, batch_size: int, shuffle: bool, seed: int, grouped: bool = False, rank: int = 0,
        ranks: int = 1, whole: bool = False,
    ) -> None:  # fmt: skip
        self.count, self.batch_size, self.shuffle, self.seed, self.grouped = count, batch_size, shuffle, seed, grouped
        self.rank, self.ranks, self.whole = rank, ranks, whole
        self.weights: npt.NDArray[np.float64] | None = None
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch, self.start = epoch, start

    def order(self) -> npt.NDArray[np.int64]:
        """Indices [n] in the order of the present epoch, over all ranks."""
        everything = np.arange(self.count)
        if not self.shuffle:
            return everything
        draw = rng(self.seed, "order", self.epoch)
        if self.weights is not None and self.weights.sum() > 0:
            return draw.choice(self.count, self.count, p=self.weights / self.weights.sum())
        if not self.grouped:
            return draw.permutation(self.count)
        whole = self.count // self.batch_size
        batches = everything[: whole * self.batch_size].reshape(whole, self.batch_size)
        return np.concatenate([batches[draw.permutation(whole)].reshape(-1), everything[whole * self.batch_size :]])

    def mine(self, size: int) -> slice:
        """Where this rank's samples lie in a global batch of `size`; empty where there are more ranks than samples."""
        return slice(self.rank * size // self.ranks, (self.rank + 1) * size // self.ranks)

    def global_sizes(self) -> list[int]:
        """Samples in each global batch from `start` on."""
        return [min(self.batch_size, self.count - i) for i in range(0, self.count, self.batch_size)][self.start :]

    def numbers(self) -> range:
        """Which of the batches from `start` on this rank takes part in."""
        batches = len(self.global_sizes())
        return range(self.rank, batches, self.ranks) if self.whole else range(batches)

    def images(self) -> list[tuple[int, float]]:
        """Of each batch of `__iter__`: this rank's images, and their share of the global batch."""
        sizes = self.global_sizes()
        if self.whole:
            return [(sizes[i], 1.0) for i in self.numbers()]
        counts = [len(range(size)[self.mine(size)]) for size in sizes]
        return [(count, count / size) for count, size in zip(counts, sizes, strict=True)]

    def __iter__(self) -> Iterator[list[Sample]]:
        order = self.order()[self.start * self.batch_size :].tolist()
        for i in self.numbers():
            batch = order[i * self.batch_size : (i + 1) * self.batch_size]
            part = batch if self.whole else batch[self.mine(len(batch))] or batch[-1:]
            yield [Sample(self.epoch, index) for index in part]

    def __len__(self) -> int:
        return len(self.numbers())


def collate(items: list[Item]) -> Collated:
    """Tensors are stacked, but targets [n,5] get their picture's number and follow one another [N,6]; anything else
    becomes a list."""
    rows = [torch.cat([x["target"].new_full((len(x["target"]), 1), i), x["target"]], 1) for i, x in enumerate(items)]
    batch: dict[str, object] = {"image": torch.stack([x["image"] for x in items]), "target": torch.cat(rows)}
    entries: Sequence[Mapping[str, object]] = items
    for key in (k for k in items[0] if k not in batch):
        values = [x[key] for x in entries]
        tensors = [value for value in values if isinstance(value, Tensor)]
        batch[key] = torch.stack(tensors) if tensors else values
    return cast(Collated, batch)  # its entries are those of the items


def collate_quad(items: list[Item]) -> Collated:
    """Four pictures become one of twice the side (2x2), or the first of them enlarged, as its `quad` draw says; the
    one to three left over at the end are enlarged. B pictures [C,H,W] -> about B/4 of [C,2H,2W]."""
    whole = len(items) // 4 * 4
    out = [_two_by_two(items[i : i + 4]) if items[i]["quad"] else _enlarged(items[i]) for i in range(0, whole, 4)]
    return collate(out + [_enlarged(x) for x in items[whole:]])


def _enlarged(item: Item) -> Item:
    image = interpolate(item["image"][None].float(), scale_factor=2, mode="bilinear", align_corners=False)[0]
    whole = image.round().clamp(0, torch.iinfo(item["image"].dtype).max).to(item["image"].dtype)
    enlarged: Item = {**item, "image": whole, "gain_pad": item["gain_pad"] * 2}
    enlarged.pop("quad", None)
    return enlarged


def _two_by_two(items: list[Item]) -> Item:
    images = [x["image"] for x in items]
    image = torch.cat([torch.cat(images[:2], 2), torch.cat(images[2:], 2)], 1)
    targets = []
    for i, x in enumerate(items):
        target = x["target"].clone()
        target[:, 1:] /= 2
        target[:, 1:3] += torch.tensor([i % 2, i // 2]) / 2
        targets.append(target)
    joined: Item = {**items[0], "image": image, "target": torch.cat(targets), "gain_pad": torch.zeros(4)}
    joined.pop("quad", None)
    if "image_class" in joined:
        joined["image_class"] = torch.tensor(UNKNOWN)  # of four images
    return joined


class Loader(DataLoader[Item]):
    """A DataLoader over an `Order`, which is at `loader.order`.

    Beside what `collate` gives, a batch has `images`, how many samples it counts for, and `share`, their part of the
    global batch. Workers' bad-input errors arrive as they were raised, without the workers' traceback. When a worker
    dies in a run, the run is asked to save and to end, and this process loads what is missing until it does.
    """

    dataset: Dataset  # type: ignore[assignment]  # torch's class of that name promises no more

    def __init__(self, dataset: Dataset, order: Order, *, workers: int = 0, collate_fn: Collate = collate) -> None:
        """The last partial batch included. At most as many workers as there are cores."""
        workers = min(workers, os.cpu_count() or 1)
        super().__init__(
            cast(TorchDataset[Item], dataset),
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate_fn,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
            persistent_workers=workers > 0,
            timeout=LOOK if workers else 0,
            generator=torch.Generator().manual_seed(order.seed),  # else each epoch would draw from the global stream
        )
        self.order = order
        if workers:
            images = max((n for n, _ in order.images()), default=1)
            shapes = getattr(dataset, "shapes", None)
            first = 0 if shapes is None else int(shapes.prod(1).argmax()) * order.batch_size  # of the largest batch
            check_room(dataset[Sample(0, first)], images, workers)

    def single_pictures(self, together: bool) -> set[tuple[int, int]]:
        """(h, w) of the network inputs of training that stand alone in their batch; together: of all ranks, else of
        this one."""
        data, shapes = self.dataset, getattr(self.dataset, "shapes", None)
        counts = self.order.global_sizes() if together else [max(images, 1) for images, _ in self.order.images()]
        quad = self.collate_fn is collate_quad
        joined = [n // 4 + n % 4 if quad else n for n in counts]
        sizes = (
            [(data.img_size, data.img_size)] * len(counts) if shapes is None else shapes[self.order.start :].tolist()
        )
        side = 2 if quad else 1
        return {(side * h, side * w) for n, (h, w) in zip(joined, sizes, strict=True) if n == 1}

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        counts = self.order.images()
        try:
            for batch, (images, share) in zip(self.collated(), counts, strict=True):
                yield {**batch, "images": images, "share": share}
        except UserError as error:
            raise UserError(str(error).rpartition("UserError: ")[2].rstrip()) from None

    def collated(self) -> Iterator[Collated]:
        done = 0
        try:
            batches: Iterator[Collated] = fetched(self, super().__iter__)
            for batch in batches:
                yield batch
                done += 1
        except WorkerLost as lost:
            drop(self)
            if not ask(str(lost)):
                raise
            for samples in list(self.order)[done:]:
                yield self.collate_fn([self.dataset[sample] for sample in samples])


class Fed:
    """The batches of a loader, and how long the loop over them has waited for the next one.

    The wait is the host's. On CUDA the device may still be busy meanwhile, so its own wait is at most that."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches
        self.waited = self.total = 0.0  # seconds

    def __iter__(self) -> Iterator[Batch]:
        start = asked = time.perf_counter()
        for batch in self.batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
            self.total = asked - start

    @property
    def share(self) -> float:
        """Of the loop's time, the part spent waiting."""
        return self.waited / self.total if self.total else 0.0


def make_loader(
    dataset: Dataset, *, batch_size: int, workers: int, shuffle: bool, seed: int, quad: bool = False,
    rank: int = 0, ranks: int = 1,
) -> Loader:  # fmt: skip
    """The loader of a data set. Its order is at `loader.order` (an `Order`): set_epoch, weights. batch_size: of all
    ranks together. Shuffled batches are shared out by samples, others (evaluation) as they are."""
    if dataset.rect and batch_size != dataset.batch_size:
        raise ValueError(f"rect shapes were made for batches of {dataset.batch_size}, not {batch_size}")
    if quad != dataset.quad:
        raise ValueError("quad must be given to make_dataset and make_loader alike")
    unit = 4 * ranks if quad and ranks > 1 else ranks
    if shuffle and batch_size % unit:
        what = f"{ranks} ranks" + (" in fours (--quad)" if quad else "")
        raise UserError(f"--batch-size {batch_size} cannot be shared by {what}: use a multiple of {unit}")
    order = Order(
        len(dataset), batch_size=batch_size, shuffle=shuffle, seed=seed, grouped=dataset.rect, rank=rank, ranks=ranks,
        whole=not shuffle,
    )  # fmt: skip
    return Loader(dataset, order, workers=workers, collate_fn=collate_quad if quad else collate)


def class_weights(labels: Sequence[Annotations], nc: int) -> npt.NDArray[np.float64]:
    """[nc] inverse box counts (1 for a class without boxes), summing to 1."""
    classes = np.concatenate([np.zeros(0), *(x.boxes[:, 0] for x in labels)]).astype(int)
    weights = 1 / np.maximum(np.bincount(classes, minlength=nc), 1)
    return np.asarray(weights / weights.sum())


def image_weights(labels: Sequence[Annotations], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[n] sum over each image's boxes of its class's weight. For --image-weights pass
    class_weights * (1 - maps)**2, with maps [nc] the last mAP per class, and assign the result to
    `loader.order.weights`."""
    return np.array([weights[x.boxes[:, 0].astype(int)].sum() for x in labels])


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """A copy of the batch with image (float32 in 0..1), target and image_class on `device`; the rest as it is. The
    transfer is of whole numbers. Added: `most`, the boxes of the picture that has most, which the host cannot ask the
    device for later without waiting."""
    image = fractions(batch["image"].to(device, non_blocking=True))
    most = int(torch.bincount(batch["target"][:, 0].long(), minlength=1).max())
    target = batch["target"].to(device, non_blocking=True)
    moved: Batch = {**batch, "image": image, "target": target, "most": most}
    if (classes := batch.get("image_class")) is not None:
        moved["image_class"] = classes.to(device, non_blocking=True)
    return moved


def multiscale(image: Tensor, img_size: int, stride: int, seed: int, step: int) -> Tensor:
    """Resize a batch [B,C,H,W] to a long side of 0.5 to 1.5 times img_size, drawn from (seed, step), sides in
    multiples of the stride. Targets are fractions and stay."""
    size = int(rng(seed, "multiscale", 0, step).choice(multiscale_sizes(img_size, stride)))
    new = resized_to(image.shape[2], image.shape[3], size, stride)
    return (
        image if new == tuple(image.shape[2:]) else interpolate(image, size=new, mode="bilinear", align_corners=False)
    )


def multiscale_sizes(img_size: int, stride: int) -> npt.NDArray[np.int64]:
    """The long sides that --multi-scale draws from, smallest first."""
    return np.arange(img_size // 2 // stride * stride or stride, img_size * 3 // 2 + 1, stride)


def resized_to(height: int, width: int, size: int, stride: int) -> tuple[int, int]:
    """Height and width of a batch whose long side becomes `size`, in whole strides; unchanged where it has that."""
    factor = size / max(height, width)
    if factor == 1:
        return height, width
    return max(-(-round(height * factor) // stride), 1) * stride, max(-(-round(width * factor) // stride), 1) * stride
