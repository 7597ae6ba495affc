"""Classes by name through the command line: test.py and new stages on data that list the same classes in another order,
other classes, or a part of them."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

import test
from tests.toy import trained
from utils.data.listing.label_files import label_name
from utils.data.spec import read_data
from utils.system.errors import UserError
from utils.weights.checkpoint import read_checkpoint

SHAPES = yaml.safe_load(Path("data/shapes.yaml").read_text())["names"]


def renamed(data: Path, folder: Path, names: list[str], extra: dict[str, object] | None = None) -> Path:
    """The data set with the classes of `names`, each object under its name; objects of other classes are left out."""
    spec = read_data(data)
    for image in (*spec.train, *spec.val):
        to = folder / image.relative_to(spec.root)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.symlink_to(image.resolve())
        lines = [line.split() for line in Path(label_name(str(image))).read_text().splitlines()]
        kept = [" ".join([str(names.index(n)), *rest]) for c, *rest in lines if (n := spec.names[int(c)]) in names]
        label = Path(label_name(str(to)))
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(f"{line}\n" for line in kept))
    content = {"train": "images/train", "val": "images/val", "names": names, **(extra or {})}
    (folder / "d.yaml").write_text(yaml.safe_dump(content))
    return folder / "d.yaml"


@pytest.fixture(scope="module")
def base(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(small_shapes, tmp_path_factory.mktemp("base"), "base").dir / "weights/last.pt"


def evaluated(weights: Path, data: Path, folder: Path, *flags: str) -> dict[str, Counter[str]]:
    """{image: its detections as `name box confidence`}."""
    words = ["--weights", str(weights), "--data", str(data), "--img", "64", "--device", "cpu", "--workers", "0"]
    result = test.main([*words, "--project", str(folder), "--exist-ok", *flags])
    return {
        Path(path).name: Counter(f"{result.names[int(d[5])]} {d[:5].tolist()}" for d in found)
        for path, found in zip(result.paths, result.detections, strict=True)
    }


def test_the_same_classes_in_another_order(
    base: Path, small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """test.py finds the same under the same names; so does a new stage without transfer, before it has learnt."""
    data = renamed(small_shapes, tmp_path / "d", SHAPES[::-1])
    old = evaluated(base, small_shapes, tmp_path / "t")
    assert sum(map(len, old.values())) > 50
    assert evaluated(base, data, tmp_path / "t") == old
    assert "last.pt has the same names in another order; matched by name: 0 saltire was 11" in capsys.readouterr().out
    stage = trained(data, tmp_path, "stage", "--weights", str(base), "--lr0", "1e-12", "--warmup-bias-lr", "0")
    assert "has the same names in another order" in capsys.readouterr().out
    rows = [read_checkpoint(f)["ema"]["model.77.m.0.bias"].view(3, 17) for f in (base, stage.dir / "weights/last.pt")]
    torch.testing.assert_close(rows[0][:, 5:].flip(1), rows[1][:, 5:], atol=1e-6, rtol=0)


def test_other_classes(base: Path, small_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused by test.py and by a new stage, before anything is written; a transfer says what it keeps."""
    data = renamed(small_shapes, tmp_path / "d", [*SHAPES[:11], "cross"])
    said = r"the classes of .*last\.pt are not those of .*d\.yaml: 11 saltire, here cross; "
    with pytest.raises(UserError, match=said + r"write the model's names into .*--single-cls"):
        evaluated(base, data, tmp_path / "t")
    with pytest.raises(UserError, match=said + "--transfer-weights keeps the rows of equal names"):
        trained(data, tmp_path, "stage", "--weights", str(base))
    assert not (tmp_path / "stage").exists()
    assert evaluated(base, data, tmp_path / "t", "--single-cls")
    part = renamed(small_shapes, tmp_path / "p", ["star", "ring"])
    trained(part, tmp_path, "part", "--weights", str(base), "--transfer-weights")
    assert "2 of 2 are among the 12 of" in (out := capsys.readouterr().out)
    assert "0 start fresh" in out


def test_a_head_file_for_other_names(small_shapes: Path, tmp_path: Path) -> None:
    """The file lists its own names, as the shipped one does; the data has them in another order."""
    data = renamed(small_shapes, tmp_path / "d", SHAPES[::-1])
    heads = ["--cfg", "cfg/training/demo-1b4h.yaml", "--heads", "4", "--head-config"]
    with pytest.raises(UserError, match=r"shapes_1b4h\.yaml: .*0 circle, here saltire"):
        trained(data, tmp_path, "h", *heads, "data/shapes_1b4h.yaml")
    named = yaml.safe_load(Path("data/shapes_1b4h.yaml").read_text())
    for head in named["head_assignments"].values():
        head["classes"] = [SHAPES[c] for c in head["classes"]]
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump({k: named[k] for k in ("heads", "head_assignments")}))
    run = trained(data, tmp_path, "h", *heads, str(tmp_path / "heads.yaml"))
    assert run.model.groups == [[11, 7, 4], [10, 5, 1], [9, 6, 3], [8, 2, 0]]
