"""A chain of stages from a recipe: each from best.pt of the one before, checked, gone on with, told in one table.

  python -m utils chain cfg/recipes/gradual_unfreeze.yaml --weights base/weights/best.pt [-- MORE TRAIN.PY FLAGS]

What a recipe holds: utils/study/recipe.py. Before anything trains every stage is looked at: flags, lengths, files,
model, weights. A stage that is there is taken only if its flags, data, weights and code are those that would be used;
else it is said what differs, and --redo, --keep or another --prefix is asked for. The same command goes on where it was
stopped or killed.

After each stage `python -m utils stages check` compares it with what it started from. A stage that is worse ends the
chain with exit code 1, and with commands that go on: the recipe's plans from this stage on, in runs of their own.

PROJECT/PREFIX_chain: chain.log (all that was said), chain.csv and chain.md (the table), chain.png (mAP, heads, losses).
Exit codes: 0 all done; 1 a stage failed or is worse; 2 bad input; 128 + N stopped by signal N.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from utils.config.tools import CHAIN, LIMITS, Chain, Limits
from utils.runs import chain as checks
from utils.runs.folder import Facts
from utils.runs.lock import Lock
from utils.study import chain_page, child, recipe, wanted
from utils.study.recipe import Recipe, Stage
from utils.system.errors import UserError, parsing
from utils.weights.checkpoint import read_source


@dataclass
class Step:
    """A stage in its place."""

    stage: Stage
    folder: Path
    weights: str  # that it starts from
    words: tuple[str, ...]  # of train.py
    wanted: wanted.Wanted
    state: str = "not begun"
    check: str = ""

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def told(self) -> chain_page.Told:
        return chain_page.Told(self.name, self.folder, self.state, self.check)


def main(argv: list[str]) -> None:
    given = CHAIN.parse(argv)
    args = given.cfg
    plan = asked(args, given.rest)
    steps = prepared(plan)
    if args.dry_run:
        settle(steps, args, argv)
        for i, step in enumerate(steps):
            print(title(i, step, len(steps)) + f", {step.state}")
        return
    folder = Path(plan.project) / (f"{plan.prefix}_chain" if plan.prefix else "chain")
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder), child.Stops().listening() as stops:
        log = child.Log(folder / "chain.log")
        aside = settle(steps, args, argv)
        log.say(f"chain of {len(steps)} stages: {command(argv)}")
        for step in aside:
            put_aside(step, log)
        code = carry_out(steps, plan, args, argv, stops, log, folder)
        log.say(chain_page.write([s.told for s in steps], folder))
        log.say(f"best epoch of each stage; table, picture and log: {folder}")
    if code:
        raise SystemExit(code)


def asked(args: Chain, rest: Sequence[str]) -> Recipe:
    """The recipe with what the command line changes."""
    found = recipe.read(args.recipe)
    given = {k: v for k in ("weights", "project", "prefix") if (v := getattr(args, k))}
    if taken := [w for w in rest if w.startswith("--") and recipe.dashed(w.partition("=")[0]) in recipe.OWN]:
        raise UserError(f"{taken[0]}: the chain sets it for each stage, take it out after `--`")
    found = recipe.spread(replace(found, **given, more=tuple(rest)), args.each)
    for word in args.plan:
        name, at, stage = word.partition("@")
        if not at:
            raise UserError(f"--plan {word}: expected PLAN@STAGE; stages: {', '.join(s.name for s in found.stages)}")
        found = recipe.choose(found, name, stage)
    return found


def prepared(plan: Recipe) -> list[Step]:
    """Every stage, looked at before anything trains. Errors: UserError that names the stage."""
    steps: list[Step] = []
    for stage in plan.stages:
        name = f"{plan.prefix}_{stage.name}" if plan.prefix else stage.name
        folder = Path(plan.project) / name
        if not re.fullmatch(recipe.NAME, name):
            raise UserError(f"{plan.source}: stage {stage.number}: name {name!r:.80}: use letters, digits, _ . + -")
        if folder in [step.folder for step in steps]:
            raise UserError(f"{plan.source}: two stages have the name {name}")
        weights = str(steps[-1].folder / "weights/best.pt") if steps else plan.weights
        words = (*plan.words(stage), *(("--weights", weights) if weights else ()))
        words = (*words, "--project", plan.project, "--name", name)
        try:
            found = wanted.rehearse(words, steps[-1].wanted if steps else None)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from None
        steps.append(Step(stage, folder, weights, words, found))
    return steps


def settle(steps: Sequence[Step], args: Chain, argv: Sequence[str]) -> list[Step]:
    """How far each stage is; those that --redo puts aside. Errors: UserError where a stage that is there is another one
    than would be trained."""
    names = [step.name for step in steps]
    for flag, name in [("--redo", args.redo), *(("--keep", name) for name in args.keep)]:
        if name and name not in names:
            raise UserError(f"{flag} {name}: there is no such stage; there are: {', '.join(names)}")
    first = names.index(args.redo) if args.redo else len(names)
    weights: str | None = wanted.tensors_of(steps[0].weights)
    aside, other = list[Step](), dict[str, list[str]]()
    for i, step in enumerate(steps):
        run = Facts(step.folder)
        there = (step.folder / "run.yaml").is_file()
        apart = wanted.differences(run, step.wanted, weights, code=run.ended) if there else []
        if apart and step.name not in args.keep:
            aside.append(step)
            if i < first:
                other[step.name] = apart
            there = False
        step.state = "not begun" if not there else "finished" if run.ended else "stopped"
        weights = wanted.ended_with(run, "best.pt") if there and run.ended else None
    if other:
        raise UserError(refusal(steps, other, argv))
    return aside


def refusal(steps: Sequence[Step], other: dict[str, list[str]], argv: Sequence[str]) -> str:
    name = next(iter(other))
    lines = []
    for step in (step for step in steps if step.name in other):
        lines.append(f"{step.folder} is there and is another run than would be trained:")
        lines += [f"    {what}" for what in other[step.name]]
    redo, keep, new = (command(argv, *more) for more in (("--redo", name), ("--keep", name), ("--prefix", "NEW")))
    lines.append(f"train it and what comes after it anew (what is there is moved aside): {redo}")
    lines += [f"take it as it is: {keep}", f"leave it alone and train under other names: {new}"]
    return "\n  ".join(lines)


def command(argv: Sequence[str], *more: str) -> str:
    """This command with more flags."""
    at = argv.index("--") if "--" in argv else len(argv)
    return shlex.join(["python", "-m", "utils", "chain", *argv[:at], *more, *argv[at:]])


def without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words but for --redo and --keep of stages that are not among these."""
    words, i = list(argv), 0
    while i < len(words) and words[i] != "--":
        name, equals, value = words[i].partition("=")
        count = 1 if equals else 2
        value = value or " ".join(words[i + 1 : i + 2])
        if name in ("--redo", "--keep") and value not in names:
            del words[i : i + count]
        else:
            i += 1
    return words


def put_aside(step: Step, log: child.Log) -> None:
    """Nothing is deleted: the run that was there gets another name."""
    child.wait_for_others(step.folder, log)
    names = (f"{step.folder.name}_before_redo{i or ''}" for i in range(10**6))
    place = next(p for name in names if not (p := step.folder.with_name(name)).exists())
    step.folder.rename(place)
    log.say(f"--redo: {step.folder} is now {place}")


def title(i: int, step: Step, count: int) -> str:
    return f"=== stage {i + 1} of {count}, {step.name}: {shlex.join(['python', 'train.py', *step.words])}"


def carry_out(
    steps: Sequence[Step],
    plan: Recipe,
    args: Chain,
    argv: Sequence[str],
    stops: child.Stops,
    log: child.Log,
    folder: Path,
) -> int:
    """Train what is not finished, and check each stage; the exit code."""
    for i, step in enumerate(steps):
        if step.state == "finished":
            log.say(f"=== stage {i + 1} of {len(steps)}, {step.name}: finished before")
        else:
            if stops.first:
                log.say("stopped; the same command goes on", error=True)
                return stops.code
            log.say(title(i, step, len(steps)) if step.state == "not begun" else f"=== going on with {step.folder}")
            done = child.train(step.folder, step.words, stops, log, args.ranks)
            step.state = done.how
            if done.how == "stopped":
                log.say(f"stopped in {step.folder}; the same command goes on", error=True)
                return stops.code
            if done.how == "failed":
                log.say(f"{step.folder} failed: {done.why}\nthe same command tries it again", error=True)
                return 1
        faults = check(step, plan, args, log)
        chain_page.write([s.told for s in steps], folder)
        if faults and not args.go_on:
            log.say(f"stopped after stage {i + 1} ({step.folder}): it is worse than what it started from", error=True)
            log.say(remedies(plan, step, argv), error=True)
            return 1
        if faults:
            log.say("--go-on: going on all the same", error=True)
    return 0


def check(step: Step, plan: Recipe, args: Chain, log: child.Log) -> list[str]:
    """What makes the stage worse than its start."""
    if not step.weights:
        step.check = "started from scratch"
        return []
    own = {k: v for k in LIMITS if (v := getattr(args, k)) is not None}
    limits = Limits(**{**plan.limits, **step.stage.limits, **own})
    before = Facts(Path(step.weights).parent.parent)
    run = Facts(step.folder)
    with parsing(f"{step.folder} or {step.weights} is damaged"):
        found = checks.judge(read_source(step.weights).meta, before if before.rows else None, run, limits)
    for fault in [*found.faults, *run.gaps]:
        log.say(f"{step.name}: {fault}", error=True)
    step.check = "; ".join(found.faults) or checks.outcome(found)
    if not found.faults:
        log.say(f"{step.name}: {step.check}{'; going on without a verdict' if found.code else ''}")
    return found.faults


def remedies(plan: Recipe, step: Step, argv: Sequence[str]) -> str:
    """The plans that can be carried out here, as commands, and going on all the same."""
    lines = []
    for name, fallback in plan.plans.items():
        word = f"{name}@{step.name}"
        try:
            names = [other.name for other in prepared(recipe.choose(plan, name, step.name))]
        except UserError:
            continue
        lines.append(f"{fallback.about or name}: {command(without(argv, names), '--plan', word)}")
    lines.append(f"go on all the same: {command(argv, '--go-on')}")
    return "what can be done (stages before it stay as they are):\n  " + "\n  ".join(lines)
