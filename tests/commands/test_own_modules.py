"""--modules in every program, with the worked examples of docs/own-modules.md."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

import detect
import export
import test
import train
from tests.toy import cut, resumed, same, toy, trained
from utils.system.errors import UserError
from utils.weights.checkpoint import read_checkpoint
from utils.weights.own_blocks import read

PAGE = Path("docs/own-modules.md").read_text()
EXAMPLES = {m[2]: m[1] for m in re.finditer(r"```python\n(# (\w+\.py)\n.*?)```", PAGE, re.S)}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, and the demo network with the block before the head, and the head."""
    folder = tmp_path_factory.mktemp("own")
    for name, text in EXAMPLES.items():
        (folder / name).write_text(text)
    spec: dict[str, Any] = yaml.safe_load(Path("cfg/training/demo.yaml").read_text())
    levels, *row = spec["head"].pop()
    channels = spec["head"][levels[0] - len(spec["backbone"])][3][0]
    spec["head"].append([levels[0], 1, "Coordinates", [channels]])
    levels[0] = len(spec["backbone"]) + len(spec["head"]) - 1
    spec["head"].append([levels, row[0], "Decoupled", row[2]])
    (folder / "own.yaml").write_text(yaml.safe_dump(spec))
    return folder


def files(own: Path) -> list[str]:
    return [word for name in EXAMPLES for word in ("--modules", str(own / name))]


def flags(own: Path) -> list[str]:
    return ["--cfg", str(own / "own.yaml"), *files(own)]


@pytest.fixture(scope="module")
def folder(own: Path, small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a finished run."""
    return trained(small_shapes, tmp_path_factory.mktemp("runs"), "own", *flags(own), epochs=2).dir


def test_the_page_has_a_block_and_a_head() -> None:
    assert set(EXAMPLES) == {"blocks.py", "head.py"}


def test_every_program_takes_them(own: Path, folder: Path, small_shapes: Path, tmp_path: Path) -> None:
    best = str(folder / "weights" / "best.pt")
    place = ["--device", "cpu", "--project", str(tmp_path)]
    result = test.main(["--weights", best, *files(own), *place, "--data", str(small_shapes)])
    assert result.row["mAP50"] >= 0
    picture = str(next(small_shapes.parent.rglob("*.png")))
    detect.main(["--weights", best, *files(own), *place, "--source", picture])
    export.main(["--weights", best, *files(own), "--out", str(tmp_path / "own.onnx"), "--data", str(small_shapes)])
    assert (tmp_path / "own.onnx").stat().st_size > 1000
    stage = trained(small_shapes, tmp_path, "stage", "--weights", best, "--cfg", "", *files(own))
    assert stage.model.kinds[-2:] == ["Coordinates", "Decoupled"]


def test_a_checkpoint_and_run_yaml_name_the_files(own: Path, folder: Path) -> None:
    hashes = dict(read([str(own / name) for name in EXAMPLES]).hashes)
    assert read_checkpoint(folder / "weights" / "best.pt")["meta"]["modules"] == hashes
    assert yaml.safe_load((folder / "run.yaml").read_text())["modules"] == hashes


@pytest.mark.parametrize("program", [test, detect, export])
def test_no_file_is_imported_that_is_not_named(program: Any, folder: Path, tmp_path: Path) -> None:
    words = ["--weights", str(folder / "weights" / "best.pt")]
    if program is not export:
        words += ["--device", "cpu", "--project", str(tmp_path)]
    if program is detect:
        cv2.imwrite(str(tmp_path / "0.png"), np.zeros((64, 64, 3), np.uint8))
        words += ["--source", str(tmp_path / "0.png")]
    with pytest.raises(UserError, match=r"has blocks of (blocks|head)\.py.*add --modules"):
        program.main(words)


def test_a_resume_needs_the_same_files_and_ends_as_if_nothing_was(
    own: Path, folder: Path, small_shapes: Path, tmp_path: Path
) -> None:
    stopped = cut(small_shapes, tmp_path, "own", *flags(own), epochs=2, step=2)
    with pytest.raises(UserError, match=r"add --modules"):
        resumed(stopped)
    text = (own / "blocks.py").read_text()
    try:
        (own / "blocks.py").write_text(text + "\n")
        with pytest.raises(UserError, match=r"blocks\.py has changed since the training"):
            resumed(stopped, *files(own))
        with pytest.raises(UserError, match=r"blocks\.py has changed since the training"):
            train.main(["--replay", str(folder), *files(own), "--project", str(tmp_path)])
    finally:
        (own / "blocks.py").write_text(text)
    with pytest.raises(UserError, match="add --modules"):
        train.main(["--replay", str(folder), "--project", str(tmp_path)])
    resumed(stopped, *files(own))
    same(stopped, folder)


def test_flags_name_what_is_wrong(own: Path, small_shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        train.main([*toy(small_shapes, tmp_path, "x"), "--modules", "gone.py"])
    with pytest.raises(UserError, match=r"unknown module.*--modules FILE\.py"):
        train.main([*toy(small_shapes, tmp_path, "x"), "--cfg", str(own / "own.yaml")])
