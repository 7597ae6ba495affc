"""When a run saves and when it stops."""

import os
import signal
import time

import pytest

from utils.system.processes import signals
from utils.system.processes.program import ask
from utils.system.processes.signals import Interrupt


def test_saves_are_due_by_steps_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    assert not any(Interrupt().save_due(step) for step in range(100))
    assert [step for step in range(1, 8) if Interrupt(save_steps=3).save_due(step)] == [3, 6]
    timed = Interrupt(save_minutes=2)
    now[0] = 119.0
    assert not timed.save_due(1)
    now[0] = 120.0
    assert timed.save_due(2) and timed.save_due(3), "until it was saved"
    timed.saved()
    assert not timed.save_due(4) and not timed.stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_asks_and_the_loop_answers(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    interrupt = Interrupt()
    with interrupt.listening():
        os.kill(os.getpid(), number)
        assert interrupt.asked and not interrupt.stopping, "the loop answers, not the handler"
        assert interrupt.vote() == 2 and interrupt.stopping
        os.kill(os.getpid(), signal.SIGTERM)  # what torchrun passes on is the same request
    assert signal.getsignal(number) is before
    said, until = "", time.monotonic() + 10
    while f"{number.name}: finishing the step, then saving" not in said:
        assert time.monotonic() < until, said
        said += capsys.readouterr().out


def test_trouble_asks_once_and_only_a_run_that_listens() -> None:
    interrupt = Interrupt()
    assert not ask("nobody hears")
    with interrupt.listening():
        assert ask("a worker died") and ask("and another one")
    assert interrupt.vote() == 2 and interrupt.trouble == "a worker died"
    assert not ask("nobody hears")
