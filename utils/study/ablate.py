"""How much of a network should learn: the same training for several freeze points and seeds, then their comparison.

  python -m utils ablate --freeze-list 0,3,4,5,6 --seeds 0,1,2 -- --data DATA.yaml --cfg MODEL.yaml ...

After `--` come train.py's flags, the same for every run, so that all have equal budgets. Runs are called freeze_1_to_N
(N = the first N modules do not learn), with _seedS where there are several seeds. A study (utils.study) whose arms are
the freeze points: the command goes on where it was stopped, and a run that fails leaves the others alone.
"""

from dataclasses import dataclass
from pathlib import Path

from utils.config.options import Program, opt
from utils.study import compare
from utils.study.study import OWN, TRAINING, Job, carry_out, common_words, conclude, numbers


@dataclass(frozen=True, kw_only=True)
class Options:
    freeze_list: str = opt("", "numbers of leading modules that do not learn, as 0,3,4", "freezing", required=True)
    seeds: str = opt("0", "seeds, as 0,1,2")
    project: str = opt("runs/ablate", "folder of the runs and of the comparison", "saving")


PROGRAM = Program(
    "python -m utils ablate", "Train with several freeze points and seeds, then compare.", Options, rest=TRAINING
)


def main(argv: list[str]) -> None:
    given = PROGRAM.parse(argv)
    args, words = given.cfg, common_words(given, OWN | {"--freeze"})
    freezes, seeds = numbers(args.freeze_list, "--freeze-list"), numbers(args.seeds, "--seeds")
    project, jobs = Path(args.project), []
    for seed in seeds:
        for freeze in freezes:
            arm = f"freeze_1_to_{freeze}"
            name = arm + (f"_seed{seed}" if len(seeds) > 1 else "")
            jobs.append(Job(arm, seed, project / name, (*words, "--freeze", str(freeze))))
    failed = carry_out(jobs)
    compare.compare([job.folder for job in jobs], project / "comparison")
    conclude(failed)
