"""The commands that come after a run, made from its own: what its files say, and flags that train.py and test.py have.

A chain: --freeze N is followed by the next of 50, 30, 10, 0 that is smaller (several modules, ranges and names, by 0),
from this run's best.pt, with every other flag as it was; a hyper-parameter file X.yaml or X.stageK.yaml gives way to
X.stage(K+1).yaml where that exists.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from utils.runs.folder import Facts
from utils.runs.resumable import LAST, PREVIOUS
from utils.system.errors import UserError
from utils.system.files import ROOT
from utils.system.yaml_file import read_yaml

STEPS = (50, 30, 10, 0)  # of the chain
ALIASES = {"--batch": "--batch-size", "--img": "--img-size", "--cache": "--cache-images"}
ALIGNED = "next stage: detection alone, without the infrared pictures, the aligned backbone frozen, at a lower rate"
Command = tuple[str, str]  # what it is for, and the line


def next_commands(run: Facts) -> list[Command]:
    """The first one is what to do next."""
    found: list[Command] = []
    weights = run.folder / "weights"
    best = weights / "best.pt"
    if run.holder:
        found.append(("look again while it runs", f"python -m utils report {shlex.quote(str(run.folder))}"))
    elif not run.finished:
        if any((weights / name).is_file() for name in (LAST, PREVIOUS)):
            found.append(("go on where it was stopped", line("train.py", "--resume", str(run.folder))))
        elif words := own_words(run):
            again = [*without(words, {"--exist-ok"}), "--exist-ok"]
            found.append(("begin again: nothing was saved to go on from", line("train.py", *again)))
    elif run.checkpoint("best.pt"):
        found += next_stage(run, best)
    if run.checkpoint("best.pt"):
        found.append(("evaluate best.pt again", line("test.py", *test_words(run, best))))
        before = run.start.get("run")
        if before:
            out = run.folder.parent / f"comparison_{Path(before).name}_{run.folder.name}"
            words = [str(before), str(run.folder), "--out", str(out)]
            found.append(("beside the run it started from", line("-m", "utils", "compare", *words)))
    if run.finished:
        found.append(("repeat it, and compare to the bit", line("train.py", "--replay", str(run.folder / "run.yaml"))))
        if run.start.get("run"):
            found.append(("the stages that led to it", line("-m", "utils", "replay", "chain", str(run.folder))))
    return found


def line(*words: str) -> str:
    return shlex.join(["python", *words])


def own_words(run: Facts) -> list[str]:
    """The flags the run was started with; of a replay those of its original. Empty where no file says them."""
    settings = run.settings
    for _ in range(20):  # replays of replays
        original = (settings.get("config") or {}).get("replay")
        if not original:
            break
        path = Path(original)
        try:
            settings = read_yaml(path / "run.yaml" if path.is_dir() else path, "run.yaml")
        except UserError:
            return []
    return shlex.split(str(settings.get("command") or ""))[1:]


def test_words(run: Facts, weights: Path) -> list[str]:
    """Flags of test.py that repeat the run's own validation, but for how it batches."""
    config = run.config
    words = ["--weights", str(weights), "--data", str(config.get("data", ""))]
    words += ["--img-size", str((config.get("img_size") or [640])[-1])]
    words += ["--batch-size", str(config.get("test_batch_size") or 2 * int(config.get("batch_size", 8)))]
    words += ["--match", str(config["match"])] if config.get("match", "coco") != "coco" else []
    for flag in ("v5_metric", "single_cls"):
        words += [f"--{flag.replace('_', '-')}"] if config.get(flag) else []
    return words + (["--device", str(config["device"])] if config.get("device") else [])


def next_stage(run: Facts, best: Path) -> list[Command]:
    words = own_words(run)
    if not words:
        return []
    words = without(words, {"--exist-ok", "--transfer-weights", "--transfer-heads", "--weights", "--name", "--project"})
    project = ["--project", str(run.folder.parent)]
    again = ["--weights", str(best), *project]
    flags = run.patches.get("freeze")
    frozen = [str(w) for w in (flags or {}).get("freeze", ["0"])]
    inverse = bool(flags) and int((flags or {}).get("trainable_first", -1)) != -1
    if "unfreeze" in run.patches or (frozen == ["0"] and not inverse):
        if "align" in run.patches and "unfreeze" not in run.patches:
            return [(ALIGNED, line("train.py", *detection_only(words, run), *again))]
        if run.best and run.best is run.rows[-1]:
            words = [*words, *again, "--name", f"{run.folder.name}_more"]
            return [("the best epoch is the last: train on from it", line("train.py", *words))]
        return []
    number = int(frozen[0]) if len(frozen) == 1 and frozen[0].isdecimal() else 0
    following = str(next((step for step in STEPS if step < number), 0))
    words = without(words, {"--freeze", "--trainable-first"})
    hyp = next_hyp(str(run.config.get("hyp") or ""))
    words = [*without(words, {"--hyp"}), "--hyp", hyp] if hyp else words
    name = next_name(run.folder.name, following)
    words = [*words, *again, "--freeze", following, "--name", name]
    other = f" with {hyp}" if hyp else ""
    return [(f"next stage of the chain: --freeze {following}{other} from best.pt", line("train.py", *words))]


def detection_only(words: Sequence[str], run: Facts) -> list[str]:
    """The flags of a stage after alignment: on the visible pictures alone, which the projectors are left out for, the
    aligned backbone frozen, at a tenth of the rate (or with the hyp file of the next stage)."""
    named = {word.split("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    gone = {"--freeze", "--hyp" if (hyp := next_hyp(str(run.config.get("hyp") or ""))) else "--lr0"}
    gone |= {name for name in named if name == "--align" or name.startswith("--align-")}
    gone |= {"--best-by"} if str(run.config.get("best_by", "")).startswith("align") else set()
    rate = ["--hyp", hyp] if hyp else ["--lr0", f"{float(run.config.get('lr0') or 0.01) / 10:g}"]
    name = f"{run.folder.name}_freeze_backbone"
    return [*without(words, gone), "--transfer-weights", "--freeze", "backbone", *rate, "--name", name]


def without(words: Sequence[str], flags: set[str]) -> list[str]:
    """The words but for these flags and their values."""
    kept, drop = [], False
    for word in words:
        if word.startswith("--"):
            name = word.split("=")[0].replace("_", "-")
            drop = ALIASES.get(name, name) in flags
        if not drop:
            kept.append(word)
    return kept


def next_hyp(path: str) -> str:
    """`x.yaml` or `x.stage2.yaml` -> the file of the next stage, if there is one."""
    match = re.fullmatch(r"(.*?)(?:\.stage(\d+))?\.ya?ml", path)
    if not match:
        return ""
    name = f"{match[1]}.stage{int(match[2] or 1) + 1}.yaml"
    return name if Path(name).is_file() or (ROOT / name).is_file() else ""


def next_name(name: str, freeze: str) -> str:
    """`a_stage1_freeze50` -> `a_stage2_freeze30`; other names get the freeze point at their end."""
    stage = re.search(r"stage(\d+)", name)
    new = name if not stage else f"{name[: stage.start()]}stage{int(stage[1]) + 1}{name[stage.end() :]}"
    new, count = re.subn(r"freeze\d+", f"freeze{freeze}", new)
    return new if count else f"{new}_freeze{freeze}"
