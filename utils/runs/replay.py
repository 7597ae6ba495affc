"""A recorded run repeated: what differs before it starts, whether it ended the same, and chains of runs.

  python train.py --replay RUN/run.yaml         exit code 0: identical; 1: a difference at the end; 2: bad input
  python -m utils replay chain RUN              the stages that led to RUN, first one first
  python -m utils replay table RUN PROJECT      how the replays of these stages in PROJECT ended

Settings, model and head table come from run.yaml; data, weights and code are those of now. A finished run has a
result.yaml with the fingerprints of its final tensors, so that it can be compared after its weights were deleted.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypedDict

from utils import seams
from utils.config.options import restored
from utils.config.tools import REPLAY
from utils.config.train import Config
from utils.runs import fingerprint, manifest, record
from utils.runs.folder import Facts
from utils.system import dist
from utils.system.errors import UserError
from utils.system.files import write_text
from utils.system.notes import note
from utils.system.schema import check
from utils.system.table import markdown
from utils.system.yaml_file import read_yaml
from utils.weights.checkpoint import read_checkpoint

MOST = 20  # changed data files that are named


class Content(TypedDict, total=False):
    """run.yaml, as far as it is read here."""

    folder: str
    patches: dict[str, dict[str, Any]] | None
    model: dict[str, Any] | None
    start: dict[str, Any] | None
    files: dict[str, dict[str, Any]] | None
    data: dict[str, Any] | None
    environment: dict[str, Any]
    device: dict[str, Any] | str


@dataclass(frozen=True)
class Recorded:
    """What run.yaml says of a run."""

    folder: Path
    cfg: Config
    patches: dict[str, Any]  # {name: flags}
    spec: dict[str, Any] | None  # the model YAML
    content: dict[str, Any]  # all of run.yaml

    def here(self, settings: Mapping[str, object]) -> dict[str, Any]:
        """The settings, with the files among them that are named from the folder where the run was begun, and are not
        to be found from this one, by their whole path."""
        begun = self.content.get("folder")
        names = self.content.get("files") or {}
        return {k: whole(v, str(begun)) if begun and k in names else v for k, v in settings.items()}

    @property
    def files(self) -> Facts:
        """What else its folder holds."""
        return Facts(self.folder)

    @property
    def start(self) -> dict[str, str]:
        """The checkpoint it started from, see fingerprint.of_start; empty from scratch."""
        return self.content.get("start") or {}


def whole(name: object, folder: str) -> Any:
    """`name` from `folder` where it is a file there and none from here."""
    if isinstance(name, list | tuple):
        return type(name)(whole(word, folder) for word in name)
    if not isinstance(name, str) or not name or Path(name).exists() or not (Path(folder) / name).is_file():
        return name
    return str(Path(folder) / name)


def read(path: str) -> Recorded:
    """run.yaml or the folder it lies in, checked. UserError where it is missing or damaged."""
    file = Path(path) / "run.yaml" if Path(path).is_dir() else Path(path)
    content = read_yaml(file, "--replay")
    cfg = restored(Config, content.get("config"), f"{file}: config")
    check(content, Content, str(file))
    found = Recorded(file.parent, cfg, content.get("patches") or {}, content.get("model"), content)
    moved = found.here({name: getattr(cfg, name) for name in ("data", "weights")})
    return dataclasses.replace(found, cfg=dataclasses.replace(cfg, **moved))


def make_patches(recorded: Recorded) -> seams.Patches:
    """The patches of a recorded run, without the files that they once read."""
    where, made = recorded.folder / "run.yaml", {}
    for name, module in seams.kinds(recorded.patches).items():
        flags = restored(module.Flags, recorded.patches[name], f"{where}: patches: {name}")
        try:
            made[name] = module.patch(flags)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: patches: {name}: damaged ({type(error).__name__}: {error})") from None
    return seams.Patches(made)


def check_data(cfg: Config, now: manifest.Manifest) -> None:
    """Data that --data names for a replay must be those of the original, at another place. UserError where not."""
    if not cfg.replay:
        return
    old = read(cfg.replay)
    then = old.content.get("data") or {}
    if cfg.data != old.cfg.data and then.get("fingerprint") != now.fingerprint:
        lines = manifest.differences(fingerprint.read_listing(old.folder / manifest.NAME), now.listing)
        lines = lines or ["class names, the order of the images, or files whose list is lost"]
        raise UserError(f"--data {cfg.data}: not the data of {old.folder}:\n  " + "\n  ".join(lines))


def announce(replayed: Path, folder: Path) -> None:
    """Print each difference between the inputs of the original and those of the replay in `folder`."""
    then, now = read(str(replayed)), read(str(folder))
    lines = [*inputs(then.content, now.content), *data_files(then, now)]
    said = f"{len(lines)} differences:" if lines else "no difference in environment, device, files or data"
    print(f"replay of {then.folder}: {said}")
    if lines:
        note("replay differs", f"{said} {'; '.join(lines)}", count=len(lines))
    print("".join(f"  {line}\n" for line in lines), end="")
    original = then.files
    if original.epochs < then.cfg.epochs and not original.ended:
        print(f"  the original has {original.epochs} of {then.cfg.epochs} epochs: only these can be compared")


def inputs(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line per difference of environment, device, files and starting weights."""
    lines = record.changed(then, now)
    old, new = then.get("files") or {}, now.get("files") or {}
    same_data = (then.get("data") or {}).get("fingerprint") == (now.get("data") or {}).get("fingerprint")
    for flag in dict.fromkeys([*old, *new]):
        if flag == "data" and same_data:  # the YAML lies elsewhere, or says otherwise where they lie
            continue
        before, after = old.get(flag, {}), new.get(flag, {})
        if before.get("sha256") != after.get("sha256"):
            note = "" if flag == "data" else "; its recorded content is used"
            path = before.get("path") or after.get("path")
            lines.append(f"--{flag.replace('_', '-')} {path}: then {short(before)}, now {short(after)}{note}")
    old, new = then.get("start") or {}, now.get("start") or {}
    if old.get("tensors") != new.get("tensors"):
        lines.append(f"--weights {new.get('weights')}: then {short(old, 'tensors')}, now {short(new, 'tensors')}")
    return lines


def short(values: Mapping[str, object], key: str = "sha256") -> str:
    """The first digits of a fingerprint."""
    return str(values[key])[:12] if values.get(key) else "not there"


def data_files(then: Recorded, now: Recorded) -> list[str]:
    """A line per changed image and label; what else may differ where none does."""
    old, new = then.content.get("data") or {}, now.content.get("data") or {}
    if old.get("fingerprint") == new.get("fingerprint"):
        return []
    before, after = then.files.listing, now.files.listing
    lines = []
    for name in dict.fromkeys([*before, *after]) if before else ():
        split, path = name.split(" ", 1)
        pair = ((*listing.get(name, ()), "", "", "")[:3] for listing in (before, after))
        for what, a, b in zip(("", "label of ", "image class of "), *pair, strict=True):
            if a != b:
                lines.append(f"{split}: {what}{path}: then {a[:12] or 'not there'}, now {b[:12] or 'not there'}")
    if len(lines) > MOST:
        lines[MOST:] = [f"data: ... and {len(lines) - MOST} more files"]
    if old.get("names", new["names"]) != new["names"]:
        lines.append(f"class names: then {' '.join(old['names'])}, now {' '.join(new['names'])}")
    if not lines:
        lines.append(
            "data: the same files in another order"
            if before
            else f"data: then {short(old, 'fingerprint')}, now {short(new, 'fingerprint')}; which files is not recorded"
        )
    return lines


def finish(folder: Path, original: str, early: str) -> bool:
    """The end of every run: result.yaml with the fingerprints of its final tensors, and, where it ended before its last
    epoch, why. A replay is compared as well; False when it differs, or nothing is there to compare with."""
    if not dist.main():
        return True
    result: dict[str, Any] = {"epochs": Facts(folder).epochs, "tensors": final_tensors(folder)}
    if early:
        result["ended"] = early
    same = True
    if original:
        same, said = compare(read(original), folder, result["tensors"])
        result["replay"] = {"of": original, "outcome": said}
        print(f"replay of {original}: {said}")
    write_text(folder / "result.yaml", record.as_yaml(result))
    return same


def final_tensors(folder: Path) -> dict[str, str]:
    """Fingerprints of the parts of last.pt and of best.pt."""
    found: dict[str, str] = {}
    for file, parts in (("last.pt", ("model", "ema", "patches", "optimizer")), ("best.pt", ("ema",))):
        if (path := folder / "weights" / file).is_file():
            content = read_checkpoint(path, trusted=True)
            tensors = {part: fingerprint.tensors_in(content.get(part)) for part in parts}
            found |= {f"{file} {part}": fingerprint.of_tensors(t) for part, t in tensors.items() if t}
    return found


def compare(original: Recorded, folder: Path, tensors: Mapping[str, str]) -> tuple[bool, str]:
    """Whether a replay is what the original was, as far as that goes, and how to say it."""
    files = original.files
    then, now = files.rows, Facts(folder).rows
    nothing: dict[str, str] = {}
    for old, new in zip_longest(then, now[: len(then)], fillvalue=nothing):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                was, became = (r.get(name, "not there") for r in (old, new))
                return False, f"first difference: epoch {old['epoch']}, {name}: then {was}, now {became}"
    final = files.result.get("tensors") or {}
    for name, print_ in final.items():
        if tensors.get(name) != print_:
            was, became = short(final, name), short(tensors, name)
            return False, f"first difference: after the last epoch, tensors of {name}: then {was}, now {became}"
    if not then and not final:
        why = "; ".join(files.gaps) or f"{original.folder} has neither results.csv nor result.yaml"
        return False, f"nothing to compare with: {why}"
    if final:
        return True, f"identical: {len(then)} epochs of results.csv, and the tensors of {', '.join(final)}"
    return True, f"identical as far as the original goes: {len(then)} of {original.cfg.epochs} epochs, no final tensors"


def chain(run: str) -> list[Recorded]:
    """The run and those it came from, first one first: back to a start from scratch or from weights of no known run."""
    found: list[Recorded] = []
    folder: str | None = run
    while folder:
        stage = read(folder)
        if found:
            check_link(stage, found[0])
        if any(s.folder.resolve() == stage.folder.resolve() for s in found):
            raise UserError(f"{run}: the chain runs in a circle: {stage.folder} started from a run that came from it")
        found.insert(0, stage)
        folder = stage.start.get("run")
    return found


def check_link(before: Recorded, after: Recorded) -> None:
    """The earlier run must have ended, and in the tensors that the later one started from."""
    files, used = before.files, after.start
    if not files.ended:
        raise UserError(f"{after.folder} started from {before.folder}, which never ended (it has no result.yaml)")
    ended = (files.result.get("tensors") or {}).get(f"{Path(used['weights']).name} ema")
    if files.gaps:
        raise UserError("; ".join(files.gaps))
    if ended not in (None, used["tensors"]):  # numbered copies are not in result.yaml
        raise UserError(
            f"{after.folder} started from {used['weights']} with the tensors {short(used, 'tensors')}, "
            f"but {before.folder} ended with {ended[:12]}: it is another run by now"
        )


def names(stages: Sequence[Recorded]) -> list[str]:
    """Names of the replays of a chain."""
    return [f"{i}_{stage.folder.resolve().name}" for i, stage in enumerate(stages, 1)]


def table(stages: Sequence[Recorded], project: Path) -> str:
    """Markdown: each stage of a chain and how its replay ended."""
    rows = [["stage", "original", "replay"]]
    for stage, name in zip(stages, names(stages), strict=True):
        files = Facts(project / name)
        outcome = "not begun" if not (project / name).exists() else "not finished"
        if files.ended:
            said = (files.result.get("replay") or {}).get("outcome", "not a replay")
            outcome = "; ".join(files.gaps) or str(said)
        rows.append([name, str(stage.folder), outcome])
    return markdown(rows)


def main(argv: list[str]) -> None:
    command, args = REPLAY.parse(argv)
    stages = chain(args.run)
    if command == "table":
        print(table(stages, Path(args.project)))
        return
    for i, (stage, name) in enumerate(zip(stages, names(stages), strict=True)):
        print(stage.folder / "run.yaml", Path(stage.start["weights"]).name if i else "-", name, sep="\t")
