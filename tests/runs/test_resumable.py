"""Of resumable.pt and previous.pt one is whole at any moment, damage is seen, and a full disk takes nothing."""

import contextlib
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from utils.runs import resumable
from utils.system import files
from utils.system.errors import UserError
from utils.weights.checkpoint import read_checkpoint, save_checkpoint


def checkpoint(path: Path, step: int = 0) -> Path:
    torch.manual_seed(step)
    state = {"a": torch.randn(5000), "b": torch.randn(3)}
    training = {"optimizer": {"state": {}}}
    keep = path.with_name(resumable.PREVIOUS)
    save_checkpoint(path, state=state, meta={"step": step}, training=training, keep=keep)
    return path


def steps(weights: Path) -> dict[str, int]:
    return {p.name: read_checkpoint(p)["meta"]["step"] for p in sorted(weights.iterdir())}


def test_the_checkpoint_of_before_stays(tmp_path: Path) -> None:
    checkpoint(tmp_path / "last.pt", 1)
    assert steps(tmp_path) == {"last.pt": 1}
    checkpoint(tmp_path / "last.pt", 2)
    checkpoint(tmp_path / "last.pt", 3)
    assert steps(tmp_path) == {"last.pt": 3, "previous.pt": 2}


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "none"])
def test_one_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Looked at before and after everything that changes a name, the save stopped there, and done again."""
    whole: list[bool] = []

    def look() -> None:
        found = [tmp_path / n for n in ("last.pt", "previous.pt") if (tmp_path / n).exists()]
        good = []
        for path in found:
            with contextlib.suppress(UserError):
                good.append(read_checkpoint(path)["meta"]["step"])
        whole.append(bool(good))

    def watched(original: Callable[..., None]) -> Callable[..., None]:
        def call(*names: object) -> None:
            look()
            original(*names)
            look()

        return call

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    checkpoint(tmp_path / "last.pt", 1)
    checkpoint(tmp_path / "last.pt", 2)
    monkeypatch.setattr(os, "replace", watched(os.replace))
    monkeypatch.setattr(os, "link", watched(os.link) if links else refuse)
    for step in (3, 4):
        checkpoint(tmp_path / "last.pt", step)
    monkeypatch.undo()
    assert len(whole) >= 8 and all(whole)
    assert steps(tmp_path) == {"last.pt": 4, "previous.pt": 3}


def test_saving_after_a_kill_between_the_two_names(tmp_path: Path) -> None:
    """Then resumable.pt and previous.pt are one file; the spare name must not stay behind."""
    checkpoint(tmp_path / "last.pt", 1)
    os.link(tmp_path / "last.pt", tmp_path / "previous.pt")
    checkpoint(tmp_path / "last.pt", 2)
    assert steps(tmp_path) == {"last.pt": 2, "previous.pt": 1}


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 16
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda p: os.truncate(p, p.stat().st_size * 2 // 3),
    "empty": lambda p: os.truncate(p, 0),
    "flipped": lambda p: flip(p, 0.5),
    "gone": lambda p: p.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_passed_over_and_it_says_so(kind: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "last.pt", 1)
    checkpoint(path, 2)
    assert resumable.read(path)[1] == ""
    DAMAGE[kind](path)
    content, said = resumable.read(path)
    assert content["meta"]["step"] == 1
    resumable.put_aside(path)
    assert str(path) in said and str(tmp_path / "previous.pt") in said and "step 1" in said
    assert not path.exists() and (tmp_path / "last.damaged.pt").exists() == (kind != "gone")
    checkpoint(path, 2)  # the next save must not take the good one away for the damaged one
    assert read_checkpoint(tmp_path / "previous.pt")["meta"]["step"] == 1
    assert read_checkpoint(path)["meta"]["step"] == 2


def test_a_flipped_bit_is_seen_anywhere_in_the_numbers(tmp_path: Path) -> None:
    """torch.load reads such a file without a word."""
    path = checkpoint(tmp_path / "x.pt")
    good = torch.load(path, weights_only=True)["ema"]["a"]
    flip(path, 0.5)
    assert not torch.equal(torch.load(path, weights_only=True)["ema"]["a"], good)
    with pytest.raises(UserError, match=r"x\.pt is damaged"):
        read_checkpoint(path)


def test_both_damaged_names_both(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "last.pt", 1)
    checkpoint(path, 2)
    for name in ("last.pt", "previous.pt"):
        flip(tmp_path / name, 0.5)
    with pytest.raises(UserError, match=r"(?s)last\.pt is damaged.*previous\.pt is damaged"):
        resumable.read(path)
    assert path.exists()


def limited(write: Callable[[], object], limit: int) -> str:
    """What `write` raises in a process whose files may not grow beyond `limit` bytes."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            write()
            said = "written"
        except UserError as error:
            said = str(error)
        except (OSError, RuntimeError) as error:
            said = f"not named: {error!r}"
        os.write(into, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(into)
    with open(out) as pipe:
        return pipe.read()


@pytest.mark.parametrize("limit", [0, 100, 5000, 15000, 20000])
def test_a_full_disk_leaves_the_checkpoint_of_before(limit: int, tmp_path: Path) -> None:
    """At any byte: the header, the description, the numbers, the directory at the end."""
    path = checkpoint(tmp_path / "last.pt", 1)
    before = path.read_bytes()
    assert len(before) > 20000
    said = limited(lambda: checkpoint(path, 2), limit)
    assert f"{path} cannot be written: File too large" in said
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.pt"]


def test_a_full_disk_leaves_whole_rows_and_texts(tmp_path: Path) -> None:
    rows, new = tmp_path / "results.csv", tmp_path / "new.csv"
    rows.write_text("epoch\n0\n")
    for path, write in ((rows, files.append_text), (new, files.append_text), (rows, files.write_text)):
        assert f"{path} cannot be written: File too large" in limited(lambda w=write, p=path: w(p, "x" * 50), 20)
    assert rows.read_text() == "epoch\n0\n" and os.listdir(tmp_path) == ["results.csv"]


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    checkpoint(tmp_path / "last.pt", 1)
    (tmp_path / "last.123.part").write_bytes(b"half")
    resumable.clear(tmp_path)
    assert os.listdir(tmp_path) == ["last.pt"]


def test_what_resume_means(tmp_path: Path) -> None:
    for i, name in enumerate(("one", "two")):
        (tmp_path / name / "weights").mkdir(parents=True)
        path = checkpoint(tmp_path / name / "weights/last.pt")
        os.utime(path, (1000 + i, 1000 + i))
    assert resumable.find("auto", str(tmp_path)) == tmp_path / "two/weights/last.pt"
    assert resumable.find(str(tmp_path / "one"), "elsewhere") == tmp_path / "one/weights/last.pt"
    assert resumable.find(str(tmp_path / "one/weights/last.pt"), "") == tmp_path / "one/weights/last.pt"
    with pytest.raises(UserError, match=r"there is no weights/last\.pt below .*empty"):
        resumable.find("auto", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"--resume .*three: there is no checkpoint"):
        resumable.find(str(tmp_path / "three"), "")
    for name in ("one", "two"):
        shutil.move(tmp_path / name / "weights/last.pt", tmp_path / name / "weights/previous.pt")
    assert resumable.find("auto", str(tmp_path)) == tmp_path / "two/weights/last.pt"
    assert resumable.find(str(tmp_path / "one"), "") == tmp_path / "one/weights/last.pt"
