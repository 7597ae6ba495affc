"""What comes in days of training: signals to every process of a job, workers that die, an output without a reader, a
folder that goes. Each run is resumed and held against one that nothing happened to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.toy import same, toy
from utils.runs.record import read_rows

Process = "subprocess.Popen[str]"


def words(data: Path, project: Path) -> list[str]:
    return ["train.py", *toy(data, project, "a", epochs=6), "--workers", "2"]


def begun(data: Path, project: Path, *, stdout: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
    """A run with loader workers that has trained an epoch."""
    process = subprocess.Popen(
        [sys.executable, "-u", *words(data, project)], cwd=ROOT, text=True, stdout=stdout, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 120
    while not (project / "a/weights/last.pt").is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    return process


@pytest.fixture(scope="module")
def unbroken(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("unbroken")
    subprocess.run([sys.executable, *words(small_shapes, project)], cwd=ROOT, check=True, capture_output=True)
    return project / "a"


def children(process: "subprocess.Popen[str]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def to_all(number: int) -> Callable[["subprocess.Popen[str]"], None]:
    def send(process: "subprocess.Popen[str]") -> None:
        for pid in (*children(process), process.pid):
            os.kill(pid, number)

    return send


def worker_dies(process: "subprocess.Popen[str]") -> None:
    os.kill(children(process)[0], signal.SIGKILL)


@pytest.mark.parametrize(
    ("happens", "code", "said"),
    [
        pytest.param(to_all(signal.SIGTERM), 0, "", id="term"),
        pytest.param(to_all(signal.SIGUSR1), 0, "", id="usr1", marks=pytest.mark.slow),
        pytest.param(to_all(signal.SIGHUP), 0, "", id="hup", marks=pytest.mark.slow),
        pytest.param(worker_dies, 2, "a loader worker has died: it was killed", id="worker", marks=pytest.mark.slow),
    ],
)
def test_stopped_and_saved(
    unbroken: Path, small_shapes: Path, tmp_path: Path,
    happens: Callable[["subprocess.Popen[str]"], None], code: int, said: str,
) -> None:  # fmt: skip
    process = begun(small_shapes, tmp_path)
    happens(process)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in err, err
    assert said in err and (not said or f"stopped and saved; go on with: python train.py --resume {tmp_path}/a" in err)
    rows = read_rows(tmp_path / "a/results.csv")
    assert len(rows) < 6 and (tmp_path / "a/results.png").is_file() == (code == 0 and bool(rows))
    subprocess.run([sys.executable, "train.py", "--resume", str(tmp_path / "a")], cwd=ROOT, check=True)
    same(unbroken, tmp_path / "a")


@pytest.mark.slow
def test_nobody_reads_the_output(unbroken: Path, small_shapes: Path, tmp_path: Path) -> None:
    reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert reader.stdin
    process = begun(small_shapes, tmp_path, stdout=reader.stdin.fileno())
    reader.stdin.close()
    reader.kill()
    reader.wait()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in err, err
    assert "error: the output cannot be written any more (Broken pipe); stopped and saved" in err
    subprocess.run([sys.executable, "train.py", "--resume", str(tmp_path / "a")], cwd=ROOT, check=True)
    same(unbroken, tmp_path / "a")


@pytest.mark.slow
def test_the_run_folder_goes_elsewhere(unbroken: Path, small_shapes: Path, tmp_path: Path) -> None:
    process = begun(small_shapes, tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in err, err
    assert f"the run folder {tmp_path}/a is no longer there" in err and "--resume" in err
    subprocess.run([sys.executable, "train.py", "--resume", str(tmp_path / "b")], cwd=ROOT, check=True)
    same(unbroken, tmp_path / "b")
