"""When a run saves and when it stops."""

import os
import signal

import pytest

from utils.system import signals
from utils.system.signals import Interrupt


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_a_second_ctrl_c_ends(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupt = Interrupt()
    with interrupt.listening():
        os.kill(os.getpid(), number)
        assert interrupt.asked and not interrupt.stopping, "the loop answers, not the handler"
        assert interrupt.save_due(1) and interrupt.stopping
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            os.getpid()  # the handler runs between two instructions
    assert signal.getsignal(signal.SIGINT) is before
    assert f"{number.name}: finishing the step, then saving" in capsys.readouterr().out
