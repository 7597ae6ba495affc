"""Twenty kills at moments drawn by seed (SIGKILL, SIGTERM, SIGUSR1) with each of five combinations of features: the run
that was resumed twenty times is the one that was not touched, to the bit. Each life is a process of its own, copied
from one that has imported everything."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.toy import FOUR_HEADS, same, toy, trained

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train", "tests.launch", "tests.toy"])
KILLS = 20
MOMENTS = ["step", "write", "rename", "rows", "evaluation", "setup"]
COMBINATIONS = {
    "ota": ["--loss-ota", "1"],
    "four heads, frozen": [*FOUR_HEADS, "--freeze", "10"],
    "unfreeze and guard": [
        *("--freeze", "10", "--unfreeze", "0:40-77", "4:10-39@0.5", "--guard-drop", "0.001"),
        *("--guard-patience", "1", "--guard-action", "halve"),
    ],
    "joint, gradnorm": ["--classify", "--mtl", "gradnorm"],
    "teacher": ["--teacher"],
}


def live(words: Sequence[str], condition: str) -> None:
    """train.py under a condition of tests/launch.py, in this process."""
    import torch

    import train
    from tests.launch import apply
    from tests.toy import unpainted
    from utils.system.processes.program import run_main

    os.chdir(ROOT)
    torch.set_num_threads(1)
    for name in ("stdout", "stderr"):
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.argv = ["train.py", *words]
    if condition:
        apply(*condition.split(":"))
    with unpainted():
        run_main(train.main)


def life(words: Sequence[str], condition: str = "") -> int | None:
    process = CONTEXT.Process(target=live, args=(words, condition))  # type: ignore[attr-defined]
    process.start()
    process.join(300)
    assert not process.is_alive(), f"{condition}: it hangs"
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_twenty_kills(name: str, small_shapes: Path, rich: Path, tmp_path: Path) -> None:
    data = rich if "joint" in name else small_shapes
    extra = [*COMBINATIONS[name], "--epochs", "12"]
    if name == "teacher":
        trained(small_shapes, tmp_path, "teacher")
        extra.insert(1, str(tmp_path / "teacher/weights/last.pt"))
    assert life([*toy(data, tmp_path / "whole", "a", batch=2), *extra]) == 0
    draw = np.random.default_rng(list(COMBINATIONS).index(name))
    run, hits, lives = tmp_path / "a", [], 0
    while not (run / "result.yaml").is_file():
        lives += 1
        assert lives < 80, hits
        condition = ""
        if len(hits) < KILLS:
            number = draw.choice(["SIGKILL", "SIGTERM", "SIGUSR1"])
            condition = f"kill:{draw.choice(MOMENTS)}:{draw.integers(1, 4)}:{number}"
        begun = any((run / "weights").glob("*.pt")) if run.exists() else False
        new = [*toy(data, tmp_path, "a", batch=2), *extra, "--save-steps", "1"]
        code = life(["--resume", str(run)] if begun else new, condition)
        if code == 0 and (run / "result.yaml").is_file():
            break
        assert condition and code in (0, -getattr(signal, condition.split(":")[3])), (condition, code)
        hits.append(condition)
    print(f"{name}: {len(hits)} kills")
    assert len(hits) == KILLS, hits
    same(tmp_path / "whole/a", run)
    assert not list(run.rglob("*.part"))
