"""Bad input: one error that says what, where and what would be right, before anything is written; and, by processes,
that such an error is exit code 2 without a traceback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import train as program
from tests.conftest import ROOT, CommandLine
from tests.shared import shared
from tests.toy import toy, trained
from utils.system.errors import UserError
from utils.weights.foreign import read_foreign

HEADS = ROOT / "data/shapes_1b4h.yaml"


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What train.py says against these words, in this process."""
    with pytest.raises((UserError, SystemExit)) as found:
        program.main(argv)
    if isinstance(found.value, SystemExit):
        assert found.value.code == 2
        return capsys.readouterr().err
    return str(found.value)


def there(project: Path) -> list[Path]:
    """What a refused run may not add to; who asks for a taken folder may leave its lock there, unlocked."""
    return sorted(p for p in project.rglob("*") if p.name != "run.lock")


@pytest.fixture
def train(small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Gives train.py a good base and the given flags on top; returns its error after checking that nothing is there."""

    def run(*flags: str, data: str = "") -> str:
        project = tmp_path / "runs"
        before = there(project)
        message = refused([*toy(data or small_shapes, project, "bad"), *flags], capsys)
        assert there(project) == before
        return message

    return run


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--frezee", "5"], "--frezee"),
        (["--data", "nowhere.yaml"], "nowhere.yaml"),
        (["--lr0", "-1"], "lr0"),
        (["--freeze", "78"], "whole model"),
    ],
)
def test_a_process_ends_with_code_2_and_no_traceback(
    command_line: CommandLine, small_shapes: Path, tmp_path: Path, flags: list[str], said: str
) -> None:
    """Refused by the parser, by a file, by a value, by the model that was built: nothing is written."""
    out = command_line("train.py", *toy(small_shapes, tmp_path / "runs", "bad"), *flags)
    assert out.returncode == 2 and said in out.stderr and "Traceback" not in out.stderr, out.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.fixture
def copied(small_shapes: Path, tmp_path: Path) -> Path:
    """A data set of our own to damage: data.yaml with images and labels beside it."""
    from utils.data.spec import read_data

    read_data(small_shapes)  # renders it where that was not done yet
    folder = tmp_path / "copied"
    shutil.copytree(small_shapes.parent / "shapes", folder / "shapes", ignore=shutil.ignore_patterns("*.cache"))
    spec = yaml.safe_load(small_shapes.read_text())
    for key in ("generator", "images", "seed"):
        spec.pop(key, None)
    (folder / "data.yaml").write_text(yaml.safe_dump(spec))
    return folder


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def edit(path: Path, **changes: object) -> None:
    spec = yaml.safe_load(path.read_text())
    spec.update(changes)
    path.write_text(yaml.safe_dump(spec))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--cfg", "nowhere.yaml"], ["--cfg", "nowhere.yaml"]),
        (["--hyp", "nowhere.yaml"], ["--hyp", "nowhere.yaml"]),
        (["--weights", "nowhere.pt"], ["nowhere.pt"]),
        (["--freeze", "500"], ["500", "78 modules", "backbone (0-28)"]),
        (["--freeze", "trunk"], ["trunk", "backbone"]),
        (["--freeze", "78"], ["whole model"]),
        (["--frezee", "5"], ["--frezee"]),
        (["--lr0", "-1"], ["lr0", "-1"]),
        (["--img", "7"], ["--img-size", "32"]),
        (["--heads", "4"], ["--head-config"]),
        (["--heads", "3", "--head-config", str(HEADS)], ["--heads", "3", "4"]),
        (["--cfg", "cfg/training/demo-1b4h.yaml"], ["row 77", "MultiHeadDetect", "--heads"]),
        (
            [
                "--heads",
                "4",
                "--head-config",
                "data/coco_320_1b4h_standard.yaml",
                "--cfg",
                "cfg/training/demo-1b4h.yaml",
            ],
            ["80", "12"],
        ),
        (["--transfer-weights"], ["--weights is missing"]),
        (["--rect", "--image-weights"], ["--rect", "--image-weights"]),
    ],
    ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else None,
)
def test_flags(train: Callable[..., str], flags: list[str], said: list[str]) -> None:
    message = train(*flags)
    assert all(w in message for w in said), message


def test_resume_takes_no_other_settings(small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(small_shapes, tmp_path, "r")
    old = tmp_path / "old/weights/last.pt"
    old.parent.mkdir(parents=True)
    content = torch.load(tmp_path / "r/weights/last.pt", weights_only=True)
    meta = {k: v for k, v in json.loads(content["meta"]).items() if k not in ("data", "conditions")}
    torch.save({**content, "meta": json.dumps(meta)}, old)
    (tmp_path / "old/run.yaml").write_text((tmp_path / "r/run.yaml").read_text())
    (tmp_path / "r/result.yaml").unlink()
    for flags, said in (
        (["--resume", "nowhere"], "nowhere"),
        (["--resume", str(tmp_path / "r"), "--epochs", "3"], "--epochs"),
        (["--resume", str(tmp_path / "r/weights/best.pt")], "weights only"),
        (["--resume", str(old)], "an earlier version wrote it, it does not say data, conditions"),
    ):
        message = refused(flags, capsys)
        assert said in message, message


def test_device_that_is_not_there(train: Callable[..., str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    message = train("--device", "0")
    assert "--device 0" in message and "there is: cpu" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("lr00: 0.1", ["lr00", "unknown"]),
        ("lr0: fast", ["lr0", "number", "fast"]),
        ("fliplr: 1.5", ["fliplr", "0..1"]),
        ("lr0: [", ["not valid YAML"]),
        ("- 1", ["key: value"]),
    ],
)
def test_hyp_file(train: Callable[..., str], tmp_path: Path, content: str, said: list[str]) -> None:
    (tmp_path / "hyp.yaml").write_text(content)
    message = train("--hyp", str(tmp_path / "hyp.yaml"))
    assert all(w in message for w in ["hyp.yaml", *said]), message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h["head_0"]["classes"].pop(), ["in no head", "7"]),
        (lambda h: h["head_0"]["classes"].append(1), ["more than one head", "1"]),
        (lambda h: h["head_0"]["classes"].append(99), ["outside", "99"]),
        (lambda h: h["head_0"].update(weight=0), ["head_0", "weight"]),
        (lambda h: h.pop("head_3"), ["heads"]),
    ],
    ids=["missing", "doubled", "foreign", "weight", "count"],
)
def test_head_file(train: Callable[..., str], tmp_path: Path, change: Callable[..., object], said: list[str]) -> None:
    spec = yaml.safe_load(HEADS.read_text())
    change(spec["head_assignments"])
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump(spec))
    message = train(
        "--heads", "4", "--head-config", str(tmp_path / "heads.yaml"), "--cfg", "cfg/training/demo-1b4h.yaml"
    )
    assert all(w in message for w in ["heads.yaml", *said]), message


def test_label_out_of_range_names_file_and_line(train: Callable[..., str], copied: Path) -> None:
    label = first(copied, "shapes/labels/train/*.txt")
    lines = label.read_text().splitlines()
    label.write_text("\n".join([lines[0], "1 1.5 0.5 0.1 0.1"]))
    message = train(data=str(copied / "data.yaml"))
    assert f"{label.name}:2" in message, message


def test_class_beyond_nc(train: Callable[..., str], copied: Path) -> None:
    label = first(copied, "shapes/labels/train/*.txt")
    label.write_text("12 0.5 0.5 0.1 0.1\n")
    message = train(data=str(copied / "data.yaml"))
    assert f"{label.name}:1" in message and "12" in message, message


def test_corrupt_image(train: Callable[..., str], copied: Path) -> None:
    image = first(copied, "shapes/images/train/*.*")
    image.write_bytes(image.read_bytes()[:200])
    assert image.name in train(data=str(copied / "data.yaml"))


def test_bad_data_can_be_skipped(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = first(copied, "shapes/labels/train/*.txt")
    label.write_text("99 0.5 0.5 0.1 0.1\n")
    trained(copied / "data.yaml", tmp_path / "runs", "skipping", "--on-bad-data", "skip")
    assert label.name in capsys.readouterr().out


def test_names_and_nc_disagree(train: Callable[..., str], copied: Path) -> None:
    edit(copied / "data.yaml", nc=11)
    message = train(data=str(copied / "data.yaml"))
    assert "nc" in message and "names" in message and "11" in message, message


def test_empty_folder(train: Callable[..., str], copied: Path) -> None:
    for image in (copied / "shapes/images/val").iterdir():
        image.unlink()
    assert "val" in train(data=str(copied / "data.yaml"))


def test_existing_run_is_not_touched(train: Callable[..., str], tmp_path: Path) -> None:
    run = tmp_path / "runs/bad"
    run.mkdir(parents=True)
    (run / "results.csv").write_text("precious")
    message = train()
    assert "exists" in message and "--exist-ok" in message and "--resume" in message
    assert (run / "results.csv").read_text() == "precious"


def test_project_that_cannot_be_written(train: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = train("--project", str(tmp_path / "file/runs"))
    assert "--project" in message and "Not a directory" in message


def test_weights_of_another_model(train: Callable[..., str], tmp_path: Path) -> None:
    """Their classes are compared first; where they name none, what differs is the model."""
    whole = shared("data/weights/yolov5n.pt")
    message = train("--weights", str(whole))
    assert f"the classes of {whole} are not those of" in message and "--transfer-weights" in message
    torch.save(read_foreign(whole).state, tmp_path / "plain.pt")
    message = train("--weights", str(tmp_path / "plain.pt"))
    assert "does not fit" in message and "--transfer-weights" in message and "model.0.conv.weight" in message


def test_truncated_weights(train: Callable[..., str], tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1000)}}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:700])
    assert "cut.pt" in train("--weights", str(tmp_path / "cut.pt"))


class Evil:
    """Pickles into a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (self.command,)


def test_malicious_weights_do_not_run(train: Callable[..., str], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"model": Evil(f"touch {marker}")}, tmp_path / "evil.pt")
    message = train("--weights", str(tmp_path / "evil.pt"))
    assert "evil.pt" in message and "system" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--weights", "nowhere.pt"], "nowhere.pt"),
        (["--heads", "4", "--head-config", "nowhere.yaml"], "nowhere.yaml"),
        (["--cfg", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_weights_and_head_files_are_looked_at_before_the_data(
    train: Callable[..., str], monkeypatch: pytest.MonkeyPatch, flags: list[str], said: str
) -> None:
    monkeypatch.setattr("utils.runs.fingerprint.of_data", lambda *_: pytest.fail("the data were scanned first"))
    assert said in train(*flags)


def test_a_taken_name_is_no_matter_of_resume_where_there_is_none(tmp_path: Path) -> None:
    from utils.runs import lock

    (tmp_path / "x").mkdir()
    (tmp_path / "x/file").touch()
    for resumes in (True, False):
        with pytest.raises(UserError, match="choose another --name") as error:
            lock.new_run(str(tmp_path), "x", named=True, exist_ok=False, resumes=resumes)
        assert ("--resume" in str(error.value)) is resumes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--freeze", "99"], "the model has 78 modules"),
        (["--freeze", "backbne"], "unknown name"),
        (["--unfreeze", "0:99"], "no such modules"),
        (["--weights", "nowhere.pt"], "no checkpoint 'nowhere.pt'"),
        (["--teacher", "nowhere.pt"], "no checkpoint 'nowhere.pt'"),
        (["--mtl", "uncertainty", "--mtl-tasks", "box", "nothing"], "no such loss term"),
        (["--align"], "no infrared partners"),
        (["--best-by", "nothing"], "no such figure"),
        (["--anchors", "4", "--noautoanchor"], "only the number of anchors"),
        (["--weights", "BASE", "--teacher", "OTHER"], "has other anchors"),
    ],
)
def test_what_needs_no_data_is_refused_before_they_are_read(
    flags: list[str], said: str, copied: Path, tmp_path: Path, train: Callable[..., str]
) -> None:
    """An image that cannot be read would be the error, were the data looked at first."""
    if "BASE" in flags:
        model = yaml.safe_load((ROOT / "cfg/training/demo.yaml").read_text())
        model["anchors"][0] = [3 * side for side in model["anchors"][0]]
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(model))
        kinds = {"BASE": "cfg/training/demo.yaml", "OTHER": str(tmp_path / "other.yaml")}
        runs = {
            name: trained(copied / "data.yaml", tmp_path / "made", name, "--noautoanchor", "--cfg", cfg)
            for name, cfg in kinds.items()
        }
        flags = [str(runs[word].dir / "weights/best.pt") if word in runs else word for word in flags]
    first(copied, "shapes/images/train/*").write_bytes(b"no picture")
    assert said in train(*flags, data=str(copied / "data.yaml"))
