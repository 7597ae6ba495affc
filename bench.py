"""Measure a training run: where a step's time goes, what the settings cost, how fast data and evaluation are.

`python -m bench --help` says how it is used. Every row is a list of train.py's flags and is built and run by the code
train.py runs. Rows take turns, round by round, in one process.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from utils.config.tools import BENCH

if __name__ == "__main__":
    BENCH.answer_help(sys.argv[1:])  # before torch, whose import takes longer than the answer

from utils.bench import page as bench_page
from utils.bench.parts import write_pictures
from utils.bench.sections import SECTIONS, Bench
from utils.system.device import select_device
from utils.system.processes.program import run_main


def main(argv: list[str]) -> dict[str, Any] | None:
    given = BENCH.parse(argv)
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
