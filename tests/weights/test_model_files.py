"""Which size of a model a name asks for."""

from pathlib import Path

import pytest

from models.graph import Detector, GraphError
from utils.system.errors import UserError
from utils.weights.model_files import read_model

SPEC = """nc: 2
scales: {a: [1.0, 0.5, 32], n: [0.34, 1.0, 32]}
backbone: [[-1, 1, Conv, [64, 3, 2]], [-1, 3, C3, [16]]]
head: [[[0, 1], 1, Detect, [nc]]]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own9.yaml").write_text(SPEC)
    (tmp_path / "own9u.yaml").write_text(SPEC)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "letter", "width", "blocks"), [("own9a", "a", 16, 3), ("own9n", "n", 32, 1), ("own9nu", "n", 32, 1)]
)
def test_the_letter_of_the_name_is_the_size(own: Path, name: str, letter: str, width: int, blocks: int) -> None:
    """Depth and width multiply; 64 channels are 32 at most, before the width."""
    spec = read_model(str(own / f"{name}.yaml"))
    model = Detector(spec, 2)
    assert spec["scale"] == letter
    assert (model.model[0].out_channels, len(model.model[1].m)) == (width, blocks)  # type: ignore[arg-type]


def test_a_copy_under_an_own_name_and_a_written_scale(own: Path) -> None:
    (own / "own9a-mine.yaml").write_text(SPEC)
    assert read_model(str(own / "own9a-mine.yaml"))["scale"] == "a"
    (own / "plain.yaml").write_text(SPEC + "scale: n\n")
    assert read_model(str(own / "plain.yaml"))["scale"] == "n"


def test_what_size_is_left_open_is_asked(own: Path) -> None:
    with pytest.raises(UserError, match=r"own9\.yaml describes several sizes \(a, n\): name one, as in own9a\.yaml"):
        read_model(str(own / "own9.yaml"))
    with pytest.raises(UserError, match=r"several sizes \(a, n\)"):
        read_model(str(own / "own9z.yaml"))
    (own / "plain.yaml").write_text(SPEC + "scale: q\n")
    with pytest.raises(UserError, match="scale 'q' is none of its scales: a, n"):
        read_model(str(own / "plain.yaml"))
    with pytest.raises(UserError, match="there is no file"):
        read_model(str(own / "other9a.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": "q"}, r"scale is 'q': give the letter of one of its scales \(a, n\)"),
        ({"scales": {"a": [1, 2]}}, r"scales: a: \[1, 2\] is not \[depth, width, max_channels\]"),
        ({"scales": {"a": [1, "x", 2]}}, "width_multiple must be a number above 0, .*got 'x'"),
    ],
)
def test_scales_that_make_no_sense_are_named(own: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Detector({**read_model(str(own / "own9a.yaml")), **change}, 2)
