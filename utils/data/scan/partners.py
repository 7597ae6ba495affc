"""What a scan finds out about infrared partners."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.data.labels import Problem
from utils.data.scan.cache import Entry


@dataclass(frozen=True)
class Partners:
    """By image."""

    files: dict[Path, Path | None]  # None: missing or unusable
    problems: list[Problem]  # one for each of these
    sha256: dict[Path, str]  # of the partner's file, "" without one
    channels: int  # of all partners: 1 where every one is grey, else 3
    bits: int  # of the deepest


def judge(found: Mapping[Path, tuple[Path | None, Entry | None]], sizes: Mapping[Path, tuple[int, int]]) -> Partners:
    """found: {image: (its partner's file, what is known of that)}; sizes: of the images (h, w)."""
    files: dict[Path, Path | None] = {}
    problems: list[Problem] = []
    channels, bits = 1, 8
    for image, (partner, entry) in found.items():
        wrong = ""
        if partner is None or entry is None:
            wrong = "has no partner (--on-missing-pair skip leaves it out, single keeps it alone)"
        elif entry.size == (0, 0):
            wrong = f"its partner {partner} cannot be used: {'; '.join(p.message for p in entry.problems)}"
        elif sizes[image] not in ((0, 0), entry.size):
            (h, w), (mine_h, mine_w) = entry.size, sizes[image]
            wrong = f"{mine_w}x{mine_h} pixels, but its partner {partner} has {w}x{h}"
        elif entry.form.real:
            wrong = f"its partner {partner} holds floating point numbers; write it in 8 or 16 bits"
        elif not (entry.form.gives(1) or entry.form.gives(3)):
            wrong = f"its partner {partner} has {entry.form.said}; 1 or 3 are wanted"
        else:
            channels = max(channels, 1 if entry.form.gives(1) else 3)
            bits = max(bits, entry.form.bits)
        files[image] = None if wrong else partner
        if wrong:
            problems.append(Problem(str(image), 0, wrong))
    prints = {image: entry.image_sha256 if entry else "" for image, (_, entry) in found.items()}
    return Partners(files, problems, prints, channels, bits)
