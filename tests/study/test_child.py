"""The run of a study or a chain as a child process: signals reach it, it outlives nobody, it is gone on with."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.toy import common
from utils.runs import lock
from utils.study import child
from utils.system.errors import UserError
from utils.weights.checkpoint import read_checkpoint


def until(what: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    deadline = time.monotonic() + 120
    while not what() and (process is None or process.poll() is None) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert what()


def launched(words: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_stopped_or_killed_study_leaves_nobody_and_goes_on(small_shapes: Path, tmp_path: Path) -> None:
    words = ["-m", "utils", "study", "--project", str(tmp_path), "--arm", "a:", "--"]
    words += [*common(small_shapes, epochs=1000), "--save-steps", "1"]
    run = tmp_path / "a_seed0"
    last, log = run / "weights/last.pt", run / lock.LOG

    study = launched(words)
    until(last.is_file, study)
    study.send_signal(signal.SIGTERM)
    out, err = study.communicate(timeout=120)
    assert study.returncode == 128 + signal.SIGTERM and f"stopped in {run}; the same command goes on" in err
    assert lock.holder(run) == "" and "run 1 of 1, a_seed0: starts" in out
    assert log.read_text().count("SIGTERM: finishing the step") == 1
    steps = read_checkpoint(last)["meta"]["step"]

    study = launched(words)
    until(lambda: read_checkpoint(last)["meta"]["step"] > steps, study)
    study.kill()
    study.communicate(timeout=120)
    until(lambda: not lock.holder(run))
    assert log.read_text().count("SIGTERM: finishing the step") == 2, "killed with its parent, it saved"
    steps = read_checkpoint(last)["meta"]["step"]

    study = launched(words)
    until(lambda: read_checkpoint(last)["meta"]["step"] > steps, study)
    study.send_signal(signal.SIGINT)
    assert study.communicate(timeout=120) and study.returncode == 128 + signal.SIGINT
    assert lock.holder(run) == ""


def test_how_a_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Told apart by exit code, result.yaml and whether it was asked to stop; what it said is the reason."""
    (tmp_path / "train.py").write_text("import os, sys\nprint('error: no such thing')\nos._exit(int(sys.argv[1]))\n")
    monkeypatch.setattr(child, "ROOT", tmp_path)
    log = child.Log(tmp_path / "all.log")

    def ended(code: int, stops: child.Stops) -> child.Ended:
        return child.train(tmp_path / "run", [str(code)], stops, log)

    free, asked = child.Stops(), child.Stops(first=signal.SIGTERM)
    assert (
        ended(3, free) == child.Ended("failed", "no such thing") and capsys.readouterr().out == "error: no such thing\n"
    )
    assert ended(0, free).how == ended(143, free).how == "stopped"
    (tmp_path / "run/result.yaml").touch()
    assert ended(0, free).how == "finished" and ended(1, free).how == "failed"
    assert ended(1, asked).how == "stopped"
    assert not free.children


def test_a_run_that_says_nothing_more_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(child, "ROOT", tmp_path)
    monkeypatch.setattr(child, "SILENCE", 3)
    done = child.train(tmp_path / "run", [], child.Stops(), child.Log())
    assert done.how == "failed" and done.why.startswith("it said nothing for 0.05 minutes and was ended")


def test_a_folder_with_nothing_but_a_log_is_free(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / lock.LOG).touch()
    with lock.new_run(str(tmp_path), "a", named=True, exist_ok=False):
        pass
    (tmp_path / "a" / "notes.txt").touch()
    with pytest.raises(UserError, match="exists"):
        lock.new_run(str(tmp_path), "a", named=True, exist_ok=False)


def test_the_file_keeps_the_last_state_of_a_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = child.Log(tmp_path / "chain.log")
    for part in (b"epoch 0:  1%\repoch 0: 50%", b"\repoch 0: 100%\nbest 0.", b"5\n"):
        log.hear(part)
    assert (tmp_path / "chain.log").read_text() == "epoch 0: 100%\nbest 0.5\n"
    assert capsys.readouterr().out.count("epoch 0") == 3
