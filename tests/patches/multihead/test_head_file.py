"""Head files: what they say is kept through a checkpoint's text, and every fault is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from patches.multihead import Flags, MultiHead
from patches.multihead.head_file import HeadTable
from utils import seams
from utils.data.spec import DataSpec
from utils.system.errors import UserError


def write(tmp_path: Path, text: Any) -> str:
    file = tmp_path / "heads.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return str(file)


def good(**changes: Any) -> dict[str, Any]:
    return {
        "nc": 4,
        "heads": 2,
        "grouping": "mine",
        "head_assignments": {"head_0": {"classes": [2, 0], "weight": 2}, "head_1": {"classes": [1, 3]}},
        **changes,
    }


def heads(*groups: list[Any], **more: Any) -> dict[str, Any]:
    return {"head_assignments": {f"head_{i}": {"classes": g} for i, g in enumerate(groups)}, **more}


def test_a_head_file_is_read(tmp_path: Path) -> None:
    patch = MultiHead(
        Flags(heads=2, head_config=write(tmp_path, good(train="x", names=["a", "b", "c", "d"], comment="free")))
    )
    assert patch.table == HeadTable(("head_0", "head_1"), ((2, 0), (1, 3)), (2.0, 1.0), "mine", False)
    assert (patch.table.owner, patch.table.local) == ([0, 1, 0, 1], [1, 0, 0, 1])
    assert patch.table.starts == [0, 7, 14]
    again = seams.revive({"multihead": yaml.safe_load(yaml.safe_dump(record(patch)))})["multihead"]
    assert again.table == patch.table, "as a checkpoint's or run.yaml's text gives it back"


def record(patch: MultiHead) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(patch.record()))
    return values


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        (good(**heads([0, 2], [1])), {}, r"classes \[3\] are in no head"),
        (good(**heads([0, 2], [1, 2, 3])), {}, r"classes \[2\] are in more than one head"),
        (good(**heads([0, 2, 2], [1, 3])), {}, r"classes \[2\] are in more than one head"),
        (good(**heads([0, 2, 9], [1, 3, -1])), {}, r"classes \[-1, 9\] are outside of 0..3"),
        (good(**heads([0, 9], [1, 1])), {}, r"\[2, 3\] are in no head; .*\[1\] .*more than one.*\[9\] .*outside"),
        (good(heads=3), {}, "`heads` says 3, head_assignments has 2"),
        (good(), {"heads": 4}, "--heads says 4, head_assignments has 2"),
        (good(head_assignments={"head_0": {"classes": [0, 1, 2, 3], "weight": 0}}, heads=1), {}, "weight must .*got 0"),
        (good(head_assignments={"head_0": {"classes": [0, 1, 2, 3], "weight": -1}}, heads=1), {}, "weight must be"),
        (good(head_assignments={"head_0": {"classes": [0, 1, 2, 3], "weight": "x"}}, heads=1), {}, "weight must be"),
        (good(head_assignments={"head_0": {"classes": [0, 1, 2, 3], "weight": True}}, heads=1), {}, "weight must be"),
        (good(head_assignments={"head_0": {"classes": [0, 1, 2, 3], "weight": float("nan")}}, heads=1), {}, "weight"),
        ({"nc": 4, "heads": 2}, {}, "no `head_assignments`"),
        (good(head_assignments=[[0, 1], [2, 3]]), {}, "no `head_assignments`"),
        (good(head_assignments={"a": {"classes": [0, 1]}, "b": {"classes": [2, 3]}}), {}, "head_0, head_1, got a, b"),
        (good(head_assignments={"head_1": {"classes": [0, 1]}, "head_2": {"classes": [2, 3]}}), {}, "head_0, head_1"),
        (good(**heads([0, 1, 2, 3], [])), {}, "head_1 needs `classes`"),
        (good(**heads([0, 1], ["2", 3])), {}, "head_1 needs `classes`, a list of class numbers"),
        (good(head_assignments={"head_0": [0, 1], "head_1": {"classes": [2, 3]}}), {}, "head_0 needs `classes`"),
        (good(nc="four"), {}, "`nc` must be the number of classes"),
        (good(names=["a"]), {}, "nc is 4 but names holds 1"),
        (good(names="abcd"), {}, "names: expected a list"),
        ("- a list", {}, "must hold `key: value` lines"),
        ("nc: [", {}, "not valid YAML"),
    ],
)  # fmt: skip
def test_faulty_head_files_are_refused_by_name(content: Any, flags: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=said) as caught:
        MultiHead(Flags(head_config=path, **flags))
    assert "heads.yaml" in str(caught.value)


NAMES = ("red", "green", "blue", "Dark grey")


def read(tmp_path: Path, content: dict[str, Any], names: tuple[str, ...] = NAMES) -> tuple[tuple[int, ...], ...]:
    """Groups of the head file beside data with these classes."""
    patch = MultiHead(Flags(head_config=write(tmp_path, content)))
    patch.on_data_read(DataSpec(tmp_path, (), (), (), len(names), names, tmp_path / "d.yaml"))
    return patch.table.groups


def test_classes_by_name(tmp_path: Path) -> None:
    """With and without nc; the file's own names count for nothing then."""
    by_name = heads(["blue", "red"], ["green", "dark_grey"])
    assert read(tmp_path, by_name) == read(tmp_path, {**by_name, "nc": 4, "names": [*NAMES[::-1]]}) == ((2, 0), (1, 3))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (good(names=["red", "blue", "green", "dark grey"]), r"1 blue, here green; 2 green, here blue"),
        (good(names={0: "red", 1: "green", 2: "blue", 3: "white"}), r"3 white, here Dark grey"),
        (heads(["blue", "red"], ["grean", "dark grey"]), r"head_1: there is no class 'grean'; did you mean 'green'"),
        (heads(["blue", "red"], ["green"]), r"classes \[3\] are in no head"),
        (heads(["blue", 0], ["green", "dark grey"]), r"head_0 needs `classes`"),
        (good(head_assignments={"head_0": {"classes": [1], "name": "Red"}, "head_1": {"classes": [2, 0, 3]}}),
         r"head_0 is named 'Red', which is class 0 of the data, but has the classes 1 green"),
    ],
)  # fmt: skip
def test_names_that_are_not_the_data_s(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        read(tmp_path, content)
    assert "heads.yaml" in str(caught.value)


def test_names_that_say_nothing_more(tmp_path: Path) -> None:
    """Equal names, names of groups, data without names: numbers as they are. A checkpoint's table is not compared."""
    for content in (good(names=list(NAMES)), good(), good(names=["RED", "green", "blue", "dark-grey"])):
        content["head_assignments"]["head_0"]["name"] = "warm"
        assert read(tmp_path, content) == ((2, 0), (1, 3))
    assert read(tmp_path, good(names=list("abcd")), ("0", "1", "2", "3")) == ((2, 0), (1, 3))
