"""Reads and checks every image and label of a split once, in parallel, and remembers the result in a checked cache.

An entry of the cache (utils/data/scan/cache.py) counts only while path, size and modification time of image and label
are as they were; so a changed, new or deleted file is noticed and only that one is read again. What is found, and in
which order, does not depend on the number of processes."""

import errno
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from utils.data.image_classes import ClassSource, Table, in_folder, read_table
from utils.data.labels import EMPTY, UNKNOWN, Labels, Problem, checked, class_line, parse, unclear
from utils.data.listing.coco_json import Annotated
from utils.data.listing.images import Listed
from utils.data.listing.label_files import find_labels, label_name
from utils.data.scan import cache
from utils.data.scan.cache import ABSENT, BROKEN, Entry, Stamp
from utils.data.scan.partners import Partners, judge
from utils.data.spec import DataSpec
from utils.images.pixels import Pixels
from utils.images.read import SUFFIXES, Form, examine, read_bytes, scale_fault
from utils.images.tiff import ImageError, Scale
from utils.images.walk import unusable
from utils.system.errors import UserError
from utils.system.files import decoded, plain_bytes
from utils.system.processes.workers import LOOK, fetched, start_worker

CERTAIN = 0.25  # share of the lines of more than five values that can be nothing but polygons, where all are read so
CHUNK = 64  # images that a process checks at a time
PROCESSES = min(16, os.cpu_count() or 1)
Label = str | Annotated  # a file, or what stands in for one
Job = tuple[str, Label, tuple[Stamp, Stamp]]  # image, label, their stamps


@dataclass(frozen=True)
class Scan:
    """One split, ready for a data set: parallel lists over the usable images, and what was found on the way."""

    files: list[Path]
    labels: list[Labels]
    sizes: npt.NDArray[np.int64]  # [n,2] native (h, w)
    pixels: Pixels  # of the data set; the depth is that of its deepest image
    problems: list[Problem]
    duplicates: int
    background: int  # images without an object
    sha256: str  # over names and contents of all images and labels
    contents: list[tuple[Path, str, str, str]]  # of every image listed: its file, SHA-256 of image and label, its class
    image_classes: npt.NDArray[np.int64]  # [n] of the usable images, -1 = unknown
    cls_names: tuple[str, ...] = ()  # of whole images; empty: the data set has none
    cls_others: int = 0  # rows of its CSV about images of no split
    partners: Partners | None = None  # of the usable images, where the data set has pairs
    scale: Scale | None = None  # values that are black and full, where the images are in floating point numbers
    said: tuple[str, ...] = ()  # what was passed over, and labels in unusual places
    missing: int = 0  # usable images without a label file
    tried: tuple[str, ...] = ()  # where the label of the first image was looked for


def scan_split(
    spec: DataSpec,
    split: str,
    *,
    on_bad_data: str = "error",
    single_cls: bool = False,
    progress: bool = True,
    on_missing_pair: str = "error",
) -> Scan:
    """Check a split. on_bad_data "error": any unusable image or line is a UserError naming file and line; "skip": such
    lines and images are left out, counted and listed in `problems`. single_cls: every class becomes 0.
    on_missing_pair: what becomes of an image whose partner is missing or unusable, see utils/data/pairs.py."""
    if on_bad_data not in ("error", "skip"):
        raise ValueError(f"on_bad_data: expected 'error' or 'skip', got {on_bad_data!r}")
    images = spec.images(split)
    listed = spec.listed.get(split, Listed(images))
    labels_of, said, tried = _labels_of(spec, listed, images)
    entries = _entries(images, labels_of, f"checking {split}", progress)
    problems: list[Problem] = list(listed.problems)
    table = read_table(spec.cls, [*spec.train, *spec.val, *spec.test], spec.root) if spec.cls.csv else None
    problems += table.problems.get(None, []) if table else []
    found = find_partners(spec, images, entries, progress) if spec.pairs else None
    if found and on_missing_pair == "error":
        problems += found.problems
    files, labels, sizes, classes, contents, bits, digest = [], [], [], [], [], 8, hashlib.sha256()
    missing, outlined = 0, _outlined(spec, entries)
    for path, entry, label in zip(images, entries, labels_of, strict=True):
        name = label if isinstance(label, str) else f"{label.file}: {path.name}"
        mine, kind, wrong = _image_class(path, name, entry.labels, spec.cls, table)
        kept, foreign = checked(mine, spec.nc, name)
        kept, doubtful = (kept, []) if outlined else unclear(kept, name, spec.outlines)
        foreign += doubtful
        problems += [p._replace(file=str(path) if p.file == path.name else name) for p in entry.problems]
        problems += wrong + foreign
        named = (spec.cls_names[kind] if kind >= 0 else "unknown") if spec.cls_names else ""
        digest.update(f"{path.name} {entry.image_sha256} {entry.sha256}{' ' * bool(named)}{named}\n".encode())
        picture = entry.image_sha256
        if found:
            picture = hashlib.sha256(f"{picture} {found.sha256[path]}".encode()).hexdigest()
            digest.update(f"{picture}\n".encode())
        contents.append((path, picture, entry.sha256, named))
        if entry.size == (0, 0) or (found and on_missing_pair == "skip" and found.files[path] is None):
            continue
        if not len(kept) and (foreign or any(p.file != path.name for p in entry.problems)):
            continue  # its objects could not be read: it must not pass for an image without any
        if isinstance(label, Annotated) and label.size not in (None, entry.size):
            (h, w), (said_h, said_w) = entry.size, label.size or (0, 0)
            problems.append(Problem(str(path), 0, f"has {w}x{h} pixels, and {label.file} says {said_w}x{said_h}"))
            continue
        if entry.form.real != (spec.scale is not None):
            problems.append(Problem(str(path), 0, f"the image {scale_fault(entry.form)}"))
        elif entry.form.gives(spec.channels):
            bits = max(bits, min(entry.form.bits, 16))
            files.append(path)
            classes.append(kind)
            labels.append(_one_class(kept) if single_cls else kept)
            sizes.append(entry.size)
            missing += entry.stamps[1] == ABSENT
        else:
            problems.append(Problem(str(path), 0, f"the image has {entry.form.said}; {spec.source} {spec.wants}"))
    if problems and on_bad_data == "error":
        more = f"\n  ... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"{spec.source}: {split}: {len(problems)} unusable images or label lines"
            " (mend them, or leave them out with --on-bad-data skip):\n  " + "\n  ".join(map(str, problems[:10])) + more
        )
    if not files:
        raise UserError(f"{spec.source}: {split}: none of the {len(images)} images can be used:\n  {problems[0]}")
    if spec.cls_names and split == "train" and max(classes) == UNKNOWN:
        raise UserError(f"{spec.source}: cls_names are given, but no image of train has a class in {spec.cls.where}")
    return Scan(
        files,
        labels,
        np.array(sizes, np.int64).reshape(-1, 2),
        Pixels(spec.channels, bits, spec.colour),
        problems,
        sum(x.duplicates for x in labels),
        sum(not len(x) for x in labels),
        digest.hexdigest(),
        contents,
        np.array(classes, np.int64),
        spec.cls_names,
        table.others if table else 0,
        found,
        spec.scale,
        (*listed.said, *said),
        missing,
        tuple(tried),
    )


def _labels_of(spec: DataSpec, listed: Listed, images: Sequence[Path]) -> tuple[list[Label], list[str], list[str]]:
    """The label of each image; what to say about their places, and the places tried for the first of them."""
    word = spec.pairs.replace[0].strip("/") if spec.pairs else ""
    found = find_labels([str(path) for path in images if path not in listed.annotated], word)
    paths, said = iter(found.paths), list(found.said)
    if shared := [path for path, images_of in Counter(found.paths).items() if images_of > 1]:
        said.append(f"{len(shared)} label files belong to several images of one name each, e.g. {shared[0]}")
    return [listed.annotated.get(path) or next(paths) for path in images], said, found.tried


def _outlined(spec: DataSpec, entries: Sequence[Entry]) -> bool:
    """Whether lines of more than five values are polygons: as declared, else if enough of them can be nothing else."""
    if spec.outlines:
        return spec.outlines == "polygons"
    longer = sum(p is not None for entry in entries for p in entry.labels.polygons)
    return sum(entry.labels.certain for entry in entries) >= CERTAIN * longer


def find_partners(spec: DataSpec, images: Sequence[Path], entries: Sequence[Entry], progress: bool) -> Partners:
    """The partner of each image, as far as there is one of the same size that can be used."""
    assert spec.pairs is not None
    named = {image: spec.pairs.partner(image, sorted(SUFFIXES)) for image in images}
    there = [partner for partner in named.values() if partner is not None]
    labels: list[Label] = [label_name(str(partner)) for partner in there]  # nobody reads them
    known = dict(zip(there, _entries(there, labels, "checking partners", progress), strict=True))
    sizes = {image: entry.size for image, entry in zip(images, entries, strict=True)}
    return judge({image: (partner, known[partner] if partner else None) for image, partner in named.items()}, sizes)


def _image_class(
    image: Path, name: str, labels: Labels, source: ClassSource, table: Table | None
) -> tuple[Labels, int, list[Problem]]:
    """Objects, class of the whole image, and what is wrong with it, from wherever the data set keeps the classes."""
    labels, kind, problems = class_line(labels, source.line_names, name, source.no_line)
    if table:
        key = Path(os.path.normpath(image))
        return labels, table.classes.get(key, UNKNOWN), problems + table.problems.get(key, [])
    if source.folder:
        kind, more = in_folder(str(image), source)
        problems = problems + more
    return labels, kind, problems


def fingerprint(spec: DataSpec, scans: Sequence[Scan] = ()) -> str:
    """SHA-256 of what a run was trained on: class names, image names, contents of all images and label files, and
    the classes of whole images where there are any.

    scans: of the training and the validation split, where they are at hand."""
    splits = scans or [
        scan_split(spec, split, on_bad_data="skip", progress=False, on_missing_pair="single")
        for split in ("train", "val")
    ]
    digest = hashlib.sha256("\0".join(spec.names).encode())
    if spec.cls_names:
        digest.update("\0".join(["", *spec.cls_names]).encode())
    if (spec.channels, spec.colour) != (3, True):
        digest.update(f"\0{spec.channels} channels, {'rgb' if spec.colour else 'no'} colour".encode())
    if spec.scale:
        digest.update(f"\0scale {spec.scale}".encode())
    for scan in splits:
        digest.update(scan.sha256.encode())
    return digest.hexdigest()


def _one_class(labels: Labels) -> Labels:
    boxes = labels.boxes.copy()
    boxes[:, 0] = 0
    return replace(labels, boxes=boxes)


def _stamp(path: str) -> Stamp:
    """Only a file that is not there at all is ABSENT; of one that cannot be read the reason is kept."""
    try:
        status = os.stat(path)
    except OSError as error:
        gone = error.errno == errno.ENOENT and not os.path.islink(path)
        return ABSENT if gone else (BROKEN, error.errno or 0)
    if not stat.S_ISREG(status.st_mode):
        return BROKEN, 0
    # the time of content alone can be set back, as unpacking and copying do, and the size may be the same by chance
    return status.st_size, status.st_mtime_ns + status.st_ctime_ns


def _stamps(image: str, label: Label) -> tuple[Stamp, Stamp]:
    if isinstance(label, str):
        return _stamp(image), _stamp(label)
    digest = hashlib.sha256(f"{label.size} {label.text}".encode()).digest()
    return _stamp(image), (len(label.text), int.from_bytes(digest[:7]))


def _home(image: str, label: Label) -> tuple[str, str]:
    """Of an image's entry: what the cache lies beside, and its name in there."""
    if isinstance(label, str):
        return os.path.dirname(label), os.path.basename(image)
    return str(label.file), os.path.abspath(image)


def _entries(images: Sequence[Path], labels: Sequence[Label], what: str, progress: bool) -> list[Entry]:
    """An entry per image, from the caches where they still hold, else read; caches are brought up to date."""
    pairs = list(zip(map(str, images), labels, strict=True))  # plain text: Path costs seconds at 100,000 files
    jobs: list[Job] = [(image, label, _stamps(image, label)) for image, label in pairs]
    homes = [_home(image, label) for image, label in pairs]
    folders = {home: os.path.dirname(image) for (home, _), (image, _) in zip(homes, pairs, strict=True)}
    caches = {home: cache.load(Path(home)) for home in folders}
    known = [caches[home].get(name) for home, name in homes]
    found = {i: e for i, e in enumerate(known) if e is not None and e.stamps == jobs[i][2]}
    missing = [i for i in range(len(images)) if i not in found]
    if missing:
        with tqdm(desc=what, total=len(missing), unit="image", disable=not progress, dynamic_ncols=True) as bar:
            fresh: list[Entry] = []
            for part in _reader([jobs[i] for i in missing]):
                fresh += part
                bar.update(len(part))
        found.update(zip(missing, fresh, strict=True))
    changed: dict[str, dict[str, Entry]] = {}
    for i in missing:
        home, name = homes[i]
        changed.setdefault(home, {})[name] = found[i]
    for home, mine in changed.items():  # other images of the folder stay known, gone ones do not
        old = {n: e for n, e in caches[home].items() if os.path.exists(os.path.join(folders[home], n))}
        cache.save(Path(home), old | mine)
    return [found[i] for i in range(len(images))]


class Reading(Dataset[list[Entry]]):
    """Jobs in chunks; item i is what chunk i finds on disk."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.chunks = [jobs[i : i + CHUNK] for i in range(0, len(jobs), CHUNK)]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> list[Entry]:
        return [_read(*job) for job in self.chunks[index]]


def _reader(jobs: Sequence[Job]) -> Iterable[list[Entry]]:
    """The entries of all jobs, chunk by chunk in order, read by several processes where there is enough to do.

    Torch's loader runs them: its processes end with ours, however that ends, and the order is ours whoever is first."""
    reading = Reading(jobs)
    processes = min(PROCESSES, len(reading))
    loader = DataLoader(
        reading,
        batch_size=None,
        num_workers=processes if processes > 1 else 0,
        collate_fn=_as_it_is,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # else it would draw from torch's global stream
        timeout=LOOK if processes > 1 else 0,
    )
    return fetched(loader, loader.__iter__)


def _as_it_is(entries: list[Entry]) -> list[Entry]:
    return entries


def _read(image: str, label: Label, stamps: tuple[Stamp, Stamp]) -> Entry:
    """Read and check one image and its label from disk. A missing label is an image without objects."""
    problems: list[Problem] = []
    image_name = os.path.basename(image)
    label_file = os.path.basename(label) if isinstance(label, str) else label.file.name
    size, form, image_sha = (0, 0), Form(0, 0, False), ""
    if stamps[0][0] < 0:
        problems.append(Problem(image_name, 0, f"the image {unusable(image)}"))
    else:
        try:
            data = read_bytes(Path(image))
            image_sha = hashlib.sha256(data.data).hexdigest()  # in memory now; quick beside decoding
            size, form = examine(data)
        except ImageError as error:
            problems.append(Problem(image_name, 0, f"the image {error}"))
    labels, sha = EMPTY, ""
    if stamps[1][0] == BROKEN:
        problems.append(Problem(label_file, 0, f"the label {unusable(str(label))}"))
    elif stamps[1] != ABSENT:
        try:
            content = plain_bytes(label) if isinstance(label, str) else label.text.encode()
            labels, bad = parse(decoded(content), label_file)
            sha = hashlib.sha256(content).hexdigest()
            problems += bad
        except UnicodeDecodeError:
            problems.append(Problem(label_file, 0, "the label is no text"))
        except OSError as error:
            problems.append(Problem(label_file, 0, f"cannot be read: {error.strerror}"))
    return Entry(stamps, image_sha, sha, size, form, labels, tuple(problems))
