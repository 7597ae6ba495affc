"""Nothing is lost: full disk, folders that cannot be written, damaged checkpoints, two runs at once, changed data,
losses that are not finite. Each through the command line, at toy size."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from tests.commands.test_resume import start
from tests.conftest import ROOT, CommandLine
from tests.runs.test_resumable import flip
from tests.toy import same, toy
from utils.data.spec import read_data
from utils.runs.record import read_rows
from utils.weights.checkpoint import read_checkpoint


@pytest.fixture(scope="module")
def data(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that may be changed."""
    read_data(small_shapes)  # renders it where that was not done yet
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(small_shapes.parent / "shapes", folder / "shapes")
    spec = yaml.safe_load(small_shapes.read_text())
    kept = {k: v for k, v in spec.items() if k not in ("generator", "images", "seed")}
    (folder / "data.yaml").write_text(yaml.safe_dump(kept))
    return folder / "data.yaml"


def flags(data: Path, project: Path, name: str = "a") -> list[str]:
    return [*toy(data, project, name, epochs=2), "--save-steps", "1"]


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("unbroken")
    assert start(*flags(data, project)).wait(300) == 0
    return project / "a"


def begun(data: Path, project: Path) -> "subprocess.Popen[str]":
    """A run that has written two checkpoints."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *flags(data, project)],
        cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not (project / "a/weights/previous.pt").exists() and process.poll() is None:
        time.sleep(0.002)
    return process


@pytest.fixture(scope="module")
def holding(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """Folder and process number of a run that is under way and stands still."""
    project = tmp_path_factory.mktemp("holding")
    process = begun(data, project)
    process.send_signal(signal.SIGSTOP)
    yield project / "a", process.pid
    process.kill()
    process.communicate()


@pytest.fixture
def killed(holding: tuple[Path, int], tmp_path: Path) -> Path:
    """A copy of that run's folder as a kill would leave it."""
    return shutil.copytree(holding[0], tmp_path / "a")


def ends(process: "subprocess.Popen[str]") -> str:
    """The message of a run that had to give up."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in said, said
    return said.rpartition("error: ")[2]


@pytest.mark.slow
def test_full_disk_while_saving(unbroken: Path, data: Path, tmp_path: Path) -> None:
    process = begun(data, tmp_path)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    said = ends(process)
    weights = tmp_path / "a/weights"
    assert str(weights) in said and ".pt cannot be written: File too large" in said and "--resume" in said, said
    assert not list(weights.glob("*.part"))
    assert (
        read_checkpoint(weights / "last.pt")["meta"]["step"] > read_checkpoint(weights / "previous.pt")["meta"]["step"]
    )
    assert start("--resume", str(tmp_path / "a")).wait(300) == 0
    same(unbroken, tmp_path / "a")


@pytest.mark.slow
def test_full_disk_while_a_row_is_written(unbroken: Path, data: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "tests/launch.py", "full:results.csv", "train.py", *flags(data, tmp_path)],
        cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert "results.csv cannot be written: File too large" in ends(process)
    assert not (tmp_path / "a/results.csv").exists() or read_rows(tmp_path / "a/results.csv") == []
    assert start("--resume", str(tmp_path / "a")).wait(300) == 0
    same(unbroken, tmp_path / "a")


@pytest.mark.slow
def test_weights_folder_lost_under_way(unbroken: Path, data: Path, tmp_path: Path) -> None:
    process = begun(data, tmp_path)
    weights = tmp_path / "a/weights"
    process.send_signal(signal.SIGSTOP)
    weights.rename(tmp_path / "elsewhere")
    weights.write_text("a file where the folder was")
    process.send_signal(signal.SIGCONT)
    said = ends(process)
    assert str(weights) in said and "cannot be written: Not a directory" in said, said
    weights.unlink()
    (tmp_path / "elsewhere").rename(weights)
    assert start("--resume", str(tmp_path / "a")).wait(300) == 0
    same(unbroken, tmp_path / "a")


def test_a_project_where_nobody_may_write(data: Path, command_line: CommandLine) -> None:
    """/proc: its folders refuse the superuser too."""
    out = command_line("train.py", *flags(data, Path("/proc/here")))
    assert out.returncode == 2 and "Traceback" not in out.stderr
    assert "--project /proc/here: cannot make" in out.stderr, out.stderr


@pytest.mark.slow
def test_a_damaged_last_checkpoint(unbroken: Path, killed: Path, command_line: CommandLine) -> None:
    """The one before it goes on, says so, and ends as the unbroken run; as --weights it is refused."""
    path = killed / "weights/last.pt"
    meta = read_checkpoint(path)["meta"]["config"]
    flip(path, 0.5)
    out = command_line("train.py", *flags(Path(meta["data"]), killed.parent, "stage"), "--weights", str(path))
    assert out.returncode == 2 and f"{path} is damaged" in out.stderr and not (killed.parent / "stage").exists()
    out = command_line("train.py", "--resume", str(killed))
    assert out.returncode == 0, out.stderr
    assert f"{path} is damaged" in out.stdout and str(killed / "weights/previous.pt") in out.stdout
    same(unbroken, killed)


@pytest.mark.parametrize("words", [[], ["--exist-ok"], ["--resume"]], ids=lambda w: " ".join(w) or "--name")
def test_two_runs_with_one_name(
    holding: tuple[Path, int], data: Path, command_line: CommandLine, words: list[str]
) -> None:
    run, number = holding
    before = sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*") if p.name != "run.lock")
    flag = ["--resume", str(run)] if words == ["--resume"] else [*flags(data, run.parent), *words]
    out = command_line("train.py", *flag)
    assert out.returncode == 2 and "Traceback" not in out.stderr
    assert f"is being written by process {number} on {os.uname().nodename}" in out.stderr, out.stderr
    assert sorted((p, p.stat().st_mtime_ns) for p in run.rglob("*") if p.name != "run.lock") == before


@pytest.mark.slow
def test_data_that_changed_since(killed: Path, data: Path, command_line: CommandLine) -> None:
    label = sorted((data.parent / "shapes/labels/train").glob("*.txt"))[2]
    image = sorted((data.parent / "shapes/images/train").glob("*.png"))[4]
    old = label.read_text(), image.read_bytes()
    try:
        label.write_text("".join(old[0].splitlines(keepends=True)[:-1]))
        image.unlink()
        out = command_line("train.py", "--resume", str(killed))
        assert out.returncode == 2 and "Traceback" not in out.stderr
        for said in (f"train: 1 gone (images/train/{image.name})", f"1 with another label (images/train/{label.stem}",
                     "--allow-changed-data"):  # fmt: skip
            assert said in out.stderr, out.stderr
        out = command_line("train.py", "--resume", str(killed), "--allow-changed-data")
        assert out.returncode == 0, out.stderr
        assert "no longer the run that run.yaml describes" in out.stdout and label.stem in out.stdout
    finally:
        label.write_text(old[0])
        image.write_bytes(old[1])
    meta = read_checkpoint(killed / "weights/last.pt")["meta"]
    assert meta["next_epoch"] == 2 and meta["step"] == 6
    assert (
        len(list(killed.glob("data.until_step_*.csv"))) == 1
        and f"train/{image.name}" not in (killed / "data.csv").read_text()
    )
    assert [row["epoch"] for row in read_rows(killed / "results.csv")] == ["0", "1"]
    (killed / "result.yaml").unlink()  # as if killed after its last save
    out = command_line("train.py", "--resume", str(killed))
    assert out.returncode == 2 and f"train: 1 new (images/train/{image.name})" in out.stderr, (
        "allowed once, not for good"
    )
    text = data.read_text()
    try:
        content = yaml.safe_load(text)
        data.write_text(yaml.safe_dump({**content, "nc": 13, "names": [*content["names"], "moon"]}))
        out = command_line("train.py", "--resume", str(killed), "--allow-changed-data")
        assert out.returncode == 2 and "its model has 12 classes" in out.stderr and "has 13 now" in out.stderr
    finally:
        data.write_text(text)


def test_a_term_that_is_not_finite(data: Path, tmp_path: Path) -> None:
    """Found at the epoch's end, steps later; what is saved is from before."""
    words = [w for w in flags(data, tmp_path) if w not in ("--save-steps", "1")]
    name = "0003.png"
    out = subprocess.run(
        [sys.executable, "tests/launch.py", f"nan:1:{name}", "train.py", *words],
        cwd=ROOT, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert out.returncode == 2 and "Traceback" not in out.stderr, out.stderr
    said = out.stderr.rpartition("error: ")[2]
    last = tmp_path / "a/weights/last.pt"
    step = int(said.split("at step ")[1].split(";")[0])
    images = [line.strip() for line in said.splitlines()[1:]]
    assert "loss term trap is not finite" in said and 3 <= step < 6 and f"{last} is from before" in said
    assert len(images) == 4 and any(i.endswith(f"images/train/{name}") for i in images)
    content = read_checkpoint(last)
    assert content["meta"]["step"] == 3
    assert all(torch.isfinite(v).all() for v in content["model"].values() if v.is_floating_point())
    assert [row["epoch"] for row in read_rows(tmp_path / "a/results.csv")] == ["0"]
