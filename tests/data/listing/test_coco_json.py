"""COCO annotation files as labels: ids, gaps, crowds, masks, sizes; what they give is what label files would."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from utils.data.scan import Scan, fingerprint, scan_split
from utils.data.spec import read_data
from utils.system.errors import UserError

IMAGES: list[dict[str, Any]] = [
    {"id": "im1", "file_name": "a/1.png", "width": 80, "height": 40},
    {"id": 7, "file_name": "b/1.png", "width": 80, "height": 40},
    {"id": 9, "file_name": "2.png", "width": 80, "height": 40},
]
CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": "x", "name": "cow"}]


def note(image: Any, category: Any, bbox: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def made(root: Path, annotations: list[dict[str, Any]], images: Any = None, **content: Any) -> Path:
    for name in ("images/train2017/a/1.png", "images/train2017/b/1.png", "images/train2017/2.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), np.zeros((40, 80, 3), np.uint8))
    (root / "annotations").mkdir(exist_ok=True)
    rows = {"images": images or IMAGES, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations/train.json").write_text(json.dumps(rows))
    keys = {"train": "annotations/train.json", "val": "annotations/train.json", "names": ["cat", "dog"]} | content
    (root / "d.yaml").write_text(yaml.safe_dump(keys))
    return root / "d.yaml"


def scanned(source: Path, **how: Any) -> Scan:
    return scan_split(read_data(source), "train", progress=False, **how)


ONE = [note("im1", 3, [8, 4, 16, 8]), note(7, 90, [0, 0, 80, 40]), note("7", 3, [60, 30, 40, 40])]


def test_boxes_by_names_of_classes_and_ends_of_paths(tmp_path: Path) -> None:
    scan = scanned(made(tmp_path, ONE))
    assert [p.relative_to(tmp_path / "images/train2017").as_posix() for p in scan.files] == [
        "a/1.png",
        "b/1.png",
        "2.png",
    ]
    assert np.allclose(scan.labels[0].boxes, [[0, 0.2, 0.2, 0.2, 0.2]])
    assert np.allclose(scan.labels[1].boxes, [[1, 0.5, 0.5, 1, 1], [0, 0.875, 0.875, 0.25, 0.25]])  # cut at the edge
    assert (len(scan.labels[2]), scan.missing) == (0, 0)  # listed, without annotations: it shows nothing


def test_crowds_other_classes_and_empty_boxes_are_left_out_and_said(tmp_path: Path) -> None:
    more = [note(9, 3, [0, 0, 9, 9], iscrowd=1), note(9, "x", [0, 0, 9, 9]), note(9, 3, [0, 0, 0, 9])]
    scan = scanned(made(tmp_path, ONE + more))
    assert len(scan.labels[2]) == 0
    said = "\n".join(scan.said)
    assert "left out: 1 crowds, 1 boxes without area" in said
    assert "1 objects of classes that are not in names (cow 1)" in said


def test_outlines_and_masks_stand_in_for_a_missing_box(tmp_path: Path) -> None:
    mask = {"size": [40, 80], "counts": [8 * 40 + 4, *[8, 32] * 15, 8, 56 * 40 + 28]}
    outline = [[8, 4, 24, 4, 24, 8], [8, 12, 20, 12, 20, 6]]
    rows = [{"image_id": 9, "category_id": 3, "segmentation": s} for s in (mask, outline)]
    boxes = scanned(made(tmp_path, rows)).labels[2].boxes
    assert np.allclose(boxes, [[0, 0.2, 0.2, 0.2, 0.2]])  # the same twice, kept once
    both = scanned(made(tmp_path, [note(9, 3, [8, 4, 16, 8], segmentation=[[0, 0, 80, 0, 80, 40]])]))
    assert np.allclose(both.labels[2].boxes, [[0, 0.2, 0.2, 0.2, 0.2]])


def test_the_cache_and_the_fingerprint_follow_the_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from utils.data import scan as module

    source = made(tmp_path, ONE)
    first = fingerprint(read_data(source))
    read: list[str] = []
    original = module._read
    monkeypatch.setattr(module, "_read", lambda *job: read.append(job[0]) or original(*job))  # type: ignore[func-returns-value]
    again = scanned(source)
    assert read == [] and np.allclose(again.labels[0].boxes, [[0, 0.2, 0.2, 0.2, 0.2]])
    assert fingerprint(read_data(source)) == first
    made(tmp_path, [note("im1", 90, [8, 4, 16, 8]), *ONE[1:]])
    (tmp_path / "images/train2017/2.png").touch()
    assert scanned(source).labels[0].boxes[0, 0] == 1 and "a/1.png" in read[0]
    assert fingerprint(read_data(source)) != first


def test_sizes_are_checked_against_the_pictures(tmp_path: Path) -> None:
    wrong = [IMAGES[0] | {"width": 40, "height": 80}, *IMAGES[1:]]
    source = made(tmp_path, ONE, wrong)
    with pytest.raises(UserError, match=r"a/1\.png: has 80x40 pixels, and .*train\.json says 40x80"):
        scanned(source)
    assert len(scanned(source, on_bad_data="skip").files) == 2


def test_names_may_come_from_the_annotations(tmp_path: Path) -> None:
    assert read_data(made(tmp_path, ONE, names=None)).names == ("dog", "cat", "cow")  # text among the ids: as listed


def test_images_below_a_named_folder(tmp_path: Path) -> None:
    entry = {"annotations": "annotations/train.json", "images": "images/train2017"}
    assert len(scanned(made(tmp_path, ONE, train=entry)).files) == 3


@pytest.mark.parametrize(
    ("annotations", "images", "content", "words"),
    [
        ([note(1, 3, [0, 0, 9, 9])], None, {}, "which is not among `images`"),
        ([note(7, 4, [0, 0, 9, 9])], None, {}, "has category 4, which is not declared"),
        ([note(7, 3, [0, 0, 9])], None, {}, "bbox: expected [x, y, width, height]"),
        ([note(7, 3, [0, 0, 9, -9])], None, {}, "is no box"),
        ([note(7, 3, [0, 0, "w", 9])], None, {}, "bbox: expected four numbers"),
        ([note(7, 3, None)], None, {}, "neither bbox nor segmentation"),
        (ONE, [*IMAGES, IMAGES[0]], {}, "two images have the id 'im1'"),
        (ONE, [*IMAGES, IMAGES[0] | {"id": 77}], {}, "two images are"),
        (
            ONE,
            [*IMAGES, {"id": 5, "file_name": "1.png", "width": 80, "height": 40}],
            {},
            "name the folder of its images",
        ),
        (ONE, [*IMAGES, {"id": 5, "file_name": "5.png", "width": 80, "height": 40}], {}, "the image does not exist"),
        (ONE, None, {"names": ["cat", "dgo"]}, "has no category 'dgo', but objects of 'dog'"),
        ([{**ONE[0], "bbox": [0.1, 0.2, 0.5, 0.25]}], None, {}, "shares of the picture; COCO's are pixels"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, annotations: Any, images: Any, content: Any, words: str) -> None:
    with pytest.raises(UserError) as error:
        scanned(made(tmp_path, annotations, images, **content))
    assert words in str(error.value), str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', "[" * 10000, '{"images": [{"id": 1}]}'])
def test_what_is_no_annotation_file(tmp_path: Path, text: str) -> None:
    source = made(tmp_path, ONE)
    (tmp_path / "annotations/train.json").write_text(text)
    with pytest.raises(UserError, match=r"train\.json"):
        read_data(source)
