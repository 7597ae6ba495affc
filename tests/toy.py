"""Toy runs: the command words of train.py for a training of seconds, and such a training in this process."""

from pathlib import Path

import train
from utils.train.run import Run


def toy(data: Path | str, project: Path, name: str, *, epochs: int = 1, batch: int = 4) -> list[str]:
    """Flags of a run of the demo network at 64 pixels on the CPU; flags that are put behind them replace them."""
    files = ["--data", str(data), "--cfg", "cfg/training/demo.yaml", "--hyp", "data/hyp.demo.yaml"]
    size = ["--img", "64", "--batch", str(batch), "--nominal-batch", "4", "--epochs", str(epochs)]
    return [*files, *size, "--workers", "0", "--device", "cpu", "--project", str(project), "--name", name]


def trained(data: Path, project: Path, name: str, *flags: str, epochs: int = 1) -> Run:
    """A toy run in this process, whose working directory must be the project's root."""
    run = train.main([*toy(data, project, name, epochs=epochs), *flags])
    assert run is not None
    return run
