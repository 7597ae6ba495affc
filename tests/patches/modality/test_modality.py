"""What detection reads: from the files to what the network is given, two stems through every command."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import detect
import export
import test as evaluation
from patches.modality.missing import report, without
from patches.modality.stems import SecondStem
from tests.conftest import ROOT
from tests.toy import trained
from utils import seams
from utils.config.settings import DataSettings
from utils.data.augment import AugmentParams
from utils.data.dataset import DetectionDataset, Sample
from utils.data.scan import scan_split
from utils.data.spec import read_data
from utils.system.errors import UserError
from utils.weights import checkpoint

HARD = AugmentParams(mosaic=0.7, mixup=0.3, translate=0.2, scale=0.6, degrees=25, fliplr=0.5, hsv_v=0.4)
FLAGS = ["--modality", "both", "--freeze", "5", "--audit"]


@pytest.fixture(scope="module")
def runs(small_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` reads visible pictures; `both` goes on from it for two epochs."""
    project = tmp_path_factory.mktemp("modality")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        trained(small_pairs, project, "base")
        trained(small_pairs, project, "both", *FLAGS, "--weights", best(project, "base"), epochs=2)
    return project


def best(project: Path, name: str) -> str:
    return str(project / name / "weights/best.pt")


def evaluated(data: Path, weights: str, project: Path, name: str, *flags: str) -> evaluation.Result:
    words = ["--weights", weights, "--data", str(data), "--img", "64", "--workers", "0", "--batch", "4"]
    return evaluation.main([*words, "--project", str(project), "--name", name, *flags])


def louder(runs: Path, file: Path) -> str:
    """The checkpoint with an infrared stem that counts: features are tiny after so short a training."""
    content = checkpoint.read_checkpoint(best(runs, "both"))
    join = torch.empty_like(content["ema"]["branches.infrared.join.weight"])
    join.normal_(0, 1000, generator=torch.Generator().manual_seed(0))
    state = {**content["ema"], "branches.infrared.join.weight": join}
    checkpoint.save_checkpoint(file, state=state, meta=content["meta"])
    return str(file)


def test_what_the_network_is_given(small_pairs: Path) -> None:
    """The same draws whatever is read; the infrared picture repeated, behind the visible one."""
    plain = DetectionDataset(scan_split(read_data(small_pairs), "train"), DataSettings(img_size=64), HARD)
    pairs, infrared, both = (plain.with_partners(reads) for reads in ("visible", "infrared", "both"))
    for i in range(12):
        one, two, three = (d[Sample(3, i)] for d in (pairs, infrared, both))
        assert one["infrared"].shape == (1, 64, 64) and "infrared" not in two and "infrared" not in three
        assert torch.equal(one["image"], plain[Sample(3, i)]["image"])
        assert torch.equal(two["image"], one["infrared"].expand(3, -1, -1))
        assert torch.equal(three["image"], torch.cat([one["image"], two["image"]]))
        assert torch.equal(one["target"], three["target"])


def test_a_missing_partner_is_grey(small_pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(small_pairs.parent, tmp_path / "data")
    (tmp_path / "data/infrared/val/0003.png").unlink()
    scan = scan_split(read_data(tmp_path / "data/d.yaml"), "val", on_missing_pair="single")
    both = DetectionDataset(scan, DataSettings(img_size=64)).with_partners("both")
    items = [both[Sample(0, i)] for i in range(4)]
    assert [bool((x["image"][3:] == 114).all()) for x in items] == [False, False, False, True]
    assert not (items[3]["image"][:3] == 114).all()


def test_two_stems_from_one_checkpoint_detect_as_it_did(runs: Path) -> None:
    alone, meta = checkpoint.load_detector(best(runs, "base"))
    source = checkpoint.read_source(best(runs, "base"))
    patches = seams.revive({"modality": {"modality": "both"}})
    both = checkpoint.build_detector(meta["spec"], 12, patches, "demo")
    checkpoint.load_into(both, patches.fold("load_weights", source.state, both, source), source.path)
    image = torch.rand(2, 6, 64, 64)
    a, b = (m.eval().decode(m(x)["det"])[0].pred for m, x in ((alone, image[:, :3]), (both, image)))
    assert torch.equal(a, b)
    stem = both.branches["infrared"]
    assert isinstance(stem, SecondStem)
    state = alone.state_dict()
    assert all(
        torch.equal(v, state[k.removeprefix("rows.")]) for k, v in stem.state_dict().items() if k != "join.weight"
    )


def test_what_a_run_with_two_stems_leaves(runs: Path) -> None:
    old, new = (checkpoint.read_checkpoint(best(runs, name)) for name in ("base", "both"))
    assert new["meta"]["channels"] == 3
    assert new["meta"]["patches"]["modality"] == {
        "modality": "both", "join_node": 7, "pair_words": ["images", "infrared"]
    }  # fmt: skip
    frozen = [k for k in old["ema"] if k.startswith(("model.0.", "model.4."))]
    assert frozen and all(torch.equal(new["ema"][k], old["ema"][k]) for k in frozen)
    stem = {k: v for k, v in new["ema"].items() if k.startswith("branches.infrared.")}
    assert bool(stem["branches.infrared.join.weight"].any()), "it has learnt to contribute"
    key = "conv.weight"
    assert not torch.equal(stem[f"branches.infrared.rows.model.0.{key}"], old["ema"][f"model.0.{key}"])


def figures(file: Path) -> dict[str, dict[str, str]]:
    return {row["given"]: row for row in csv.DictReader(file.read_text().splitlines())}


def test_each_picture_missing(
    runs: Path, small_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the end of training, by test.py in one table, and by test.py one by one; visible alone is what the frozen
    detector finds on pictures with grey partners."""
    weights = louder(runs, tmp_path / "louder.pt")
    result = evaluated(small_pairs, weights, tmp_path, "each", "--missing", "each")
    said = capsys.readouterr().out
    rows = figures(tmp_path / "each/modality.csv")
    assert list(rows) == ["both", "visible alone", "infrared alone"] and float(rows["both"]["mAP"]) == result.map
    assert all(f"{given:14}  {float(row['P']):.4f}" in said for given, row in rows.items())
    assert list(figures(runs / "both/modality.csv")) == list(rows)

    shutil.copytree(small_pairs.parent, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/infrared/val")
    one = evaluated(small_pairs, weights, tmp_path, "one", "--missing", "infrared")
    gone = evaluated(tmp_path / "data/d.yaml", weights, tmp_path, "gone", "--on-missing-pair", "single")
    assert float(rows["visible alone"]["mAP"]) == one.map == gone.map
    assert all(torch.equal(a, b) for a, b in zip(one.detections, gone.detections, strict=True))
    dark = evaluated(small_pairs, weights, tmp_path, "dark", "--missing", "visible")
    assert float(rows["infrared alone"]["mAP"]) == dark.map
    found = [torch.cat(r.detections) for r in (result, one, dark)]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])

    def grey(detector: Any = None, change: Any = None) -> evaluation.Result:
        """Brightness of the two pictures in the place of P and R."""
        batch = change({"image": torch.zeros(1, 6, 4, 4, dtype=torch.uint8)})
        first, second = (float(x.float().mean()) for x in batch["image"].chunk(2, 1))
        return replace(result, mp=first, mr=second)

    report(result, grey, tmp_path / "which.csv")
    rows = figures(tmp_path / "which.csv")
    assert [(rows[k]["P"], rows[k]["R"]) for k in ("visible alone", "infrared alone")] == [
        ("0.0", "114.0"),
        ("114.0", "0.0"),
    ]


def test_sixteen_bits_are_blanked_to_the_same_grey() -> None:
    images = {8: torch.zeros(1, 6, 4, 4, dtype=torch.uint8), 16: torch.zeros(1, 6, 4, 4, dtype=torch.uint16)}
    for bits, image in images.items():
        batch = without({"image": image}, "visible")
        values = batch["image"].to(torch.int32)
        assert (values[:, :3] == 114 * (257 if bits == 16 else 1)).all() and not values[:, 3:].any()
        assert not image.to(torch.int32).any(), "what was loaded stays"


def test_reading_the_infrared_is_reading_its_files(runs: Path, small_pairs: Path, tmp_path: Path) -> None:
    """A detector of visible pictures given the partners finds what it does on a data set of these pictures; training
    on them is recorded, and read again by test.py and detect.py."""
    shutil.copytree(small_pairs.parent / "infrared", tmp_path / "data/images")
    shutil.copytree(small_pairs.parent / "labels", tmp_path / "data/labels")
    content = yaml.safe_load(small_pairs.read_text())
    del content["pairs"]
    (tmp_path / "data/d.yaml").write_text(yaml.safe_dump(content))
    given = evaluated(small_pairs, best(runs, "base"), tmp_path, "given", "--modality", "infrared")
    plain = evaluated(tmp_path / "data/d.yaml", best(runs, "base"), tmp_path, "plain")
    assert all(torch.equal(a, b) for a, b in zip(given.detections, plain.detections, strict=True))
    assert len(torch.cat(given.detections))

    run = trained(small_pairs, tmp_path, "ir", "--modality", "infrared", "--weights", best(runs, "base"))
    row = list(csv.DictReader((run.dir / "results.csv").read_text().splitlines()))[-1]
    again = evaluated(small_pairs, best(tmp_path, "ir"), tmp_path, "again", "--batch", "8")
    assert again.map == pytest.approx(float(row["mAP"]), abs=1e-9)
    _, meta = checkpoint.detection_alone({}, checkpoint.read_checkpoint(best(tmp_path, "ir"))["meta"])
    assert meta["patches"]["modality"]["modality"] == "infrared", "without branches it still reads infrared"


def detected(weights: str, source: Path, project: Path, name: str, *flags: str) -> str:
    words = ["--weights", weights, "--source", str(source), "--img", "64", "--conf", "0.001", "--save-txt"]
    detect.main([*words, "--save-conf", "--project", str(project), "--name", name, *flags])
    return "".join(f.read_text() for f in sorted((project / name / "labels").glob("*.txt")))


def test_detect_finds_the_partner(runs: Path, small_pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(small_pairs.parent, tmp_path / "data")
    file = tmp_path / "data/images/val/0000.png"
    partner = tmp_path / "data/infrared/val/0000.png"
    weights = louder(runs, tmp_path / "louder.pt")
    with_it = detected(weights, file, tmp_path, "a")
    size = np.asarray(cv2.imread(str(partner))).shape[:2]
    cv2.imwrite(str(partner), np.full(size, 114, np.uint8))
    grey = detected(weights, file, tmp_path, "b")
    partner.unlink()
    assert with_it != grey == detected(weights, file, tmp_path, "c", "--on-missing-pair", "single")
    with pytest.raises(UserError, match="has no infrared partner"):
        detected(weights, file, tmp_path, "d")
    drawn = np.asarray(cv2.imread(str(tmp_path / "a/0000.png")))
    assert drawn.shape[:2] == size


def test_bad_use_says_what_would_be_right(runs: Path, small_pairs: Path, small_shapes: Path, tmp_path: Path) -> None:
    both = ["--modality", "both"]
    for data, flags, said in (
        (small_shapes, both, "names no infrared partners; add the key `pairs`"),
        (small_pairs, [*both, "--join-node", "10"], r"--join-node 10: .*possible: 0-1\+6-8\+13-14"),
        (small_pairs, [*both, "--join-node", "40"], "--join-node 40"),
        (small_pairs, ["--join-node", "7"], "--join-node goes with --modality both"),
        (small_pairs, [*both, "--align"], "--align .* goes with --modality visible"),
    ):
        with pytest.raises(UserError, match=said):
            trained(data, tmp_path, "bad", *flags)
    with pytest.raises(UserError, match="reads one picture"):
        evaluated(small_pairs, best(runs, "base"), tmp_path, "t", "--missing", "visible")
    with pytest.raises(UserError, match="reads both"):
        evaluated(small_pairs, best(runs, "both"), tmp_path, "t", "--modality", "visible")
    with pytest.raises(UserError, match="reads two pictures"):
        export.main(["--weights", best(runs, "both"), "--out", str(tmp_path / "x.onnx")])
