"""--help is read from the patches' text, without torch; it must say what the patches themselves would say."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shared import ROOT
from utils import seams
from utils.config.help import help_alone, help_text, patch_files, read_flags
from utils.config.train import train_parser


def test_help_is_that_of_the_imported_patches() -> None:
    places = {seams.record_name(place): ROOT / "patches" / place.replace(".", "/") for place in seams.table().values()}
    kinds = seams.kinds(places)
    files = {name: p / "__init__.py" if p.is_dir() else p.with_suffix(".py") for name, p in places.items()}
    assert patch_files() == list(files.values())
    assert help_text() == train_parser({name: kind.Flags for name, kind in kinds.items()}).format_help()
    for name, kind in kinds.items():
        assert f"patches/{name}.py" in help_text()
        shown = [f for f in dataclasses.fields(kind.Flags) if not f.metadata.get("hidden")]
        read = dataclasses.fields(read_flags(files[name]))
        assert [(f.name, f.default, f.metadata) for f in read] == [(f.name, f.default, f.metadata) for f in shown]
        assert all("--" + f.name.replace("_", "-") in help_text() for f in shown)


def test_a_flag_that_is_no_literal_is_an_error_not_a_gap(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("class Flags:\n    one: int = opt(1, 'one')\n    two: int = opt(LIMIT, 'two')\n")
    with pytest.raises(ValueError, match="malformed node"):
        read_flags(tmp_path / "odd.py")
    (tmp_path / "odd.py").write_text("class Flags:\n    one: complex = opt(1, 'one')\n")
    with pytest.raises(KeyError, match="complex"):
        read_flags(tmp_path / "odd.py")


def test_help_imports_no_torch() -> None:
    """The process that answers --help has loaded nothing heavy when it ends."""
    heavy = ["torch", "torchvision", "cv2", "scipy", "matplotlib", "numpy"]
    code = f"""
import atexit, runpy, sys
atexit.register(lambda: print([m for m in {heavy} if m in sys.modules]))
sys.argv = ["train.py", "--help"]
runpy.run_path("train.py", run_name="__main__")
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.startswith("usage: train.py") and "--freeze" in out
    assert ast.literal_eval(out.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("words", "alone"),
    [(["--help"], True), (["-h", "--freeze", "3"], True), (["--img", "64"], False), ([], False)]
    + [([*cfg, "--help"], False) for cfg in (["--cfg", "cfg/training/demo.yaml"], ["--cfg=cfg/training/demo.yaml"])],
)
def test_only_a_help_without_a_model_is_answered_early(
    words: list[str], alone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert help_alone(words) is alone
    assert bool(capsys.readouterr().out) is alone
