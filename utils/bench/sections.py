"""The sections of bench.py: which rows there are, as flags of train.py, and how each is measured.

A row: name, parts {part: median, min, max in seconds}, ratio to the section's first row, and where it applies the ratio
of CPU time, images_per_second, memory (bytes, weights and optimizer included), start (seconds of the first step).
"""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from utils.bench.parts import CLASSES, Evaluation, LoaderPass, LossCall, Stepper, coco_files
from utils.evaluation import coco
from utils.system.files import ROOT
from utils.system.timing import Parts, interleaved, peak_bytes, ratios, spread

PLAIN, OTA = ["--loss-ota", "0"], ["--loss-ota", "1"]
FOUR = ["--heads", "4", "--head-config", "data/coco_320_1b4h_standard.yaml"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all sections share."""

    base: list[str]  # flags of every row
    device: torch.device
    rounds: int
    quick: bool
    cfg: str
    cfg4: str
    extra: list[str]  # flags from the command line; they win
    folder: Path  # for files that go with the measurement

    def words(self, *flags: str, heads: int = 1) -> list[str]:
        model = ["--cfg", self.cfg] if heads == 1 else ["--cfg", self.cfg4, *FOUR]
        return [*self.base, *model, *flags, *self.extra]

    def variants(self) -> dict[str, list[str]]:
        """One head and four, plain and OTA."""
        return {f"{k}, {name}": self.words(*flags, heads=int(k[2])) for k in ("1B1H", "1B4H")
                for name, flags in (("plain", PLAIN), ("OTA", OTA))}  # fmt: skip

    def rows(self, found: dict[str, list[Parts]], of: str, images: int = 0, **more: dict[str, Any]) -> list[Row]:
        """found: rounds per row. of: the part that ratios to the first row are of; images: how many that part takes."""
        base, rows = next(iter(found)), []
        for name, rounds in found.items():
            row: Row = {"name": name, "parts": {k: spread([r[k] for r in rounds]) for k in rounds[0]}}
            for key, part in (("ratio", of), ("ratio of CPU time", "CPU time")):
                if part in rounds[0]:
                    row[key] = ratios([r[part] for r in rounds], [r[part] for r in found[base]])
            if images:
                row["images_per_second"] = spread([images / r[of] for r in rounds])
            rows.append(row | {k: v[name] for k, v in more.items()})
        return rows

    def steps(self, variants: dict[str, list[str]]) -> list[Row]:
        """Training steps of each variant."""
        made = {name: Stepper(words) for name, words in variants.items()}
        found = interleaved({name: s.measure for name, s in made.items()}, self.rounds, warmup=2)
        memory = {name: s.held_bytes() + peak_bytes(s.measure, self.device) for name, s in made.items()}
        return self.rows(found, "step", next(iter(made.values())).run.cfg.batch_size, memory=memory)


def step(b: Bench) -> list[Row]:
    return b.steps(b.variants())


def freeze(b: Bench) -> list[Row]:
    kinds = {f"freeze {n}": ["--freeze", n] for n in ("0", "10", "30", "50", "74")}
    kinds |= {f"freeze {n}, not folded": ["--freeze", n, "--no-fold-frozen"] for n in ("50", "74")}
    return b.steps({name: b.words(*PLAIN, *flags) for name, flags in kinds.items()})


def settings(b: Bench) -> list[Row]:
    kinds = {"as it comes": [], "channels last": ["--channels-last"], "Adam": ["--adam"]}
    if b.device.type == "cuda":
        bf16 = ["--amp-dtype", "bf16"]
        kinds |= {"float32": ["--no-amp"], "bf16": bf16, "bf16, channels last": [*bf16, "--channels-last"]}
    return b.steps({name: b.words(*PLAIN, *flags) for name, flags in kinds.items()})


def compiled(b: Bench) -> list[Row]:
    """The first step, which compiles, is reported as `start`; `pays_after` so many steps, None: never."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(b.folder / "compiled")  # as the first time, not from an older cache
    plain, compiled = Stepper(b.words(*PLAIN)), Stepper(b.words(*PLAIN, "--compile"))
    first = {name: s.measure()["step"] for name, s in (("as it comes", plain), ("compiled", compiled))}
    found = interleaved({"as it comes": plain.measure, "compiled": compiled.measure}, b.rounds)
    gain = [spread([r["step"] for r in rounds])["median"] for rounds in found.values()]
    pays = {"as it comes": 0.0, "compiled": first["compiled"] / (gain[0] - gain[1]) if gain[0] > gain[1] else None}
    return b.rows(found, "step", plain.run.cfg.batch_size, start=first, pays_after=pays)


def loss(b: Bench) -> list[Row]:
    batches = (2,) if b.quick else (64, 384) if b.device.type == "cuda" else (8, 16, 64)
    steppers, rows = {name: Stepper(words) for name, words in b.variants().items()}, []
    for batch in batches:
        made = {f"{name}, batch {batch}": LossCall(s, batch) for name, s in steppers.items()}
        found = interleaved({name: call.measure for name, call in made.items()}, b.rounds)
        memory = {name: peak_bytes(call.measure, b.device) for name, call in made.items()}
        rows += b.rows(found, "loss", memory=memory)
    return rows


def loader(b: Bench) -> list[Row]:
    made = {}
    for cache, flags in (("", []), (", from RAM", ["--cache-images"])):
        for n in ("0", "1", "2") if b.device.type == "cpu" else ("0", "1", "2", "8"):
            made[f"{n} workers{cache}"] = LoaderPass(b.words("--workers", n, *flags))
    found = interleaved({name: p.measure for name, p in made.items()}, b.rounds)
    return b.rows(found, "epoch", next(iter(made.values())).images)


def wait(b: Bench) -> list[Row]:
    """One variant after the other: workers that fetch ahead would disturb the others. Rounds are successive steps."""
    found = {}
    for n in ("0", "1", "2"):
        s = Stepper(b.words(*PLAIN, "--workers", n))
        rounds = interleaved({"": s.measure}, 2 * b.rounds, warmup=3)[""]
        found[f"{n} workers"] = [{**r, "data": r["data"] / (r["data"] + r["step"])} for r in rounds]
    return [{"name": k, "parts": {}, "share": spread([r["data"] for r in v])} for k, v in found.items()]


def evaluation(b: Bench) -> list[Row]:
    made = {f"1B{h}H": Evaluation(Stepper(b.words(*PLAIN, heads=h))) for h in (1, 4)}
    found = interleaved({name: e.measure for name, e in made.items()}, b.rounds)
    memory = {name: e.held_bytes() + peak_bytes(e.measure, b.device) for name, e in made.items()}
    return b.rows(found, "whole", 1, memory=memory)


def coco_figures(b: Bench) -> list[Row]:
    images, each = (20, 10) if b.quick else (5000, 98)
    with tempfile.TemporaryDirectory() as folder:
        truth, paths, detections = coco_files(Path(folder), images, each)
        names = [str(i) for i in range(CLASSES)]

        def measure() -> Parts:
            started = time.perf_counter()
            entries = coco.to_entries(paths, detections, coco.read_ids(names, truth))
            coco.figures(truth, entries, range(images))
            return {"figures": time.perf_counter() - started}

        found = interleaved({f"{images * each:,} detections": measure}, min(b.rounds, 3), warmup=0)
    return b.rows(found, "figures")


def startup(b: Bench) -> list[Row]:
    train = b.words(*PLAIN, "--nosave", "--notest", "--epochs", "100")
    made = {"python train.py --help": ["--help"], "until the first step is done": train}
    found = interleaved({name: partial(until_step, words) for name, words in made.items()}, min(b.rounds, 3))
    return b.rows(found, "seconds")


def until_step(words: list[str]) -> Parts:
    """Seconds from calling train.py to its first loss on the screen, or its end."""
    started, used, seen = time.perf_counter(), children(), b""
    command = [sys.executable, "train.py", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        while b"box=" not in seen and (more := os.read(process.stderr.fileno(), 4096)):
            seen += more
        elapsed = time.perf_counter() - started
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return {"seconds": elapsed, "CPU time": children() - used}


def children() -> float:
    """Processor time of the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


SECTIONS: dict[str, Callable[[Bench], list[Row]]] = {
    "step": step, "freeze": freeze, "settings": settings, "compile": compiled, "loss": loss, "loader": loader,
    "wait": wait, "evaluation": evaluation, "coco": coco_figures, "startup": startup,
}  # fmt: skip
