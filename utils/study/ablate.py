"""How much of a network should learn: the same training for several freeze points and seeds, then their comparison.

  python -m utils ablate --freeze-list 0,3,4,5,6 --seeds 0,1,2 -- --data DATA.yaml --cfg MODEL.yaml ...

After `--` come train.py's flags, the same for every run, so that all have equal budgets. Runs are called freeze_1_to_N
(N = the first N modules do not learn), with _seedS where there are several seeds. A study (utils.study) whose arms are
the freeze points: the command goes on where it was stopped, and a run that fails leaves the others alone.
"""

from pathlib import Path

from utils.config.options import make_parser
from utils.study import compare
from utils.study.study import OWN, Job, carry_out, conclude, cut_words, numbers


def main(argv: list[str]) -> None:
    own, words = cut_words(argv, "python -m utils ablate --freeze-list 0,3", OWN | {"--freeze"})
    parser = make_parser("python -m utils ablate", "Train with several freeze points and seeds, then compare.")
    parser.add_argument("--freeze-list", required=True, help="numbers of leading modules that do not learn, as 0,3,4")
    parser.add_argument("--seeds", default="0", help="seeds, as 0,1,2")
    parser.add_argument("--project", default="runs/ablate", help="folder of the runs and of the comparison")
    args = parser.parse_args(own)
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
