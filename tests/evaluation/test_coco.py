"""COCO's files: ids and boxes as COCO has them, the twelve figures equal to pycocotools'."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.shared import ROOT, shared
from utils.evaluation import coco
from utils.evaluation.coco import FIGURES, NAMES, Entries, Ids, figures, read_ids, report, to_entries
from utils.system.errors import UserError

needs_hotcoco = pytest.mark.skipif(importlib.util.find_spec("hotcoco") is None, reason="needs the package hotcoco")


def reference(case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shared("golden/metrics/coco.json").read_text())[case]
    for image in found["images"]:
        image["file_name"] = f"{image['id']:012d}.jpg"
    return found


def annotations(folder: Path, found: dict[str, Any]) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps({k: found[k] for k in ("images", "annotations", "categories")}))
    return path


def entries(detections: list[dict[str, Any]]) -> Entries:
    return Entries(*(np.array([d[k] for d in detections]) for k in ("image_id", "category_id", "bbox", "score")))


@needs_hotcoco
@pytest.mark.parametrize("case", ["e2e", "crowd"])
def test_twelve_figures_equal_pycocotools(case: str, tmp_path: Path) -> None:
    found = reference(case)
    got = figures(annotations(tmp_path, found), entries(found["detections"]), [i["id"] for i in found["images"]])
    assert list(got) == list(FIGURES)
    np.testing.assert_allclose(list(got.values()), found["stats"], rtol=0, atol=1e-9)


@needs_hotcoco
def test_figures_are_of_the_images_asked_for(tmp_path: Path) -> None:
    """Half of the images: as if the other half were not in the file."""
    found = reference("e2e")
    half = {i["id"] for i in found["images"][::2]}
    rows = entries([d for d in found["detections"] if d["image_id"] in half])
    got = figures(annotations(tmp_path, found), rows, sorted(half))
    cut = {
        "images": [i for i in found["images"] if i["id"] in half],
        "annotations": [a for a in found["annotations"] if a["image_id"] in half],
        "categories": found["categories"],
    }
    assert got == figures(annotations(tmp_path, cut), rows, sorted(half))
    assert got["AP"] != pytest.approx(found["stats"][0], abs=1e-4)


def test_category_ids_of_coco() -> None:
    names = yaml.safe_load((ROOT / "data" / "coco.yaml").read_text())["names"]
    assert tuple(names) == NAMES
    want = json.loads(shared("golden/geometry/yolov7.json").read_text())["misc"]["coco80_to_91"]
    assert read_ids(names).categories == want
    assert read_ids(["toothbrush", "person"]).categories == [90, 1], "a selection of COCO's classes keeps COCO's ids"
    assert read_ids(["person", "heron"]).categories == [0, 1], "other names: numbers of the data YAML"


def test_ids_of_an_annotation_file_go_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {
        "images": [{"id": 7, "file_name": "sub/left_01.png"}],
        "annotations": [],
        "categories": [{"id": 30, "name": "b"}, {"id": 4, "name": "a"}, {"id": 5, "name": "person"}],
    }
    path.write_text(json.dumps(content))
    ids = read_ids(["a", "b"], path)
    assert ids.categories == [4, 30] and ids.image("/x/left_01.png") == 7
    with pytest.raises(UserError, match=r"left_02\.png"):
        ids.image("/x/left_02.png")
    with pytest.raises(UserError, match=r"no category for .*'heron'"):
        read_ids(["a", "heron"], path)


@pytest.mark.parametrize(("text", "says"), [
    (None, "No such file"), ("{", "is no JSON"), ("[]", "`images`"), ('{"images": [{"id": 1}]}', "`images` must be"),
    ('{"images": [], "annotations": [], "categories": [3]}', "`categories`"),
])  # fmt: skip
def test_broken_annotation_files(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says):
        read_ids(["a"], path)


def test_rows() -> None:
    det = torch.tensor([[10.0, 20.0, 30.5, 60.25, 0.123456789, 1.0]])
    ids = Ids([1, 90], None, "")
    rows = to_entries(["/d/000000000139.jpg", "/d/night_7.jpg"], [det, det], ids).rows()
    assert rows[0] == {"image_id": 139, "category_id": 90, "bbox": [10.0, 20.0, 20.5, 40.25], "score": 0.12346}
    assert rows[1]["image_id"] == "night_7"
    assert json.loads(json.dumps(rows)) == rows
    assert to_entries(["/d/1.jpg"], [det[:0]], ids).rows() == to_entries([], [], ids).rows() == []
    with pytest.raises(UserError, match="both be image 139"):
        to_entries(["/a/139.jpg", "/b/0139.jpg"], [det, det], ids)


def test_numbers_are_rounded_as_written_out() -> None:
    """Python's round() finds the nearest decimal number exactly; many values lie half-way between two."""
    g = np.random.default_rng(0)
    values = torch.from_numpy(g.integers(0, 1 << 16, (5000, 6)) / 2.0 ** g.integers(1, 12, (5000, 6))).float()
    values[:, 5] = 0
    want = [[round(v, 3) for v in (x, y, u - x, v - y)] for x, y, u, v, _, _ in values.tolist()]
    got = to_entries(["/d/1.jpg"], [values], Ids([7], None, ""))
    assert got.box.tolist() == want
    assert got.score.tolist() == [round(v, 5) for v in values[:, 4].tolist()]


@needs_hotcoco
def test_no_detections_at_all(tmp_path: Path) -> None:
    found = reference("e2e")
    images = [i["id"] for i in found["images"]]
    got = figures(annotations(tmp_path, found), to_entries([], [], Ids([1], None, "")), images)
    assert got["AP"] == got["AR100"] == 0


@needs_hotcoco
def test_report_writes_and_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Detections that are the truth: AP 1, through the file names and category names of the annotation file."""
    found = reference("e2e")
    boxes: dict[int, list[list[float]]] = {i["id"]: [] for i in found["images"]}
    for a in found["annotations"]:
        x, y, w, h = a["bbox"]
        boxes[a["image_id"]].append([x, y, x + w, y + h, 0.9, a["category_id"]])
    result: Any = SimpleNamespace(
        paths=[f"/images/{i:012d}.jpg" for i in boxes],
        detections=[torch.tensor(v).reshape(-1, 6) for v in boxes.values()],
    )
    names = [c["name"] for c in found["categories"]]
    out = tmp_path / "detections.json"
    got = report(result, names, out, annotations(tmp_path, found))
    assert got is not None and got["AP"] == pytest.approx(1.0)
    assert len(json.loads(out.read_text())) == len(found["annotations"])
    assert "AP 1.0000" in capsys.readouterr().out
    assert report(result, names, out) is None


def test_missing_backend_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(coco.importlib, "import_module", absent)
    with pytest.raises(UserError, match="pip install hotcoco"):
        figures(tmp_path / "a.json", entries([]), [])


@needs_hotcoco
@pytest.mark.parametrize("seed", [0, 1])
def test_figures_equal_pycocotools_itself(seed: int, tmp_path: Path) -> None:
    """Random scenes with crowds, equal scores, objects of all sizes, images without either, a class without objects."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    g = np.random.default_rng(seed)
    size = np.exp(g.uniform(1.5, 5.5, (400, 2)))
    objects = np.concatenate([g.uniform(0, 500, (400, 2)), size], 1).round(2)
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 640} for i in range(40)],
        "categories": [{"id": c, "name": str(c)} for c in range(1, 6)],
        "annotations": [
            {"id": k + 1, "image_id": int(i), "category_id": int(c), "bbox": box, "area": box[2] * box[3],
             "iscrowd": int(crowd)}
            for k, (i, c, box, crowd) in enumerate(
                zip(g.integers(0, 38, 400), g.integers(1, 5, 400), objects.tolist(), g.random(400) < 0.05, strict=True)
            )
        ],
    }  # fmt: skip
    of = g.integers(0, 400, 3000)
    box = (objects[of] + g.normal(0, 0.1, (3000, 4)) * np.tile(size[of], 2) * (g.random((3000, 1)) < 0.8)).clip(0.001)
    same = g.random(3000) < 0.8
    found = Entries(
        np.array([truth["annotations"][k]["image_id"] for k in of]),
        np.where(same, [truth["annotations"][k]["category_id"] for k in of], g.integers(1, 6, 3000)),
        box.round(3),
        g.random(3000).round(2),
    )
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(truth))
    reference = coco.COCO(str(path))
    run = cocoeval.COCOeval(reference, reference.loadRes(found.rows()), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    assert 0.1 < run.stats[0] < 0.9 and (run.stats > 0).all()
    assert list(figures(path, found, list(range(40))).values()) == run.stats.tolist()


@needs_hotcoco
def test_text_ids_and_equal_file_names(tmp_path: Path) -> None:
    """The figures are those of the same file with numbers; images of two folders are told apart by their paths."""
    found = reference("e2e")
    boxes: dict[str, list[list[float]]] = {}
    names = [c["name"] for c in found["categories"]]
    order = [c["id"] for c in found["categories"]]
    for n, image in enumerate(found["images"]):
        image["file_name"] = f"set{n % 2}/{n // 2:06d}.jpg"
        boxes["/data/images/" + image["file_name"]] = [
            [d["bbox"][0], d["bbox"][1], d["bbox"][0] + d["bbox"][2], d["bbox"][1] + d["bbox"][3], d["score"],
             order.index(d["category_id"])] for d in found["detections"] if d["image_id"] == image["id"]
        ]  # fmt: skip
    result: Any = SimpleNamespace(
        paths=list(boxes), detections=[torch.tensor(v).reshape(-1, 6) for v in boxes.values()]
    )
    numbers = report(result, names, tmp_path / "n.json", annotations(tmp_path, found))
    for image in found["images"]:
        image["id"] = f"image {image['id']}"
    for category in found["categories"]:
        category["id"] = f"class {category['id']}"
    for row in found["annotations"]:
        row["image_id"], row["category_id"] = f"image {row['image_id']}", f"class {row['category_id']}"
    text = report(result, [n.upper() for n in names], tmp_path / "t.json", annotations(tmp_path, found))
    assert text == numbers and numbers is not None and 0 < numbers["AP"] < 1
    assert json.loads((tmp_path / "t.json").read_text())[0]["category_id"].startswith("class ")
