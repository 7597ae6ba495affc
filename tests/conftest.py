"""Fixtures shared by the tests: a small version of the embedded data set, and a run of the command line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def small_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data YAML of 12 training and 8 validation pictures in the embedded data set's manner."""
    folder = tmp_path_factory.mktemp("small")
    text = (ROOT / "data/shapes.yaml").read_text().replace("{train: 320, val: 80}", "{train: 12, val: 8}")
    (folder / "small.yaml").write_text(text)
    return folder / "small.yaml"


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """Runs `python SCRIPT ARGS...` at the project's root, as a user would."""

    def run(*words: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run
