"""Splits of a data set: by groups (all images of a patient, a clip or a place lie in one), by classes, or at random.

    python -m utils split make data/mine.yaml --how stratified --out lists --ratios 0.8 0.1 0.1
    python -m utils split make data/mine.yaml --group "^(\\d+)-" --out lists     (writes lists/train.txt, val.txt, ...)
    python -m utils split check data/mine.yaml --group "^(\\d+)-"

The group of an image is what the one parenthesis of the regular expression matches in its file name, or in its whole
path where the expression has a `/`. `make` takes all images that the data YAML names, in whichever split they are now.

What is made: the assignment with the least cost that a seeded search finds: of each split the squared deviation from
its share of the images, plus 0.1 times the mean of those for each class (boxes of a class, images of an image class).
The search: groups placed one by one, from the largest and in random orders, then single groups moved and pairs
exchanged while that helps; the best of these.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from utils.config.tools import SPLIT
from utils.data.prepare.groups import compiled, findings, groups_of, shared
from utils.data.scan import scan_split
from utils.data.spec import SPLITS, DataSpec, read_data
from utils.system.errors import UserError
from utils.system.rng import rng

Floats = npt.NDArray[np.float64]
ORDERS = 16  # starts of the search
CLASS_WEIGHT = 0.1


def cost(placed: Floats, shares: Floats) -> float:
    """Of features [splits,f] as parts of their totals: squared deviations from the shares [splits]; column 0 is the
    number of images, the others are classes. An empty split costs more than any deviation."""
    off = ((placed - shares[:, None]) ** 2).sum(0)
    return float(off[0] + CLASS_WEIGHT * off[1:].sum() / max(len(off) - 1, 1) + 10 * (placed[:, 0] < 1e-9).sum())


def assign(features: Floats, shares: Floats, seed: int) -> npt.NDArray[np.int64]:
    """Groups [g,f] (images, then counts by class; each column is taken as parts of its total) -> split of each [g]."""
    parts = features / np.maximum(features.sum(0), 1e-12)
    splits = len(shares)
    best, least = np.zeros(len(parts), np.int64), np.inf
    for attempt in range(ORDERS):
        draw = rng(seed, "split", 0, attempt)
        order = draw.permutation(len(parts))
        if attempt == 0:
            order = order[np.argsort(-features[order, 0], kind="stable")]
        chosen, placed = np.zeros(len(parts), np.int64), np.zeros((splits, parts.shape[1]))
        for group in order:
            room = shares - placed[:, 0]
            chosen[group] = int(room.argmax())
            placed[chosen[group]] += parts[group]
        now = _improved(chosen, placed, parts, shares)
        if now < least - 1e-15:
            best, least = chosen, now
    return best


def _improved(chosen: npt.NDArray[np.int64], placed: Floats, parts: Floats, shares: Floats) -> float:
    """Change `chosen` and `placed` in place by moves and exchanges of groups until none helps -> the cost."""
    now, better = cost(placed, shares), True
    pairs = len(parts) <= 64  # beyond that moves alone come close enough
    while better:
        better = False
        for i in range(len(parts)):
            others = [(None, to) for to in range(len(shares)) if to != chosen[i]]
            swaps = [(j, int(chosen[j])) for j in range(i) if chosen[j] != chosen[i]] if pairs else []
            for j, to in [*others, *swaps]:
                change = parts[i] - (0 if j is None else parts[j])
                trial, home = placed.copy(), int(chosen[i])
                if to == home or (j is not None and chosen[j] != to):
                    continue
                trial[home] -= change
                trial[to] += change
                if (then := cost(trial, shares)) < now - 1e-12:
                    placed[:], now, better, chosen[i] = trial, then, True, to
                    if j is not None:
                        chosen[j] = home
    return now


def gather(spec: DataSpec) -> tuple[list[Path], Floats, list[str]]:
    """All usable images that a data YAML names, each once; [n,f] what each holds; names of the columns: images, classes
    of boxes, image classes."""
    seen: dict[Path, npt.NDArray[np.float64]] = {}
    for split in SPLITS:
        if not getattr(spec, split):
            continue
        scan = scan_split(spec, split, on_bad_data="skip")
        if scan.problems:
            print(f"{split}: {len(scan.problems)} unusable images or label lines left out, first: {scan.problems[0]}")
        for path, labels, kind in zip(scan.files, scan.labels, scan.image_classes, strict=True):
            boxes = np.bincount(labels.boxes[:, 0].astype(int), minlength=spec.nc)
            seen[Path(os.path.normpath(path))] = np.array([1, *boxes, *(np.arange(len(spec.cls_names)) == kind)], float)
    return list(seen), np.array(list(seen.values())), ["images", *spec.names, *spec.cls_names]


def sizes(count: int, shares: Floats) -> npt.NDArray[np.int64]:
    """Whole numbers of images per split that add up to `count`, each at least 1, as near to the shares as can be."""
    exact = shares * count
    whole = np.maximum(np.floor(exact).astype(np.int64), 1)
    while whole.sum() < count:
        whole[int((exact - whole).argmax())] += 1
    while whole.sum() > count:
        whole[int((exact - whole).argmin())] -= 1
    return whole


def at_random(count: int, shares: Floats, seed: int) -> npt.NDArray[np.int64]:
    """Split of each image [n], drawn."""
    return rng(seed, "split", 0, 0).permutation(np.repeat(np.arange(len(shares)), sizes(count, shares)))


def stratified(holds: Floats, shares: Floats, seed: int) -> npt.NDArray[np.int64]:
    """Split of each image [n] such that every class, the rarest first, is spread by the shares (iterative
    stratification, Sechidis et al. 2011). holds [n,1+classes]: 1, then how much of each class the image shows."""
    shows = holds[:, 1:] > 0  # [n,classes]
    room = sizes(len(holds), shares).astype(float)
    wanted = shares[:, None] * shows.sum(0)[None]  # [splits,classes], images still wished for
    chosen = np.full(len(holds), -1, np.int64)
    draw = rng(seed, "split", 0, 0)

    def put(image: int, order: Sequence[npt.NDArray[np.float64]]) -> None:
        best = np.lexsort([draw.random(len(room)), *order[::-1], room > 0])[-1]
        chosen[image] = best
        room[best] -= 1
        wanted[best] -= shows[image]

    while (open_ := chosen < 0).any() and (left := shows[open_].sum(0)).any():
        rarest = int(np.where(left > 0, left, len(holds) + 1).argmin())
        for image in draw.permutation(np.flatnonzero(open_ & shows[:, rarest])):
            put(int(image), [wanted[:, rarest], room])
    for image in draw.permutation(np.flatnonzero(chosen < 0)):  # that show nothing
        put(int(image), [room])
    return chosen


def make(
    spec: DataSpec, pattern: re.Pattern[str] | None, how: str, out: Path, ratios: Sequence[float], seed: int
) -> None:
    """Write the lists of a new split into `out`, and print it. Errors: UserError; no file is ever replaced."""
    if len(ratios) not in (2, 3) or min(ratios) <= 0:
        raise UserError(f"--ratios: expected two or three numbers above 0, for train, val (and test); got {ratios}")
    shares = np.array(ratios) / sum(ratios)
    files = [out / f"{split}.txt" for split in SPLITS[: len(shares)]]
    if there := [str(file) for file in files if file.exists()]:
        raise UserError(f"--out: {', '.join(there)} exists already; give another folder, nothing is replaced")
    images, holds, columns = gather(spec)
    groups = groups_of(images, pattern) if pattern else [str(i) for i in range(len(images))]
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        found = f"{pattern.pattern!r} finds {len(names)} groups" if pattern else f"there are {len(names)} images"
        raise UserError(f"{found}; {len(shares)} splits need at least as many")
    features = np.zeros((len(names), holds.shape[1]))
    np.add.at(features, member, holds)
    if pattern:
        chosen = assign(features, shares, seed)
    else:
        member, features = np.arange(len(images)), holds
        chosen = stratified(holds, shares, seed) if how == "stratified" else at_random(len(images), shares, seed)
    out.mkdir(parents=True, exist_ok=True)
    kind = f"{len(names)} groups" if pattern else how
    print(f"{len(images)} images, {kind}, seed {seed}")
    for i, file in enumerate(files):
        mine = sorted(image for image, group in zip(images, member, strict=True) if chosen[group] == i)
        with file.open("x", encoding="utf-8") as stream:
            stream.writelines(f"{Path(os.path.relpath(image, out)).as_posix()}\n" for image in mine)
        counts = features[chosen == i].sum(0).astype(int)
        each = ", ".join(f"{name} {count}" for name, count in zip(columns[1:], counts[1:], strict=True))
        share = f"{counts[0] / len(images):.1%} for {shares[i]:.1%}"
        of = f" of {(chosen == i).sum()} groups" if pattern else ""
        print(f"{file}: {counts[0]} images ({share}){of}; {each}")
    lines = "\n  ".join(f"{split}: {file}" for split, file in zip(SPLITS, files, strict=False))
    print(
        f"for the data YAML (relative to its path):\n  {lines}"
        + (f"\n  group_pattern: '{pattern.pattern}'" if pattern else "")
    )


def main(argv: list[str]) -> None:
    what, args = SPLIT.parse(argv)
    spec = read_data(args.data)
    if what == "make" and args.how != "group":
        if args.group:
            raise UserError(f"--how {args.how} does not look at groups: take out --group, or --how")
        return make(spec, None, args.how, Path(args.out), list(args.ratios), args.seed)
    if not (args.group or spec.group_pattern):
        without = "; without groups: --how stratified or --how random" if what == "make" else ""
        raise UserError(f"--group is missing, and {spec.source} has no group_pattern{without}")
    pattern = compiled(args.group or spec.group_pattern, "--group" if args.group else f"{spec.source}: group_pattern")
    if what == "make":
        return make(spec, pattern, "group", Path(args.out), list(args.ratios), args.seed)
    found = shared(spec, pattern)
    print("\n".join(findings(found) or [f"{args.data}: no group lies in several splits"]))
    if any(found.values()):
        raise SystemExit(1)
    return None
