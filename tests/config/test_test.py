"""Flags of test.py."""

from utils.config.test import program


def test_the_overlap_of_nms_is_that_of_the_rule() -> None:
    parse = program().parse
    words = ["--weights", "w.pt"]
    given = [parse([*words, *more]).cfg for more in ([], ["--match", "v5"], ["--match", "v7"], ["--iou", "0"])]
    assert [cfg.nms_iou_of(0.65, objectness=True) for cfg in given] == [0.65, 0.6, 0.65, 0]
    assert [cfg.nms_iou_of(0.7, objectness=False) for cfg in given] == [0.7, 0.7, 0.7, 0]


def test_patches_add_flags() -> None:
    given = program().parse(["--weights", "a.pt", "b.pt", "--missing", "each"])
    assert given.cfg.weights == ("a.pt", "b.pt") and given.flags["modality"] == {"missing": "each"}
