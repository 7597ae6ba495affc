"""The conformance table: nothing differs from the reference, what is absent says so, and a wrong number is seen."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.conformance.__main__ import main
from tests.conformance.checks import differ, unequal
from tests.shared import shared
from utils.system.errors import UserError


def table(path: Path) -> dict[str, str]:
    """Quantity -> verdict."""
    rows = [line.strip("| ").split(" | ") for line in path.read_text().splitlines() if line.startswith("| ")]
    return {row[0]: row[-1] for row in rows if len(row) == 5 and row[0] != "quantity"}


def test_an_empty_reference_is_not_present_row_by_row(tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    main(["--shared", str(tmp_path), "--out", str(out)])
    verdicts = table(out)
    assert len(verdicts) > 60
    assert all(v.startswith("not present") for v in verdicts.values())
    assert verdicts["twelve COCO figures against pycocotools"].startswith("not present: ")


@pytest.mark.parametrize("content", ["wrong value", "wrong form", "no JSON"])
def test_a_wrong_reference_fails_its_row_and_the_command(content: str, tmp_path: Path) -> None:
    right = 0.9999 * (1 - math.exp(-1 / 2000))
    (tmp_path / "golden/schedule").mkdir(parents=True)
    book = {"wrong value": {"1": right, "2": right}, "wrong form": [right], "no JSON": {}}[content]
    text = "{" if content == "no JSON" else json.dumps({"ema_decay": book} if content == "wrong value" else {})
    (tmp_path / "golden/schedule/schedule.json").write_text(text)
    out = tmp_path / "table.md"
    with pytest.raises(SystemExit) as left:
        main(["--shared", str(tmp_path), "--out", str(out)])
    assert left.value.code == 1
    verdict = table(out)["EMA decay by update"]
    assert verdict.startswith("FAIL (update 2)" if content == "wrong value" else "FAIL (reference not understood")


def test_nothing_differs_from_the_reference(tmp_path: Path) -> None:
    folder, out = shared("golden/README.md").parent.parent, tmp_path / "table.md"
    main(["--shared", str(folder), "--out", str(out)])
    verdicts = table(out)
    assert sum(v == "pass" for v in verdicts.values()) > 50
    assert all(v == "pass" or v.startswith("not present") for v in verdicts.values())


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--shared .*no such folder"):
        main(["--shared", str(tmp_path / "nowhere"), "--out", str(tmp_path / "table.md")])
    with pytest.raises(UserError, match=r"--out .*there is no folder"):
        main(["--shared", str(tmp_path), "--out", str(tmp_path / "nowhere/table.md")])


def test_differences_by_hand() -> None:
    a, b = np.array([1.0, 0.0, np.nan]), np.array([1.5, 0.0, np.nan])
    assert differ(a, b) == 0.5 and differ(a, b, 0.0) == pytest.approx(1 / 3) and differ(a, b, 0.5) == 0.25
    assert differ([1e-9], [0.0], 0.0) == math.inf, "a wanted 0 has no relative difference"
    assert differ([1.0], [np.nan]) == differ([1.0, 2.0], [1.0]) == unequal([1.0, 2.0], [1.0]) == math.inf
    assert unequal([1, 2, 3], [1, 0, 0]) == 2
