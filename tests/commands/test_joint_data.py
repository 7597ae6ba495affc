"""Data with classes of whole images through train.py: nothing else changes, a changed class is noticed on a resume, and
shared groups are said or refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.shared import ROOT
from tests.toy import trained
from utils.data.shapes.scenes import describe, image_class
from utils.data.spec import read_data
from utils.runs import manifest
from utils.system.errors import UserError
from utils.train.start import begin

CLS_NAMES = ["warm", "green", "cold", "violet"]


def edit(source: Path, **changes: Any) -> None:
    source.write_text(yaml.safe_dump(yaml.safe_load(source.read_text()) | changes))


@pytest.fixture
def table(small_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small set with a CSV of image classes and, wrongly, groups in both splits -> its data YAML."""
    monkeypatch.chdir(ROOT)
    spec = read_data(small_shapes)
    rows = [f"{'/'.join(p.parts[-2:])},{image_class(describe(0, p.parts[-2], int(p.stem)))}" for p in spec.train]
    (tmp_path / "classes.csv").write_text("\n".join(["image,class", *rows, ""]))
    source = tmp_path / "table.yaml"
    source.write_text(small_shapes.read_text())
    more = {"cls_names": CLS_NAMES, "cls_csv": str(tmp_path / "classes.csv"), "group_pattern": r"^(\d\d)"}
    edit(source, path=str(spec.root), **more)
    return source


def test_image_classes_change_nothing_else_and_are_watched(
    small_shapes: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, named = (trained(source, tmp_path, name) for source, name in ((small_shapes, "a"), (table, "b")))
    out = capsys.readouterr().out
    assert out.count("train: image classes of 12 images") == out.count("val: image classes of 0 images") == 1
    assert out.count("so without image class: about 50% of") == 1  # the demo's mosaic
    assert out.count("warning: ") == 1 and "train and val share 1 groups (00; 20 images)" in out
    for file in ("results.csv", "results.txt"):
        assert (plain.dir / file).read_bytes() == (named.dir / file).read_bytes()
    without, listing = ((run.dir / "data.csv").read_text().splitlines() for run in (plain, named))
    assert without[0] == "file,image,label" and listing[0] == "file,image,label,class"
    assert [line.rsplit(",", 1)[0] for line in listing[1:]] == without[1:]
    assert {line.rsplit(",", 1)[1] for line in listing if "val/" in line} == {"unknown"}

    (named.dir / "result.yaml").unlink()  # as if killed after its last save
    begun = begin(["--resume", str(named.dir)])
    with begun.lock:
        assert (
            manifest.check(read_data(table), begun.resumed, named.dir, allow_changed=False).fingerprint
            == named.meta["data"]["fingerprint"]
        )
        csv = Path(yaml.safe_load(table.read_text())["cls_csv"])
        first = csv.read_text().splitlines()[1]
        csv.write_text(csv.read_text().replace(first, f"{first[:-1]}{(int(first[-1]) + 1) % 4}"))
        with pytest.raises(UserError, match=r"train: 1 with another image class \(images/train/0000\.png\)"):
            manifest.check(read_data(table), begun.resumed, named.dir, allow_changed=False)


def test_strict_split_refuses_shared_groups(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--strict-split: .*table\.yaml: groups lie in several splits:\n.*share 1 gro"):
        trained(table, tmp_path, "s", "--strict-split")
