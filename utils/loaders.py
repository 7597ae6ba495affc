"""The two loaders of a training run, as its configuration and its patches make them."""

from typing import Any

from utils import data, dist, seams
from utils.config import Config


def make_loaders(cfg: Config, spec: data.DataSpec, patches: seams.Patches, size: int, stride: int) -> tuple[Any, Any]:
    """Training batches as augmented as the hyp file says; validation batches in rectangles."""
    common: dict[str, Any] = {"stride": stride, "cache_images": cfg.cache_images, "single_cls": cfg.single_cls}
    common |= {"on_bad_data": cfg.on_bad_data, "seed": cfg.seed}
    augment, test_size = data.AugmentParams.of(cfg), whole_strides(cfg.test_size, stride)
    with dist.main_first():  # the others then find its label cache
        train = data.make_dataset(
            spec, "train", img_size=size, batch_size=cfg.batch_size, augment=augment, rect=cfg.rect, pad=0.0,
            quad=cfg.quad, **common,
        )  # fmt: skip
        val = data.make_dataset(
            spec, "val", img_size=test_size, batch_size=cfg.val_batch, augment=None, rect=True, pad=0.5, **common
        )  # fmt: skip
    train, val = patches.fold("wrap_dataset", train, "train"), patches.fold("wrap_dataset", val, "val")
    order: dict[str, Any] = {"workers": cfg.workers, "seed": cfg.seed, "rank": dist.rank(), "ranks": dist.world()}
    return (
        data.make_loader(train, batch_size=cfg.batch_size, shuffle=True, quad=cfg.quad, **order),
        data.make_loader(val, batch_size=cfg.val_batch, shuffle=False, **order),
    )


def whole_strides(size: int, stride: int) -> int:
    """The size rounded up to a multiple of the largest stride, said where it differs."""
    rounded = -(-size // stride) * stride
    if rounded != size:
        print(f"--img-size {size} is not a multiple of the stride {stride}: using {rounded}")
    return rounded
