"""Whether flags fit together, and what of a run on disk is another than asked for; the rest is in test_chain.py."""

from pathlib import Path

import pytest

from tests.toy import FOUR_HEADS, common
from utils.runs.folder import Facts
from utils.study import wanted
from utils.system.errors import UserError


def test_models_of_a_chain_must_fit(small_shapes: Path) -> None:
    one = wanted.rehearse(common(small_shapes))
    with pytest.raises(UserError, match=r"does not fit the weights of the stage before .*: give it the same --cfg"):
        wanted.rehearse([*common(small_shapes), *FOUR_HEADS], one)
    four = wanted.rehearse([*common(small_shapes), *FOUR_HEADS, "--transfer-weights"], one)
    assert four.transfers and four.patches["multihead"]["heads"] == 4
    with pytest.raises(UserError, match="--weights is missing"):
        wanted.rehearse([*common(small_shapes), "--transfer-weights"])


def test_a_folder_that_says_nothing_is_another_run(small_shapes: Path, tmp_path: Path) -> None:
    asked = wanted.rehearse(common(small_shapes))
    assert "run.yaml" in wanted.differences(Facts(tmp_path), asked, "")[0]


def test_values_are_compared_as_yaml_keeps_them() -> None:
    assert wanted.plain((1, "a")) == wanted.plain([1, "a"]) and wanted.plain(1) == wanted.plain(1.0)
    assert wanted.plain(True) != wanted.plain(1) and wanted.plain(0.1) != wanted.plain(0.2)
