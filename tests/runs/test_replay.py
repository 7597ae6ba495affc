"""Comparing a replay with its original, and what differed before: on hand-made run folders."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from utils.runs import replay
from utils.system.errors import UserError

CSV = "epoch,step,box,mAP\n0,6,0.5,0.1\n1,12,0.25,0.2\n"
TENSORS = {"last.pt model": "a" * 64, "last.pt ema": "b" * 64, "best.pt ema": "c" * 64}


def folder(path: Path, csv: str = CSV, tensors: dict[str, str] | None = None, **sections: Any) -> Path:
    path.mkdir()
    (path / "results.csv").write_text(csv)
    (path / "run.yaml").write_text(yaml.safe_dump({"config": {"epochs": 2}, "patches": {}, **sections}))
    if tensors is not None:
        (path / "result.yaml").write_text(yaml.safe_dump({"epochs": 2, "tensors": tensors}, sort_keys=False))
    return path


def test_first_difference_and_identity(tmp_path: Path) -> None:
    original = replay.read(str(folder(tmp_path / "a", tensors=TENSORS)))
    same = folder(tmp_path / "b")
    assert replay.compare(original, same, TENSORS) == (
        True,
        "identical: 2 epochs of results.csv, and the tensors of last.pt model, last.pt ema, best.pt ema",
    )
    cases = {
        "epoch 1, box: then 0.25, now 0.26": CSV.replace("0.25,", "0.26,"),
        "epoch 0, step: then 6, now 7": CSV.replace("0,6,", "0,7,").replace("0.2\n", "0.3\n"),
        "epoch 1, epoch: then 1, now not there": CSV[: CSV.index("1,12")],
        "epoch 0, mAP: then 0.1, now not there": CSV.replace("mAP", "map"),
    }
    for i, (said, csv) in enumerate(cases.items()):
        equal, text = replay.compare(original, folder(tmp_path / f"c{i}", csv), TENSORS)
        assert not equal and text == f"first difference: {said}"
    for name in TENSORS:
        equal, text = replay.compare(original, same, {**TENSORS, name: "d" * 64})
        assert not equal and f"tensors of {name}: then {TENSORS[name][:12]}, now dddddddddddd" in text
    assert not replay.compare(original, same, {})[0]


def test_an_interrupted_original_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    """A last line cut short by a kill does not count."""
    original = replay.read(str(folder(tmp_path / "a", CSV[: CSV.index("25")])))
    now = folder(tmp_path / "b")
    said = "identical as far as the original goes: 1 of 2 epochs, no final tensors"
    assert replay.compare(original, now, TENSORS) == (True, said)
    empty = replay.read(str(folder(tmp_path / "c", "")))
    equal, text = replay.compare(empty, now, TENSORS)
    assert not equal and text.startswith("nothing to compare with")


def test_differences_are_lines(tmp_path: Path) -> None:
    then: dict[str, Any] = {"environment": {"torch": "1", "numpy": "2"}, "device": {"threads": 1}}
    then |= {
        "files": {"hyp": {"path": "h.yaml", "sha256": "a" * 64}},
        "start": {"weights": "x.pt", "tensors": "e" * 64},
    }
    now = {**then, "environment": {"torch": "9", "numpy": "2", "more": "3"}, "device": {"threads": 2}, "files": {}}
    now["start"] = {"weights": "y.pt", "tensors": "e" * 64}
    assert replay.inputs(then, then) == []
    assert replay.inputs(then, now) == [
        "torch: then 1, now 9",
        "more: then not recorded, now 3",
        "threads: then 1, now 2",
        "--hyp h.yaml: then aaaaaaaaaaaa, now not there; its recorded content is used",
    ], "the same tensors in another file are no difference"


def stage(path: Path, before: Path | None, tensors: str = "c" * 64) -> Path:
    start = {"weights": str(before / "weights/best.pt"), "tensors": tensors, "run": str(before)} if before else {}
    return folder(path, tensors=TENSORS, start=start)


def test_a_chain_is_followed_back(tmp_path: Path) -> None:
    first = stage(tmp_path / "a", None)
    second = stage(tmp_path / "b", first)
    third = stage(tmp_path / "c", second)
    stages = replay.chain(str(third))
    assert [s.folder.name for s in stages] == ["a", "b", "c"] and replay.names(stages) == ["1_a", "2_b", "3_c"]
    table = replay.table(stages, tmp_path)
    assert table.count("not begun") == 3
    with pytest.raises(UserError, match="another run by now"):
        replay.chain(str(stage(tmp_path / "d", first, "f" * 64)))
    (first / "result.yaml").unlink()
    with pytest.raises(UserError, match="never ended"):
        replay.chain(str(third))


def test_a_circle_is_an_error(tmp_path: Path) -> None:
    first = stage(tmp_path / "a", tmp_path / "b")
    stage(tmp_path / "b", first)
    with pytest.raises(UserError, match="circle"):
        replay.chain(str(first))
