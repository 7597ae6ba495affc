"""Measure a training run: where a step's time goes, what the settings cost, how fast data and evaluation are.

  python -m bench                               every section but compile, on the best device there is
  python -m bench freeze loss --rounds 9        some of them
  python -m bench step -- --img 640 --batch 4   with other flags of train.py, for every row
  python -m bench --markdown FILE.json ... > BENCHMARKS.md

Every row is a list of train.py's flags and is built and run by the code train.py runs. Rows take turns, round by round,
in one process; a ratio is the median of the rounds' own ratios to the section's first row. The data are drawn.
Write with `--out FILE.json`; the table is printed in any case. One OpenMP thread per idle core: set OMP_NUM_THREADS.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.bench import page as bench_page
from utils.bench.parts import write_pictures
from utils.bench.sections import SECTIONS, Bench
from utils.config.options import Program, opt
from utils.config.shared import Device
from utils.system.device import select_device
from utils.system.errors import run_main


@dataclass(frozen=True, kw_only=True)
class Options(Device):
    sections: tuple[str, ...] = opt((), ", ".join(SECTIONS), positional=True, nargs="*", choices=tuple(SECTIONS))
    rounds: int = opt(7, "rounds in which the rows take turns", "evaluation", low=1)
    quick: bool = opt(False, "toy sizes, one round: does it run, not how fast", "speed")
    out: str = opt("", "also write the figures", "saving", metavar="FILE.json")
    markdown: tuple[str, ...] = opt((), "print BENCHMARKS.md of these files and stop", nargs="+", metavar="FILE.json")
    before: str = opt("", "with --markdown: an earlier state to compare with", metavar="FILE.json")


PROGRAM = Program("python -m bench", str(__doc__), Options, rest="TRAIN.PY'S FLAGS, FOR EVERY ROW")


def main(argv: list[str]) -> dict[str, Any] | None:
    given = PROGRAM.parse(argv)
    args = given.cfg
    if args.markdown:
        before = json.loads(Path(args.before).read_text()) if args.before else None
        print(bench_page.page([json.loads(Path(f).read_text()) for f in args.markdown], before))
        return None
    device = select_device(args.device)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_pictures(Path(folder) / "pictures", 8 if args.quick else 128)
        sizes = ("64", "2") if args.quick else ("640", "64") if device.type == "cuda" else ("320", "8")
        base = ["--data", str(pictures), "--hyp", "data/hyp.scratch.tiny.yaml", "--img", sizes[0], "--batch", sizes[1]]
        base += ["--workers", "0", "--device", str(device), "--project", folder]
        names = ("demo", "demo-1b4h") if args.quick else ("yolov7-tiny", "yolov7-tiny-1b4h")
        models = [f"cfg/training/{name}.yaml" for name in names]
        b = Bench(
            [*base, "--noautoanchor"],
            device,
            1 if args.quick else args.rounds,
            args.quick,
            models[0],
            models[1],
            list(given.rest),
            Path(folder),
        )
        for name in args.sections or [n for n in SECTIONS if n != "compile"]:
            print(f"measuring {name} ...", file=sys.stderr)
            found[name] = SECTIONS[name](b)
    shown = [("--cfg", models[0]), *(p for p in zip(base[::2], base[1::2], strict=True) if folder not in p[1])]
    command = [word for i, word in enumerate(argv) if "--out" not in (word.split("=")[0], argv[i - 1] if i else "")]
    result = bench_page.about(device, command, shown) | {"quick": args.quick, "sections": found}
    print(bench_page.tables(result))
    if args.out:
        Path(args.out).write_text(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    run_main(main)
