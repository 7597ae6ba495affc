"""How much of a network should learn: a study whose arms are freeze points, then the comparison of all runs.

  python -m utils ablate --freeze-list 0,3,4,5,6 --seeds 0,1,2 -- --data DATA.yaml --cfg MODEL.yaml ...

After `--` come train.py's flags, the same for every run, so that all have equal budgets. Arms are called freeze_N: the
first N modules do not learn; freeze_0 is the baseline. All else is as in a study.
"""

from pathlib import Path

from utils.config.tools import ABLATE
from utils.study.compare import compare
from utils.study.study import OWN, common_words, conclude, numbers, study


def main(argv: list[str]) -> None:
    given = ABLATE.parse(argv)
    args, common = given.cfg, common_words(given, OWN | {"--freeze"})
    arms = {f"freeze_{n}": ("--freeze", str(n)) for n in numbers(args.freeze_list, "--freeze-list")}
    jobs, failed = study(arms, common, Path(args.project), args)
    compare([job.folder for job in jobs], Path(args.project) / "comparison")
    conclude(failed)
