"""Two processes under torchrun: one run, which stops, resumes and ends as one."""

import functools
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.commands.test_resume import flags
from tests.conftest import ROOT, CommandLine
from tests.ranks import on_ranks
from tests.toy import same
from utils import seams
from utils.weights.checkpoint import read_checkpoint

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, "train.py", *words],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(process: "subprocess.Popen[str]", code: int = 0) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out + err


def wait_for(file: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not file.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert file.exists()


def ranks_of(process: "subprocess.Popen[str]") -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def unbroken(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 1B4H run with frozen layers on two ranks."""
    project = tmp_path_factory.mktemp("ranks")
    out = finished(launch(*flags(small_shapes, project, "a"), "--sync-bn"))
    assert out.count("results in") == 1, "only rank 0 speaks"
    return project / "a"


def test_one_run_with_one_set_of_files(unbroken: Path) -> None:
    rows = (unbroken / "results.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["0", "6"], ["1", "12"], ["2", "18"]]
    assert [p.name for p in unbroken.parent.iterdir()] == ["a"]
    assert read_checkpoint(unbroken / "weights/last.pt")["meta"]["step"] == 18


@pytest.mark.slow
def test_stopped_and_resumed_on_two_ranks(unbroken: Path, small_shapes: Path, tmp_path: Path) -> None:
    """One rank alone is asked: both finish their step; the resumed run is the unbroken one, to the bit."""
    process = launch(*flags(small_shapes, tmp_path, "a"), "--sync-bn")
    wait_for(tmp_path / "a/weights/last.pt", process)
    os.kill(ranks_of(process)[1], signal.SIGTERM)
    assert f"python train.py --resume {tmp_path / 'a'}" in finished(process)
    assert 0 < read_checkpoint(tmp_path / "a/weights/last.pt")["meta"]["step"] < 18
    finished(launch("--resume", str(tmp_path / "a")))
    same(unbroken, tmp_path / "a")


class Thawing(seams.Patch[Any]):
    """Modules 0-59 frozen in the first epoch, none in the second, 0-29 in the third."""

    def on_epoch_start(self, model: Any, groups: seams.Groups, at: seams.Progress) -> None:
        for i, module in enumerate(model.model):
            module.requires_grad_(i >= (60, 0, 30)[at.epoch])
        for p in (p for p in model.parameters() if not p.requires_grad):
            p.grad = None


def thawing_run(words: list[str], rank: int) -> Any:
    """train.py with that patch, on one of the ranks: what of the model trained, and a digest of what it became."""
    import train
    from utils.train.audit.digest import digest

    os.chdir(ROOT)
    module = ModuleType("patches.freeze")
    flags = importlib.import_module("patches.freeze").Flags
    module.Flags, module.patch = flags, Thawing  # type: ignore[attr-defined]
    sys.modules["patches.freeze"] = module
    run = train.main(words)
    assert run is not None
    return {
        "step": run.step,
        "digest": digest([*run.model.state_dict().values(), *run.ema.model.state_dict().values()]),
    }


@pytest.mark.slow
def test_freezing_and_thawing_on_two_ranks(small_shapes: Path, tmp_path: Path) -> None:
    """The audit, which compares the ranks before every checkpoint (every second step), finds nothing; nor do we."""
    words = [*flags(small_shapes, tmp_path, "a"), "--freeze", "0"]
    at = words.index("--unfreeze")
    del words[at : at + 3]
    first, second = on_ranks(functools.partial(thawing_run, words), tmp_path)
    assert first["step"] == second["step"] == 18
    assert first["digest"].tolist() == second["digest"].tolist()


def test_a_killed_rank_ends_the_job_and_a_resume_is_the_unbroken_run(
    unbroken: Path, small_shapes: Path, tmp_path: Path
) -> None:
    process = launch(*flags(small_shapes, tmp_path, "a"), "--sync-bn")
    wait_for(tmp_path / "a/weights/last.pt", process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    said = finished(process, 1)
    assert "rank 0 lost another rank" in said or "SIGKILL" in said, said
    assert 0 < read_checkpoint(tmp_path / "a/weights/last.pt")["meta"]["step"] < 18
    finished(launch("--resume", str(tmp_path / "a")))
    same(unbroken, tmp_path / "a")


@pytest.mark.slow
def test_the_same_evaluation_on_one_rank_and_on_two(
    unbroken: Path, small_shapes: Path, command_line: CommandLine
) -> None:
    """Tables, curves' data and every detection, for batches that do not divide evenly (3 of at most 3 images)."""
    words = ["test.py", "--data", str(small_shapes), "--weights", str(unbroken / "weights/last.pt"), "--img", "64"]
    words += ["--batch-size", "3", "--workers", "0", "--device", "cpu", "--save-txt", "--save-conf", "--verbose"]
    found = []
    for name, start in (("one", []), ("two", TORCHRUN)):
        folder = unbroken.parent / name
        done = command_line(*start, *words, "--project", str(folder.parent), "--name", name)
        assert done.returncode == 0, done.stderr
        labels = {p.name: p.read_text() for p in sorted((folder / "labels").iterdir())}
        found.append((re.sub(r"results in .*", "", done.stdout), labels))
    assert len(found[0][1]) == 8
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "3"], "--batch-size 3 cannot be shared by 2 ranks: use a multiple of 2"),
        (["--quad", "--batch", "4"], "4 cannot be shared by 2 ranks in fours (--quad): use a multiple of 8"),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_shared(small_shapes: Path, tmp_path: Path, words: list[str], message: str) -> None:
    assert message in finished(launch(*flags(small_shapes, tmp_path, "a"), *words), 1)
    assert not (tmp_path / "a").exists()
