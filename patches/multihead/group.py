"""`python -m utils group`: a head file for any data set, and what a head file does with its classes.

How classes are grouped stands in grouping.py; docs/head-groups.md tells users.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from models.class_names import find, shown
from patches.multihead import grouping
from patches.multihead.grouping import Floats, Groups, Ints, Pairs, Statistics
from patches.multihead.head_file import MOST_CLASSES, read_head_file
from utils import seams
from utils.config.group import GROUP, Group
from utils.config.options import flag
from utils.config.settings import DataSettings, EvalSettings
from utils.data.build import evaluation, trained_size
from utils.data.scan import scan_split
from utils.data.spec import DataSpec, read_data
from utils.evaluation.evaluate import evaluate
from utils.evaluation.matching import occurring
from utils.runs.plots import NAMED, draw_matrix, new_figure
from utils.system.device import select_device
from utils.system.errors import UserError
from utils.system.files import naming, read_text, write_text
from utils.system.table import aligned, few
from utils.weights import class_rows
from utils.weights.checkpoint import check_pixels, lasting, load_detector

BY_SIMILARITY = ("geometry", "cooccurrence", "hybrid")
WIDTH = 110  # of a written list of classes


def main(argv: list[str]) -> None:
    args = GROUP.parse(argv).cfg
    check(args)
    spec = read_data(args.data)
    if args.analyze:
        table = read_head_file(args.analyze, args.heads, spec.names)
        if table.nc != spec.nc:
            raise UserError(f"{args.analyze} is for {table.nc} classes, {args.data} has {spec.nc}")
    elif not 2 <= args.heads <= spec.nc:
        raise UserError(f"--heads must lie in 2..{spec.nc}, the number of classes in {args.data}, got {args.heads}")
    pairs, counts = None, None
    if args.pairs:
        pairs = read_pairs(args.pairs, spec.names)
    elif args.weights:
        counts = confusion(args, spec)
        pairs = grouping.confused(counts, args.min_confusion)
    scan = scan_split(spec, "train", on_bad_data="skip")
    if scan.problems:
        print(f"{len(scan.problems)} unusable images or label lines left out, first: {scan.problems[0]}")
    stats = grouping.statistics(scan.labels, scan.sizes, spec.nc)
    if args.analyze:
        groups, name = [list(group) for group in table.groups], table.grouping or Path(args.analyze).stem
    else:
        groups, name = grouped(args, stats, pairs, spec.names), args.by
        write_text(Path(args.out), head_file(args, groups, stats, spec.names))
        print(f"{args.out}: {args.heads} heads by {args.by}, for --heads {args.heads} --head-config {args.out}")
    print(analysis(groups, stats, spec.names, pairs, args))
    if args.picture:
        draw(groups, stats, counts, spec.names, name, Path(args.picture))
        print(f"picture: {args.picture}")


def check(args: Group) -> None:
    """What needs no data."""
    if bool(args.by) == bool(args.analyze):
        raise UserError("give either --by, for a new head file, or --analyze FILE, for one that is there")
    if args.by and not args.out:
        raise UserError("--out is missing: the head file to write")
    if args.analyze and args.out:
        raise UserError("--out is for a new head file: take it out, --analyze writes none")
    if args.weights and args.pairs:
        raise UserError("--weights and --pairs both say what is mistaken for what: give one")
    if args.by == "confusion" and not (args.weights or args.pairs):
        raise UserError("--by confusion needs a checkpoint (--weights) or a list of pairs (--pairs)")
    if args.balance is not None and args.by not in BY_SIMILARITY:
        raise UserError(f"--balance is for --by {', '.join(BY_SIMILARITY)}")
    if args.by == "hybrid" and not args.alpha + args.beta > 0:
        raise UserError("--alpha and --beta are both 0: one of them must be above")
    for name in ("out", "picture"):
        path = Path(getattr(args, name) or ".")
        if getattr(args, name) and path.exists():
            raise UserError(f"{flag(name)}: {path} exists already; give another name, nothing is replaced")
        if not path.parent.is_dir():
            raise UserError(f"{flag(name)}: there is no folder {path.parent}")
    if args.picture and Path(args.picture).suffix.lower() != ".png":
        raise UserError(f"--picture: expected a name that ends in .png, got {args.picture}")


def grouped(args: Group, stats: Statistics, pairs: Pairs | None, names: Sequence[str]) -> Groups:
    """The groups asked for; says which classes had nothing to be grouped by."""
    nc, seen = len(names), np.where(stats.boxes > 0, 1.0, np.nan)
    like = {
        "geometry": grouping.likeness(np.nan_to_num(stats.aspect)),
        "cooccurrence": stats.together,
        "hybrid": mixed(stats, args),
    }
    if args.by == "confusion":
        return grouping.apart(pairs or set(), stats.boxes, args.heads)
    if args.by == "random":
        return grouping.at_random(nc, args.heads, args.seed)
    if args.by == "geometry":
        groups = grouping.by_value(stats.aspect, args.heads, args.seed, "geometry")
    elif args.by == "size":
        groups = grouping.by_value(stats.size, args.heads, args.seed, "size")
    else:
        known = stats.aspect if args.by == "hybrid" else seen
        groups = grouping.spectral(like[args.by], known, args.heads, args.seed)
    if args.balance is not None:
        groups = grouping.balanced(groups, like[args.by], args.balance)
    groups, left = grouping.completed(groups, nc)
    if left:
        said = few([names[c] for c in left], 8)
        print(f"without boxes in train, so put where the fewest classes are: {said}")
    return groups


def mixed(stats: Statistics, args: Group) -> Floats:
    return args.alpha * grouping.likeness(np.nan_to_num(stats.aspect)) + args.beta * stats.together


def read_pairs(path: str, names: Sequence[str]) -> Pairs:
    """Lines `car, truck`: names or numbers of classes; empty ones and those that begin with # are passed over."""
    pairs: Pairs = set()
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = [word.strip() for word in line.split(",")]
        if len(words) != 2:
            raise UserError(f"{path}:{number}: expected two classes with a comma between, got {line!r:.100}")
        classes = [class_of(word, names) for word in words]
        for word, c in zip(words, classes, strict=True):
            if c is None:
                raise UserError(f"{path}:{number}: there is no class {word!r:.100}; there are {shown(names)}")
        a, b = sorted(c for c in classes if c is not None)
        if a == b:
            raise UserError(f"{path}:{number}: {names[a]!r} twice; a pair is of two classes")
        pairs.add((a, b))
    if not pairs:
        raise UserError(f"{path}: no pairs; a line each, such as: {', '.join(names[:2])}")
    return pairs


def class_of(word: str, names: Sequence[str]) -> int | None:
    """A class by its name, else by its number."""
    c = find([word], names)[0]
    if c is None and word.isdecimal() and len(word) <= len(str(MOST_CLASSES)) and int(word) < len(names):
        return int(word)
    return c


def confusion(args: Group, spec: DataSpec) -> Ints:
    """Confusion matrix [nc+1,nc+1] (predicted x true, last = background) of a checkpoint on the validation images."""
    device = select_device(args.device)
    model, meta = load_detector(args.weights)
    if model.nc != spec.nc:
        raise UserError(f"{args.weights} has {model.nc} classes, {args.data} has {spec.nc}")
    columns = class_rows.compare(meta, args.weights, spec.names, args.data, "give the data that it was trained on")
    model.head.renumber([columns.index(c) for c in range(model.nc)])
    check_pixels(spec, meta, args.weights)
    patches = seams.revive(lasting(meta))
    patches.each("on_data_read", spec)
    stride = int(model.stride.max())
    settings = DataSettings(img_size=trained_size(args.img_size, meta, stride), stride=stride, on_bad_data="skip")
    judging = EvalSettings(names=list(spec.names), iou_thres=model.head.nms_iou())
    loader = evaluation(spec, "val", patches, settings)
    return evaluate(model.to(device), loader, device, judging, patches=patches).confusion


def head_file(args: Group, groups: Groups, stats: Statistics, names: Sequence[str]) -> str:
    """The YAML that `read_head_file` takes."""
    total = max(int(stats.boxes.sum()), 1)
    lines = [f"# Classes of {Path(args.data).name} over {len(groups)} heads by {how(args)} (python -m utils group)."]
    lines += [f"nc: {len(names)}", f"heads: {len(groups)}", f"grouping: {args.by}"]
    lines += [yaml.safe_dump({"names": list(names)}, default_flow_style=None, width=WIDTH, allow_unicode=True).rstrip()]
    lines += ["head_assignments:"]
    for head, group in enumerate(groups):
        count = int(stats.boxes[group].sum())
        lines += [
            f"  head_{head}:",
            f"    name: {args.by}_{head}",
            "    weight: 1.0",
            f"    sample_count: {count}  # boxes in train, {count / total:.1%}",
            f"    classes: {group}",
        ]
    return "\n".join(lines) + "\n"


def how(args: Group) -> str:
    """The rule and the values that it depends on."""
    said = [args.by]
    if args.by == "hybrid":
        said += [f"alpha {args.alpha:g}", f"beta {args.beta:g}"]
    if args.by == "confusion":
        source = args.pairs or args.weights
        said += [Path(source).name, *([] if args.pairs else [f"from {args.min_confusion:g} on"])]
    else:
        said += [f"seed {args.seed}"]
    if args.balance is not None:
        said += [f"balanced to {args.balance}"]
    return ", ".join(said)


def analysis(groups: Groups, stats: Statistics, names: Sequence[str], pairs: Pairs | None, args: Group) -> str:
    """Tables of the heads, of how alike the classes within and between them are, and of the pairs kept apart."""
    total = max(int(stats.boxes.sum()), 1)
    rows = [["head", "classes", "boxes", "share", "w/h", "side", "the most frequent"]]
    for head, group in enumerate(groups):
        count, often = int(stats.boxes[group].sum()), sorted(group, key=lambda c: -int(stats.boxes[c]))
        shape, side = (np.exp(grouping.mean(value[group])) for value in (stats.aspect, stats.size))
        means = [text(shape, ".2f"), text(100 * side, ".1f")]
        most = ", ".join(names[c][:20] for c in often[:4])
        rows.append([f"head_{head}", str(len(group)), f"{count:,}", f"{count / total:.1%}", *means, most])
    seen = np.where(stats.boxes > 0, 1.0, np.nan)
    shapes = grouping.likeness(np.nan_to_num(stats.aspect))
    alike = [["similarity of two classes", "within a head", "between heads"]]
    for what, values, known in (
        ("shape, exp(-2 d^2)", shapes, stats.aspect),
        ("images shared, Jaccard", stats.together, seen),
        (f"{args.alpha:g} shape + {args.beta:g} images", mixed(stats, args), stats.aspect),
    ):
        alike.append([what, *(text(x, ".3f") for x in grouping.within_and_between(groups, values, known))])
    if pairs is None:
        kept = "pairs mistaken for each other: not known (--weights or --pairs)"
    else:
        owner = {c: head for head, group in enumerate(groups) for c in group}
        same = [f"{names[a]}-{names[b]}" for a, b in sorted(pairs) if owner[a] == owner[b]]
        kept = f"pairs mistaken for each other: {len(pairs) - len(same)} of {len(pairs)} are kept apart"
        kept += f"; in one head: {few(same, 8)}" if same else ""
    note = "w/h and side (share of the image's longer side, in %): geometric means over the classes"
    return "\n".join([aligned(rows), note, "", aligned(alike), "", kept])


def text(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "-"


def draw(groups: Groups, stats: Statistics, counts: Ints | None, names: Sequence[str], title: str, out: Path) -> None:
    """Classes by shape and size, a colour for each head; beside it the confusion matrix [nc+1,nc+1], if there is one,
    head by head."""
    from matplotlib import colormaps

    order = [c for group in groups for c in group]
    matrix = None
    if counts is not None:
        kept = [*order, len(names)]
        matrix = occurring(counts[np.ix_(kept, kept)], [names[c] for c in order])
    few_names = len(names) <= NAMED
    figure, axes = new_figure(9 if matrix is None else 19, 8, 1, 1 if matrix is None else 2)
    colours = colormaps["tab10" if len(groups) <= 10 else "turbo"]
    for head, group in enumerate(groups):
        known = [c for c in group if np.isfinite(stats.aspect[c])]
        shade = colours(head) if len(groups) <= 10 else colours(head / (len(groups) - 1))
        width, side = np.exp(stats.aspect[known]), 100 * np.exp(stats.size[known])
        dots = 12 + 8 * np.log2(1 + stats.boxes[known])
        axes[0].scatter(width, side, s=dots, color=shade, alpha=0.7, label=f"head_{head} ({len(group)})")
        for c, x, y in zip(known, width, side, strict=True):
            if few_names:
                axes[0].annotate(names[c][:20], (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes[0].set(xscale="log", yscale="log", title=f"classes by {title}; dots grow with the number of boxes")
    axes[0].set(xlabel="w/h, geometric mean", ylabel="side of a square of the mean area, % of the image's longer side")
    for axis in (axes[0].xaxis, axes[0].yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
        axis.set_tick_params(which="both", labelsize=8)
    axes[0].grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    if matrix is not None:
        shares, labels = matrix
        figure.colorbar(draw_matrix(axes[1], shares, labels, 7 if len(labels) < 41 else 4), ax=axes[1], shrink=0.7)
        axes[1].set_title("confusion matrix head by head (confidence 0.25, IoU 0.45), columns normalised")
        if len(labels) == len(names) + 1:
            for edge in np.cumsum([len(group) for group in groups]) - 0.5:
                axes[1].axhline(edge, color="black", linewidth=1)
                axes[1].axvline(edge, color="black", linewidth=1)
    with naming(out):
        figure.savefig(out, dpi=100)
