"""Toy runs: the command words of train.py for a training of seconds, and such a training in this process."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import train
from utils.train.run import Run
from utils.weights.checkpoint import read_checkpoint

STEPS = 3  # of an epoch: the small data set's 12 pictures in batches of 4
OWN = ("timing.csv", "notes.csv")  # what each process of a run took and said
FOUR_HEADS = ["--cfg", "cfg/training/demo-1b4h.yaml", "--heads", "4", "--head-config", "data/shapes_1b4h.yaml"]


def common(data: Path | str, *, epochs: int = 1, batch: int = 4) -> list[str]:
    """Flags of a run of the demo network at 64 pixels on the CPU, which has no name yet."""
    files = ["--data", str(data), "--cfg", "cfg/training/demo.yaml", "--hyp", "data/hyp.demo.yaml"]
    size = ["--img", "64", "--batch", str(batch), "--nominal-batch", "4", "--epochs", str(epochs)]
    return [*files, *size, "--workers", "0", "--device", "cpu"]


def toy(data: Path | str, project: Path, name: str, *, epochs: int = 1, batch: int = 4) -> list[str]:
    """The same with a place for the run; flags that are put behind them replace them."""
    return [*common(data, epochs=epochs, batch=batch), "--project", str(project), "--name", name]


def trained(data: Path, project: Path, name: str, *flags: str, epochs: int = 1) -> Run:
    """A toy run in this process, whose working directory must be the project's root."""
    run = train.main([*toy(data, project, name, epochs=epochs), *flags])
    assert run is not None
    return run


def cut(data: Path, project: Path, name: str, *flags: str, epochs: int, step: int) -> Path:
    """The folder of a toy run that was saved after so many steps, within an epoch or at its end, and ended there as if
    it had been killed."""
    pause, save = train.saving.pause, train.saving.save

    def end(run: Run) -> None:
        if run.step >= step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.saving, "pause", lambda run: (pause(run), end(run) if run.batch < STEPS else None))
        patch.setattr(train.saving, "save", lambda run, *figures: (save(run, *figures), end(run)))
        trained(data, project, name, *flags, "--save-steps", "1", epochs=epochs)
    return project / name


def resumed(folder: Path, *flags: str) -> Run:
    run = train.main(["--resume", str(folder), *flags])
    assert run is not None
    return run


def contents(run: Path) -> dict[str, Any]:
    """What a run ended in: every tensor and number of last.pt and best.pt by its name, and the tables' text."""
    found: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key in value:
                add(f"{name}.{key}", value[key])
        else:
            found[name] = value

    for file in ("last.pt", "best.pt"):
        content = read_checkpoint(run / "weights" / file)
        settings = ("config", "data")  # where a run lies may differ
        add(file, {**content, "meta": {k: v for k, v in content["meta"].items() if k not in settings}})
    tables = [p for p in run.iterdir() if p.suffix in (".csv", ".txt", ".json") and p.name not in OWN]
    return found | {p.name: p.read_text() for p in tables}


def equal(a: Any, b: Any) -> bool:
    """To the bit, for tensors."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def same(a: Path, b: Path) -> None:
    """Both runs ended in the same state, to the bit."""
    one, two = contents(a), contents(b)
    assert [n for n in one.keys() | two.keys() if n not in one or n not in two or not equal(one[n], two[n])] == []


class Nothing:
    """Axes that are not there: whatever is asked of them is nothing as well."""

    def __getattr__(self, name: str) -> "Nothing":
        if name.startswith("__"):  # what NumPy asks for
            raise AttributeError(name)
        return self

    def __call__(self, *_: object, **__: object) -> "Nothing":
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())


@contextlib.contextmanager
def unpainted() -> Iterator[None]:
    """Runs in this process write empty pictures: drawing them takes more than half of a toy run."""

    def axes(_figure: Figure, rows: int = 1, columns: int = 1) -> Any:
        found = np.empty(rows * columns, object)
        found[:] = Nothing()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "subplots", axes)
        patch.setattr(Figure, "colorbar", Nothing())
        patch.setattr(Figure, "savefig", lambda figure, out, **_: Path(out).write_bytes(b""))
        yield
