"""Pictures of any depth and number of channels on their way from the file to the network."""

import colorsys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from utils.config.settings import DataSettings
from utils.config.train import Config
from utils.data import augment
from utils.data.augment import AugmentParams, AugmentPlan
from utils.data.build import coloured, make_dataset
from utils.data.dataset import DetectionDataset, Sample
from utils.data.loader import collate, make_loader, multiscale, to_device
from utils.data.scan import fingerprint, scan_split
from utils.data.spec import read_data
from utils.images.letterbox import letterbox
from utils.images.pixels import blend, by_groups, resized, viewable
from utils.images.read import read_any
from utils.images.tiff import encode_tiff
from utils.runs.plots import plot_batch
from utils.system.errors import UserError
from utils.system.rng import rng

SIZE = 64
EXACT = AugmentParams(mosaic=1.0, fliplr=0.5, flipud=0.5)  # moves whole pixels only
FULL = AugmentParams(
    hsv_v=0.4, degrees=10, translate=0.1, scale=0.5, shear=3, fliplr=0.5, mosaic=0.7, mixup=0.4, copy_paste=0.5,
    paste_in=0.5,
)  # fmt: skip


def make_set(root: Path, pictures: list[np.ndarray], **more: Any) -> Path:
    """A data set of these pictures [H,W,C], RGB where C is 3; grey and colour as PNG, others as TIFF."""
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i, image in enumerate(pictures):
        if image.shape[2] in (1, 3):
            cv2.imwrite(str(root / f"images/{i:02d}.png"), image[..., ::-1])
        else:
            (root / f"images/{i:02d}.tiff").write_bytes(encode_tiff(image))
        outline = "0.1 0.1 0.5 0.1 0.5 0.45 0.1 0.45"
        (root / f"labels/{i:02d}.txt").write_text(f"0 {outline}\n0 .7 .7 .3 .4\n")
    content = {"path": ".", "train": "images", "val": "images", "names": ["a"], **more}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def noise(channels: int, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0) -> np.ndarray:
    """Smooth, and noisy in all 16 bits."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 65536, (5, 5, channels)).astype(np.float32)
    planes = [cv2.resize(coarse[..., c], size[::-1], interpolation=cv2.INTER_CUBIC) for c in range(channels)]
    return (np.stack(planes, 2) + draw.integers(-500, 500, (*size, channels))).clip(0, 65535).astype(np.uint16)


def open_set(source: Path, params: AugmentParams | None, **options: Any) -> DetectionDataset:
    scan = scan_split(read_data(source), "train", progress=False)
    return DetectionDataset(scan, DataSettings(**{"img_size": SIZE, "batch_size": 4, **options}), params)


def floats(dataset: DetectionDataset, epoch: int = 0) -> torch.Tensor:
    items = collate([dataset[Sample(epoch, i)] for i in range(len(dataset))])
    image: torch.Tensor = to_device(items, "cpu")["image"]
    return image


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_low_byte_arrives(tmp_path: Path, channels: int, cached: bool) -> None:
    """Pictures whose values differ in the low byte alone: every one of the values comes out, through mosaic and
    through letterbox, from files or from the cache, and nothing else but the grey of the margins."""
    draw = np.random.default_rng(1)
    pictures = [(0x5A00 + draw.integers(0, 256, (SIZE, 48, channels))).astype(np.uint16) for _ in range(6)]
    source = make_set(tmp_path, pictures, channels=channels)
    there = {float(v) for v in torch.arange(0x5A00, 0x5B00).float() / 65535}
    for params in (EXACT, None, AugmentParams()):
        image = floats(open_set(source, params, cache_images=cached))
        assert image.dtype == torch.float32 and image.shape[1] == channels
        found = set(image.unique().tolist())
        assert found - there == {float(np.float32(114) / np.float32(255))}
        assert len(found & there) == 256


@pytest.mark.parametrize("channels", [1, 3, 5, 8])
def test_more_than_256_levels(tmp_path: Path, channels: int) -> None:
    """Through every augmentation, resizing, --quad and --multi-scale."""
    source = make_set(tmp_path, [noise(channels, (70, 90), i) for i in range(8)], channels=channels)
    dataset = open_set(source, FULL, quad=True)
    loader = make_loader(dataset, batch_size=8, workers=0, shuffle=True, seed=0, quad=True)
    for i, batch in enumerate(loader):
        assert batch["image"].dtype == torch.uint16
        image = multiscale(to_device(batch, "cpu")["image"], SIZE, 32, 0, i)
        assert image.shape[1] == channels and image.min() >= 0 and image.max() <= 1
        assert all(len((image[:, c] * 65535).round().unique()) > 4000 for c in range(channels))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("params", [None, EXACT, AugmentParams(), FULL])
def test_sixteen_bits_give_the_floats_of_eight(tmp_path: Path, channels: int, params: AugmentParams | None) -> None:
    """v * 257 of 65535 is v of 255: to the bit where pixels are moved, up to rounding where they are mixed."""
    size = (SIZE, SIZE) if params in (None, EXACT) else (70, 90)
    pictures = [(noise(channels, size, i) // 257).astype(np.uint8) for i in range(4)]
    few = open_set(make_set(tmp_path / "8", pictures, channels=channels, color="none"), params)
    wide = [p.astype(np.uint16) * 257 for p in pictures]
    many = open_set(make_set(tmp_path / "16", wide, channels=channels, color="none"), params)
    assert (few.pixels.bits, many.pixels.bits) == (8, 16)
    for epoch in range(3):
        one, other = floats(few, epoch), floats(many, epoch)
        if size == (SIZE, SIZE):
            assert torch.equal(one, other)
        else:
            off = (one - other).abs() * 255
            assert off.mean() < 0.5 and off.max() < 3


def test_a_channel_does_not_depend_on_the_others(tmp_path: Path) -> None:
    """Channel by channel what five channels give is what each of them gives alone."""
    pictures = [noise(5, (70, 90), i) for i in range(4)]
    together = open_set(make_set(tmp_path / "five", pictures, channels=5), FULL)
    for c in range(5):
        alone = open_set(make_set(tmp_path / str(c), [p[..., c : c + 1] for p in pictures], channels=1), FULL)
        for epoch in range(2):
            assert torch.equal(floats(together, epoch)[:, c], floats(alone, epoch)[:, 0])


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_opencv_by_groups(channels: int, dtype: Any) -> None:
    image = (noise(channels, (40, 50)) >> (8 if dtype == np.uint8 else 0)).astype(dtype)
    matrix = np.array([[1.1, 0.1, 3], [-0.1, 0.9, 2]])
    border = (114,) * 4
    for function in (
        lambda x: cv2.warpAffine(x, matrix, (50, 40), borderValue=border),
        lambda x: cv2.resize(x, (33, 21), interpolation=cv2.INTER_AREA),
    ):
        found = by_groups(image, function)
        assert found.dtype == dtype and found.ndim == 3
        for c in range(channels):
            assert np.array_equal(found[..., c], function(np.ascontiguousarray(image[..., c])))
    assert resized(image, (20, 30)).shape == (20, 30, channels)
    out, _, _ = letterbox(image, 64, auto=False)
    assert out.shape == (64, 64, channels) and set(out[0].ravel().tolist()) == {
        114 * (257 if dtype == np.uint16 else 1)
    }
    assert np.array_equal(blend(image, 0.5, image, 0.5), image)


def test_depths_may_be_mixed(tmp_path: Path) -> None:
    """An 8-bit file among 16-bit ones counts as the same fractions of the full scale."""
    deep, flat = noise(3), np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    dataset = open_set(make_set(tmp_path, [deep, flat]), None, cache_images=True)
    image = floats(dataset)
    assert torch.equal(image[1], torch.from_numpy(flat).permute(2, 0, 1).float() / 255)
    assert torch.equal(image[0], torch.from_numpy(deep).permute(2, 0, 1).float() / 65535)


def test_value_is_a_gain_on_all_channels() -> None:
    params, image = AugmentParams(hsv_v=0.4), noise(5)
    factor = 1 + np.random.Generator.uniform(rng(0, "colour", 0, 7), -1, 1, 3)[2] * 0.4
    found = augment.hsv(rng(0, "colour", 0, 7), image, params, False)
    assert found.dtype == np.uint16 and np.abs(found - (image * factor).clip(0, 65535)).max() < 0.51  # rounded
    assert (found == 65535).any()
    assert augment.hsv(rng(0, "colour", 0, 7), image, AugmentParams(), False) is image


def test_hue_and_saturation_in_sixteen_bits() -> None:
    """By the definition of HSV, pixel by pixel."""
    params, image = AugmentParams(hsv_h=0.1, hsv_s=0.7, hsv_v=0.4), noise(3, (12, 12))
    for index in range(3):
        h, s, v = 1 + rng(0, "colour", 0, index).uniform(-1, 1, 3) * (0.1, 0.7, 0.4)
        found = augment.hsv(rng(0, "colour", 0, index), image, params)
        assert found.dtype == np.uint16
        for old, new in zip(image.reshape(-1, 3) / 65535, found.reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*old.tolist())
            want = colorsys.hsv_to_rgb(hue * h % 1, min(saturation * s, 1), min(value * v, 1))
            assert np.abs(np.array(want) * 65535 - new).max() < 2


def test_hue_needs_colours(tmp_path: Path) -> None:
    def refuse(cfg: Config, name: str) -> str:
        with pytest.raises(UserError) as error:
            coloured(cfg, read_data(tmp_path / name / "data.yaml"))
        return str(error.value)

    make_set(tmp_path / "five", [noise(5)], channels=5)
    make_set(tmp_path / "three", [noise(3)], color="none")
    make_set(tmp_path / "rgb", [noise(3)])
    hue, none = Config(hsv_h=0.1, hsv_s=0.0), Config(hsv_h=0.0, hsv_s=0.0)
    assert "--hsv-h 0.1: " in refuse(hue, "five") and "has 5 channels" in refuse(hue, "five")
    assert "--hsv-s 0.7" in refuse(Config(hsv_h=0.0), "three") and "--force-hsv" in refuse(hue, "three")
    assert "has 5 channels" in refuse(Config(force_hsv=True), "five")  # five channels have no hue at all
    forced = coloured(Config(force_hsv=True), read_data(tmp_path / "three/data.yaml"))
    assert forced.colour and not read_data(tmp_path / "three/data.yaml").colour
    assert coloured(none, read_data(tmp_path / "five/data.yaml")).channels == 5
    assert coloured(Config(), read_data(tmp_path / "rgb/data.yaml")).colour
    dataset = open_set(tmp_path / "five/data.yaml", AugmentParams())
    assert isinstance(dataset.changing([(3, {"hsv_v": 0.2})]).augment, AugmentPlan)
    with pytest.raises(UserError, match=r"--hsv-s 0\.2: .*\(from epoch 3 on\)"):
        dataset.changing([(3, {"hsv_s": 0.2})])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": 0}, "channels: expected a whole number from 1 to 8"),
        ({"channels": 9}, "channels: expected a whole number from 1 to 8"),
        ({"channels": "3"}, "channels: expected a whole number from 1 to 8"),
        ({"channels": True}, "channels: expected a whole number from 1 to 8"),
        ({"color": "lab"}, "color: expected rgb or none, found 'lab'"),
        ({"channels": 5, "color": "rgb"}, "color: rgb needs three channels, and channels is 5"),
        ({"channel": 5}, "did you mean 'channels'"),
    ],
)
def test_wrong_keys(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_data(make_set(tmp_path, [noise(3)], **keys))


def test_channels_belong_to_the_fingerprint(tmp_path: Path) -> None:
    """The same files taken as other channels, or as no colours, are other data."""
    spec = read_data(make_set(tmp_path, [noise(3)]))
    scans = [scan_split(spec, "train", progress=False)]
    others = [replace(spec, colour=False), replace(spec, channels=4, colour=False)]
    assert len({fingerprint(s, scans) for s in (spec, *others)}) == 3
    (tmp_path / "data.yaml").write_text((tmp_path / "data.yaml").read_text() + "channels: 3\ncolor: rgb\n")
    assert fingerprint(read_data(tmp_path / "data.yaml"), scans) == fingerprint(spec, scans)


def test_what_a_data_set_is_made_of_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = DataSettings(img_size=64)
    make_dataset(read_data(make_set(tmp_path / "a", [noise(1)], channels=1)), "train", options)
    assert "train: 1 images of 1 channel in 16 bits, 2 objects" in capsys.readouterr().out
    make_dataset(read_data(make_set(tmp_path / "b", [noise(3).astype(np.uint8)])), "train", options)
    assert "train: 1 images, 2 objects" in capsys.readouterr().out


def test_pictures_for_the_eye(tmp_path: Path) -> None:
    for channels in range(1, 9):
        image = noise(channels)
        seen, want = viewable(image), np.rint(image / 257).astype(np.uint8)
        assert seen.shape == (SIZE, SIZE, 3) and seen.dtype == np.uint8
        if channels == 1:
            assert np.array_equal(seen, np.repeat(want, 3, 2))
        elif channels == 2:
            assert np.array_equal(seen[..., :2], want) and not seen[..., 2].any()
        else:
            assert np.array_equal(seen, want[..., :3])
        batch = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        plot_batch(batch, [np.zeros((0, 5))], ["a"], tmp_path / "batch.png", tile=SIZE)
        drawn = cv2.imread(str(tmp_path / "batch.png"))
        assert np.array_equal(drawn[1:-1, 1:-1, ::-1], seen[1:-1, 1:-1])
    (tmp_path / "x.tiff").write_bytes(encode_tiff(noise(5)))
    five = read_any(tmp_path / "x.tiff")
    assert five is not None and np.array_equal(five, noise(5))
    assert read_any(tmp_path / "absent.tiff") is None
