"""Runs repeated from their run.yaml: identical, or what differs is named. Chains, interruptions, bad input."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT, CommandLine
from utils.config.train import Config
from utils.system.errors import UserError
from utils.train import start
from utils.train.run import repeatable
from utils.weights.checkpoint import read_checkpoint, save_checkpoint

TOY = ["--img", "64", "--batch", "2", "--nominal-batch", "4", "--workers", "0", "--device", "cpu"]


@dataclass(frozen=True)
class Made:
    """A detector with one head, a four-headed stage started from it, and the files they were made from."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "runs/base"

    @property
    def stage(self) -> Path:
        return self.folder / "runs/stage"


def train(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("replay")
    text = (ROOT / "data/shapes.yaml").read_text().replace("{train: 320, val: 80}", "{train: 12, val: 8}")
    (folder / "data.yaml").write_text(text)
    shutil.copy(ROOT / "data/hyp.demo.yaml", folder / "hyp.yaml")
    shutil.copy(ROOT / "data/shapes_1b4h.yaml", folder / "heads.yaml")
    common = ["--data", str(folder / "data.yaml"), "--hyp", str(folder / "hyp.yaml"), "--project", str(folder / "runs")]
    base = [*common, *TOY, "--cfg", "cfg/training/demo.yaml", "--epochs", "1", "--deterministic", "--name", "base"]
    stage = [*common, *TOY, "--cfg", "cfg/training/demo-1b4h.yaml", "--epochs", "3", "--name", "stage"]
    stage += ["--heads", "4", "--head-config", str(folder / "heads.yaml"), "--transfer-weights", "--freeze", "10"]
    for words in (base, [*stage, "--save-steps", "2", "--weights", str(folder / "runs/base/weights/best.pt")]):
        done = train(*words)
        assert done.returncode == 0, done.stderr
    return Made(folder)


def test_run_yaml_says_what_the_run_depends_on(made: Made) -> None:
    run = yaml.safe_load((made.stage / "run.yaml").read_text())
    assert {"python", "torch", "torchvision", "cuda", "cudnn", "opencv", "numpy", "thaw", "git", "code"} <= set(
        run["environment"]
    )
    assert {"type", "gpu", "cpu", "threads", "ranks", "deterministic"} <= set(run["device"])
    assert run["device"]["deterministic"] is True and run["config"]["deterministic"] is False
    assert set(run["files"]) == {"cfg", "data", "hyp", "head_config"}, "the head file without a word from its patch"
    assert run["start"]["run"] == str(made.base)
    base = yaml.safe_load((made.base / "result.yaml").read_text())
    assert run["start"]["tensors"] == base["tensors"]["best.pt ema"]
    assert run["model"] == read_checkpoint(made.stage / "weights/best.pt")["meta"]["spec"]


def test_deterministic_is_recorded_and_survives_resume(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert yaml.safe_load((made.base / "run.yaml").read_text())["config"]["deterministic"] is True
    broken = made.base.parent / "broken"  # as if killed after its last save
    shutil.copytree(made.base, broken, ignore=shutil.ignore_patterns("result.yaml"))
    begun = start.begin(["--resume", str(broken)])
    with begun.lock:
        assert begun.cfg.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize("device, flag, raises", [("cpu", False, True), ("cuda", False, False), ("cuda", True, True)])
def test_operations_without_a_deterministic_form_raise(device: str, flag: bool, raises: bool) -> None:
    """On a CPU always, on CUDA with the flag. (The operation itself runs on the CPU here.)"""
    before = torch.are_deterministic_algorithms_enabled()
    state = torch.random.get_rng_state()
    try:
        repeatable(Config(deterministic=flag), torch.device(device))
        if raises:
            with pytest.raises(RuntimeError, match="deterministic"):
                torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        else:
            torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(before)
        torch.random.set_rng_state(state)


@pytest.mark.slow
def test_a_replay_that_was_stopped_and_resumed_is_identical(made: Made) -> None:
    """SIGTERM within an epoch, then --resume: compared at its end. Changed hyp and head files are named, and the
    recorded values used."""
    hyp, heads = made.folder / "hyp.yaml", made.folder / "heads.yaml"
    texts = hyp.read_text(), heads.read_text()
    hyp.write_text(texts[0].replace("fliplr: 0.5", "fliplr: 0.0"))
    heads.write_text(texts[1].replace("[0, 4, 7]", "[0, 4, 3]").replace("[3, 9, 11]", "[7, 9, 11]"))
    try:
        words = [sys.executable, "train.py", "--replay", str(made.stage / "run.yaml")]
        process = subprocess.Popen(words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        run, deadline = made.folder / "runs/stage_replay", time.monotonic() + 120
        while not (run / "weights/last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=120)
    finally:
        hyp.write_text(texts[0])
        heads.write_text(texts[1])
    assert process.returncode == 0, out
    assert f"replay of {made.stage}: 2 differences:" in out
    for flag, path in (("hyp", hyp), ("head-config", heads)):
        assert any(x.strip().startswith(f"--{flag} {path}: then ") and ", now " in x for x in out.splitlines()), out
    assert "identical" not in out and 0 < read_checkpoint(run / "weights/last.pt")["meta"]["step"] < 18
    resumed = train("--resume", str(run))
    assert resumed.returncode == 0, resumed.stdout
    assert "identical: 3 epochs of results.csv, and the tensors of last.pt model" in resumed.stdout


@pytest.mark.slow
def test_changed_inputs_are_named_and_the_first_difference_told(made: Made, tmp_path: Path) -> None:
    """A label, an image and the weights: before the start; at the end the epoch and the quantity, exit code 1."""
    data = made.folder / "shapes"
    label, image = sorted((data / "labels/train").iterdir())[0], sorted((data / "images/val").iterdir())[0]
    kept = label.read_bytes(), image.read_bytes()
    label.write_text(label.read_text().split("\n")[0].replace("0.", "0.1", 1) + "\n")
    image.write_bytes(kept[1] + b"\0")
    best = read_checkpoint(made.base / "weights/best.pt")
    name = next(k for k, v in best["ema"].items() if v.is_floating_point() and v.dim() == 4)
    best["ema"][name][0, 0, 0, 0] += 0.5
    save_checkpoint(tmp_path / "other.pt", state=best["ema"], meta=best["meta"])
    try:
        words = ("--project", str(tmp_path), "--name", "mine", "--weights", str(tmp_path / "other.pt"))
        done = train("--replay", str(made.stage), *words)
    finally:
        label.write_bytes(kept[0])
        image.write_bytes(kept[1])
    lines = [x.strip() for x in done.stdout.splitlines()]
    at = lines.index(f"replay of {made.stage}: 3 differences:")
    assert lines[at + 1].startswith(f"--weights {tmp_path / 'other.pt'}: then ")
    assert lines[at + 2].startswith(f"train: label of images/train/{label.stem}")
    assert lines[at + 3].startswith(f"val: images/val/{image.name}: then ")
    assert done.returncode == 1 and "first difference: epoch 0, box/head_0: then " in done.stdout, done.stdout
    assert (tmp_path / "mine/result.yaml").is_file()


@pytest.mark.slow
def test_another_seed_ends_in_a_difference(made: Made, tmp_path: Path) -> None:
    """run.yaml edited by hand."""
    shutil.copytree(made.base, tmp_path / "base")
    file = tmp_path / "base/run.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 1"))
    done = train("--replay", str(file))
    assert done.returncode == 1 and "first difference: epoch 0, box: then " in done.stdout, done.stdout


def test_a_chain_replays_from_its_first_stage(made: Made) -> None:
    """Both stages identical, the second from the replayed checkpoint of the first, the originals' weights deleted."""
    for run in (made.base, made.stage):
        shutil.move(run / "weights", made.folder / f"weights_{run.name}")
    try:
        words = ["bash", "scripts/replay_chain.sh", str(made.stage), str(made.folder / "again")]
        env = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    finally:
        for run in (made.base, made.stage):
            shutil.move(made.folder / f"weights_{run.name}", run / "weights")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("no difference in environment, device, files or data") == 2, done.stdout
    table = done.stdout[done.stdout.index("| stage ") :].splitlines()
    assert [line.split("|")[1].strip() for line in table[2:4]] == ["1_base", "2_stage"]
    assert all("identical: " in line for line in table[2:4])
    record = yaml.safe_load((made.folder / "again/2_stage/run.yaml").read_text())
    assert record["start"]["weights"] == str(made.folder / "again/1_base/weights/best.pt")


@pytest.mark.slow
def test_a_chain_stops_at_the_first_difference(made: Made, tmp_path: Path) -> None:
    """Another figure in the first stage's results.csv: its replay differs, the second is not begun."""
    file = made.base / "results.csv"
    text = file.read_text()
    box = next(csv.DictReader(text.splitlines()))["box"]
    file.write_text(text.replace(box, "0.5"))
    try:
        words = ["bash", "scripts/replay_chain.sh", str(made.stage), str(tmp_path / "again")]
        env = {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    finally:
        file.write_text(text)
    assert done.returncode == 1, done.stderr
    table = done.stdout[done.stdout.index("| stage ") :]
    assert f"first difference: epoch 0, box: then 0.5, now {box}" in table and "not begun" in table


def test_bad_input_is_exit_code_2(command_line: CommandLine, tmp_path: Path) -> None:
    done = command_line("train.py", "--replay", str(tmp_path / "run.yaml"))
    assert done.returncode == 2 and "there is no file" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("seed: 0", "seed: [", "not valid YAML"),
        ("seed: 0", "seed: many", "config: seed: expected int, got 'many'"),
        ("seed: 0", "seeds: 0", "config: unknown settings ['seeds']"),
        ("seed: 0", "seed: -1", "config: --seed must be at least 0, got -1"),
        ("config:", "settings:", "config: missing"),
        ("  freeze:\n", "  freezer:\n", "needs the patches"),
        ("    heads: 4", "    heads: four", "patches: multihead: heads: expected int"),
        ("      groups:", "      gruppen:", "head_table: groups missing"),
        ("weights/best.pt", "weights/none.pt", "are gone"),
        ("data.yaml", "gone.yaml", "gone.yaml"),
    ],
)
def test_damaged_records_are_refused(made: Made, tmp_path: Path, old: str, new: str, said: str) -> None:
    shutil.copytree(made.stage, tmp_path / "run", ignore=shutil.ignore_patterns("weights"))
    file = tmp_path / "run/run.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    from train import setup

    with pytest.raises(UserError, match=said.replace("{", r"\{").replace("[", r"\[")):
        begun = start.begin(["--replay", str(file)])
        with begun.lock:
            setup(begun)
    assert not (tmp_path / "run_replay/run.yaml").exists()


def test_other_flags_are_refused(made: Made) -> None:
    for words in (["--lr0", "0.1"], ["--freeze", "5"], ["--resume", str(made.stage)]):
        with pytest.raises(UserError, match="without"):
            start.begin(["--replay", str(made.stage), *words])
    with pytest.raises(UserError, match="from scratch"):
        start.begin(["--replay", str(made.base), "--weights", str(made.base / "weights/best.pt")])


@pytest.mark.slow
def test_data_that_moved_are_given_and_compared(made: Made) -> None:
    """The same files elsewhere, under another YAML: the replay is identical. Others: said, and not that run."""
    moved = made.folder / "moved"
    shutil.copytree(made.folder / "shapes", moved / "shapes")
    spec = yaml.safe_load((made.folder / "data.yaml").read_text())
    kept = {k: v for k, v in spec.items() if k not in ("generator", "images", "seed")}
    (moved / "d.yaml").write_text(yaml.safe_dump(kept))
    words = ["--replay", str(made.base), "--data", str(moved / "d.yaml"), "--project", str(made.folder / "moved_runs")]
    done = train(*words, "--name", "same")
    assert done.returncode == 0 and "identical" in done.stdout, done.stderr
    label = sorted(moved.rglob("labels/train/*.txt"))[0]
    label.write_text(label.read_text().replace("0.", "0.0", 1))
    other = train(*words, "--name", "other")
    assert other.returncode != 0 and "data" in other.stdout + other.stderr and "identical" not in other.stdout
