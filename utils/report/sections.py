"""The sections of a run's report, each made from Facts alone. What the files do not hold is called not measured."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import seams
from utils.config.options import show
from utils.config.train import PLACES, Config
from utils.report.frozen import Verdict
from utils.report.page import PICTURES, Block, Code, Picture, Section, Table, Text
from utils.report.rules import Rule
from utils.report.trend import FEWEST, trend
from utils.runs.chain import stage_table
from utils.runs.folder import Facts, Series
from utils.system.errors import UserError

UNMEASURED = "not measured"
BASE = {"P": "P", "R": "R", "F1": "F1", "mAP50": "mAP@0.5", "mAP": "mAP@0.5:0.95"}
FAMILIES = {
    "Alignment of the modalities": "align_",
    "Image classes": "image_",
    "Task weights": "weight/",
    "Gradient norms at the shared layer": "grad_norm/",
    "Cosines of the tasks' gradients": "cosine/",
    "Teacher": "teacher_",
}
RULES_OF_TREND = (
    f"Trend: Theil-Sen slope (median over all pairs) of the last third of the epochs, at least {FEWEST}; flat where "
    "the change over that window is below 1 % of the mean size of its values. Best: lowest loss, highest metric."
)
CHOSEN = {"last.pt": "the latest; a run goes on from it", "previous.pt": "the one before last.pt"}


def number(value: float) -> str:
    return f"{value:.5g}"


def differing(run: Facts) -> tuple[list[list[str]], list[list[str]]]:
    """Settings as rows (setting, value, default): those that differ from train.py's defaults, and the others."""
    schemas: dict[str, Any] = {"": Config}
    other: list[list[str]] = []
    same: list[list[str]] = []
    values: dict[str, Mapping[str, Any]] = {"": run.config, **run.patches}
    for name in run.patches:
        try:
            schemas[name] = seams.kinds([name])[name].Flags
        except UserError:
            continue  # a patch that is no longer there: its settings count as other than default
    for name, mine in values.items():
        fields = {f.name: f.default for f in dataclasses.fields(schemas[name])} if name in schemas else {}
        for key, value in mine.items():
            if key.endswith("_table") or isinstance(value, dict):
                continue
            default = show(fields[key]) or "-" if key in fields else "unknown"
            row = [f"{name}.{key}" if name else key, show(value) or "-", default]
            (same if row[1] == default else other).append(row)
    place = [r for r in other if r[0] in PLACES]
    return [r for r in other if r[0] not in PLACES] + place, same


def what_ran(run: Facts) -> list[Section]:
    other, same = differing(run)
    environment, device = run.settings.get("environment") or {}, run.settings.get("device") or {}
    device = device if isinstance(device, dict) else {"type": device}
    head = ["setting", "value", "default"]
    blocks: list[Block] = [Code(str(run.settings.get("command") or "command: not recorded"))]
    blocks += [Text("Settings that differ from the defaults of train.py"), Table([head, *other])]
    rows = [["versions and device", "value"], *([k, show(v)] for k, v in (environment | device).items())]
    folded: list[Block] = [Table([head, *same])]
    return [Section("What ran", [*blocks, Table(rows), Table(prints(run))], folded, f"{len(same)} settings at default")]


def prints(run: Facts) -> list[list[str]]:
    """Fingerprints of what went in and of what came out."""
    rows = [["fingerprint (SHA-256)", "of", "value"]]
    rows += [["file", f"--{k.replace('_', '-')} {v['path']}", v["sha256"]] for k, v in files(run).items()]
    start = run.start
    origin = start.get("weights") or run.config.get("weights") or ("scratch" if run.settings else "not recorded")
    rows.append(
        ["start, tensors", str(origin), str(start.get("tensors") or ("-" if origin == "scratch" else UNMEASURED))]
    )
    rows.append(["data", str((run.settings.get("data") or {}).get("yaml", "")), run.data or UNMEASURED])
    ended = run.result.get("tensors") or {}
    rows += [["end, tensors", name, str(value)] for name, value in ended.items()]
    return rows if ended else [*rows, ["end, tensors", "the run has no result.yaml", UNMEASURED]]


def files(run: Facts) -> Mapping[str, Mapping[str, str]]:
    return {k: v for k, v in (run.settings.get("files") or {}).items() if isinstance(v, dict) and "path" in v}


def data(run: Facts) -> list[Section]:
    rows = [["split", "images listed", "with a label file", "image classes"]]
    for split in ("train", "val"):
        mine = [row for name, row in run.listing.items() if name.startswith(f"{split} ")]
        kinds = [row[2] for row in mine if len(row) > 2]
        counts = ", ".join(f"{k} {kinds.count(k)}" for k in dict.fromkeys(sorted(kinds))) or "-"
        rows.append(
            [split, *([str(len(mine)), str(sum(bool(r[1]) for r in mine)), counts] if mine else [UNMEASURED] * 3)]
        )
    names = ", ".join(run.names) or "not recorded"
    count = f"{len(run.names)} class{'es' * (len(run.names) != 1)}"
    return [Section("Data", [Text(f"{count}: {names}"), Table(rows)])]


def progress(run: Facts) -> list[Section]:
    last = run.checkpoint("last.pt")
    steps = run.series("step")
    seconds, waits, memory = run.times(), run.times("data_wait"), [v for v in run.times("memory_gib") if v]
    counts = run.settings.get("parameters") or {}
    rows = [
        ["epochs done", f"{run.epochs} of {run.planned or 'not recorded'}"],
        ["epochs evaluated", str(len(run.scored))],
        ["steps (micro-batches)", f"{steps[-1][1]:.0f}" if steps else UNMEASURED],
        [
            "updates of the average",
            str(last.meta["ema_updates"]) if last and "ema_updates" in last.meta else UNMEASURED,
        ],
        ["images per step", str(run.config.get("batch_size", "not recorded"))],
        ["seconds per epoch, median", f"{statistics.median(seconds):.2f}" if seconds else UNMEASURED],
        ["seconds, all epochs", f"{sum(seconds):.2f}" if seconds else UNMEASURED],
        ["share of waiting for data, median", f"{statistics.median(waits):.1%}" if waits else UNMEASURED],
        ["peak memory, GiB", f"{max(memory):.3f}" if memory else UNMEASURED],
        *([name, f"{value:,}"] for name, value in counts.items()),
    ]
    said: list[Block] = [Text(run.status)]
    if repeated := run.result.get("replay"):
        said.append(Text(f"Replay of {repeated.get('of')}: {repeated.get('outcome')}"))
    return [Section("Epochs and steps", [*said, Table([["", "value"], *rows])])]


def chain(run: Facts) -> list[Section]:
    """The stages that led to this run, if it started from another one."""
    stages, end = [run], ""
    while before := stages[0].start.get("run"):
        if not Path(str(before)).is_dir() or Path(before).resolve() in [stage.folder.resolve() for stage in stages]:
            end = f"{before} is gone; the stages before it are {UNMEASURED}"
            break
        stages.insert(0, Facts(Path(before)))
    if len(stages) == 1 and not end:
        return []
    rows, note = stage_table(stages)
    return [Section("Chain of stages", [Table(rows), Text(note), *([Text(end)] if end else [])])]


def anomalies(found: Sequence[tuple[Rule, Verdict]]) -> Section:
    """What is wrong first; then every rule with its outcome."""
    blocks: list[Block] = [Text(f"{r.name}: {text}", True) for r, v in found if not isinstance(v, str) for text in v]
    rows = [["rule", "outcome", "what it looks for"]]
    for rule, verdict in found:
        outcome = (
            f"could not look: {verdict}" if isinstance(verdict, str) else f"{len(verdict)} found" if verdict else "-"
        )
        rows.append([rule.name, outcome, rule.text])
    return Section(
        "Anomalies", blocks or [Text("None of the rules found anything.")], [Table(rows)], "Rules and outcomes"
    )


def warnings(run: Facts) -> list[Section]:
    if run.notes is None:
        return [Section("Warnings", [Text(f"{UNMEASURED}: the run kept no notes.csv")])]
    if not run.notes:
        return [Section("Warnings", [Text("None was given.")])]
    kinds: dict[str, list[Mapping[str, str]]] = {}
    for row in run.notes:
        kinds.setdefault(row["kind"], []).append(row)
    table = [["kind", "times", "things", "the first"]]
    table += [[k, str(len(v)), str(sum(int(r["count"]) for r in v)), v[0]["text"]] for k, v in kinds.items()]
    full = [["epoch", "kind", "things", "text"]]
    full += [[r["epoch"] or "start", r["kind"], r["count"], r["text"]] for r in run.notes]
    return [Section("Warnings", [Table(table)], [Table(full)], f"all {len(run.notes)}")]


def over_epochs(run: Facts, columns: Iterable[str], lowest: bool, titles: Mapping[str, str] = BASE) -> Table:
    """first, best, last, trend of columns of results.csv. lowest: whether the lowest value is the best one."""
    rows, curves = [["", "first", "best", "at epoch", "last", "trend"]], []
    for column in columns:
        series = run.series(column)
        rows.append([titles.get(column, column), *summary(series, lowest)])
        curves.append([v for _, v in series])
    return Table(rows, curves)


def summary(series: Series, lowest: bool) -> list[str]:
    if not series:
        return [UNMEASURED] * 5
    epoch, best = (min if lowest else max)(series, key=lambda p: p[1])
    found = trend(series)
    slope = (
        f"{found.word}, {found.slope:+.2g} per epoch ({found.change:+.1%})"
        if found
        else f"{UNMEASURED}: {len(series)} values"
    )
    return [number(series[0][1]), number(best), str(epoch), number(series[-1][1]), slope]


def losses(run: Facts) -> list[Section]:
    terms = run.terms
    if not terms:
        return [Section("Loss terms", [Text(f"{UNMEASURED}: no epoch is finished")])]
    blocks: list[Block] = [Text(RULES_OF_TREND), over_epochs(run, terms, True)]
    validation = [c for c in run.columns if c.startswith("val_")]
    blocks += [Text("The same on the validation images"), over_epochs(run, validation, True)]
    return [Section("Loss terms", blocks)]


def validation(run: Facts) -> list[Section]:
    if not run.scored:
        return [Section("Validation", [Text(f"{UNMEASURED}: no epoch was evaluated")])]
    best = run.best
    rule = f"Matching rule {best.get('match') or 'not recorded'}; best epoch, of {run.choice.words}: {best['epoch']}."
    blocks: list[Block] = [Text(rule), over_epochs(run, BASE, False)]
    if run.heads:
        columns = [c for kind in ("mAP50", "mAP") for c in run.columns if c.startswith(f"{kind}/")]
        blocks += [Text("Per head (mAP50: at IoU 0.5; mAP: at 0.5:0.95)"), over_epochs(run, columns, False)]
    return [Section("Validation", [*blocks, *per_class(run)])]


def per_class(run: Facts) -> list[Block]:
    if run.classes:
        head = ["class", "objects", "P", "R", "F1", "AP@0.5", "AP@0.5:0.95"]
        cells = [
            [r["class"], r["objects"], *(number(float(v)) if v else "-" for v in list(r.values())[2:])]
            for r in run.classes
        ]
        return [Text("Per class, best.pt"), Table([head, *cells])]
    last = run.checkpoint("last.pt")
    values = (last.meta.get("class_ap") if last else None) or []
    if not values or len(values) != len(run.names):
        return [Text(f"Per class: {UNMEASURED}")]
    rows = [[n, number(float(v))] for n, v in zip(run.names, values, strict=True)]
    return [Text("Per class, at the last evaluated epoch (last.pt)"), Table([["class", "AP@0.5:0.95"], *rows])]


def extras(run: Facts) -> list[Section]:
    """What patches measured, by family; the overall gradient norm where it is recorded."""
    found = []
    for title, prefix in FAMILIES.items():
        if columns := [c for c in run.extras if c.startswith(prefix)]:
            found.append(Section(title, [extremes(run, columns)]))
    rest = [c for c in run.extras if not c.startswith(tuple(FAMILIES.values()))]
    if rest:
        found.append(Section("Other columns", [extremes(run, rest)]))
    if not any("grad_norm" in c for c in run.columns):
        found.append(Section("Gradient norms", [Text(UNMEASURED)]))
    return found


def extremes(run: Facts, columns: Sequence[str]) -> Table:
    rows, curves = [["", "first", "lowest", "highest", "last", "trend"]], []
    for column in columns:
        series = run.series(column)
        values = [v for _, v in series]
        low_high = [number(min(values)), number(max(values))] if values else [UNMEASURED] * 2
        first, _, _, last, slope = summary(series, True)
        rows.append([column, first, *low_high, last, slope])
        curves.append(values)
    return Table(rows, curves)


def openings(run: Facts) -> list[Mapping[str, Any]]:
    """What begins to learn at which epoch within the run, as planned."""
    return list((run.patches.get("unfreeze", {}).get("unfreeze_table") or {}).get("stages") or [])


def freezing(run: Facts) -> list[Section]:
    """Which modules learn from when, and how mAP went around each opening."""
    if not run.patches.keys() & {"freeze", "unfreeze"}:
        return []
    blocks: list[Block] = [Text(f"Frozen by flag: {run.frozen}; BatchNorm of frozen modules: "
                                f"{run.config.get('freeze_bn', 'not recorded')}")]  # fmt: skip
    stages = openings(run)
    scores = dict(run.series("mAP50"))
    if stages:
        rows = [["stage", "epoch", "modules", "rate x", "ramp, epochs", "mAP@0.5 before", "lowest", "last"]]
        for i, stage in enumerate(stages):
            first = int(stage["epoch"])
            end = int(stages[i + 1]["epoch"]) if i + 1 < len(stages) else max(run.epochs, first + 1)
            inside = [v for e, v in scores.items() if first <= e < end]
            around = [number(scores[first - 1]) if first - 1 in scores else UNMEASURED]
            around += [number(min(inside)), number(inside[-1])] if inside else [UNMEASURED] * 2
            rows.append(
                [str(i + 1), str(first), str(stage["modules"]), f"{stage['scale']:g}", f"{stage['ramp']:g}", *around]
            )
        blocks += [Text("Openings as planned"), Table(rows)]
    if run.guard:
        table = [["epoch", "event", "mAP@0.5 before", "now", "action"]]
        for r in run.guard:
            before = number(float(r["before"])) if r["before"] else "-"
            table.append([r["epoch"], r["event"], before, number(float(r["now"])), r["action"]])
        blocks += [Text("Guard"), Table(table)]
    folded = [extremes(run, run.rates)] if run.rates else []
    return [Section("Freezing and opening", blocks, folded, "learning rates")]


def checkpoints(run: Facts) -> list[Section]:
    if not run.checkpoints:
        return [Section("Checkpoints", [Text("weights/ holds none")])]
    rows = [["file", "MB", "epoch", "chosen as", "mAP@0.5", "mAP@0.5:0.95", "rule"]]
    for c in run.checkpoints:
        name, size = c.path.name, f"{c.size / 1e6:.2f}"
        if c.error:
            rows.append([name, size, "damaged", c.error, *[UNMEASURED] * 3])
            continue
        kind = "before an opening, for the guard" if name.startswith("before_") else "every --save-period epochs"
        found = [number(float(c.meta[k])) if k in c.meta else UNMEASURED for k in ("map50", "map")]
        epoch = str(c.meta.get("epoch", "-"))
        rows.append(
            [
                name,
                size,
                epoch,
                {**CHOSEN, "best.pt": f"{run.choice.words} so far"}.get(name, kind),
                *found,
                str(c.meta.get("match", UNMEASURED)),
            ]
        )
    return [Section("Checkpoints", [Table(rows)])]


def pictures(run: Facts) -> list[Section]:
    found = sorted(p for p in run.folder.iterdir() if p.suffix.lower() in PICTURES)
    first = ("results", "history", "PR_curve", "confusion_matrix")
    found.sort(key=lambda p: first.index(p.stem) if p.stem in first else len(first))
    shown: list[Block] = [Picture(p, p.stem.replace("_", " ")) for p in found]
    return [Section("Pictures", shown[:2] or [Text("none yet")], shown[2:], f"{max(len(found) - 2, 0)} more pictures")]
