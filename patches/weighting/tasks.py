"""Which loss terms make up which task, when tasks are weighed against each other.

A word names the terms of one task: `detection` (all box, obj, cls and dfl terms), a kind (`box`: box, or box/head_0,
...), a head (`head_0`: box/head_0, obj/head_0, ...), or a term itself (`image_class`, `cls/head_2`); `box+obj` joins
words, and `heads` stands for one task per head. Every term belongs to exactly one task.
"""

from collections.abc import Sequence

from models.loss import DETECTION_KINDS
from utils.system.errors import UserError

IMAGE = "image_class"
Tasks = dict[str, tuple[str, ...]]  # {task: its terms}


def read_tasks(words: Sequence[str], terms: Sequence[str]) -> Tasks:
    """--mtl-tasks over the run's terms; no words: detection against the class of the image. Errors: UserError."""
    if not words and IMAGE not in terms:
        raise UserError(
            "--mtl weighs tasks against each other, and this run only detects: add the class of the image with "
            "--classify, or weigh the terms of detection with --mtl-tasks box obj cls"
        )
    parts = list(dict.fromkeys(t.partition("/")[2] for t in terms if "/" in t))
    if "heads" in words and not parts:
        raise UserError("--mtl-tasks heads: this model has one head")
    given = [w for word in words or ("detection", IMAGE) for w in (parts if word == "heads" else [word])]
    tasks: Tasks = {}
    for word in given:
        if word in tasks:
            raise UserError(f"--mtl-tasks: {word} stands there twice")
        tasks[word] = tuple(t for piece in word.split("+") for t in matching(piece, terms))
    held = [t for own in tasks.values() for t in own]
    if twice := sorted({t for t in held if held.count(t) > 1}):
        raise UserError(f"--mtl-tasks {' '.join(given)}: {', '.join(twice)} in two tasks")
    if left := [t for t in terms if t not in held]:
        raise UserError(f"--mtl-tasks {' '.join(given)}: {', '.join(left)} in no task; name it too")
    if len(tasks) < 2:
        raise UserError(f"--mtl-tasks {' '.join(given)}: weights need two tasks or more")
    return tasks


def matching(word: str, terms: Sequence[str]) -> list[str]:
    """The terms of one word; UserError where there are none."""
    detection = [t for t in terms if t.split("/")[0] in DETECTION_KINDS]
    found = detection if word == "detection" else [t for t in terms if word in (t, *t.split("/"))]
    if not found:
        valid = dict.fromkeys(["detection", *(part for t in terms for part in t.split("/")), *terms])
        raise UserError(f"--mtl-tasks {word}: no such loss term; valid: {', '.join(valid)}, joined by + to one task")
    return found
