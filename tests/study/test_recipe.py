"""Recipes: what is read, what is refused by file, stage and key; what plans and lists make of the stages."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from utils.study import recipe
from utils.system.errors import UserError

GRADUAL = str(ROOT / "cfg/recipes/gradual_unfreeze.yaml")


def flags_of(stages: tuple[recipe.Stage, ...], name: str) -> list[str]:
    return [" ".join(stage.flags.get(name, ("-",))) for stage in stages]


def test_the_published_chain() -> None:
    read = recipe.read("gradual_unfreeze.yaml")
    assert [s.name for s in read.stages] == [f"stage{i}_freeze{n}" for i, n in enumerate((50, 30, 10, 0), 1)]
    words = " ".join(read.words(read.stages[0]))
    assert "--img-size 320 320" in words and "--cache-images --freeze 50 --epochs 100" in words
    assert words.endswith("--transfer-weights") and "transfer-weights" not in read.stages[1].flags


def test_plans_change_what_is_to_come() -> None:
    read = recipe.read(GRADUAL)
    lower = recipe.choose(read, "lower-rates", "stage2_freeze30").stages
    assert flags_of(lower, "lr0") == ["-", "0.0005", "0.0002", "5e-05"], "as published"
    assert lower[0] == read.stages[0] and lower[1].name == "stage2_freeze30_lower-rates"
    small = recipe.choose(read, "smaller-steps", "stage2_freeze30").stages
    assert flags_of(small, "freeze") == ["50", "40", "30", "20", "10", "5", "0"]
    assert flags_of(small, "epochs") == ["100", "50", "50", "50", "50", "100", "100"]
    assert [s.name for s in small[1:3]] == ["stage2a_freeze40_smaller-steps", "stage2b_freeze30_smaller-steps"]
    twice = recipe.choose(
        recipe.choose(read, "half-rates", "stage3_freeze10"), "half-rates", "stage3_freeze10_half-rates"
    )
    assert flags_of(twice.stages, "lr0")[2:] == ["0.000125", "2.5e-05"]
    assert len({s.name for s in (*read.stages, *lower[1:], *small[1:], *twice.stages[2:])}) == 4 + 3 + 6 + 2


def test_a_list_gives_each_stage_its_value() -> None:
    read = recipe.read(str(ROOT / "cfg/recipes/two_stage.yaml"))
    found = recipe.spread(read, ["freeze=backbone 30,", "lr0=,0.002"]).stages
    assert found[0].flags["freeze"] == ("backbone", "30") and "freeze" not in found[1].flags
    assert flags_of(found, "lr0") == ["-", "0.002"]
    five = recipe.spread(recipe.read(GRADUAL), ["freeze=50,40,30,10,0", "epochs=1,2,3,4,5", "hyp=a,b,c,d,e"]).stages
    assert [s.name for s in five][4] == "stage5_freeze0" and flags_of(five, "hyp") == list("abcde")
    assert flags_of(five, "transfer-weights") == ["", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stage": []}, "unknown key 'stage'; there are: project, prefix"),
        ({"stages": {}}, "stages: expected a list of stages"),
        (
            {"stages": [{"flags": {"freeze": 1}, "lr0": 1}]},
            "stage 1: unknown key 'lr0'; there are: name, flags, limits",
        ),
        ({"stages": [{"flags": {"resume": True}}]}, "stage 1: flags: resume: the chain sets it"),
        ({"stages": [{"flags": {"img_size": [[1]]}}]}, "img_size: expected a number, a text, true, false, or a list"),
        ({"limits": {"max-drip": 1}}, "limits: unknown key 'max-drip'; there are: max-drop"),
        ({"limits": {"max-drop": "x"}}, "max-drop: expected a number of at least 0"),
        ({"common": [1]}, "common: expected `key: value` lines"),
        ({"plans": {"a b": {"change": {"lr0": 1}}}}, "plan a b: expected a name"),
        ({"plans": {"a": {"change": {}}}}, "plan a: change: it changes no flag"),
        ({"plans": {"a": {"change": 3}}}, "plan a: expected a name"),
        ({"prefix": [1]}, "prefix: expected text"),
    ],
)
def test_what_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"stages": [{"flags": {"freeze": 1}}], **change}))
    with pytest.raises(UserError) as refused:
        recipe.read(str(tmp_path / "r.yaml"))
    assert says in str(refused.value) and str(tmp_path / "r.yaml") in str(refused.value)
