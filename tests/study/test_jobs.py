"""Runs of a study side by side: who trains which, what is left to others, what is said. Nothing trains here."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.study.test_compare import ROWS, write_run
from utils.runs import lock
from utils.runs.folder import Facts
from utils.study import child, jobs
from utils.study.jobs import Job, Queue
from utils.system.errors import UserError

HOLD = """import sys, pathlib
from utils.runs import lock
held = lock.Lock(pathlib.Path(sys.argv[1]), name=lock.STUDY)
print("held", flush=True)
sys.stdin.read()"""


class Trainer:
    """In place of child.train: notes who was asked for what, and ends each run as it is told."""

    def __init__(self, how: dict[str, child.Ended], together: int = 1) -> None:
        self.how, self.calls = how, list[tuple[str, list[str]]]()
        self.meet = threading.Barrier(together)

    def __call__(
        self, folder: Path, words: Sequence[str], stops: Any, log: child.Log, ranks: int, place: Sequence[str]
    ) -> child.Ended:
        self.meet.wait(60)  # broken where fewer train at the same time
        self.calls.append((folder.name, list(place)))
        if folder.name == "broken":
            raise UserError("the disk is gone")
        if (done := self.how.get(folder.name, child.Ended("finished"))).how == "finished":
            (folder / "result.yaml").write_text("epochs: 1\n")
        return done


def queue(tmp_path: Path, *names: str) -> Queue:
    return Queue([Job(name, 0, tmp_path / name, ()) for name in names], child.Log())


def test_hands_share_the_runs_and_tell_the_ends_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer({"b": child.Ended("failed", "no such thing"), "c": child.Ended("stopped")}, together=2)
    monkeypatch.setattr(child, "train", trainer)
    line = queue(tmp_path, "a", "b", "c", "d", "e")
    (tmp_path / "e").mkdir()
    (tmp_path / "e/result.yaml").write_text("epochs: 1\n")
    line.carry_out(["cuda:0", "cuda:1"])
    assert sorted(name for name, _ in trainer.calls) == ["a", "b", "c", "d"]
    assert {tuple(place) for _, place in trainer.calls} == {("--device", "cuda:0"), ("--device", "cuda:1")}
    assert line.failed == [tmp_path / "b"] and line.stopped == [tmp_path / "c"]
    said = capsys.readouterr()
    assert "run 2 of 5, b: FAILED (no such thing), going on with the others" in said.err
    assert "run 5 of 5, e: finished before" in said.out


def test_what_another_process_trains_is_left_to_it_and_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`a` is given up unfinished by its holder and then trained here; `b` is done by nobody else."""
    monkeypatch.setattr(jobs, "LOOK", 0.05)
    line = queue(tmp_path, "a", "b")
    (tmp_path / "a").mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "a")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline() == b"held\n"
    trainer = Trainer({})

    def train(folder: Path, *words: Any) -> child.Ended:
        if folder.name == "b":  # its holder ends only now, in the middle of our work
            other.communicate()
        return trainer(folder, *words)

    monkeypatch.setattr(child, "train", train)
    line.carry_out([""])
    assert trainer.calls == [("b", []), ("a", [])] and not line.failed
    assert f"run 1 of 2, a: is trained by process {other.pid}" in capsys.readouterr().out
    assert lock.holder(tmp_path / "a") == ""


def test_a_hand_that_breaks_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "train", Trainer({}))
    line = queue(tmp_path, "broken", "a")
    with pytest.raises(UserError, match="the disk is gone"):
        line.carry_out([""])
    assert line.stops.first and not (tmp_path / "a").exists()


def test_words_about_a_run_and_the_time_left(tmp_path: Path) -> None:
    """Epochs of 9, 3, 5 and 4 seconds: 4.5 in the middle. Of 10 planned 4 are done: 27 s; of the other run all 10."""
    write_run(tmp_path / "a", ROWS, seed=0, weights="", epochs=10)
    (tmp_path / "a/result.yaml").unlink(missing_ok=True)
    run = Facts(tmp_path / "a")
    assert jobs.finished(run) == "finished, 4 epochs, best mAP 0.5000, 21 s"
    assert run.planned == 10 and jobs.time_left([run, Facts(tmp_path / "none")], 1) == "72 s"
    assert jobs.time_left([run, Facts(tmp_path / "none")], 2) == "36 s"
    assert jobs.time_left([Facts(tmp_path / "none")], 1) == ""
    assert [jobs.duration(s) for s in (99.4, 100, 3599, 11100)] == ["99 s", "2 min", "1 h 0 min", "3 h 5 min"]
