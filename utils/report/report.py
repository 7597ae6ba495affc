"""What a run was, how it ended, what looks wrong and what comes next, as one page.

  python -m utils report RUN [--out DIR]

Writes report.html (all in one file) and report.md, by default into the run folder. RUN may also be the folder of a
study or of any set of runs: then it is a page over them. Every number is read from the runs' own files; what they do
not hold is called not measured, a file that cannot be read is named. The rules by which something counts as wrong stand
in the report (utils/report/rules.py, docs/report.md).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from utils.config.tools import REPORT
from utils.report import sections
from utils.report.folder import study_parts
from utils.report.frozen import Verdict
from utils.report.next_commands import Command, next_commands
from utils.report.page import Block, Code, Section, Text, as_html, as_markdown
from utils.report.rules import DAMAGED, Rule, findings
from utils.runs.folder import Facts, is_run, read_facts
from utils.system.errors import UserError, parsing
from utils.system.files import naming, write_text
from utils.system.table import few

Found = Sequence[tuple[Rule, Verdict]]


def what(run: Facts) -> str:
    """The kind of run in a sentence."""
    patches, config = run.patches, run.config
    if not config:
        return f"{run.folder.name}: run.yaml does not say what it is"
    kind = [f"{patches['multihead'].get('heads')} heads"] if "multihead" in patches else []
    if "freeze" in patches or "unfreeze" in patches:
        kind.append(f"--freeze {run.frozen}")
    if "unfreeze" in patches:
        stages = (patches["unfreeze"].get("unfreeze_table") or {}).get("stages") or []
        kind.append(f"{len(stages)} openings by --unfreeze" + (" under guard" if config.get("guard_drop") else ""))
    kind += [f"image classes ({name})" for name in ("joint", "dual_backbone") if name in patches]
    kind += [f"tasks weighed by {patches['weighting'].get('mtl')}"] if "weighting" in patches else []
    kind += [f"taught by {patches['distill'].get('teacher')}"] if "distill" in patches else []
    kind += ["visible and infrared aligned"] if "align" in patches else []
    start = run.start.get("weights") or config.get("weights")
    images = sum(name.startswith("train ") for name in run.listing)
    count = f"{images} images" if images else "not measured how many images"
    size = config.get("img_size") or ["?"]
    return (
        f"{run.folder.name}: {', '.join(kind) or 'plain training'}, "
        + (f"from {start}" if start else "from scratch")
        + f", on {config.get('data')} ({count}) at {size[0]} px, model {config.get('cfg') or 'of the checkpoint'}"
    )


def best(run: Facts) -> str:
    if not run.best:
        return "best result: not measured, no epoch was evaluated"
    row, last = run.best, run.scored[-1]
    return (
        f"best result: mAP@0.5:0.95 {float(row['mAP']):.4f}, mAP@0.5 {float(row['mAP50']):.4f} at epoch "
        f"{row['epoch']} ({run.choice.words}; matching rule {row.get('match') or 'not recorded'}); at the last "
        f"evaluated epoch, {last['epoch']}: {float(last['mAP']):.4f} and {float(last['mAP50']):.4f}"
    )


def wrong(found: Found) -> str:
    said = [f"{rule.name} ({v[0]}{f'; {len(v) - 1} more' if len(v) > 1 else ''})" for rule, v in found
            if v and not isinstance(v, str)]  # fmt: skip
    skipped = sum(isinstance(v, str) for _, v in found)
    rest = f"{len(found) - skipped} rules looked, {skipped} could not"
    if not said:
        return f"nothing looks wrong: {rest}"
    return f"looks wrong: {few(said, sep='; ')}{', see Anomalies' * (len(said) > 3)} ({rest})"


def then(commands: Sequence[Command], found: Found) -> str:
    if not commands:
        return "next: nothing that the run's files suggest"
    doubts = any(v and not isinstance(v, str) and rule.name != "unfinished" for rule, v in found)
    first = "look at the anomalies first; then " if doubts else ""
    return f"next: {first}{commands[0][0]}: {commands[0][1]}"


MAKERS = (sections.progress, sections.chain, sections.losses, sections.validation, sections.extras, sections.freezing,
          sections.checkpoints, sections.warnings, sections.what_ran, sections.data, sections.pictures)  # fmt: skip


def made(maker: Callable[[Facts], list[Section]], run: Facts) -> list[Section]:
    """A part of the page; where the run's files hold something else than a run writes, a part that says so."""
    try:
        with parsing(DAMAGED):
            return maker(run)
    except UserError as error:
        return [Section(maker.__name__.replace("_", " ").capitalize(), [Text(f"not measured: {error}", True)])]


def told(line: Callable[[], str], otherwise: str) -> str:
    """A line of the summary, likewise."""
    try:
        with parsing(DAMAGED):
            return line()
    except UserError as error:
        return f"{otherwise}: not measured, {error}"


def run_parts(run: Facts) -> tuple[list[Text], list[Section]]:
    """The five lines on top, and the sections."""
    found = findings(run)
    try:
        with parsing(DAMAGED):
            commands = next_commands(run)
    except UserError:
        commands = []
    doubtful = any(v and not isinstance(v, str) for _, v in found)
    unfinished = not run.finished and not run.holder
    summary = [
        Text(told(lambda: what(run), run.name)),
        Text(told(lambda: run.status, "status"), unfinished),
        Text(told(lambda: best(run), "best result")),
        Text(wrong(found), doubtful),
        Text(then(commands, found)),
    ]
    lines: list[Block] = [b for purpose, command in commands for b in (Text(purpose), Code(command))]
    first = [sections.anomalies(found), Section("Next", lines or [Text("Nothing that the run's files suggest.")])]
    return summary, [*first, *(section for maker in MAKERS for section in made(maker, run))]


def report(folder: Path, out: Path | None = None) -> list[str]:
    """Write both forms; the five lines. Errors: UserError where the folder holds no run."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    if is_run(folder):
        summary, parts = run_parts(read_facts(folder))
        title = f"Run {folder.resolve().name}"
    else:
        summary, parts = study_parts(folder)
        title = f"Runs of {folder.resolve().name}"
    out = out or folder
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
    write_text(out / "report.html", as_html(title, summary, parts))
    write_text(out / "report.md", as_markdown(title, summary, parts, out))
    return [text.text for text in summary]


def main(argv: list[str]) -> None:
    args = REPORT.parse(argv).cfg
    out = Path(args.out) if args.out else Path(args.run)
    print("\n".join(report(Path(args.run), out)))
    print(f"report in {out / 'report.html'}")
