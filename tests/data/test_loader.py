"""Data sets and loaders: the same batches however they are loaded, rect shapes, quad, order, weights, memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.data.pictures import make_set, pixel_boxes, white_boxes
from tests.shared import shared
from utils.config.settings import DataSettings
from utils.data.augment import AugmentParams
from utils.data.build import make_dataset
from utils.data.dataset import DetectionDataset, batch_shapes
from utils.data.labels import Labels
from utils.data.loader import Fed, Order, class_weights, image_weights, make_loader, multiscale, to_device
from utils.data.spec import read_data
from utils.seams import Batch, Item, Sample
from utils.system.errors import UserError

STRONG = AugmentParams(
    **{"hsv_h": 0.1, "hsv_s": 0.5, "hsv_v": 0.4, "degrees": 10, "translate": 0.1, "scale": 0.5, "shear": 3},
    **{"fliplr": 0.5, "flipud": 0.2, "mosaic": 0.7, "mixup": 0.3, "paste_in": 0.3},
)


def open_set(source: Path, **options: Any) -> DetectionDataset:
    augment = options.pop("augment", None)
    settings = DataSettings(**({"img_size": 64, "batch_size": 5, "seed": 7} | options))
    return make_dataset(read_data(source), "train", settings, augment)


def batches(dataset: DetectionDataset, *, workers: int = 0, epochs: int = 1, **options: Any) -> list[Batch]:
    settings: dict[str, Any] = {"batch_size": 5, "shuffle": True, "seed": 7, "quad": dataset.quad}
    loader = make_loader(dataset, workers=workers, **(settings | options))
    out = []
    for epoch in range(epochs):
        loader.order.set_epoch(epoch)
        out += list(loader)
    return out


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        x.keys() == y.keys()
        and x["path"] == y["path"]
        and all(torch.equal(x[k], y[k]) for k in ("image", "target", "shape", "gain_pad"))
        for x, y in zip(a, b, strict=True)
    )


def test_types_that_travel(tmp_path: Path) -> None:
    dataset = open_set(make_set(tmp_path))
    batch = batches(dataset)[0]
    assert batch.keys() == {"image", "target", "path", "shape", "gain_pad", "images", "share"}
    assert batch.keys() == Batch.__required_keys__ and dataset[Sample(0, 0)].keys() == Item.__required_keys__
    assert (batch["image"].dtype, tuple(batch["image"].shape)) == (torch.uint8, (5, 3, 64, 64))
    assert (batch["target"].dtype, batch["target"].shape[1]) == (torch.float32, 6)
    assert batch["target"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert (batch["shape"].dtype, batch["gain_pad"].dtype) == (torch.int64, torch.float32)
    there = to_device(batch, "cpu")
    assert there["image"].dtype == torch.float32
    assert torch.equal((there["image"] * 255).round().to(torch.uint8), batch["image"])
    assert there["image"].max() <= 1
    assert there["most"] == 1 and there.keys() - batch.keys() == {"most"} <= Batch.__optional_keys__
    crowd = {**batch, "target": batch["target"][[0, 1, 2, 2, 2, 4]]}
    assert (to_device(crowd, "cpu")["most"], to_device({**batch, "target": torch.zeros(0, 6)}, "cpu")["most"]) == (3, 0)


def test_channels_are_rgb(tmp_path: Path) -> None:
    source = make_set(tmp_path)
    cv2.imwrite(str(tmp_path / "images/train/00.png"), np.full((64, 64, 3), (10, 20, 200), np.uint8))  # BGR: a red
    assert open_set(source)[Sample(0, 0)]["image"][:, 32, 32].tolist() == [200, 20, 10]


def test_same_batches_for_any_worker_count_and_with_the_cache(tmp_path: Path) -> None:
    source = make_set(tmp_path)
    plain = open_set(source, augment=STRONG)
    reference = batches(plain, epochs=2)
    assert same(reference, batches(plain, workers=2, epochs=2))  # persistent workers hear of the second epoch
    cached = open_set(source, augment=STRONG, cache_images=True)
    for image in (tmp_path / "images/train").iterdir():
        image.write_bytes(b"gone")  # from here on only the cache can serve
    assert same(reference, batches(cached, epochs=2))
    assert same(reference, batches(cached, workers=2, epochs=2))


def test_epochs_differ_and_repeat(tmp_path: Path) -> None:
    dataset = open_set(make_set(tmp_path), augment=STRONG)
    both = batches(dataset, epochs=2)
    first, second = both[:3], both[3:]
    assert [p for b in first for p in b["path"]] != [p for b in second for p in b["path"]]
    assert sorted(p for b in first for p in b["path"]) == sorted(map(str, dataset.files))
    assert [len(b["path"]) for b in first] == [5, 5, 2]  # the last partial batch is kept
    assert same(first, batches(dataset))
    assert not torch.equal(dataset[Sample(0, 3)]["image"], dataset[Sample(1, 3)]["image"])
    geometry = open_set(tmp_path / "data.yaml", augment=AugmentParams(translate=0.2, mosaic=0.5))
    assert not torch.equal(geometry[Sample(0, 3)]["target"], geometry[Sample(1, 3)]["target"])
    other = open_set(tmp_path / "data.yaml", augment=STRONG, seed=8)
    assert not torch.equal(dataset[Sample(0, 3)]["image"], other[Sample(0, 3)]["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_neither_used_nor_moved(tmp_path: Path, workers: int) -> None:
    dataset = open_set(make_set(tmp_path), augment=STRONG)
    reference = batches(dataset, workers=workers)
    torch.manual_seed(123)
    np.random.seed(123)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr,index]
    assert same(reference, batches(dataset, workers=workers))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore[index]


def test_gain_and_pad_lead_back_to_native_pixels(tmp_path: Path) -> None:
    for rect in (False, True):
        dataset = open_set(make_set(tmp_path / str(rect), scale=3), rect=rect, pad=0.5 if rect else 0.0)
        for index, file in enumerate(dataset.files):
            item = dataset[Sample(0, index)]
            gain_x, gain_y, pad_x, pad_y = item["gain_pad"].tolist()
            box = pixel_boxes(item["target"].numpy(), item["image"].shape[1:])[0]
            found = white_boxes(item["image"].numpy())[0]
            assert np.abs(box - found).max() <= 1
            _, cx, cy, w, h = map(float, (tmp_path / str(rect) / f"labels/train/{file.stem}.txt").read_text().split())
            height, width = item["shape"].tolist()
            truth = np.array([(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height])
            assert np.abs(truth * ([gain_x, gain_y] * 2) + [pad_x, pad_y] * 2 - box).max() < 1e-3


def test_rect_shapes_by_hand() -> None:
    sizes = np.array([[240, 480], [300, 400], [300, 400], [400, 400], [400, 300], [480, 240]])
    # (0.5, 0.75) -> .75 x 1; (0.75, 1) -> 1 x 1; (4/3, 2) -> 1 x .75
    assert batch_shapes(sizes, 2, 320, 32, 0.0).tolist() == [[256, 320], [320, 320], [320, 256]]
    assert batch_shapes(sizes, 2, 320, 32, 0.5).tolist() == [[256, 352], [352, 352], [352, 256]]
    assert batch_shapes(sizes[:1], 8, 640, 32, 0.5).tolist() == [[352, 672]]


def test_rect_batches(tmp_path: Path) -> None:
    source = make_set(tmp_path)
    dataset = open_set(source, rect=True, pad=0.5)
    out = batches(dataset, shuffle=False)
    ratios = dataset.sizes[:, 0] / dataset.sizes[:, 1]
    assert (np.diff(ratios) >= 0).all()
    assert dataset.shapes is not None
    assert [list(b["image"].shape[2:]) for b in out] == dataset.shapes.tolist() == [[64, 96], [96, 96], [96, 64]]
    assert [p for b in out for p in b["path"]] == list(map(str, dataset.files))
    wide = open_set(source, rect=True, img_size=160)
    assert wide.shapes is not None
    assert wide.shapes.tolist() == [[128, 160], [160, 160], [160, 128]]
    # training: whole batches change places, the short one stays last, mosaic is off
    train = open_set(source, rect=True, img_size=160, augment=AugmentParams(mosaic=1.0, fliplr=0.5))
    seen = set()
    for epoch in range(6):
        order = Order(12, batch_size=5, shuffle=True, seed=0, grouped=True)
        order.set_epoch(epoch)
        index = [s.index for batch in order for s in batch]
        assert index[10:] == [10, 11]
        assert sorted(index[:5]) == index[:5]
        seen.add(tuple(index))
    assert seen == {tuple(range(12)), (*range(5, 10), *range(5), 10, 11)}
    for batch in batches(train, epochs=3):
        assert (batch["target"][:, 0].int().bincount() == 1).all()  # one object per picture: no mosaic
    with pytest.raises(ValueError, match="batches of 5, not 4"):
        make_loader(train, batch_size=4, workers=0, shuffle=True, seed=0)


def test_quad(tmp_path: Path) -> None:
    dataset = open_set(make_set(tmp_path), quad=True, augment=AugmentParams(fliplr=0.5))
    kinds = set()
    for epoch in range(4):
        loader = make_loader(dataset, batch_size=5, workers=0, shuffle=True, seed=7, quad=True)
        loader.order.set_epoch(epoch)
        for batch in loader:
            assert batch["image"].shape[1:] == (3, 128, 128)
            assert batch["image"].dtype == torch.uint8
            assert len(batch["path"]) == len(batch["image"])
            for i, image in enumerate(batch["image"].numpy()):
                target = batch["target"][batch["target"][:, 0] == i][:, 1:].numpy()
                boxes, found = pixel_boxes(target, (128, 128)), white_boxes(image)
                assert len(boxes) == len(found)
                assert all(np.abs(found - box).max(1).min() <= 1.5 for box in boxes)
                kinds.add(len(boxes))
    assert kinds == {1, 4}
    with pytest.raises(ValueError, match="quad"):
        make_loader(dataset, batch_size=5, workers=0, shuffle=True, seed=7)
    assert same(batches(dataset), batches(dataset, workers=2))


def test_start_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    dataset = open_set(make_set(tmp_path), augment=STRONG)
    loader = make_loader(dataset, batch_size=5, workers=0, shuffle=True, seed=7)
    loader.order.set_epoch(2)
    whole = list(loader)
    loader.order.set_epoch(2, 1)
    assert len(loader) == 2
    assert same(list(loader), whole[1:])
    loader.order.set_epoch(3)
    assert len(list(loader)) == 3


def test_weights_by_hand_and_by_reference() -> None:
    def labels(classes: list[int]) -> Labels:
        boxes = np.zeros((len(classes), 5), np.float32)
        boxes[:, 0] = classes
        return Labels(boxes, (None,) * len(classes), np.zeros(len(classes), np.int32))

    images = [labels([0, 2]), labels([2]), labels([]), labels([1, 1, 4])]
    weights = class_weights(images, 5)
    assert np.allclose(weights, np.array([1, 1 / 2, 1 / 2, 1, 1]) / 4)
    assert np.allclose(image_weights(images, weights * 5), [1.875, 0.625, 0, 2.5])
    misc = json.loads(shared("golden/geometry/yolov7.json").read_text())["misc"]
    assert misc["class_weight_labels"] == [[0, 2], [2], [], [1, 1, 4]]
    assert np.allclose(weights, misc["class_weights_nc5"])
    assert np.allclose(image_weights(images, weights * 5), misc["image_weights_nc5"])


def test_weighted_order() -> None:
    order = Order(4, batch_size=2, shuffle=True, seed=0)
    order.weights = np.array([0.0, 1.0, 0.0, 3.0])
    drawn = []
    for epoch in range(200):
        order.set_epoch(epoch)
        drawn += [s.index for batch in order for s in batch]
    counts = np.bincount(drawn, minlength=4) / 800
    assert counts[[0, 2]].tolist() == [0, 0]
    assert abs(counts[3] - 0.75) < 0.06
    order.weights = np.zeros(4)  # nothing to go by: a permutation
    assert sorted(s.index for batch in order for s in batch) == [0, 1, 2, 3]


def test_cache_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_set(tmp_path)
    monkeypatch.setattr("utils.images.cache.free_memory", lambda: 50_000)
    with pytest.raises(UserError, match=r"--cache-images needs .* GiB for 12 images at 64 px but only"):
        open_set(source, cache_images=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_lost_during_the_run_is_named(tmp_path: Path, workers: int) -> None:
    dataset = open_set(make_set(tmp_path))
    (tmp_path / "images/train/04.png").unlink()
    loader = make_loader(dataset, batch_size=5, workers=workers, shuffle=True, seed=7)
    with pytest.raises(UserError) as error:
        list(loader)
    assert str(error.value) == f"{dataset.files[4]}: the image has changed or vanished since the run began"
    if workers:  # else they are only waited for, ten seconds, when the traceback's cycle is collected
        loader._iterator._shutdown_workers()  # type: ignore[union-attr]


def test_image_size_must_fit_the_stride(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--img-size 100 is no multiple of the model's stride 32; 96 would be"):
        open_set(make_set(tmp_path), img_size=100)


def test_multiscale() -> None:
    image = torch.rand(2, 3, 256, 320)
    sizes = set()
    for step in range(60):
        out = multiscale(image, 320, 32, 0, step)
        assert torch.equal(out, multiscale(image, 320, 32, 0, step))
        h, w = out.shape[2:]
        assert h % 32 == w % 32 == 0
        assert 160 <= w <= 480
        assert abs(h / w - 0.8) < 0.2
        sizes.add(w)
    assert sizes == set(range(160, 481, 32))
    ramp = torch.arange(320.0).expand(1, 3, 320, 320) / 320
    step = next(s for s in range(50) if multiscale(ramp, 320, 32, 0, s).shape[3] == 160)
    assert torch.allclose(multiscale(ramp, 320, 32, 0, step)[0, 0, 5], (torch.arange(160) * 2 + 0.5) / 320, atol=1e-5)


def test_waiting_is_told_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the loader (3 s a batch) and the loop (1 s a batch) move on."""
    clock = [100.0]
    monkeypatch.setattr("utils.data.loader.time.perf_counter", lambda: clock[0])

    def loader() -> Iterator[Batch]:
        for i in range(4):
            clock[0] += 3
            yield {"image": i}

    fed = Fed(loader())
    assert fed.share == 0
    seen = []
    for batch in fed:
        clock[0] += 1
        seen.append(batch["image"])
    assert seen == [0, 1, 2, 3]
    assert (fed.waited, fed.total, fed.share) == (12, 16, 0.75)
