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

from utils.record import environment

Row = Mapping[str, Any]


class Section(NamedTuple):
    """How a section is shown."""

    title: str
    text: str  # what was measured
    main: str  # the part the ratio is of
    originals: tuple[str, ...] = ()
    targets: Mapping[str, float] = {}  # row -> highest ratio aimed at


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
            "1B4H fork, step: within noise of 1B1H.",
        ),
        {"1B4H, plain": 1.10},
    ),
    "freeze": Section(
        "Frozen modules",
        "`--freeze N`: the first N modules do not learn, their BatchNorm stays in eval mode. 77 modules; 74 is all but "
        "the heads.",
        "step",
        (
            "YOLOv7, ratio to no freezing: 10: 0.77, 30: 0.61, 50: 0.54, 74: 0.40; with no_grad and eval added "
            "0.73, 0.58, 0.49, 0.38; with BatchNorm folded 0.70, 0.54, 0.47, 0.37.",
            "YOLOv7's memory: freeze 50 868 MB of 1,260 MB.",
        ),
        {"freeze 50": 0.48, "freeze 74": 0.36},
    ),
    "settings": Section(
        "Settings of the step",
        "`--channels-last`, `--adam`; on CUDA also `--no-amp` and `--amp-dtype`. On a CPU mixed precision is never on: "
        "bf16 was measured ten times slower.",
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
            "1B4H fork: 25.1 (2.6x), 32.9 (2.6x), 61.9 ms (2.4x).",
            "On an RTX 5090 at batch 384 (its authors): plain 11.2 ms, OTA 1016 ms.",
        ),
        {f"1B1H, OTA, batch {n}": 2.0 for n in (8, 16, 64)} | {f"1B4H, plain, batch {n}": 1.5 for n in (8, 16, 64)},
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
    "startup": Section("Start", "A new process each time; the label cache is warm.", "seconds"),
}


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
        whole = part == section.main
        found[part] = duration(value["median"])
        if whole and len(row["parts"]) <= 8:
            found[part] += f" ({duration(value['min'])}..{duration(value['max'])})"
    for key in ("ratio", "ratio of CPU time"):
        if r := row.get(key):
            found[key] = f"{r['median']:.2f} ({r['min']:.2f}..{r['max']:.2f})"
    if goal := section.targets.get(row["name"]):
        found["target"] = f"{goal:.2f}" + ("" if row["ratio"]["median"] <= goal else ", missed")
    elif section.targets:
        found["target"] = ""
    if "images_per_second" in row:
        found["images/s"] = f"{row['images_per_second']['median']:.1f}"
    if "memory" in row:
        found["memory, MB"] = f"{row['memory'] / 1e6:,.0f}"
    if "start" in row:
        found["start"] = duration(row["start"])
    if "share" in row:
        r = row["share"]
        found["share of waiting"] = f"{r['median']:.1%} ({r['min']:.1%}..{r['max']:.1%})"
    return found


def duration(seconds: float) -> str:
    """2.1 s, 340 ms, 3.4 ms"""
    if seconds >= 2:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 0.02 else f"{seconds * 1e3:.1f} ms"


def table(rows: Sequence[Row], section: Section) -> str:
    """A Markdown table, columns padded so that it also reads on a screen."""
    filled = [cells(row, section) for row in rows]
    columns = list(dict.fromkeys(k for row in filled for k in row))
    width = {c: max(len(c), *(len(row.get(c, "")) for row in filled)) for c in columns}
    lines = ["| " + " | ".join(c.ljust(width[c]) for c in columns) + " |"]
    lines.append("|" + "|".join("-" * (width[c] + 2) for c in columns) + "|")
    lines += ["| " + " | ".join(row.get(c, "").ljust(width[c]) for c in columns) + " |" for row in filled]
    return "\n".join(lines)


def tables(result: Mapping[str, Any]) -> str:
    """Everything that was measured, for the screen."""
    head = f"{result['machine']}, {result['threads']} threads, torch {result['versions']['torch']}; {result['flags']}"
    shown = [f"{SECTIONS[k].title}\n{table(rows, SECTIONS[k])}" for k, rows in result["sections"].items()]
    return "\n\n".join([head, *shown])


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """BENCHMARKS.md of one or several files of `--out`."""
    lines = [PREFACE]
    for r in results:
        versions = ", ".join(f"{k} {v}" for k, v in r["versions"].items() if v)
        lines.append(
            f"- {r['device'].upper()}: {r['machine']}; threads {r['threads']}; {versions}; {r['date']}\n"
            f"  - repeat with `{r['command']}`; flags of all rows: `{r['flags']}`"
        )
    if not any(r["device"] == "cuda" for r in results):
        lines.append("- CUDA: not measured. Rows below that say so are waiting for a device.")
    for name, section in SECTIONS.items():
        lines.append(f"\n## {section.title}\n{section.text}\n")
        for device in ("cpu", "cuda"):
            rows = [row for r in results if r["device"] == device for row in r["sections"].get(name, [])]
            label = device.upper() if device == "cuda" else "CPU"
            lines.append(f"{label}:\n\n{table(rows, section)}\n" if rows else f"{label}: not measured.\n")
        lines += [f"- The original on another occasion, CPU: {text}" for text in section.originals]
    return "\n".join([*lines, "", misses(results)])


def misses(results: Sequence[Mapping[str, Any]]) -> str:
    """Targets that were not met."""
    found = [
        f"- {SECTIONS[name].title}, {row['name']}: {row['ratio']['median']:.2f}, aimed at {goal:.2f} or less"
        for r in results
        for name, rows in r["sections"].items()
        for row in rows
        if (goal := SECTIONS[name].targets.get(row["name"])) and row["ratio"]["median"] > goal
    ]
    return "\n".join(["## What is not flattering", *(found or ["Every ratio aimed at was reached here."])])


PREFACE = """# Benchmarks
Made by `python -m bench --markdown FILE.json`; nothing here is edited by hand.

Every row is a list of train.py's flags, built and run by the code train.py runs, on drawn pictures. The rows of a
section take turns in one process, round by round; times are medians of the rounds (least..most), ratios are medians of
the rounds' own ratios to the section's first row. CPU time is the processor time that the process used: other programs
disturb it less than the clock on the wall, which the rest shows.

Repeat with `OMP_NUM_THREADS=1 python -m bench --out FILE.json`, or as many threads as cores are idle.
"""
