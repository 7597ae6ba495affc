"""Classes go by their names: which class of a file is which class of the data.

Two names are one where they differ in case, spaces, `_` and `-` alone (`Traffic_Light`, `traffic light`); where a list
holds two such names, only equal ones are one. Names made up for files that know none (0, 1, ...; class0, ...; item) say
nothing.
"""

import re
import unicodedata
from collections.abc import Sequence

Columns = tuple[int | None, ...]  # per class of the data its number in a file; None: the file has no such class
MADE_UP = re.compile(r"(class|cls|item|object)?[ _-]?(\d+)")
SHOWN = 5
ONE_CLASS = ("item",)  # the names where all classes count as one


def nameless(names: Sequence[str] | None) -> bool:
    """Whether these are no names: absent, or numbers in order, from 0 or 1."""
    if not names or tuple(names) == ONE_CLASS:
        return True
    found = [MADE_UP.fullmatch(name.lower()) for name in names]
    numbers = [int(m[2]) for m in found if m]
    return len(numbers) == len(names) and numbers in (list(range(len(names))), list(range(1, len(names) + 1)))


def plain(name: str) -> str:
    """Without case, spaces, `_` and `-`."""
    return re.sub(r"[\s_-]", "", unicodedata.normalize("NFKC", name).casefold()) or name


def find(wanted: Sequence[str], names: Sequence[str]) -> Columns:
    """Of each wanted class its place among `names`."""
    lists = (names, wanted)
    if all(len(set(map(plain, each))) == len(set(each)) for each in lists):
        lists = (list(map(plain, names)), list(map(plain, wanted)))
    places = {name: i for i, name in reversed(list(enumerate(lists[0])))}
    return tuple(places.get(name) for name in lists[1])


def differences(wanted: Sequence[str], names: Sequence[str]) -> str:
    """The first classes that are others by number: `0 red, here blue`."""
    pairs = [f"{i} {a}, here {b}" for i, (a, b) in enumerate(zip(names, wanted, strict=False)) if a != b]
    pairs += [f"{i} {a}, here none" for i, a in enumerate(names) if i >= len(wanted)]
    pairs += [f"{i} none, here {b}" for i, b in enumerate(wanted) if i >= len(names)]
    return shown(pairs, "; ")


def shown(words: Sequence[str], between: str = ", ") -> str:
    """The first few of them."""
    return between.join([word[:60] for word in words[:SHOWN]] + ["..."] * (len(words) > SHOWN))
