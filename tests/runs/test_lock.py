"""A run folder is made by one process and written by one process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.runs import lock
from utils.system.errors import UserError

HOLD = "import sys; sys.path.insert(0, '.'); from utils.runs import lock; from pathlib import Path\n"


def python(code: str, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HOLD + code, *words], cwd=ROOT, text=True, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_default_names_count_up_without_a_collision(tmp_path: Path) -> None:
    """Six starts wait for one moment, then take a name at once."""
    go = tmp_path / "go"
    code = (
        "import os, time\nwhile not os.path.exists(sys.argv[2]): time.sleep(0.001)\n"
        "held = lock.new_run(sys.argv[1], 'exp', named=False, exist_ok=False); print(held.folder, flush=True); input()"
    )
    processes = [python(code, str(tmp_path / "runs"), str(go)) for _ in range(6)]
    time.sleep(1.0)
    go.write_text("")
    names = sorted(Path(first_line(p)).name for p in processes)
    for process in processes:
        process.communicate("\n", timeout=60)
    assert names == sorted(["exp", *(f"exp{i}" for i in range(2, 7))])


def test_a_held_folder_is_refused_until_the_holder_is_killed(tmp_path: Path) -> None:
    """Its children, such as the loader's workers, do not hold it any longer."""
    code = (
        "import os, time\nheld = lock.new_run(sys.argv[1], 'x', named=True, exist_ok=False)\n"
        "child = os.fork()\nif not child: time.sleep(30); os._exit(0)\nprint(child, flush=True); input()"
    )
    process = python(code, str(tmp_path))
    child = int(first_line(process))
    for exist_ok in (False, True):
        with pytest.raises(UserError, match=f"being written by process {process.pid} on "):
            lock.new_run(str(tmp_path), "x", named=True, exist_ok=exist_ok)
    with pytest.raises(UserError, match=f"process {process.pid}"):
        lock.Lock(tmp_path / "x")
    process.kill()
    process.wait()
    os.kill(child, 0)  # it lives
    with lock.Lock(tmp_path / "x"):
        pass
    os.kill(child, 9)


def test_a_start_that_was_refused_leaves_no_folder(tmp_path: Path) -> None:
    with lock.new_run(str(tmp_path), "x", named=True, exist_ok=False) as held:
        assert held.folder.is_dir()
    assert not (tmp_path / "x").exists()
    with lock.new_run(str(tmp_path), "x", named=True, exist_ok=False) as held:
        (held.folder / "results.csv").write_text("")
    assert (tmp_path / "x/results.csv").exists()
    with pytest.raises(UserError, match=r"exists: choose another --name, or .* --exist-ok"):
        lock.new_run(str(tmp_path), "x", named=True, exist_ok=False)
    with lock.new_run(str(tmp_path), "x", named=True, exist_ok=True):
        pass
    assert (tmp_path / "x/results.csv").exists()


@pytest.mark.parametrize(("file", "free"), [("notes.csv", True), ("weights/last.pt", False), ("mine.txt", False)])
def test_a_start_that_saved_nothing_blocks_no_name(tmp_path: Path, file: str, free: bool) -> None:
    """What a start writes before it trains, and nothing else: the same command begins anew."""
    (tmp_path / "x/weights").mkdir(parents=True)
    for name in ("run.lock", "run.yaml", "data.csv", file):
        (tmp_path / "x" / name).write_text("")
    if free:
        with lock.new_run(str(tmp_path), "x", named=True, exist_ok=False):
            pass
    else:
        with pytest.raises(UserError, match="exists: choose another --name"):
            lock.new_run(str(tmp_path), "x", named=True, exist_ok=False)
    assert (tmp_path / "x" / file).exists()


def test_a_start_killed_before_it_wrote_anything_blocks_no_name(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / lock.NAME).write_text("process 1 on nowhere")
    with lock.new_run(str(tmp_path), "x", named=True, exist_ok=False) as held:
        assert held.folder == tmp_path / "x"


def test_a_place_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    with lock.new_run(str(tmp_path), "x", named=True, exist_ok=False):
        assert "No locks available" in capsys.readouterr().out
