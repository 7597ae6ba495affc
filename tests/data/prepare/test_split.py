"""Splits by groups: no group in two of them, sizes as asked, nothing replaced; and the check of a split that exists."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from tests.data.pictures import make_set
from utils.data.prepare import split
from utils.data.prepare.split import assign, cost, gather
from utils.data.spec import read_data
from utils.system.errors import UserError

PATIENT = r"^(\d+)-"


def make_clips(root: Path, patients: int = 12, seed: int = 0, **content: Any) -> Path:
    """Frames named <patient>-<clip>.mp4-<frame>.png, 2 clips of 1 to 6 frames each; class and view by patient."""
    draw = np.random.default_rng(seed)
    for kind in ("images/all", "labels/all"):
        (root / kind).mkdir(parents=True)
    for patient in range(patients):
        for clip in range(2):
            for frame in range(int(draw.integers(1, 7))):
                name = f"{patient:03d}-{clip}.mp4-{frame}"
                cv2.imwrite(str(root / f"images/all/{name}.png"), np.full((8, 8, 3), patient, np.uint8))
                text = f"{patient % 2} .5 .5 .5 .5\n" + ("1 0\n" if patient % 3 else "0 1\n")
                (root / f"labels/all/{name}.txt").write_text(text)
    values = {"path": ".", "train": "images/all", "val": "images/all", "names": ["AR", "MR"], "cls_names": ["A", "B"]}
    (root / "d.yaml").write_text(yaml.safe_dump(values | content))
    return root / "d.yaml"


def lists(folder: Path) -> dict[str, list[Path]]:
    return {f.stem: [(folder / n) for n in f.read_text().splitlines()] for f in sorted(folder.glob("*.txt"))}


def test_no_group_lies_in_two_splits_and_no_image_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_clips(tmp_path)
    split.main(["make", str(source), "--group", PATIENT, "--out", str(tmp_path / "lists"), "--ratios", "6", "2", "2"])
    made = lists(tmp_path / "lists")
    everything = sorted((tmp_path / "images/all").iterdir())
    assert sorted(p.resolve() for files in made.values() for p in files) == everything
    patients = {name: {p.name[:3] for p in files} for name, files in made.items()}
    assert all(not patients[a] & patients[b] for a, b in (("train", "val"), ("train", "test"), ("val", "test")))
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        assert abs(len(made[name]) / len(everything) - share) < 0.03
    out = capsys.readouterr().out
    assert f"train.txt: {len(made['train'])} images" in out and f"{len(everything)} images, 12 groups, seed 0" in out
    # the lists as a data set: the same images, and no group is shared
    values = yaml.safe_load(source.read_text())
    new = tmp_path / "new.yaml"
    new.write_text(yaml.safe_dump(values | {k: f"lists/{k}.txt" for k in made} | {"group_pattern": PATIENT}))
    assert [p.resolve() for p in read_data(new).val] == [p.resolve() for p in made["val"]]
    split.main(["check", str(new)])
    assert "no group lies in several splits" in capsys.readouterr().out
    before = (tmp_path / "lists/val.txt").read_text()
    with pytest.raises(UserError, match=r"lists/train\.txt, .* exists already; .* nothing is replaced"):
        split.main(["make", str(source), "--group", PATIENT, "--out", str(tmp_path / "lists"), "--seed", "1"])
    assert (tmp_path / "lists/val.txt").read_text() == before


def test_the_split_is_a_function_of_the_seed(tmp_path: Path) -> None:
    source = make_clips(tmp_path)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = str(tmp_path / name)
        split.main(["make", str(source), "--group", PATIENT, "--out", out, "--seed", str(seed), "--ratios", ".7", ".3"])
    a, b, c = ({k: [p.name for p in v] for k, v in lists(tmp_path / n).items()} for n in "abc")
    assert a == b != c
    assert a.keys() == {"train", "val"}


def test_classes_are_balanced_where_sizes_allow_it() -> None:
    """40 groups of one image, four kinds of ten: each split gets its share of every kind. Without the term for
    classes the search would stop at the sizes."""
    features = np.concatenate([np.ones((40, 1)), np.repeat(np.eye(4), 10, 0)], 1)
    chosen = assign(features, np.array([0.6, 0.2, 0.2]), 0)
    counts = np.array([features[chosen == i, 1:].sum(0) for i in range(3)])
    assert counts.tolist() == [[6] * 4, [2] * 4, [2] * 4]


@pytest.mark.parametrize("seed", range(5))
def test_the_search_comes_close_to_the_best_there_is(seed: int) -> None:
    """Compared with every assignment of 9 groups to two splits."""
    draw = np.random.default_rng(seed)
    features = draw.integers(1, 50, (9, 3)).astype(float)
    shares = np.array([0.7, 0.3])
    parts = features / features.sum(0)
    costs = []
    for code in range(1 << 9):
        member = np.array([(code >> i) & 1 for i in range(9)])
        costs.append(cost(np.array([parts[member == i].sum(0) for i in range(2)]), shares))
    chosen = assign(features, shares, seed)
    found = cost(np.array([parts[chosen == i].sum(0) for i in range(2)]), shares)
    assert found <= sorted(costs)[4]  # among the best five of 512


def test_no_split_stays_empty() -> None:
    chosen = assign(np.ones((10, 1)), np.array([0.98, 0.01, 0.01]), 0)
    assert np.bincount(chosen, minlength=3).tolist() == [8, 1, 1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--group is missing, and .* has no group_pattern"),
        (("--group", "(mp4)"), "finds 1 groups; 3 splits need at least as many"),
        (("--group", PATIENT, "--ratios", "1"), "--ratios: expected two or three numbers"),
        (("--group", PATIENT, "--ratios", ".8", "0", ".2"), "--ratios: expected two or three numbers above 0"),
        (("--group", "^(9)"), "names no group of"),
    ],
)
def test_what_make_refuses(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    source = make_clips(tmp_path, patients=3)
    with pytest.raises(UserError, match=words):
        split.main(["make", str(source), "--out", str(tmp_path / "o"), *flags])
    assert not (tmp_path / "o").exists()


def test_what_is_counted(tmp_path: Path) -> None:
    """Each image once, though the data YAML names it twice; unusable ones left out."""
    source = make_clips(tmp_path, patients=3)
    first = min((tmp_path / "images/all").iterdir())
    first.write_text("broken")
    images, holds, columns = gather(read_data(source))
    assert first not in images and len(images) == len(set(images)) == sum(1 for _ in first.parent.iterdir()) - 1
    assert columns == ["images", "AR", "MR", "A", "B"]
    by_patient = [[sum(p.name.startswith(f"{i:03d}") for p in images)] for i in range(3)]
    assert holds.sum(0).tolist() == [
        len(images), by_patient[0][0] + by_patient[2][0], by_patient[1][0], by_patient[1][0] + by_patient[2][0],
        by_patient[0][0],
    ]  # fmt: skip
    with pytest.raises(UserError, match="group_pattern: expected a regular expression, found 3"):
        read_data_with(source, group_pattern=3)


def read_data_with(source: Path, **content: Any) -> None:
    source.write_text(yaml.safe_dump(yaml.safe_load(source.read_text()) | content))
    read_data(source)


def test_plain_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every image in one split, sizes by the ratios, repeatable; with --how stratified each class as well."""
    source = make_set(tmp_path / "set", count=40, nc=4)
    for how in ("random", "stratified"):
        words = ["make", str(source), "--how", how, "--ratios", "0.7", "0.15", "0.15"]
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
            split.main([*words, "--out", str(tmp_path / how / name), "--seed", seed])
        lists = {
            name: [(tmp_path / how / name / f"{s}.txt").read_text().split() for s in ("train", "val", "test")]
            for name in "abc"
        }
        assert [len(lines) for lines in lists["a"]] == [28, 6, 6]
        assert len({line for lines in lists["a"] for line in lines}) == 40
        assert lists["a"] == lists["b"] != lists["c"]
        if how == "stratified":
            for lines, least, most in zip(lists["a"], (7, 1, 1), (7, 2, 2), strict=True):
                counts = np.bincount([int(Path(line).stem) % 4 for line in lines], minlength=4)
                assert least <= counts.min() and counts.max() <= most, counts
    with pytest.raises(UserError, match="take out --group"):
        split.main(["make", str(source), "--how", "random", "--group", "(.)", "--out", str(tmp_path / "x")])
    with pytest.raises(UserError, match="--how stratified or --how random"):
        split.main(["make", str(source), "--out", str(tmp_path / "x")])
