"""Pairs from file to loss: one geometry for both images, alignment that is plain training at weight 0, policies."""

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from patches.align import Align, Flags
from patches.align.contrast import pair_loss
from tests.conftest import ROOT
from tests.toy import trained
from utils.config.settings import DataSettings
from utils.data.augment import AugmentParams
from utils.data.dataset import DetectionDataset, Sample
from utils.data.scan import scan_split
from utils.data.spec import read_data
from utils.system.errors import UserError
from utils.train.run import Run
from utils.weights.checkpoint import read_checkpoint

HARD = AugmentParams(
    mosaic=0.7, mixup=0.3, paste_in=0.3, translate=0.2, scale=0.6, degrees=25, shear=8, perspective=0.0005, fliplr=0.5,
    flipud=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs(small_pairs: Path) -> Path:
    return small_pairs


def copied(pairs: Path, tmp_path: Path) -> Path:
    shutil.copytree(pairs.parent, tmp_path / "data")
    return tmp_path / "data/d.yaml"


def same_picture_twice(pairs: Path, tmp_path: Path) -> Path:
    data = copied(pairs, tmp_path)
    shutil.rmtree(data.parent / "infrared")
    shutil.copytree(data.parent / "images", data.parent / "infrared")
    return data


@pytest.mark.parametrize("cached", [False, True])
def test_a_thousand_draws_are_shared_to_the_pixel(pairs: Path, tmp_path: Path, cached: bool) -> None:
    """With the visible picture as its own partner, both come out equal after any geometry, and boxes are those of the
    visible one alone."""
    scan = scan_split(read_data(same_picture_twice(pairs, tmp_path)), "train")
    alone = DetectionDataset(scan, DataSettings(img_size=64, cache_images=cached), HARD)
    both = alone.with_partners()
    for draw in range(1000 if cached else 50):
        sample = Sample(draw, draw % len(alone))
        item, plain = both[sample], alone[sample]
        assert torch.equal(item["image"], item["infrared"])
        assert torch.equal(item["image"], plain["image"]) and torch.equal(item["target"], plain["target"])


def test_jitter_is_drawn_apart(pairs: Path, tmp_path: Path) -> None:
    scan = scan_split(read_data(same_picture_twice(pairs, tmp_path)), "train")
    alone = DetectionDataset(scan, DataSettings(img_size=64), AugmentParams(hsv_h=0.1, hsv_s=0.5, hsv_v=0.5))
    both = alone.with_partners()
    items = [both[Sample(0, i)] for i in range(len(alone))]
    assert all(torch.equal(item["image"], alone[Sample(0, i)]["image"]) for i, item in enumerate(items))
    plain = DetectionDataset(scan, DataSettings(img_size=64), AugmentParams())
    gains = []
    for i, item in enumerate(items):
        before, after = plain[Sample(0, i)]["image"].float(), item["infrared"].float()
        gains.append(float(after[0, 0, 0] / before[0, 0, 0]))  # of the grey border
        full = after.max(0).values < 250
        assert torch.allclose(after[:, full], before[:, full] * gains[-1], atol=6), "one factor for all channels"
    assert np.std(gains) > 0.05


def test_grey_and_deep_partners(pairs: Path, tmp_path: Path) -> None:
    data = copied(pairs, tmp_path)
    for file in (data.parent / "infrared").rglob("*.png"):
        grey = np.asarray(cv2.imread(str(file), cv2.IMREAD_GRAYSCALE), np.uint16)
        cv2.imwrite(str(file), grey * 257 + 1)
    scan = scan_split(read_data(data), "val")
    item = DetectionDataset(scan, DataSettings(img_size=64)).with_partners()[Sample(0, 0)]
    assert item["infrared"].shape == (1, 64, 64) and item["infrared"].dtype == torch.uint16
    inside = item["infrared"][0, 24:40, 24:40].int()
    assert len(inside.unique() % 257) > 10, "the low byte is kept"


def test_missing_unusable_and_ill_fitting_partners(pairs: Path, tmp_path: Path) -> None:
    data = copied(pairs, tmp_path)
    files = sorted((data.parent / "infrared/train").iterdir())
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:200])
    cv2.imwrite(str(files[2]), np.zeros((20, 30), np.uint8))
    spec = read_data(data)
    with pytest.raises(UserError) as error:
        scan_split(spec, "train")
    said = str(error.value)
    assert "0000.png: has no partner" in said and "0001.png cannot be used: the image" in said
    assert "0002.png has 30x20" in said
    skipped = scan_split(spec, "train", on_missing_pair="skip")
    assert [f.name for f in skipped.files] == [f"{i:04d}.png" for i in range(3, 12)]
    single = DetectionDataset(
        scan_split(spec, "train", on_missing_pair="single"), DataSettings(img_size=64)
    ).with_partners()
    items = [single[Sample(0, i)] for i in range(12)]
    assert [bool(x["paired"]) for x in items] == [False] * 3 + [True] * 9
    assert (items[0]["infrared"] == 114).all()
    mosaics = DetectionDataset(
        scan_split(spec, "train", on_missing_pair="single"), DataSettings(img_size=64), AugmentParams(mosaic=1.0)
    ).with_partners()
    share = np.mean([bool(mosaics[Sample(e, 5)]["paired"]) for e in range(100)])
    assert 0.1 < share < 0.6, "a mosaic is a pair where all of its tiles are"


def test_changed_partners_change_the_fingerprint(pairs: Path, tmp_path: Path) -> None:
    data = copied(pairs, tmp_path)
    before = scan_split(read_data(data), "val")
    file = data.parent / "infrared/val/0000.png"
    cv2.imwrite(str(file), np.asarray(cv2.imread(str(file))) // 2)
    after = scan_split(read_data(data), "val")
    assert before.sha256 != after.sha256
    assert [a[1] != b[1] for a, b in zip(before.contents, after.contents, strict=True)] == [True] + [False] * 7


@pytest.fixture(scope="module")
def aligned(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        project = tmp_path_factory.mktemp("aligned")
        return trained(
            pairs,
            project,
            "a",
            "--align",
            "--align-weight",
            "0.1",
            "--align-bank",
            "16",
            "--audit",
            "--close-mosaic",
            "2",
            epochs=2,
        )


def rows_of(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader((run.dir / "results.csv").read_text().splitlines()))


def test_alignment_begins_in_its_epoch(pairs: Path, tmp_path: Path) -> None:
    plain = trained(pairs, tmp_path, "p", epochs=2)
    late = trained(pairs, tmp_path, "l", "--align", "--align-start", "1", epochs=2)
    a, b = (run.model.state_dict() for run in (plain, late))
    assert not all(torch.equal(v, b[k]) for k, v in a.items())
    assert rows_of(plain)[0]["mAP"] == rows_of(late)[0]["mAP"] and rows_of(late)[0]["align"] == "0.0"
    assert float(rows_of(late)[1]["align"]) > 0


def test_what_a_run_with_a_bank_writes(aligned: Run) -> None:
    rows = rows_of(aligned)
    assert [row["align_pairs"] for row in rows] == ["12.0", "12.0"]
    assert all(float(row["align_boxes"]) > 12 and float(row["align_missing"]) == 0 for row in rows)
    first = float(rows[0]["align"])
    assert 0 < first < 0.1 * 3 * np.log(4), "near chance for batches of four, times the weight"
    assert float(rows[1]["align_bank"]) > 0
    assert float(rows[1]["align_top1_chance"]) == 1 / 8 and 0 <= float(rows[1]["align_probe"]) <= 1
    assert (aligned.dir / "align_map.png").is_file()
    patch = aligned.patches["align"]
    assert isinstance(patch, Align)
    assert int(patch.visible_bank.filled) == 16 and set(patch.visible_bank.images.tolist()) <= set(range(12))
    assert float(patch.log_scale.detach()) != np.log(1 / 0.07)


def gradients(run: Run, weight: float) -> dict[str, torch.Tensor]:
    patch = run.patches["align"]
    assert isinstance(patch, Align)
    run.train.order.set_epoch(0, 0)
    loaded = next(iter(run.train))
    batch = {**loaded, "image": loaded["image"].float() / 255}
    run.model.requires_grad_(True).train()
    patch.weight = weight
    run.model.zero_grad()
    terms = patch.loss_terms(batch, run.model(batch["image"]), run.model)
    (terms["align"] + terms["align_box"]).backward()
    return {k: p.grad.clone() for k, p in run.model.named_parameters() if p.grad is not None}


def test_twice_the_weight_is_twice_the_gradient_and_statistics_stay(aligned: Run) -> None:
    state = {k: v.clone() for k, v in aligned.model.state_dict().items()}
    one = gradients(aligned, 0.1)
    after = {k: v.clone() for k, v in aligned.model.state_dict().items()}
    aligned.model.load_state_dict(state)
    two = gradients(aligned, 0.2)
    projectors = [k for k in one if k.startswith("branches.align")]
    assert projectors and all(torch.allclose(two[k], 2 * one[k], rtol=1e-4, atol=1e-7) for k in projectors)
    assert any(k.startswith("model.0.") for k in one), "it reaches the first module"
    assert not any(k.startswith(f"model.{len(aligned.model.model) - 1}.") for k in one), "the head has no part in it"

    aligned.model.load_state_dict(state)
    aligned.model.train()(next(iter(aligned.train))["image"].float() / 255)  # the visible pass alone
    assert all(torch.equal(v, after[k]) for k, v in aligned.model.state_dict().items()), "infrared moves no statistics"


def test_a_batch_of_one_costs_nothing_and_is_counted(pairs: Path, tmp_path: Path) -> None:
    run = trained(pairs, tmp_path, "one", "--align", "--batch", "1", "--nominal-batch", "1")
    (row,) = rows_of(run)
    assert float(row["align"]) == 0 and row["align_alone"] == "12.0" and float(row["align_box"]) > 0


def test_a_term_that_is_not_finite_stops_the_run_by_its_name(
    small_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is caught and skipped."""
    calls = []

    def spoilt(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return pair_loss(a, b, scale) * (float("nan") if len(calls) == 2 else 1)  # the boxes of the first step

    monkeypatch.setattr("patches.align.pair_loss", spoilt)
    with pytest.raises(UserError, match="loss term align_box is not finite at step 0"):
        trained(small_pairs, tmp_path, "nan", "--align")


def test_bad_use_says_what_would_be_right(pairs: Path, small_shapes: Path, tmp_path: Path) -> None:
    for data, flags, said in (
        (small_shapes, ["--align"], "add the key `pairs`"),
        (pairs, ["--align", "--quad"], "--quad does not know pairs"),
        (pairs, ["--align", "--align-node", "77"], "--align-node 77: modules 0..76 have features"),
        (pairs, ["--align", "--align-node", "5", "28", "5"], "--align-node 5: .* each can be named once"),
        (pairs, ["--align", "--align-ramp", "0"], "--align-ramp must be at least 1, got 0"),
    ):
        with pytest.raises(UserError, match=said):
            trained(data, tmp_path, "bad", *flags)
    assert not (tmp_path / "bad").exists()


def test_the_next_stage_and_the_evaluation_know_the_projectors(aligned: Run, pairs: Path, tmp_path: Path) -> None:
    import test as evaluation

    best = str(aligned.dir / "weights/best.pt")
    words = ["--weights", best, "--data", str(pairs), "--img", "64", "--workers", "0", "--project", str(tmp_path)]
    result = evaluation.main([*words, "--name", "e", "--batch", "8"])
    row = rows_of(aligned)[read_checkpoint(best)["meta"]["epoch"]]
    assert result.figures["align_gap"] == pytest.approx(float(row["align_gap"]), abs=1e-5)
    second = trained(pairs, tmp_path, "two", "--align", "--weights", best, "--freeze", "backbone")
    state = read_checkpoint(best)["ema"]
    assert all(torch.equal(v, second.ema.model.state_dict()[k]) for k, v in state.items() if k.startswith("model.5."))
    dropped = trained(pairs, tmp_path, "plain", "--weights", best, "--transfer-weights")
    assert not dropped.model.branches


def test_flags_are_checked() -> None:
    with pytest.raises(UserError, match="--align-dim must be at least 2, got 1"):
        Flags(align_dim=1)
