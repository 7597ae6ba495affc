"""How a program ends: exit code, text, signals, and an output that nobody reads."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.system.errors import UserError
from utils.system.processes.program import ASKING, run_main


def fails(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(None, 0, ""), (UserError("--x: wrong"), 2, "error: --x: wrong\n"), (SystemExit(3), 3, "")],
)
def test_exit_codes(
    error: BaseException | None,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit) as end:
        run_main(lambda argv: fails(error) if error else None)
    assert end.value.code == code and capsys.readouterr().err == said


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        run_main(lambda argv: fails(KeyError("x")))


def test_trouble_of_the_system_names_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit) as end:
        run_main(lambda argv: fails(OSError(28, "No space left on device", "out/x.png")))
    assert end.value.code == 2 and capsys.readouterr().err == "error: out/x.png: No space left on device\n"


def program(text: str, *, stdout: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    """A program whose main runs these lines."""
    lines = "".join(f"    {line}\n" for line in text.splitlines())
    head = "import os, sys, time, threading\nfrom utils.system.processes.program import run_main\ndef main(argv):\n"
    return subprocess.Popen(
        [sys.executable, "-c", f"{head}{lines}run_main(main)"],
        cwd=ROOT, text=True, stdout=stdout, stderr=subprocess.PIPE,
    )  # fmt: skip


READY = 'print("ready", flush=True)\n'


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_ends_it_with_one_line(number: signal.Signals) -> None:
    process = program(READY + "time.sleep(60)")
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == -number and said.strip() == number.name


def test_a_second_signal_ends_what_does_not_answer() -> None:
    """The main thread waits in a system call that no handler of Python's interrupts; a child ignores all signals."""
    stuck = """
import ctypes, multiprocessing, signal
def ignore():
    for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
    time.sleep(60)
child = multiprocessing.get_context("fork").Process(target=ignore, daemon=True)
child.start()
threading.Timer(1, lambda: print(child.pid, flush=True)).start()  # when it waits
system, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
for _ in range(2): system.pthread_mutex_lock(mutex)
"""
    process = program(stuck)
    assert process.stdout
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)  # signals closer together are one request
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM and said.strip() == "SIGTERM, the second signal: ended at once"
    assert not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_text()


def test_a_hang_up_that_is_to_be_ignored_is_ignored() -> None:
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c",
         "from utils.system.processes.program import run_main\nimport os, signal\n"
         "run_main(lambda argv: (os.kill(os.getpid(), signal.SIGHUP), print('still here')))"],
        cwd=ROOT, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.communicate(timeout=30)[0] == "still here\n" and process.returncode == 0


def test_an_output_without_a_reader_and_a_full_one() -> None:
    read, write = os.pipe()
    os.close(read)
    process = program(READY, stdout=write)
    os.close(write)
    assert process.communicate(timeout=30)[1] == "" and process.returncode == 141
    with open("/dev/full", "w") as full:
        process = program(READY, stdout=full.fileno())
        _, said = process.communicate(timeout=30)
    assert said == "error: the output cannot be written any more (No space left on device)\n"
    assert process.returncode == 2
