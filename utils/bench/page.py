"""What bench.py found, as tables on the screen and as BENCHMARKS.md, beside the original programs' figures.

The originals' figures were measured by themselves on another occasion (two shared CPU cores, torch 2.13, yolov7-tiny at
320 px, batch 8 unless said); their ratios hold better than their milliseconds.
"""

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from utils.runs.record import environment
from utils.system.table import markdown

Row = Mapping[str, Any]


class Section(NamedTuple):
    """How a section is shown."""

    title: str
    text: str  # what was measured
    main: str  # the part the ratio is of
    originals: tuple[str, ...] = ()
    targets: Mapping[str, tuple[str, float]] = {}  # row -> what is aimed at: highest ratio or seconds, least images/s
    cuda: Mapping[str, tuple[str, float]] = {}  # the same on CUDA


SECTIONS = {
    "step": Section(
        "A training step",
        "One micro-batch that also steps the optimizer. `step` is everything but `data`, which is what a batch costs "
        "in the main process and what workers hide. Memory: most bytes of tensors alive at once, weights, average and "
        "optimizer state included; the program itself is not in it.",
        "step",
        (
            "YOLOv7: forward 473, loss 10, backward 806, optimizer 16, EMA 19 ms; OTA loss 51 ms.",
            "YOLOv7's memory: 1,260 MB, measured as the process's, so the program itself is in it.",
            "The 1B4H fork: a step takes as long as 1B1H's, within noise.",
        ),
        {"1B4H, plain": ("ratio", 1.10)},
        {"1B4H, plain": ("ratio", 1.10)},
    ),
    "freeze": Section(
        "Frozen modules",
        "`--freeze N`: the first N modules do not learn, their BatchNorm stays in eval mode and is folded into "
        "the convolutions, except where the row says so. 77 modules; 74 is all but the heads.",
        "step",
        (
            "YOLOv7, ratio to no freezing: 10: 0.77, 30: 0.61, 50: 0.54, 74: 0.40; with no_grad and eval added "
            "0.73, 0.58, 0.49, 0.38; with BatchNorm folded 0.70, 0.54, 0.47, 0.37.",
            "YOLOv7's memory: freeze 50 868 MB of 1,260 MB.",
        ),
        {"freeze 50": ("ratio", 0.48), "freeze 74": ("ratio", 0.36)},
        {"freeze 50": ("ratio", 0.60), "freeze 74": ("ratio", 0.45)},
    ),
    "settings": Section(
        "Settings of the step",
        "`--channels-last`, `--adam`; on CUDA also `--no-amp` and `--amp-dtype`. On a CPU mixed precision is never on: "
        "bf16 was measured ten times slower. `--channels-last` is off unless asked for: its results differ in the last "
        "digits, between train.py and test.py too, and nobody has measured it on CUDA.",
        "step",
        ("YOLOv7, channels_last: 1.09 to 1.12 times faster (ratio 0.89 to 0.92).",),
    ),
    "compile": Section(
        "`--compile`",
        "The first step compiles (`start`, seconds). A smaller last batch of an epoch and another image size compile "
        "again.",
        "step",
        ("YOLOv7: 1.10 to 1.12 times faster (ratio 0.89 to 0.91) after 90 to 180 s.",),
    ),
    "loss": Section(
        "The loss alone",
        "Assignment and loss on raw outputs of a fresh model, 80 classes, 7 objects per image; ratios to `1B1H, plain` "
        "of the same batch.",
        "loss",
        (
            "YOLOv7 plain: 9.5, 12.4, 25.8 ms at batch 8, 16, 64; OTA 38.9 (4.1x), 76.1 (6.1x), 294 ms (11.4x).",
            "The 1B4H fork, plain: 25.1 (2.6x), 32.9 (2.6x), 61.9 ms (2.4x).",
            "On an RTX 5090 at batch 384 (its authors): plain 11.2 ms, OTA 1016 ms.",
        ),
        {f"1B1H, OTA, batch {n}": ("ratio", 2.0) for n in (8, 16, 64)}
        | {f"1B4H, plain, batch {n}": ("ratio", 1.5) for n in (8, 16, 64)},
        {f"{kind}, batch {n}": ("ratio", 1.5) for kind in ("1B1H, OTA", "1B4H, plain") for n in (64, 384)},
    ),
    "loader": Section(
        "Batches without training",
        "Mosaic, mixup and paste-in as data/hyp.scratch.tiny.yaml has them, from 128 JPEGs of 640x480 (150 KB each); "
        "an epoch, workers running.",
        "epoch",
        (
            "YOLOv7, images/s with 0, 1, 2 workers: 67, 69, 121; from RAM, 1 and 2 workers: 272, 449. The workers had "
            "the cores to themselves.",
        ),
        {
            "0 workers": ("images/s", 100),
            "1 workers": ("images/s", 103),
            "2 workers": ("images/s", 181),
            "1 workers, from RAM": ("images/s", 408),
            "2 workers, from RAM": ("images/s", 673),
        },
    ),
    "wait": Section(
        "Waiting for data",
        "Share of the time a training loop spends waiting for its next batch; one setting after the other.",
        "share",
    ),
    "evaluation": Section(
        "Evaluation",
        "Per image, of 128 images, boxes and loss of a fresh model with scores like a trained one's (about 1,450 "
        "candidates per image). `whole` includes loading in the main process.",
        "whole",
        ("YOLOv7, per image of 200: forward 245 ms, NMS 25 ms, matching and AP 6.5 ms.",),
    ),
    "coco": Section(
        "COCO's twelve figures",
        "5,000 images with 7 objects and 98 detections each, from a result in memory.",
        "figures",
        ("490,000 detections on 5,000 images: pycocotools 247 s, faster-coco-eval 33 s.",),
    ),
    "startup": Section(
        "Start",
        "A new process each time; the label cache is warm.",
        "seconds",
        targets={"python train.py --help": ("seconds", 1.5), "until the first step is done": ("seconds", 10)},
    ),
}


def of_device(name: str, device: str) -> Section:
    """A section with the targets of this device."""
    section = SECTIONS[name]
    return section._replace(targets=section.cuda) if device == "cuda" else section


def about(device: torch.device, argv: Sequence[str], flags: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Machine, versions, date and command; no names of hosts or folders."""
    known = environment()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cuda = device.type == "cuda"
    return {
        "device": device.type,
        "machine": f"{models[0] if models else 'CPU'}, {os.cpu_count()} cores, {memory:.0f} GiB"
        + (f", {torch.cuda.get_device_name(device)}" if cuda else ""),
        "versions": {k: known[k] for k in ("python", "torch", "cuda", "opencv", "numpy", "git")},
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python -m bench", *argv]),
        "flags": " ".join(f"{flag} {value}" for flag, value in flags),
    }


def cells(row: Row, section: Section) -> dict[str, str]:
    """Column -> text of one row. Milliseconds, except where a part takes seconds."""
    found = {"": row["name"]}
    for part, value in row["parts"].items():
        found[part] = duration(value["median"])
        if part == section.main:
            found[part] += f" ({duration(value['min'])}..{duration(value['max'])})"
    for key in ("ratio", "ratio of CPU time"):
        if (r := row.get(key)) and section.main != "seconds":  # of starts there is nothing to compare
            found[key] = f"{r['median']:.2f} ({r['min']:.2f}..{r['max']:.2f})"
    if "images_per_second" in row:
        found["images/s"] = f"{row['images_per_second']['median']:.1f}"
    if "memory" in row:
        found["memory, MB"] = f"{row['memory'] / 1e6:,.0f}"
    if "start" in row:
        found["start"] = duration(row["start"])
        found["pays after"] = pays(row)
    if "share" in row:
        r = row["share"]
        found["share of waiting"] = f"{r['median']:.1%} ({r['min']:.1%}..{r['max']:.1%})"
    if section.targets:
        found["target"] = verdict(row, section)[0]
    return found


def verdict(row: Row, section: Section) -> tuple[str, bool]:
    """What was aimed at ("" where nothing was), and whether it was missed. By CPU time where it is counted."""
    if row["name"] not in section.targets:
        return "", False
    kind, goal = section.targets[row["name"]]
    if kind == "images/s":
        rate = row["images_per_second"]["median"]
        return f"{goal:.0f} images/s or more" + (f", missed: {rate:.0f}" if rate < goal else ""), rate < goal
    got = row["parts"]["CPU time"] if kind == "seconds" else row.get("ratio of CPU time", row["ratio"])
    missed, show = got["median"] > goal, duration if kind == "seconds" else "{:.2f}".format
    return f"{show(goal)} or less" + (f", missed: {show(got['median'])}" if missed else ""), missed


def duration(seconds: float) -> str:
    """2.1 s, 340 ms, 3.4 ms"""
    if seconds >= 2:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.02 else f"{seconds * 1e3:.1f} ms"


def table(rows: Sequence[Row], section: Section) -> str:
    """A Markdown table, columns padded so that it also reads on a screen."""
    filled = [cells(row, section) for row in rows]
    columns = list(dict.fromkeys(k for row in filled for k in row))
    return markdown([columns, *([row.get(c, "") for c in columns] for row in filled)])


def tables(result: Mapping[str, Any]) -> str:
    """Everything that was measured, for the screen."""
    head = f"{result['machine']}, {result['threads']} threads, torch {result['versions']['torch']}; {result['flags']}"
    shown = [
        f"{SECTIONS[k].title}\n{table(rows, of_device(k, result['device']))}" for k, rows in result["sections"].items()
    ]
    return "\n\n".join([head, *shown])


def page(results: Sequence[Mapping[str, Any]], before: Mapping[str, object] | None = None) -> str:
    """BENCHMARKS.md of one or several files of `--out`. before: the same of an earlier state of the code."""
    lines = [PREFACE]
    for r in results:
        lines.append(f"{origin(r)}\n  - repeat with `{r['command']}`; flags of all rows: `{r['flags']}`")
    if not any(r["device"] == "cuda" for r in results):
        lines.append("- CUDA: not measured. Rows below that say so are waiting for a device.")
    for name, section in SECTIONS.items():
        lines.append(f"\n## {section.title}\n{section.text}\n")
        for device, label in (("cpu", "CPU"), ("cuda", "CUDA")):
            rows = [row for r in results if r["device"] == device for row in r["sections"].get(name, [])]
            lines.append(
                f"{label}:\n\n{table(rows, of_device(name, device))}\n" if rows else f"{label}: not measured.\n"
            )
        lines += [f"- On another occasion: {text}" for text in section.originals]
    if before:
        lines.append(f"\n## Before and after\n{BEFORE}\n\n{origin(before)}\n\n{compared(before, results[0])}")
    return "\n".join([*lines, "", misses(results)])


def origin(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    return (
        f"- {result['device'].upper()}: {result['machine']}; threads {result['threads']}; {versions}; {result['date']}"
    )


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A Markdown table of the rows that both have: CPU time (or what the ratio is of) and memory."""
    lines = ["| section | row | before | after | ratio | memory, MB |", "|---|---|---|---|---|---|"]
    for name, section in SECTIONS.items():
        old = {row["name"]: row for row in before["sections"].get(name, [])}
        for row in after["sections"].get(name, []):
            part = "CPU time" if "CPU time" in row["parts"] else section.main
            if row["name"] not in old or part not in row["parts"]:
                continue
            was, now = (r["parts"][part]["median"] for r in (old[row["name"]], row))
            memory = [f"{r['memory'] / 1e6:,.0f}" for r in (old[row["name"]], row) if "memory" in r]
            times = f"{duration(was)} | {duration(now)} | {now / was:.2f}"
            lines.append(f"| {name} | {row['name']} | {times} | {' -> '.join(memory)} |")
    return "\n".join(lines)


def misses(results: Sequence[Mapping[str, Any]]) -> str:
    """Targets that were not met, what compiling costs, and what nobody has measured."""
    found = [
        f"- {r['device'].upper()}, {SECTIONS[name].title}, {row['name']}: aimed at {verdict(row, section)[0]}"
        for r in results
        for name, rows in r["sections"].items()
        if (section := of_device(name, r["device"]))
        for row in rows
        if verdict(row, section)[1]
    ]
    found += [
        f"- {r['device'].upper()}, `--compile`: starts after {duration(row['start'])}; pays after {pays(row)}"
        for r in results
        for row in r["sections"].get("compile", [])[1:]
    ]
    if not any(r["device"] == "cuda" for r in results):
        found.append("- CUDA: nothing is measured, so none of its targets is known to be reached.")
    return "\n".join(["## What is not flattering", *(found or ["Every target was reached here."])])


def pays(row: Row) -> str:
    if not row["pays_after"]:
        return "" if row["pays_after"] == 0 else "no number of steps"
    return f"{row['pays_after']:,.0f} steps"


BEFORE = (
    "Medians of two processes on one machine, one after the other: an earlier state of this program and this one. CPU "
    "time where it is counted."
)
PREFACE = """# Benchmarks
Made by `python -m bench --markdown FILE.json`; nothing here is edited by hand.

Every row is a list of train.py's flags, built and run by the code train.py runs, on drawn pictures. The rows of a
section take turns in one process, round by round; times are medians of the rounds (least..most), ratios are medians of
the rounds' own ratios to the section's first row. CPU time is the processor time that the process used: other programs
disturb it less than the clock on the wall, which the rest shows; targets are held against it.

Repeat with `OMP_NUM_THREADS=1 python -m bench --out FILE.json`, or as many threads as cores are idle.
"""
