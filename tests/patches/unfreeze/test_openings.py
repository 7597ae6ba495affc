"""Schedules of openings: words, files, the rule of progressive unfreezing; each mistake is named."""

from pathlib import Path

import pytest

from patches.unfreeze.openings import PRESETS, Opening, by_rule, from_file, from_words, preset_for
from tests.shared import ROOT
from utils.system.errors import UserError


@pytest.mark.parametrize(
    "words",
    [
        ["0:77, 100:31-76@0.1, 200:11-30@.05"],
        ["0:77,", "100:31-76@0.1,", "200:11-30@0.05"],
        ["200:11-30@5e-2", "0:77", "100:31-76@0.1"],
    ],
)
def test_words(words: list[str]) -> None:
    expected = [Opening(0, "77", 1, 0), Opening(100, "31-76", 0.1, 2.5), Opening(200, "11-30", 0.05, 2.5)]
    assert from_words(words, 2.5) == expected, "by epoch; no ramp at epoch 0, where the warm-up is one"


@pytest.mark.parametrize("word", ["77", "0:", "a:77", "-1:77", "0:77@", "0:77@x", "0:77@-1", "0:1:2", "0:77@0", ""])
def test_bad_words_are_named(word: str) -> None:
    with pytest.raises(UserError, match="--unfreeze"):
        from_words([word], 1)


def write(tmp_path: Path, text: str) -> str:
    (tmp_path / "plan.yaml").write_text(text)
    return str(tmp_path / "plan.yaml")


def test_file(tmp_path: Path) -> None:
    text = "stages:\n- {epoch: 5, open: 0-9, scale: 0.5, hyp: {lr0: 0.001, mosaic: 0}}\n- {epoch: 0, open: head}\n"
    found = from_file(write(tmp_path, text + "- {epoch: 7, open: 12, ramp: 3}\n"), 1.5)
    hyp = {"lr0": 0.001, "mosaic": 0.0}
    assert found == [Opening(0, "head", 1, 0), Opening(5, "0-9", 0.5, 1.5, hyp), Opening(7, "12", 1, 3)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: []", "stages"),
        ("stages: 3", "stages"),
        ("stages: [{epoch: 0, open: 1}]\nepochs: 3", "nothing else"),
        ("stages: [{epoch: 0}]", "stage 1: expected the keys"),
        ("stages: [{epoch: 0, open: 1, rate: 2}]", "stage 1: expected the keys"),
        ("stages: [{epoch: 0, open: 1}, {epoch: 1.5, open: 1}]", "stage 2: epoch: 1.5"),
        ("stages: [{epoch: true, open: 1}]", "epoch: True"),
        ("stages: [{epoch: 0, open: [1]}]", "open: "),
        ("stages: [{epoch: 0, open: 1, scale: 0}]", "scale above 0"),
        ("stages: [{epoch: 1, open: 1, ramp: -1}]", "ramp 0 or more"),
        ("stages: [{epoch: 0, open: 1, hyp: {lr0: 0.1}}]", "by --hyp or by flags"),
        ("stages: [{epoch: 1, open: 1, hyp: {box: 0.1}}]", "box cannot change within a run"),
        ("stages: [{epoch: 1, open: 1, hyp: {lrf: 0.1}}]", "give both"),
        ("stages: [{epoch: 1, open: 1, hyp: {mosaic: 2}}]", "mosaic must lie in 0..1"),
        ("stages: [{epoch: 1, open: 1, hyp: {mosaic: no}}]", "mosaic must be a number"),
        ("stages: [{epoch: 1, open: 1, hyp: [1]}]", "expected {key: value}"),
        (
            "stages: [{epoch: 1, open: 1, hyp: {lr0: 0.1}}, {epoch: 1, open: 2, hyp: {lr0: 0.1}}]",
            "lr0 is given twice for epoch 1",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        from_file(write(tmp_path, text), 1)
    assert "plan.yaml" in str(error.value)


@pytest.mark.parametrize(("start", "rate", "groups"), [(10, 5, 6), (0, 5, 6), (20, 10, 1), (3, 1, 4), (0, 1, 0)])
def test_the_rule_is_its_formula(start: int, rate: int, groups: int) -> None:
    """n(e) = 0 before start, else min(1 + floor((e - start) / rate), groups), also long after the last opening."""
    openings = by_rule(["head", *(f"g{i}" for i in range(groups))], start, rate, 0.1, 1)
    assert (openings[0].epoch, openings[0].scale) == (0, 1)
    for epoch in range(start + rate * (groups + 20)):
        n = 0 if epoch < start else min(1 + (epoch - start) // rate, groups)
        assert [o.modules for o in openings if o.epoch <= epoch] == ["head", *(f"g{i}" for i in range(n))]
    assert all(o.ramp == (1 if o.epoch else 0) for o in openings)


def test_presets_by_the_size_of_the_data() -> None:
    assert PRESETS == {"small": (20, 10, 0.01), "medium": (10, 5, 0.1), "large": (5, 3, 0.3)}
    sizes = (1, 999, 1000, 10_000, 10_001, 10**6)
    assert [preset_for(n) for n in sizes] == ["small"] * 2 + ["medium"] * 2 + ["large"] * 2


def test_the_shipped_plan_is_the_four_stages() -> None:
    """Freeze 50, 30, 10, 0 for 100, 100, 100 and 200 epochs, with the rates of their hyp files."""
    found = from_file(str(ROOT / "data/unfreeze.gradual4.yaml"), 1)
    assert [(o.epoch, o.modules) for o in found] == [(0, "50-77"), (100, "30-49"), (200, "10-29"), (300, "0-9")]
    rates = [(o.hyp["lr0"], o.hyp["lrf"]) for o in found[1:]]
    assert rates == [(0.001, 0.01), (0.0005, 0.01), (0.0001, 0.1)]
