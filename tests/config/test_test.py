"""Flags of test.py."""

from utils.config.test import program


def test_the_overlap_of_nms_is_that_of_the_rule() -> None:
    parse = program().parse
    words = ["--weights", "w.pt"]
    found = [parse([*words, *more]).cfg.nms_iou for more in ([], ["--match", "v5"], ["--match", "v7"], ["--iou", "0"])]
    assert found == [0.65, 0.6, 0.65, 0]


def test_patches_add_flags() -> None:
    given = program().parse(["--weights", "a.pt", "b.pt", "--missing", "each"])
    assert given.cfg.weights == ("a.pt", "b.pt") and given.flags["modality"] == {"missing": "each"}
