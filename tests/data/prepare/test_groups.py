"""Groups of images by their names, and splits that share some."""

import re
from pathlib import Path

import pytest
import yaml

from tests.data.prepare.test_split import PATIENT, make_clips
from utils.data.prepare import split
from utils.data.prepare.groups import check_groups, compiled, findings, group_of, groups_of, shared
from utils.data.spec import read_data
from utils.system.errors import UserError


def test_groups_by_name_or_path() -> None:
    image = Path("/data/017/images/023-4.mp4-88.png")
    assert group_of(image, re.compile(PATIENT)) == "023"
    assert group_of(image, re.compile(r"^(\d+-\d+)\.mp4")) == "023-4"
    assert group_of(image, re.compile(r"/(\d+)/")) == "017"
    with pytest.raises(UserError, match=r"names no group of 1 of 2 images: .*x\.png"):
        groups_of([image, Path("x.png")], re.compile(PATIENT))
    for pattern, words in ((r"(\d+", "no regular expression"), (r"\d+", "has 0 paren"), (r"(\d)(\d)", "has 2 paren")):
        with pytest.raises(UserError, match=f"--group: .*{words}"):
            compiled(pattern, "--group")


def test_shared_groups_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_clips(tmp_path, patients=4)
    names = sorted(p.name for p in (tmp_path / "images/all").iterdir())
    for file, wanted in (("t", ("000-0", "001", "002")), ("v", ("000-1", "001-0", "003"))):
        chosen = [f"images/all/{n}" for n in names if n.startswith(wanted) and (file == "v" or "001-0" not in n)]
        (tmp_path / f"{file}.txt").write_text("\n".join(chosen))
    values = yaml.safe_load(source.read_text()) | {"train": "t.txt", "val": "v.txt", "group_pattern": PATIENT}
    source.write_text(yaml.safe_dump(values))
    spec = read_data(source)
    found = shared(spec, re.compile(PATIENT))
    images = {g: sum(n.startswith(g) for n in names) for g in ("000", "001")}
    assert found == {("train", "val"): images}
    line = f"train and val share 2 groups (000, 001; {sum(images.values())} images)"
    assert findings(found) == [line]
    with pytest.raises(SystemExit) as left:
        split.main(["check", str(source)])
    assert left.value.code == 1 and line in capsys.readouterr().out
    split.main(["check", str(source), "--group", r"^(\d+-\d+)\."])  # no clip is in both
    check_groups(spec, strict=False)
    assert f"warning: {source}: validation is too kind" in (out := capsys.readouterr().out) and line in out
    with pytest.raises(UserError, match=r"--strict-split: .*d\.yaml: groups lie in several splits"):
        check_groups(spec, strict=True)


def test_a_run_warns_or_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = read_data(make_clips(tmp_path))
    check_groups(spec, strict=False)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"--strict-split: .*d\.yaml has no group_pattern"):
        check_groups(spec, strict=True)
