"""Which loss terms make up which task."""

import pytest

from patches.weighting.tasks import read_tasks
from utils.system.errors import UserError

JOINT = ("box", "obj", "cls", "image_class")
HEADS = ("box/head_0", "box/head_1", "obj/head_0", "obj/head_1", "cls/head_0", "cls/head_1")


def test_default_is_detection_against_the_class_of_the_image() -> None:
    assert read_tasks((), JOINT) == {"detection": ("box", "obj", "cls"), "image_class": ("image_class",)}
    assert read_tasks((), (*HEADS, "image_class"))["detection"] == HEADS
    free = ("box", "cls", "dfl", "image_class")  # of a head without anchors
    assert read_tasks((), free) == {"detection": free[:3], "image_class": free[3:]}


def test_kinds_heads_joined_words_and_terms() -> None:
    assert read_tasks(("box+obj", "cls"), JOINT[:3]) == {"box+obj": ("box", "obj"), "cls": ("cls",)}
    assert read_tasks(("box", "obj", "cls"), HEADS)["obj"] == ("obj/head_0", "obj/head_1")
    heads = {f"head_{h}": tuple(f"{k}/head_{h}" for k in ("box", "obj", "cls")) for h in (0, 1)}
    assert read_tasks(("heads",), HEADS) == heads
    assert read_tasks(("heads", "image_class"), (*HEADS, "image_class")) == heads | {"image_class": ("image_class",)}


@pytest.mark.parametrize(
    ("words", "terms", "says"),
    [
        ((), JOINT[:3], "only detects.*--classify.*--mtl-tasks box obj cls"),
        (("box", "obj"), JOINT[:3], "cls in no task"),
        (("detection", "box"), JOINT[:3], "box in two tasks"),
        (("detection",), JOINT[:3], "two tasks or more"),
        (("box", "box"), JOINT[:3], "stands there twice"),
        (("boxes", "obj"), JOINT[:3], "--mtl-tasks boxes: no such loss term; valid: detection, box, obj, cls"),
        (("heads",), JOINT[:3], "one head"),
    ],
)
def test_wrong_tasks_are_errors(words: tuple[str, ...], terms: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_tasks(words, terms)
