"""What a resume may go on from, from where, under which conditions, and with which files it ends. Each start in this
process; the run that is taken up stands after the first of two epochs."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from tests.conftest import ROOT
from tests.toy import toy
from utils.data.spec import read_data
from utils.runs import record
from utils.runs.record import read_rows
from utils.system.errors import UserError


@pytest.fixture(scope="module")
def begun(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `data/`, and `runs/a` as it was after its first epoch; begun with a path relative to the program."""
    folder = tmp_path_factory.mktemp("begun")
    spec = read_data(small_shapes)
    shutil.copytree(spec.root, folder / "data/shapes")
    content = {"path": "shapes", "train": "images/train", "val": "images/val", "names": list(spec.names)}
    (folder / "data/d.yaml").write_text(yaml.safe_dump(content))
    before = os.getcwd()
    os.chdir(ROOT)
    train.main(toy(Path(os.path.relpath(folder / "data/d.yaml")), folder / "runs", "a", epochs=2))
    os.chdir(before)
    weights = folder / "runs/a/weights"
    shutil.copytree(folder / "runs/a", folder / "whole")
    os.replace(weights / "previous.pt", weights / "last.pt")
    (folder / "runs/a/result.yaml").unlink()
    return folder


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(begun / "runs/a", tmp_path / "a"))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "where", ["ckpts/last.pt", "weights/last.pt", "a/weights/copy.pt", "a/weights/before_epoch_001.pt"]
)
def test_a_copy_elsewhere_is_no_run(run: Path, tmp_path: Path, where: str) -> None:
    """Beside another program's results, or under another name in the run: refused, and no file is touched."""
    (tmp_path / "results.csv").write_text("my,table\n1,2\n4,5\n")
    (tmp_path / where).parent.mkdir(exist_ok=True)
    shutil.copy(run / "weights/last.pt", tmp_path / where)
    before = files(tmp_path)
    with pytest.raises(UserError, match=r"--resume .*(does not lie in the folder of a run|goes on from its last\.pt)"):
        train.main(["--resume", str(tmp_path / where)])
    assert files(tmp_path) == before


def test_a_checkpoint_of_another_run_is_refused(run: Path) -> None:
    """It lies where last.pt should, but run.yaml is another run's."""
    text = (run / "run.yaml").read_text()
    assert "  seed: 0\n" in text
    (run / "run.yaml").write_text(text.replace("  seed: 0\n", "  seed: 5\n"))
    before = files(run / "weights")
    with pytest.raises(UserError, match=r"a checkpoint of another run than the one in .*seed 0, there 5"):
        train.main(["--resume", str(run)])
    assert files(run / "weights") == before


def test_what_changed_is_named(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Threads, a version and the code; from another folder, to the end."""
    known = record.environment()
    monkeypatch.setattr(record, "environment", lambda: {**known, "torch": "9.9", "code": "c" * 64, "git": "other"})
    monkeypatch.chdir(run.parent)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        train.main(["--resume", "a"])
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    for said in (
        f"threads: then {threads}, now {threads + 1}",
        f"torch: then {torch.__version__}, now 9.9",
        "code: then",
    ):
        assert said in out, out
    assert "git: then" not in out
    notes = read_rows(run / "notes.csv")
    assert [row["kind"] for row in notes if row["kind"] == "other conditions"] == ["other conditions"]
    assert len(read_rows(run / "results.csv")) == 2


def test_from_another_folder_with_moved_data(
    begun: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data went elsewhere as a whole: --data says where, for a resume and a replay. Other data are refused. The end
    is that of the run which was not interrupted."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(begun / "data", tmp_path / "moved")
    shutil.copytree(begun / "data", tmp_path / "other")
    next((tmp_path / "other/shapes/labels/train").glob("*.txt")).write_text("0 0.5 0.5 0.2 0.2\n")
    os.rename(begun / "data", begun / "gone")
    try:
        with pytest.raises(UserError, match=r"d\.yaml"):
            train.main(["--resume", "a"])
        with pytest.raises(UserError, match="1 with another label"):
            train.main(["--resume", "a", "--data", "other/d.yaml"])
        train.main(["--resume", "a", "--data", "moved/d.yaml"])
        assert "other conditions" not in (run / "notes.csv").read_text()
        with pytest.raises(UserError, match=r"--data other/d\.yaml: not the data of"):
            train.main(["--replay", "a", "--data", "other/d.yaml"])
    finally:
        os.rename(begun / "gone", begun / "data")
    assert (run / "results.csv").read_bytes() == (begun / "whole/results.csv").read_bytes()
    ended, whole = (yaml.safe_load((f / "result.yaml").read_text())["tensors"] for f in (run, begun / "whole"))
    assert ended == whole
    capsys.readouterr()
    before = files(run)
    with pytest.raises(SystemExit) as asked:
        train.main(["--resume", "a"])
    assert not asked.value.code
    assert "a has ended after 2 epochs: there is nothing to go on with" in (out := capsys.readouterr().out)
    assert "--weights a/weights/last.pt" in out and files(run) == before


def test_nothing_was_saved_yet(run: Path) -> None:
    shutil.rmtree(run / "weights")
    with pytest.raises(UserError, match=r"nothing was saved there yet: begin anew with its command .*--exist-ok"):
        train.main(["--resume", str(run)])


def test_nosave_ends_with_the_same_files(small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch is the best one. A save within the run, by a signal or a clock, is for the resume alone."""
    validate = train.outputs.validate

    def falling(run: Any, *args: Any) -> Any:
        value = 0.3 - 0.1 * run.epoch
        return dataclasses.replace(validate(run, *args), map50=value, map=value)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train.outputs, "validate", falling)
    found = []
    for name, flags in (("plain", []), ("saved", ["--save-steps", "1"])):
        train.main([*toy(small_shapes, tmp_path, name, epochs=2), "--nosave", *flags])
        found.append({str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*")})
    assert found[0] == found[1] and "weights/last.pt" in found[0]
