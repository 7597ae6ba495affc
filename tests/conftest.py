"""Fixtures shared by the tests: a small version of the embedded data set, and a run of the command line."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch comes. Sizes are toys': more threads than one only get in each other's way, and the last digits would
# follow their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import pytest
import yaml

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, too: what the programs do with it is tested
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]
pytest.register_assert_rewrite("tests.toy")  # whose `same` says which tensors differ
IMAGE_CLASSES = ("dark", "bright", "other")


@pytest.fixture(scope="session", autouse=True)
def at_the_root() -> Iterator[None]:
    """Tests run where a user would run the programs."""
    with contextlib.chdir(ROOT):
        yield


@pytest.fixture(scope="module", autouse=True)
def pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs in this process leave empty pictures, unless the module says PAINTED = True. Processes always paint."""
    from tests.toy import unpainted

    with contextlib.nullcontext() if getattr(request.module, "PAINTED", False) else unpainted():
        yield


@pytest.fixture(scope="session")
def small_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data YAML of 12 training and 8 validation pictures in the embedded data set's manner."""
    folder = tmp_path_factory.mktemp("small")
    text = (ROOT / "data/shapes.yaml").read_text().replace("{train: 320, val: 80}", "{train: 12, val: 8}")
    (folder / "small.yaml").write_text(text)
    return folder / "small.yaml"


@pytest.fixture(scope="session")
def small_pairs(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data YAML of the small set with infrared partners: grey and inverted."""
    from utils.data.spec import read_data

    folder = tmp_path_factory.mktemp("pairs")
    spec = read_data(small_shapes)
    for kind in ("images", "labels"):
        shutil.copytree(spec.root / kind, folder / kind)
    for file in (folder / "images").rglob("*.png"):
        partner = Path(str(file).replace("/images/", "/infrared/"))
        partner.parent.mkdir(parents=True, exist_ok=True)
        grey = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(partner), 255 - np.asarray(grey))
    content = {"train": "images/train", "val": "images/val", "names": list(spec.names), "pairs": {"images": "infrared"}}
    (folder / "d.yaml").write_text(yaml.safe_dump(content))
    return folder / "d.yaml"


@pytest.fixture(scope="session")
def rich(small_pairs: Path) -> Path:
    """Data YAML of the small pairs with image classes: every third picture each, every fifth unknown."""
    rows = ["image,class"]
    for split, count in (("train", 12), ("val", 8)):
        rows += [f"{split}/{i:04d}.png,{IMAGE_CLASSES[i % 3]}" for i in range(count) if i % 5 != 4]
    (small_pairs.parent / "classes.csv").write_text("\n".join(rows) + "\n")
    content = yaml.safe_load(small_pairs.read_text())
    content |= {"cls_names": list(IMAGE_CLASSES), "cls_csv": "classes.csv"}
    (small_pairs.parent / "rich.yaml").write_text(yaml.safe_dump(content))
    return small_pairs.parent / "rich.yaml"


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    """Runs `python SCRIPT ARGS...` at the project's root, as a user would."""

    def run(*words: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run
