"""A small part of `make fuzz`: every kind of damage a few times, and that the trial itself notices what it must."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.fuzz.targets import TARGETS, Stock, stock
from tests.fuzz.trial import attempt
from utils.system.errors import UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tries are forks with limits, as Linux has them")
TRIES = 2


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return stock(tmp_path_factory.mktemp("stock"))


def test_no_traceback_no_hang_no_flood(command_line: CommandLine) -> None:
    """Numbers that the longer runs do not reach, so that both together see more. In a process of its own: copies of one
    in which threads of other tests wait may never end."""
    done = command_line("-m", "tests.fuzz", "--tries", str(TRIES * len(TARGETS)), "--first", "1000000")
    assert done.returncode == 0 and ", 0 faults; " in done.stdout, done.stdout[-6000:] + done.stderr[-6000:]


def test_a_trial_tells_apart_what_may_be_and_what_not() -> None:
    def refuse() -> None:
        raise UserError("no")

    def stumble() -> None:
        raise KeyError("x")

    assert attempt(lambda: None).fault == ""
    assert attempt(refuse).fault == "" and attempt(refuse).said == "no"
    assert "KeyError" in attempt(stumble).fault
    assert "within" in attempt(lambda: time.sleep(60), seconds=0.3).fault
    assert "MiB" in attempt(lambda: b"x" * (256 << 20), memory=16 << 20).fault
    assert "without a word" in attempt(lambda: os._exit(3)).fault
    assert attempt(lambda: sys.exit(2)).fault == ""
    assert "exit code 4" in attempt(lambda: sys.exit(4)).fault


def test_a_try_can_be_had_again(ready: Stock, tmp_path: Path) -> None:
    from random import Random

    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        TARGETS["hyp_yaml"](ready, tmp_path / name, Random("hyp_yaml 5"))
        made.append((tmp_path / name / "h.yaml").read_bytes())
    assert made[0] == made[1]
