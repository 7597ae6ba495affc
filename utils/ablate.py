"""How much of a network should learn: the same training for several freeze points and seeds, then their comparison.

  python -m utils.ablate --freeze-list 0,3,4,5,6 --seeds 0,1,2 -- --data DATA.yaml --cfg MODEL.yaml ...

After `--` come train.py's flags, the same for every run, so that all have equal budgets. Runs are called freeze_1_to_N
(N = the first N modules do not learn), with _seedS where there are several seeds. The command goes on where it was
stopped: finished runs are skipped, started ones resumed. A run that fails is named at the end and leaves the others
alone. Exit code 1 where one failed.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils import compare
from utils.config import make_parser, read_yaml
from utils.errors import UserError, run_main
from utils.record import ROOT, read_rows

OWN = {"--freeze", "--seed", "--name", "--resume", "--replay", "--exist-ok"}


def numbers(text: str, flag: str) -> list[int]:
    """`0,3,4` -> [0, 3, 4]."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UserError(f"{flag} {text}: expected whole numbers with commas, as 0,3,4")
    found = [int(part) for part in text.split(",")]
    if len(set(found)) != len(found):
        raise UserError(f"{flag} {text}: a number stands there twice")
    return found


def run_name(freeze: int, seed: int, seeds: Sequence[int]) -> str:
    return f"freeze_1_to_{freeze}" + (f"_seed{seed}" if len(seeds) > 1 else "")


def finished(folder: Path) -> bool:
    """Whether the run has done all its epochs and written its last checkpoint."""
    settings = folder / "run.yaml"
    if not settings.is_file() or not (folder / "weights/last.pt").is_file():
        return False
    return len(read_rows(folder / "results.csv")) >= int(read_yaml(settings, "run.yaml")["config"]["epochs"])


def train(folder: Path, words: Sequence[str], freeze: int, seed: int) -> bool:
    """Start or resume one run; True where it came to its end."""
    command = [sys.executable, str(ROOT / "train.py")]
    if (folder / "weights/last.pt").is_file():
        command += ["--resume", str(folder)]
    else:
        own = ["--freeze", str(freeze), "--seed", str(seed), "--project", str(folder.parent), "--name", folder.name]
        command += [*words, *own, *(["--exist-ok"] if folder.exists() else [])]
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # train.py got it too: it saves and ends
        process.wait()
        raise UserError(f"stopped in {folder}; the same command goes on") from None
    if code == 0 and not finished(folder):
        raise UserError(f"stopped in {folder}; the same command goes on")
    return code == 0


def main(argv: list[str]) -> None:
    if "--" not in argv:
        raise UserError("give train.py's flags after `--`: python -m utils.ablate --freeze-list 0,3 -- --data ...")
    cut = argv.index("--")
    parser = make_parser("python -m utils.ablate", "Train with several freeze points and seeds, then compare.")
    parser.add_argument("--freeze-list", required=True, help="numbers of leading modules that do not learn, as 0,3,4")
    parser.add_argument("--seeds", default="0", help="seeds, as 0,1,2")
    parser.add_argument("--project", default="runs/ablate", help="folder of the runs and of the comparison")
    args, words = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    if taken := sorted({w.split("=")[0] for w in words} & (OWN | {"--project"})):
        raise UserError(f"{', '.join(taken)}: set by the ablation itself, take it out after `--`")
    freezes, seeds = numbers(args.freeze_list, "--freeze-list"), numbers(args.seeds, "--seeds")
    project, failed, runs = Path(args.project), [], []
    for seed in seeds:
        for freeze in freezes:
            folder = project / run_name(freeze, seed, seeds)
            runs.append(folder)
            if finished(folder):
                print(f"=== {folder}: finished before", flush=True)
                continue
            print(f"=== {folder}", flush=True)
            if not train(folder, words, freeze, seed):
                failed.append(folder)
                print(f"=== {folder} FAILED, going on with the others", file=sys.stderr, flush=True)
    compare.compare(runs, project / "comparison")
    if failed:
        print(f"failed: {', '.join(map(str, failed))}; the same command tries them again", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
