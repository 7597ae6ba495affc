"""The tools of `python -m utils` and `python -m bench`: what each is for, and its options.

They stand here, and not in the tools' own files, so that --help needs none of what the tools import.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.config.group import GROUP
from utils.config.help import patch_tools
from utils.config.options import Program, again, opt
from utils.config.shared import Device, OwnModules
from utils.system.errors import UserError
from utils.system.files import ROOT

SECTIONS = ("step", "freeze", "settings", "compile", "loss", "loader", "wait", "evaluation", "coco", "startup")
SPLIT_BY = ("group", "stratified", "random")
FOR_EVERY_RUN = "TRAIN.PY'S FLAGS, THE SAME FOR EVERY RUN"


@dataclass(frozen=True)
class Commands:
    """A program of several, the first word says which."""

    name: str
    about: str
    programs: Mapping[str, Program[Any]]

    def parse(self, argv: Sequence[str]) -> tuple[str, Any]:
        """That word, and the options of the program that it names."""
        self.answer_help(argv)
        if argv[0] not in self.programs:
            raise UserError(f"{self.name}: there is no command {argv[0]!r:.100}; there are: {', '.join(self.programs)}")
        return argv[0], self.programs[argv[0]].parse(argv[1:]).cfg

    def answer_help(self, argv: Sequence[str]) -> None:
        """Print the help and end, where it is asked for or no command is given."""
        if not argv or argv[0] in ("-h", "--help"):
            print(listing(self.name, "COMMAND", {word: p.about for word, p in self.programs.items()}, self.about))
            raise SystemExit(0)
        if argv[0] in self.programs:
            self.programs[argv[0]].answer_help(argv[1:])


def listing(name: str, kind: str, abouts: Mapping[str, str], about: str = "") -> str:
    """What there is to choose from: the first line about each."""
    lines = [f"  {word:10}{text.splitlines()[0]}" for word, text in abouts.items()]
    head = f"usage: {name} {kind} ...   ({name} {kind} --help says more)\n"
    return "\n".join([head, *([about, ""] if about else []), *lines])


@dataclass(frozen=True, kw_only=True)
class Report:
    run: str = opt("", "run folder, or a folder of runs", positional=True)
    out: str = opt("", "folder for report.html and report.md (default: RUN)", "saving", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class Compare(Device):
    runs: tuple[str, ...] = opt((), "run folders", positional=True, nargs="+")
    out: str = opt("", "folder for the comparison", "saving", required=True, metavar="FOLDER")
    baseline: str = opt(
        "",
        "run that the others are held against, by its folder's name (default: the first one)",
        "evaluation",
        metavar="NAME",
    )


@dataclass(frozen=True, kw_only=True)
class Arms:
    """Options of a study and of an ablation."""

    seeds: str = opt("0", "random seeds; every arm is trained once with each", metavar="0,1,2")
    columns: str = opt("mAP50", "columns of results.csv to compare", "evaluation", metavar="mAP50,mAP")
    test: bool = opt(False, "evaluate best.pt on the data's test split at the end", "evaluation")
    baseline: str = opt(
        "",
        "arm that the others are held against (default: the first one, in an ablation no_freeze)",
        "evaluation",
        metavar="NAME",
    )
    jobs: int = opt(0, "runs trained at the same time (default: one for each of --devices, or one)", low=0, high=1024)
    devices: str = opt("", "devices of the runs trained at the same time", metavar="0,1,2,3")
    ranks_per_run: int = opt(1, "processes of one run, each with a device of its own", low=1, high=1024)
    report_only: bool = opt(False, "train nothing: the tables of what is there", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Study(Arms):
    arm: tuple[str, ...] = opt(
        (), "a name, and flags of train.py that this arm adds; once for each arm", required=True, repeated=True,
        metavar="'NAME: FLAGS'",
    )  # fmt: skip
    project: str = opt("", "folder of the runs and of the tables", "saving", required=True, metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class Ablate(Arms):
    freeze_list: str = opt(
        "", "how many leading modules do not learn, an arm for each number", "freezing", required=True, metavar="0,3,4"
    )
    project: str = opt("runs/ablate", "folder of the runs and of the comparison", "saving", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class StageTable:
    runs: tuple[str, ...] = opt((), "run folders of the stages, in their order", positional=True, nargs="+")
    out: str = opt("", "also write the table to this file", "saving", metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """From where on a stage counts as worse than the one before."""

    max_drop: float = opt(0.01, "largest fall of mAP@0.5", "evaluation", low=0, high=1)
    max_loss_jump: float = opt(1.5, "largest ratio of the first loss to the last one before", "loss", low=0)
    max_head_drop: float = opt(0.1, "largest fall of one head's mAP@0.5", "heads", low=0, high=1)
    max_head_share: float = opt(
        0.3, "largest fall of one head's mAP@0.5 as a share of what it was", "heads", low=0, high=1
    )
    max_class_drop: float = opt(0.2, "largest fall of one class's AP@0.5", "evaluation", low=0, high=1)
    max_class_share: float = opt(
        0.5, "largest fall of one class's AP@0.5 as a share of what it was", "evaluation", low=0, high=1
    )


@dataclass(frozen=True, kw_only=True)
class StageCheck(Limits):
    weights: str = opt("", "checkpoint the stage started from", positional=True)
    run: str = opt("", "run folder of the stage", positional=True)


LIMITS = tuple(Limits.__dataclass_fields__)


def every_stage(name: str) -> Any:
    """The option of a limit for all stages of a chain."""
    return again(Limits, name, None, help=f"of every stage: {Limits.__dataclass_fields__[name].metadata['help']}")


@dataclass(frozen=True, kw_only=True)
class Chain:
    recipe: str = opt("", "recipe YAML; a bare name is looked for in cfg/recipes, too", positional=True)
    weights: str = opt("", "checkpoint the first stage starts from (default: the recipe's)", "model", metavar="FILE")
    project: str = opt("", "folder of the runs (default: the recipe's)", "saving", metavar="FOLDER")
    prefix: str = opt("", "first part of the runs' names (default: the recipe's)", "saving", metavar="NAME")
    each: tuple[str, ...] = opt(
        (), "values of a flag, one for each stage: lr0=0.01,0.001; nothing between commas: not given", "freezing",
        repeated=True, metavar="FLAG=VALUE,...",
    )  # fmt: skip
    plan: tuple[str, ...] = opt(
        (), "from this stage on by one of the recipe's plans", "freezing", repeated=True, metavar="PLAN@STAGE"
    )
    redo: str = opt(
        "", "train this stage and those after it anew where they were made otherwise", "freezing", metavar="STAGE"
    )
    keep: tuple[str, ...] = opt(
        (), "take this stage as it is, though it was made otherwise", "freezing", repeated=True, metavar="STAGE"
    )
    go_on: bool = opt(False, "go on after a stage that is worse than its start", "freezing")
    dry_run: bool = opt(False, "check everything, show the stages' commands, train nothing", "freezing")
    ranks: int = opt(1, "processes of each stage, by torchrun", "speed", low=1)
    max_drop: float | None = every_stage("max_drop")
    max_loss_jump: float | None = every_stage("max_loss_jump")
    max_head_drop: float | None = every_stage("max_head_drop")
    max_head_share: float | None = every_stage("max_head_share")
    max_class_drop: float | None = every_stage("max_class_drop")
    max_class_share: float | None = every_stage("max_class_share")


@dataclass(frozen=True, kw_only=True)
class ReplayChain:
    run: str = opt("", "run folder of the last stage", positional=True)


@dataclass(frozen=True, kw_only=True)
class ReplayTable(ReplayChain):
    project: str = opt("", "folder of the replays", positional=True)


@dataclass(frozen=True, kw_only=True)
class Convert(OwnModules):
    source: str = opt("", "weights to read: .pt or .safetensors", positional=True)
    out: str = opt("", "file to write: .pt (a checkpoint of this program) or .safetensors", positional=True)
    only_det: bool = opt(False, "leave out what --classify or --dual-backbone added to the detector", "model")


@dataclass(frozen=True, kw_only=True)
class ModuleList:
    files: tuple[str, ...] = opt((), "files of your own, to be listed as well", "model", positional=True, nargs="*")


@dataclass(frozen=True, kw_only=True)
class SplitCheck:
    data: str = opt("", "data YAML", "data", positional=True)
    group: str = opt(
        "", "regular expression whose parenthesis finds an image's group in its name (default: the data YAML's "
        "group_pattern)", "data", metavar="REGEX",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SplitMake(SplitCheck):
    out: str = opt("", "folder of the lists", "saving", required=True, metavar="FOLDER")
    ratios: tuple[float, ...] = opt((0.8, 0.1, 0.1), "shares of train, val and test", "data", nargs="+", low=0)
    seed: int = opt(0, "random seed", low=0)
    how: str = opt(
        "group", "groups stay together; stratified: each class by the ratios; random: any image anywhere", "data",
        choices=SPLIT_BY,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Voc2yolo:
    source: str = opt("", "folder of annotations, sub-folders included", positional=True)
    out: str = opt("", "folder for the label files", "saving", required=True, metavar="FOLDER")
    classes: tuple[str, ...] = opt((), "class names, in the order of ids", "data", nargs="+", required=True)
    ignore: tuple[str, ...] = opt((), "names to leave out", "data", nargs="+")
    size: tuple[int, ...] = opt((), "width and height where a file does not say it", "data", nargs=2, low=1)
    images: str = opt("", "folder of the pictures, whose sizes are compared", "data", metavar="FOLDER")
    keep_difficult: bool = opt(False, "keep objects marked difficult, or to be ignored", "data")
    first_pixel: int = opt(
        -1, "number of the first pixel in VOC files, 0 or 1 (default: told from the boxes)", "data", high=1
    )


@dataclass(frozen=True, kw_only=True)
class Shapes:
    out: str = opt(
        str(ROOT / "data" / "shapes"), "folder (default: data/shapes of the program)", "saving", metavar="FOLDER"
    )
    seed: int = opt(0, "random seed of the scenes", low=0)


@dataclass(frozen=True, kw_only=True)
class Bench(Device):
    sections: tuple[str, ...] = opt((), ", ".join(SECTIONS), positional=True, nargs="*", choices=SECTIONS)
    rounds: int = opt(7, "rounds in which the rows take turns", "evaluation", low=1)
    quick: bool = opt(False, "toy sizes, one round: does it run, not how fast", "speed")
    out: str = opt("", "also write the figures", "saving", metavar="FILE.json")
    markdown: tuple[str, ...] = opt((), "print BENCHMARKS.md of these files and stop", nargs="+", metavar="FILE.json")
    before: str = opt("", "with --markdown: an earlier state to compare with", metavar="FILE.json")


def tool(name: str) -> str:
    return f"python -m utils {name}"


REPORT = Program(tool("report"), "One page on a run, or on all runs of a folder.", Report)
COMPARE = Program(tool("compare"), "Runs side by side: tables, curves, pictures, one HTML page.", Compare)
STUDY = Program(
    tool("study"),
    """Train several arms with several seeds, then compare.

  python -m utils study --project runs/rates --seeds 0,1,2 --arm "usual:" --arm "low rate: --lr0 0.001" \\
      -- --data data/shapes.yaml --cfg cfg/training/demo.yaml --epochs 10

The same command goes on where it was stopped: what is trained is not trained again.""",
    Study,
    rest=FOR_EVERY_RUN,
)
ABLATE = Program(
    tool("ablate"),
    """Train with several numbers of frozen modules and several seeds, then compare.

  python -m utils ablate --freeze-list 0,3,4 --seeds 0,1,2 -- --data data/shapes.yaml --cfg cfg/training/demo.yaml

As `python -m utils study` with an arm `--freeze N` for each number.""",
    Ablate,
    rest=FOR_EVERY_RUN,
)
CHAIN = Program(
    tool("chain"),
    """Train a chain of stages from a recipe: checked beforehand and after each stage, gone on with as a whole.

  python -m utils chain gradual_unfreeze.yaml --weights runs/train/base/weights/best.pt -- --data data/coco320.yaml

The same command goes on where it was stopped or killed. What a recipe holds: docs/chains.md.""",
    Chain,
    rest="TRAIN.PY'S FLAGS FOR EVERY STAGE",
)
STAGES = Commands(
    tool("stages"),
    "Table of a chain of runs, and the checks between stages.",
    {
        "table": Program(tool("stages table"), "Table of a chain of runs.", StageTable),
        "check": Program(
            tool("stages check"),
            "Compare a stage with where it began; exit code 1: worse by more than the limits, 3: nothing to compare.",
            StageCheck,
        ),
    },
)
REPLAY = Commands(
    tool("replay"),
    "The stages that led to a run, and how their replays ended.",
    {
        "chain": Program(tool("replay chain"), "The stages that led to a run: run.yaml, weights, name.", ReplayChain),
        "table": Program(tool("replay table"), "How the replays of these stages ended.", ReplayTable),
    },
)
CONVERT = Program(
    tool("convert"),
    """Weights of YOLOv5 or YOLOv7 to a checkpoint of this program, or any to safetensors.

  python -m utils convert yolov7.pt converted.pt

SOURCE may be a .pt file of YOLOv5 or YOLOv7, a plain file of tensors, a safetensors file, or a checkpoint of this
program. No code in it is run. Prints what is in it: tensors, classes, anchors, and which model YAML they fit.""",
    Convert,
)
MODULES = Program(
    tool("modules"),
    """What the rows of a model YAML can name: arguments, meaning, what each is tested against.

  python -m utils modules                 those of this program
  python -m utils modules my_blocks.py    and those of a file for --modules""",
    ModuleList,
)
SPLIT = Commands(
    tool("split"),
    "Split a data set so that groups (a patient, a clip, a place) stay together, or check that they do.",
    {
        "make": Program(tool("split make"), "Write lists of images for a new split.", SplitMake),
        "check": Program(tool("split check"), "Report groups that lie in several splits.", SplitCheck),
    },
)
VOC2YOLO = Program(
    tool("voc2yolo"),
    """Pascal VOC XML or bbGt text to YOLO label files.

  python -m utils voc2yolo Annotations --out labels/train --classes person
  python -m utils voc2yolo annotations --out labels --classes person --ignore people person? cyclist --size 640 512

Nothing is overwritten; what is left out is counted.""",
    Voc2yolo,
)
SHAPES = Program(tool("shapes"), "Draw the data set that comes with the program: 12 shapes, some alike.", Shapes)
BENCH = Program(
    "python -m bench",
    """Measure a training run: where a step's time goes, what the settings cost, how fast data and evaluation are.

  python -m bench                               every section but compile, on the best device there is
  python -m bench freeze loss --rounds 9        some of them
  python -m bench step -- --img 640 --batch 4   with other flags of train.py, for every row
  python -m bench --markdown FILE.json ... > BENCHMARKS.md

Rows take turns, round by round; a ratio is the median of the rounds' own ratios to the section's first row. The data
are drawn. For figures of use let nothing else run, and set OMP_NUM_THREADS to the number of idle cores.""",
    Bench,
    rest="TRAIN.PY'S FLAGS, FOR EVERY ROW",
)

OF_PATCHES: Mapping[str, Program[Any]] = {"group": GROUP}
TOOLS: Mapping[str, tuple[str, Program[Any] | Commands]] = {  # name: (module with main(argv), its command line)
    "report": ("utils.report.report", REPORT),
    "compare": ("utils.study.compare", COMPARE),
    "study": ("utils.study.study", STUDY),
    "ablate": ("utils.study.ablate", ABLATE),
    "chain": ("utils.study.chain", CHAIN),
    "stages": ("utils.runs.chain", STAGES),
    "replay": ("utils.runs.replay", REPLAY),
    "convert": ("utils.weights.convert", CONVERT),
    "modules": ("utils.weights.own_blocks", MODULES),
    "split": ("utils.data.prepare.split", SPLIT),
    "voc2yolo": ("utils.data.prepare.voc2yolo", VOC2YOLO),
    "shapes": ("utils.data.shapes.scenes", SHAPES),
    **{name: (place, OF_PATCHES[name]) for name, place in patch_tools().items()},
}
