"""How much of a network should learn: a study whose arms are freeze points, then the comparison of all runs.

  python -m utils ablate --freeze-list 0,3,4,5,6 --seeds 0,1,2 -- --data DATA.yaml --cfg MODEL.yaml ...

After `--` come train.py's flags, the same for every run, so that all have equal budgets. Arms are called freeze_N: the
first N modules do not learn; no_freeze, where all do, is the baseline unless --baseline names another. All else is as
in a study.
"""

from dataclasses import replace
from pathlib import Path

from utils.config.tools import ABLATE
from utils.study.compare import compare
from utils.study.study import OWN, common_words, conclude, numbers, study

ALL_OPEN = "no_freeze"  # the arm in which everything learns


def main(argv: list[str]) -> None:
    given = ABLATE.parse(argv)
    args, common = given.cfg, common_words(given, OWN | {"--freeze"})
    listed = numbers(args.freeze_list, "--freeze-list")
    arms = {f"freeze_{n}" if n else ALL_OPEN: ("--freeze", str(n)) for n in listed}
    args = replace(args, baseline=args.baseline or (ALL_OPEN if 0 in listed else f"freeze_{listed[0]}"))
    done = study(arms, common, Path(args.project), args)
    first = next(job.folder.name for job in done.jobs if job.arm == args.baseline)
    if not done.stops.first:
        compare([job.folder for job in done.jobs], Path(args.project) / "comparison", baseline=first)
    conclude(done)
