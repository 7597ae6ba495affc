"""`python -m utils group`: the file it writes is one that training takes; what is wrong is one line."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from patches.multihead.group import draw, main, read_pairs
from patches.multihead.grouping import Ints, Statistics
from patches.multihead.head_file import read_head_file
from tests.shared import ROOT
from tests.toy import trained, unpainted
from utils.data.spec import read_data
from utils.system.errors import UserError

PAINTED = True  # the pictures are looked at


@pytest.mark.parametrize("by", ["geometry", "cooccurrence", "hybrid", "size", "random"])
def test_a_head_file_for_any_data(by: str, small_shapes: Path, tmp_path: Path) -> None:
    asked = ["--data", str(small_shapes), "--heads", "3", "--by", by, "--seed", "1"]
    for name in ("a", "b"):
        main([*asked, "--out", str(tmp_path / f"{name}.yaml")])
    table = read_head_file(str(tmp_path / "a.yaml"), 3, read_data(small_shapes).names)
    assert table.grouping == by and table.nc == 12 and len(table.groups) == 3
    assert (tmp_path / "a.yaml").read_text() == (tmp_path / "b.yaml").read_text()


def test_balanced_heads(small_shapes: Path, tmp_path: Path) -> None:
    out = tmp_path / "h.yaml"
    main(["--data", str(small_shapes), "--heads", "4", "--by", "hybrid", "--balance", "0", "--out", str(out)])
    assert [len(group) for group in read_head_file(str(out), 4).groups] == [3, 3, 3, 3]


def test_pairs_are_kept_apart(small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, out = tmp_path / "pairs.txt", tmp_path / "h.yaml"
    pairs.write_text("# alike\ncircle, Ellipse\n\nring,3\nsquare, rectangle\n")
    asked = ["--data", str(small_shapes), "--pairs", str(pairs)]
    main([*asked, "--heads", "2", "--by", "confusion", "--out", str(out)])
    assert "pairs mistaken for each other: 3 of 3 are kept apart" in capsys.readouterr().out
    owner = read_head_file(str(out), 2).owner
    assert all(owner[a] != owner[b] for a, b in ((0, 1), (2, 3), (4, 5)))
    together = tmp_path / "bad.yaml"
    heads = {f"head_{i}": {"classes": group} for i, group in enumerate(([0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]))}
    together.write_text(yaml.safe_dump({"nc": 12, "head_assignments": heads}))
    main([*asked, "--analyze", str(together)])
    said = capsys.readouterr().out
    assert "1 of 3 are kept apart; in one head: circle-ellipse, ring-crescent" in said
    assert "head_1" in said and "shape, exp(-2 d^2)" in said


@pytest.mark.slow
def test_what_a_checkpoint_mistakes(small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with unpainted():
        trained(small_shapes, tmp_path, "base")
    words = f"--heads 2 --by confusion --weights {tmp_path}/base/weights/last.pt"
    main(["--data", str(small_shapes), *words.split(), "--out", str(tmp_path / "h.yaml")])
    assert "pairs mistaken for each other: 0 of 0" in capsys.readouterr().out, "after an epoch it detects nothing"


@pytest.mark.parametrize(("counts", "width"), [(np.diag([5, 5, 5, 0]), 1900), (None, 900)])
def test_the_picture_shows_classes_and_confusion(counts: Ints | None, width: int, tmp_path: Path) -> None:
    """A class without boxes has no dot; each head has its colour."""
    aspect, area = np.array([0.0, 1.0, np.nan]), np.array([0.01, 0.2, np.nan])
    draw(
        [[0, 2], [1]], Statistics(np.array([9, 4, 0]), aspect, area, np.eye(3)), counts, "abc", "x", tmp_path / "p.png"
    )
    image = np.asarray(cv2.imread(str(tmp_path / "p.png"))).astype(int)
    blue, red = image[..., 0] - image[..., 2], image[..., 2] - image[..., 0]
    assert image.shape == (800, width, 3) and (blue[:, :850] > 60).sum() > 50 and (red[:, :850] > 60).sum() > 50
    assert counts is None or image[:, 950:].std() > 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "give either --by"),
        ("--by random --analyze x.yaml", "give either --by"),
        ("--by random", "--out is missing"),
        ("--by random --heads 1 --out {new}", r"--heads must lie in 2\.\.12, the number of classes in .*, got 1"),
        ("--by random --heads 13 --out {new}", r"--heads must lie in 2\.\.12"),
        ("--by random --heads 2 --out {there}", "exists already; give another name"),
        ("--by random --heads 2 --out {new}/no/x.yaml", "--out: there is no folder"),
        ("--by random --heads 2 --out {new} --picture x.jpg", r"--picture: expected a name that ends in \.png"),
        ("--by random --heads 2 --out {new} --balance 1", "--balance is for --by geometry, cooccurrence, hybrid"),
        ("--by confusion --heads 2 --out {new}", "--by confusion needs a checkpoint"),
        ("--by confusion --heads 2 --out {new} --pairs a --weights b", "give one"),
        ("--by hybrid --heads 2 --out {new} --alpha 0 --beta 0", "--alpha and --beta are both 0"),
        ("--by shape --heads 2 --out {new}", "--by must be one of|invalid choice"),
        ("--analyze data/coco_320_1b4h_geometry.yaml", "is for 80 classes, .* has 12"),
        ("--analyze data/shapes_1b4h.yaml --heads 3", "--heads says 3"),
        ("--analyze data/shapes_1b4h.yaml --out {new}", "--analyze writes none"),
    ],
)
def test_what_is_wrong_is_one_line(words: str, said: str, small_shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "there.yaml").touch()
    line = words.format(new=tmp_path / "new.yaml", there=tmp_path / "there.yaml")
    with pytest.raises(UserError, match=said):
        main(["--data", str(small_shapes), *line.split()])
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a, b\na\n", r"p.txt:2: expected two classes"),
        ("a, d", r"p.txt:1: there is no class 'd'; there are a, b, c"),
        ("a, A", r"p.txt:1: 'a' twice"),
        ("a, 3", r"p.txt:1: there is no class '3'"),
        ("# none\n", r"p.txt: no pairs; a line each, such as: a, b"),
    ],
)
def test_a_list_of_pairs_is_read_strictly(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        read_pairs(str(tmp_path / "p.txt"), ["a", "b", "c"])


def test_the_shipped_file_is_analysed(capsys: pytest.CaptureFixture[str], small_shapes: Path, tmp_path: Path) -> None:
    main(["--data", str(small_shapes), "--analyze", str(ROOT / "data/shapes_1b4h.yaml")])
    said = capsys.readouterr().out
    assert said.count("head_") == 4 and "not known (--weights or --pairs)" in said
