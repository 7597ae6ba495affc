"""Which infrared file belongs to which visible one."""

from pathlib import Path

import pytest

from utils.data.pairs import PairRule, read_rule
from utils.system.errors import UserError


def made(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def rule(folder: Path, value: object) -> PairRule:
    found = read_rule(folder / "d.yaml", value, folder)
    assert found is not None
    return found


def test_presets_and_a_rule_of_ones_own(tmp_path: Path) -> None:
    cases = {
        "llvip": ("visible/train/1.jpg", "infrared/train/1.jpg"),
        "kaist": ("set00/V000/visible/I01216.jpg", "set00/V000/lwir/I01216.jpg"),
    }
    for preset, (a, b) in cases.items():
        made(tmp_path / a, tmp_path / b)
        assert rule(tmp_path, preset).partner(tmp_path / a, [".png"]) == tmp_path / b
    flat = tmp_path / "set00_V000_visible_I01216.jpg", tmp_path / "set00_V000_lwir_I01216.jpg"
    made(*flat)
    assert rule(tmp_path, "kaist").partner(flat[0], []) == flat[1]
    made(tmp_path / "visible/visible_2.png", tmp_path / "visible/ir_2.tif")
    mine = rule(tmp_path, {"visible": "ir"})  # the last one of the path, another suffix
    assert mine.partner(tmp_path / "visible/visible_2.png", [".png", ".tif"]) == tmp_path / "visible/ir_2.tif"
    assert mine.partner(tmp_path / "visible/visible_3.png", [".png", ".tif"]) is None
    with pytest.raises(UserError, match="there is no 'visible' in the path"):
        mine.partner(Path("rgb/2.png"), [])


def test_a_manifest(tmp_path: Path) -> None:
    made(tmp_path / "a/1.png", tmp_path / "b/x.png")
    (tmp_path / "p.csv").write_text("visible,infrared\na/1.png, b/x.png\n\na/2.png,b/gone.png\n")
    found = rule(tmp_path, "p.csv")
    assert found.partner(tmp_path / "a/1.png", []) == tmp_path / "b/x.png"
    assert found.partner(tmp_path / "a/2.png", []) is found.partner(tmp_path / "a/3.png", []) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "p.csv:1"),
        ("a,b\n", "p.csv:1: wanted the header"),
        ("visible,infrared\nx\n", "p.csv:2: wanted two paths"),
        ("visible,infrared\nx,y\nx,z\n", "p.csv:3: x has a partner already"),
    ],
)
def test_a_bad_manifest_is_named_by_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        rule(tmp_path, "p.csv")


@pytest.mark.parametrize("value", ["lvip", 3, {"a": "a"}, {"a": 1}, {"a": "b", "c": "d"}, "none.csv", []])
def test_a_bad_key_says_what_would_be_right(tmp_path: Path, value: object) -> None:
    with pytest.raises(UserError, match=r"d\.yaml: pairs: expected llvip, kaist, .*; found"):
        rule(tmp_path, value)


def test_no_key_no_pairs(tmp_path: Path) -> None:
    assert read_rule(tmp_path / "d.yaml", None, tmp_path) is None
