"""python -m tests.conformance.compatibility [--shared PATH] [--out docs/compatibility.md]: what users bring, tried.

Every row is a trial in this process: a flag goes through the option system of its program, a small file in some form
through what reads it in a run (forms.py). The outcome is what happened. Also writes the summary into README.md.
"""

import argparse
import contextlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.conformance import forms
from utils.config import detect, export, test, train
from utils.config.options import Program
from utils.system.errors import UserError, fail
from utils.system.files import ROOT
from utils.system.processes.program import run_main

WORKS, SAID, REFUSED, FAILS, UNTRIED = "works", "works, and says", "refused", "FAILS", "not tried here"
README = ("<!-- compatibility -->\n", "<!-- /compatibility -->")
SPACE = re.compile(r"\s+")

PROGRAMS: dict[str, Program[Any]] = {
    "train.py": train.program(),
    "test.py": test.program(),
    "detect.py": detect.PROGRAM,
    "export.py": export.PROGRAM,
}
NEEDED = {"test.py": "--weights w.pt", "detect.py": "--weights w.pt --source x", "export.py": "--weights w.pt"}
YOLOV7 = {  # the flags of its argument parsers, with a value where they take one
    "train.py": """--weights yolov7.pt | --cfg cfg/training/yolov7.yaml | --data data/coco.yaml
        | --hyp data/hyp.scratch.p5.yaml | --epochs 300 | --batch-size 16 | --img-size 640 640 | --rect
        | --resume | --resume last.pt | --nosave | --notest | --noautoanchor | --evolve | --bucket gs://x
        | --cache-images | --image-weights | --device 0 | --multi-scale | --single-cls | --adam | --sync-bn
        | --local_rank -1 | --workers 8 | --project p | --entity e | --name n | --exist-ok | --quad
        | --linear-lr | --label-smoothing 0.1 | --upload_dataset | --bbox_interval 1 | --save_period 1
        | --artifact_alias latest | --freeze 11 | --freeze 0 1 2 | --v5-metric""",
    "test.py": """--weights a.pt | --weights a.pt b.pt | --data data/coco.yaml | --batch-size 32 | --img-size 640
        | --conf-thres 0.001 | --iou-thres 0.65 | --task train | --task val | --task test | --task speed | --task study
        | --device 0 | --single-cls | --augment | --verbose | --save-txt | --save-hybrid | --save-txt --save-conf
        | --save-json | --project p | --name n | --exist-ok | --no-trace | --v5-metric""",
    "detect.py": """--weights a.pt | --weights a.pt b.pt | --source x | --img-size 640 | --conf-thres 0.25
        | --iou-thres 0.45 | --device 0 | --view-img | --save-txt | --save-txt --save-conf | --nosave | --classes 0 2
        | --agnostic-nms | --augment | --update | --project p | --name n | --exist-ok | --no-trace""",
    "export.py": """--weights a.pt | --img-size 640 | --img-size 640 640 | --batch-size 1 | --dynamic | --dynamic-batch
        | --grid | --end2end | --max-wh 640 | --topk-all 100 | --iou-thres 0.45 | --conf-thres 0.25 | --device cpu
        | --simplify | --include-nms | --fp16 | --int8""",
}  # fmt: skip
YOLOV5 = {
    "train.py": """--imgsz 640 | --batch-size 16 | --cache | --cache ram | --cache disk | --optimizer SGD | --cos-lr
        | --noval | --noplots | --evolve 300 | --seed 0 | --patience 100 | --local_rank -1 | --freeze 10
        | --save-period 1 | --image-weights | --ndjson-file"""
}


class Row(NamedTuple):
    part: str
    what: str
    outcome: str
    said: str = ""

    def line(self) -> str:
        return f"| {self.what} | {self.outcome} | {self.said} |"


def tried(part: str, what: str, run: Callable[[Path], str]) -> Row:
    """The trial in an empty folder, whose name does not come into the row."""
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(printed):
        try:
            with contextlib.chdir(name):
                found = run(Path(name))
            outcome, said = (SAID, printed.getvalue()) if printed.getvalue().strip() else (WORKS, found)
            if outcome == SAID and found:
                said = f"{found}. {said}"
        except UserError as error:
            outcome, said = REFUSED, str(error)
        except Exception as error:  # a fault of the program: the row and the test say so
            outcome, said = FAILS, f"{type(error).__name__}: {error}"
    text = SPACE.sub(" ", said.replace(f"{name}/", "").replace(f"{ROOT}/", "")).strip().replace("|", "\\|")
    return Row(part, what, outcome, text)


def parsed(words: str, program: str, root: Path) -> str:
    """A flag through the option system of its program. One that is known must be among what was given."""
    flags = words.split()
    others = [w for w in NEEDED.get(program, "").split("--") if w and w.split()[0] != flags[0].removeprefix("--")]
    argv = [*flags, *(word for w in others for word in f"--{w}".split())]
    given = train.parse(argv) if program == "train.py" else PROGRAMS[program].parse(argv)
    option = PROGRAMS[program].names().get(flags[0].removeprefix("--").replace("_", "-"), "").replace("-", "_")
    if option and option not in given.names:
        raise RuntimeError(f"{flags[0]} is known and was not taken")
    return ""


def flag_rows(program: str, of: str, flags: str) -> list[Row]:
    return [
        tried(f"{program}: flags of {of}", f"`{words}`", partial(parsed, words, program))
        for words in (SPACE.sub(" ", words).strip() for words in flags.split(" | "))
    ]


def form_rows(part: str, reads: dict[str, forms.Read]) -> list[Row]:
    return [tried(part, what, read) for what, read in reads.items()]


def published_rows(part: str, shared: Path) -> list[Row]:
    return [
        tried(part, what, lambda _, file=file: forms.reference(file, shared))  # type: ignore[misc]
        if (shared / file).exists()
        else Row(part, what, UNTRIED, "needs reference material beside the checkout")
        for what, file in forms.PUBLISHED.items()
    ]


def rows(shared: Path) -> list[Row]:
    found = [row for program, flags in YOLOV7.items() for row in flag_rows(program, "YOLOv7", flags)]
    found += [row for program, flags in YOLOV5.items() for row in flag_rows(program, "YOLOv5", flags)]
    found += form_rows("Data YAML", forms.DATA) + form_rows("Label files", forms.LABELS)
    found += form_rows("Hyper-parameter files", forms.HYP) + form_rows("Model YAML", forms.MODELS)
    return found + form_rows("Weights", forms.WEIGHTS) + published_rows("Weights", shared)


def page(found: Iterable[Row]) -> str:
    lines = [
        "# What is compatible",
        "",
        "Made by `python -m tests.conformance.compatibility`: every row is a trial, its outcome what happened. "
        "Flags went through the option system of the program; files in each form were read by what reads them in a "
        "run. Boxes, values and tensors were compared with those of the plain form.",
        "",
        f"- {WORKS}: taken as it is; the last column says what was read",
        f"- {SAID}: taken, with the line that is printed",
        f"- {REFUSED}: an error that names it and what would be right, exit code 2, before any work",
    ]
    part = ""
    for row in found:
        if row.part != part:
            part = row.part
            lines += ["", f"## {part}", "", "| tried | outcome | what was said |", "|---|---|---|"]
        lines.append(row.line())
    return "\n".join(lines) + "\n"


def read_page(text: str) -> list[Row]:
    """The rows of a page."""
    found, part = [], ""
    for line in text.splitlines():
        part = line.removeprefix("## ") if line.startswith("## ") else part
        cells = re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |"))
        if line.startswith("| ") and len(cells) == 3 and cells[0] != "tried":
            found.append(Row(part, *cells))
    return found


def summary(found: Sequence[Row]) -> str:
    """A line per part: how many work, which are passed over or refused."""
    lines = [f"| | {WORKS} | {SAID} | {REFUSED} |", "|---|---|---|---|"]
    for part in dict.fromkeys(row.part for row in found):
        cells = [part]
        for outcome in (WORKS, SAID, REFUSED):
            names = [row.what.strip("`") for row in found if (row.part, row.outcome) == (part, outcome)]
            listed = outcome != WORKS and ": flags of" in part and names
            cells.append(f"{len(names)}" + (": " + ", ".join(f"`{name}`" for name in names) if listed else ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def with_summary(readme: str, found: Sequence[Row]) -> str:
    before, rest = readme.split(README[0])
    return before + README[0] + summary(found) + README[1] + rest.split(README[1])[1]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.compatibility", description=__doc__)
    home = Path(os.environ.get("THAW_SHARED", ROOT.parent / "shared"))
    parser.add_argument("--shared", type=Path, default=home, help="folder of published weights and reference files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/compatibility.md", help="Markdown file to write")
    options: Any = parser.parse_args(argv)
    if not options.out.parent.is_dir():
        fail(f"--out {options.out}: there is no folder {options.out.parent}")
    found = rows(options.shared)
    options.out.write_text(page(found))
    (ROOT / "README.md").write_text(with_summary((ROOT / "README.md").read_text(), found))
    print(f"wrote {options.out} and README.md")
    if failed := [row for row in found if row.outcome == FAILS]:
        fail("\n".join(row.line() for row in failed))


if __name__ == "__main__":
    run_main(main)
