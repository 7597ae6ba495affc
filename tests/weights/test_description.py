"""What a checkpoint says about itself: kinds of values, and values that belong together."""

from pathlib import Path
from typing import Any

import pytest

from models.graph import Detector
from tests.weights.test_checkpoint import small
from utils.system.errors import UserError
from utils.weights.checkpoint import load_detector, save_checkpoint
from utils.weights.description import check_description


def saved(path: Path, model: Detector, **more: Any) -> Path:
    meta = {"nc": 3, "names": ["a", "b", "c"], "spec": model.spec, "patches": {}, **more}
    save_checkpoint(path, state=model.state_dict(), meta=meta)
    return path


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"nc": "3"}, "nc: expected"),
        ({"nc": 10**30}, "nc: expected"),
        ({"nc": [3]}, "nc: expected"),
        ({"names": "abc"}, "names: expected"),
        ({"names": ["a", "b"]}, "nc is 3, and names has 2"),
        ({"groups": [[0, 1], [1]]}, "groups must hold each class 0..2 once"),
        ({"groups": [0, 1, 2]}, "groups: expected"),
        ({"patches": "multihead"}, "patches: expected"),
        ({"patches": {"multihead": []}}, "patches: expected"),
        ({"channels": "~x"}, "channels: expected"),
        ({"scale": [1]}, "scale must be"),
        ({"data": {"yaml": "x"}}, "data: fingerprint missing"),
        ({"class_ap": ["x"]}, "class_ap: expected"),
        ({"spec": ["x"]}, "spec: expected"),
        ({"map50": "high"}, "map50: expected"),
        ({"step": -1}, "step: expected"),
    ],
)
def test_odd_descriptions_are_damage_that_is_named(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"w.pt is damaged: its description:? ?.*{message}"):
        load_detector(saved(tmp_path / "w.pt", small(), **more))


@pytest.mark.parametrize(
    "table",
    [
        {"names": ["a"], "groups": [[0, 1, 2]], "weights": [1.0]},
        {"names": ["a"], "groups": [[0, 1], [2]], "weights": [1.0, 1.0], "grouping": "", "full_head": False},
        {"names": ["a", "b"], "groups": [[0, 1], [1]], "weights": [1.0, 1.0], "grouping": "", "full_head": False},
        {"names": ["a", "b"], "groups": [[0, "1"], [2]], "weights": [1.0, 1.0], "grouping": "", "full_head": False},
    ],
)
def test_a_table_of_heads_that_is_none(table: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="head_table"):
        load_detector(saved(tmp_path / "w.pt", small(), patches={"multihead": {"heads": 2, "head_table": table}}))


def test_what_a_program_of_today_writes_passes() -> None:
    check_description({"nc": 1, "names": ["a"], "groups": [[0]], "best": -1.0, "class_ap": None, "guard": {}}, "w")
