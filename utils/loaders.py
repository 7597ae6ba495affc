"""The loaders of a training run and of an evaluation, as their settings and the patches make them."""

from dataclasses import replace
from typing import Any

from utils import data, dist, seams
from utils.augment import check_colour
from utils.config import Config
from utils.notes import note
from utils.split import check_groups


def make_loaders(cfg: Config, spec: data.DataSpec, patches: seams.Patches, size: int, stride: int) -> tuple[Any, Any]:
    """Training batches as augmented as the hyp file and --close-mosaic say; validation batches in rectangles. Groups
    that lie in both splits are said or, with --strict-split, an error."""
    check_groups(spec, strict=cfg.strict_split)
    spec = coloured(cfg, spec)
    closes = cfg.epochs - cfg.close_mosaic if cfg.close_mosaic else None
    augment = data.AugmentPlan(data.AugmentParams.of(cfg), closes=closes)
    with dist.main_first():  # the others then find its label cache
        train = data.make_dataset(
            spec, "train", img_size=size, stride=stride, batch_size=cfg.batch_size, augment=augment,
            rect=cfg.rect, pad=0.0, quad=cfg.quad, cache_images=cfg.cache_images, single_cls=cfg.single_cls,
            on_bad_data=cfg.on_bad_data, seed=cfg.seed, on_missing_pair=cfg.on_missing_pair,
        )  # fmt: skip
    train = patches.fold("wrap_dataset", train, "train")
    return (
        data.make_loader(
            train, batch_size=cfg.batch_size, shuffle=True, quad=cfg.quad, workers=cfg.workers, seed=cfg.seed,
            rank=dist.rank(), ranks=dist.world(),
        ),
        validation(cfg, spec, patches, stride),
    )  # fmt: skip


def validation(cfg: Config, spec: data.DataSpec, patches: seams.Patches, stride: int, split: str = "val") -> Any:
    """The validation batches of a training run, or those of another split, evaluated in the same way."""
    return evaluation(
        spec, split, patches, size=cfg.test_size, stride=stride, batch_size=cfg.val_batch, workers=cfg.workers,
        cache_images=cfg.cache_images, single_cls=cfg.single_cls, on_bad_data=cfg.on_bad_data, seed=cfg.seed,
        on_missing_pair=cfg.on_missing_pair,
    )  # fmt: skip


def evaluation(
    spec: data.DataSpec,
    split: str,
    patches: seams.Patches,
    *,
    size: int,
    stride: int,
    batch_size: int,
    workers: int,
    single_cls: bool,
    on_bad_data: str,
    cache_images: bool = False,
    seed: int = 0,
    like: str = "",
    on_missing_pair: str = "error",
) -> Any:
    """Batches of a split, not augmented, in rectangles; `size` is rounded up to whole strides. like: see
    DetectionDataset."""
    with dist.main_first():
        dataset = data.make_dataset(
            spec, split, img_size=whole_strides(size, stride), stride=stride, batch_size=batch_size, augment=None,
            rect=True, pad=0.5, cache_images=cache_images, single_cls=single_cls, on_bad_data=on_bad_data, seed=seed,
            like=like, on_missing_pair=on_missing_pair,
        )  # fmt: skip
    dataset = patches.fold("wrap_dataset", dataset, split)
    return data.make_loader(
        dataset, batch_size=batch_size, workers=workers, shuffle=False, seed=seed, rank=dist.rank(), ranks=dist.world()
    )


def coloured(cfg: Config, spec: data.DataSpec) -> data.DataSpec:
    """The data set for training: with --force-hsv any three channels count as red, green and blue. UserError for hue
    and saturation jitter where they do not."""
    if cfg.force_hsv and spec.channels == 3:
        return replace(spec, colour=True)
    many = spec.channels != 3
    why = f"{spec.source} {f'has {spec.channels} channels' if many else 'says color: none'}"
    check_colour(
        {"hsv_h": cfg.hsv_h, "hsv_s": cfg.hsv_s},
        spec.colour,
        why + ("" if many else " (--force-hsv takes them for colours)"),
    )
    return spec


def whole_strides(size: int, stride: int) -> int:
    """The size rounded up to a multiple of the largest stride, said where it differs."""
    rounded = -(-size // stride) * stride
    if rounded != size:
        print(note("size rounded", f"--img-size {size} is not a multiple of the stride {stride}: using {rounded}"))
    return rounded
