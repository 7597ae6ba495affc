"""An opening that is taken back, and a run that ends early, through the command line: files, kills, two ranks.

mAP is made up, epoch by epoch; all else is real.
"""

import contextlib
import dataclasses
import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from tests.commands.test_ranks import TORCHRUN
from tests.conftest import ROOT
from tests.toy import same, toy
from utils.runs.fingerprint import tensors_in
from utils.runs.record import read_rows
from utils.system.errors import UserError
from utils.weights.checkpoint import read_checkpoint

MAPS = (0.5, 0.5, 0.2, 0.3, 0.6, 0.55, 0.56)
WORTH = f"worth:{','.join(map(str, MAPS))}"
HALVED = [("2", "opening"), ("2", "below"), ("3", "below"), ("3", "back"), ("4", "opening")]


def flags(data: Path, project: Path, *more: str) -> list[str]:
    words = ["--unfreeze", "0:60-77, 2:0-59", "--guard-drop", "0.01", "--guard-patience", "2", "--audit"]
    return [*toy(data, project, "a", epochs=7), *words, "--save-steps", "1", *more]


def life(words: list[str], condition: str, *launcher: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *launcher, "tests/launch.py", condition, "train.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def lived(words: list[str], maps: tuple[float, ...]) -> str:
    """The same in this process, to its end; what it says."""
    validate, said = train.outputs.validate, io.StringIO()

    def made_up(run: Any, *args: Any) -> Any:
        value = maps[min(run.epoch, len(maps) - 1)]
        return dataclasses.replace(validate(run, *args), map50=value, map=value)

    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(said):
        patched.chdir(ROOT)
        patched.setattr(train.outputs, "validate", made_up)
        with contextlib.suppress(SystemExit):  # of a run that has ended
            train.main(words)
    return said.getvalue()


def events(run: Path) -> list[tuple[str, str]]:
    return [(row["epoch"], row["event"]) for row in read_rows(run / "guard.csv")]


@pytest.fixture(scope="module")
def unbroken(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    project = tmp_path_factory.mktemp("unbroken")
    said = lived(flags(small_shapes, project), MAPS)
    assert f"guard: back to {project / 'a/weights/before_epoch_002.pt'}" in said
    yield project / "a"


def test_an_opening_is_halved(unbroken: Path) -> None:
    """The audit has compared what came back with what was there; the epochs went on."""
    assert events(unbroken) == HALVED
    rows = read_rows(unbroken / "results.csv")
    assert [row["epoch"] for row in rows] == [str(e) for e in range(7)]
    last = read_checkpoint(unbroken / "weights/last.pt")
    assert {(g["opens"], g["lr_scale"]) for g in last["optimizer"]["param_groups"]} == {(0, 1.0), (4, 0.5)}
    assert last["meta"]["ema_updates"] == 21 - 6 == last["meta"]["step"] - last["meta"]["guard"]["undone"]
    assert float(rows[3]["lr_weight/2"]) == float(rows[3]["lr_weight/1"]) > 0
    assert float(rows[6]["lr_weight/2"]) == float(rows[6]["lr_weight/1"]) / 2


def test_stopped_where_it_was_before(unbroken: Path, small_shapes: Path, tmp_path: Path) -> None:
    """last.pt is the state before the opening, as a numbered copy and the file of another run have it."""
    said = lived(flags(small_shapes, tmp_path, "--guard-action", "stop", "--save_period", "2"), MAPS)
    why = "mAP@0.5 stayed below 0.5000 after the opening at epoch 2"
    assert f"ended after 4 of 7 epochs: {why}" in said
    weights = tmp_path / "a/weights"
    assert yaml.safe_load((tmp_path / "a/result.yaml").read_text())["ended"] == why
    last, mine, copied, later = (
        read_checkpoint(weights / f"{name}.pt") for name in ("last", "before_epoch_002", "epoch_001", "epoch_003")
    )
    for part in ("model", "ema", "optimizer"):
        a, b = tensors_in(last[part]), tensors_in(mine[part])
        assert a and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), part
    assert all(torch.equal(v, last["ema"][k]) for k, v in copied["ema"].items())
    assert not all(torch.equal(v, last["ema"][k]) for k, v in later["ema"].items())
    assert last["meta"]["next_epoch"] == 4 and last["meta"]["step"] == 12 and last["meta"]["ema_updates"] == 6


@pytest.mark.slow
def test_killed_around_it(unbroken: Path, small_shapes: Path, tmp_path: Path) -> None:
    """While its first epoch runs; when the decision stands in guard.csv and nothing is done yet; when last.pt has just
    been written with the state before; in the first epoch after that."""
    run, new = tmp_path / "a", flags(small_shapes, tmp_path)
    found = []
    for moment in ("step:8", "rows:8", "back:1", "step:2"):
        out = life(["--resume", str(run)] if run.exists() else new, f"kill:{moment}+{WORTH}")
        assert out.returncode == -signal.SIGKILL, (moment, out.stderr[-2000:])
        at = read_checkpoint(run / "weights/last.pt")["meta"]
        back = ("3", "back") in events(run)
        found.append((at["next_epoch"], at["next_batch"], back, at["guard"]["undone"]))
    assert found == [(2, 1, False, 0), (3, 2, True, 0), (4, 0, True, 6), (4, 1, True, 6)]
    out = life(["--resume", str(run)], WORTH)
    assert out.returncode == 0, out.stderr
    same(unbroken, run)
    assert (unbroken / "guard.csv").read_bytes() == (run / "guard.csv").read_bytes()


@pytest.mark.slow
def test_on_two_ranks(small_shapes: Path, tmp_path: Path) -> None:
    """Both go back: the audit compares the ranks before every checkpoint."""
    out = life(flags(small_shapes, tmp_path), WORTH, *TORCHRUN)
    assert out.returncode == 0, out.stderr
    assert events(tmp_path / "a") == HALVED


def test_patience_ends_a_run_and_its_resume(small_shapes: Path, tmp_path: Path) -> None:
    """Killed in the epoch that will be its last."""
    maps, run = (0.1, 0.3, 0.2, 0.3, 0.9), tmp_path / "a"
    words = [*toy(small_shapes, tmp_path, "a", epochs=9), "--patience", "2"]
    out = life(words, f"kill:step:11+worth:{','.join(map(str, maps))}")
    assert out.returncode == -signal.SIGKILL, out.stderr
    for said in ("ended after 4 of 9 epochs: no better", "has ended after 4 epochs (no better"):  # and it stays ended
        out = lived(["--resume", str(run)], maps)
        assert f"{said} fitness in 2 evaluated epochs (--patience)" in out
        assert ("best.pt: P " in out) == said.startswith("ended")
        assert len(read_rows(run / "results.csv")) == 4 and events(run) == [("3", "end")]
    assert (run / "val_batch0_pred.jpg").is_file()
    assert read_checkpoint(run / "weights/best.pt")["meta"]["epoch"] == 1
    assert yaml.safe_load((run / "result.yaml").read_text())["ended"].startswith("no better fitness")


def test_nothing_to_guard(small_shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this run has no opening to guard"):
        lived([*toy(small_shapes, tmp_path, "a"), "--guard-drop", "0.01"], MAPS)
