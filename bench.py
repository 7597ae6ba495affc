"""Measure a training run: where a step's time goes, what the settings cost, how fast data and evaluation are.

  python -m bench                               every section but compile, on the best device there is
  python -m bench freeze loss --rounds 9        some of them
  python -m bench step -- --img 640 --batch 4   with other flags of train.py, for every row
  python -m bench --markdown FILE.json ... > BENCHMARKS.md

Every row is a list of train.py's flags and is built and run by the code train.py runs. Rows take turns, round by round,
in one process; a ratio is the median of the rounds' own ratios to the section's first row. The data are drawn.
Write with `--out FILE.json`; the table is printed in any case. One OpenMP thread per idle core: set OMP_NUM_THREADS.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from utils.bench import page as bench_page
from utils.bench.parts import write_pictures
from utils.bench.sections import SECTIONS, Bench
from utils.config.options import make_parser
from utils.system.device import select_device
from utils.system.errors import UserError, run_main


def parse(argv: list[str]) -> argparse.Namespace:
    cut = argv.index("--") if "--" in argv else len(argv)
    p = make_parser("python -m bench", str(__doc__))
    p.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    p.add_argument("--device", default="", help="cuda device number or cpu (default: the best there is)")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--quick", action="store_true", help="toy sizes, one round: does it run, not how fast")
    p.add_argument("--out", default="", metavar="FILE.json", help="also write the figures")
    p.add_argument("--markdown", nargs="+", metavar="FILE.json", help="print BENCHMARKS.md of these files and stop")
    p.add_argument(
        "--before", default="", metavar="FILE.json", help="with --markdown: an earlier state to compare with"
    )
    args = p.parse_args(argv[:cut])
    args.extra = argv[cut + 1 :]
    if unknown := [s for s in args.sections if s not in SECTIONS]:
        raise UserError(f"no section {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
    return args


def main(argv: list[str]) -> dict[str, Any] | None:
    args = parse(argv)
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
        base += ["--nominal-batch", sizes[1], "--workers", "0", "--device", str(device), "--project", folder]
        names = ("demo", "demo-1b4h") if args.quick else ("yolov7-tiny", "yolov7-tiny-1b4h")
        models = [f"cfg/training/{name}.yaml" for name in names]
        b = Bench(
            base, device, 1 if args.quick else args.rounds, args.quick, models[0], models[1], args.extra, Path(folder)
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
