"""A recipe: the stages of a chain and their flags, limits and fall-back plans, as a YAML file.

  project: runs/train            # folder of the stages' runs
  prefix: gradual                # the runs are PROJECT/PREFIX_NAME, the chain's own files lie in PROJECT/PREFIX_chain
  name: stage{number}_freeze{freeze}   # of stages without a name of their own: their number, or one of their flags
  weights: base/best.pt          # from which the first stage starts (left out: from scratch)
  common: {data: data/coco320.yaml, img-size: [320, 320], cache-images: true}
  limits: {max-drop: 0.01}       # of `python -m utils stages check`
  stages:
    - flags: {freeze: 50, epochs: 100, transfer-weights: true}
    - name: open
      flags: {freeze: 0, epochs: 200}
      limits: {max-drop: 0.02}
  plans:
    lower-rates: {about: half the rates, change: {lr0: x0.5}}
    smaller-steps: {about: each opening in two steps, change: [{freeze: halfway}, {}]}

Flags are those of train.py. true: the flag alone; false or nothing: not given; a list: several values. Each stage
starts from best.pt of the one before. A plan changes the stage at which it is chosen and all after it, which get new
names (NAME_PLAN); those before stay. Its `change` are flags that win over the stage's own, or a list of such: then so
many stages take the place of each. A value `xF` is F times the stage's own; `halfway` lies between the stage before and
this one; a list of `xF` is one for each stage of the chain.
"""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from utils.config import tools
from utils.config.train import parse
from utils.system.errors import UserError, brief
from utils.system.yaml_file import read_yaml

OWN = {"weights", "project", "name", "exist-ok", "resume", "replay", "allow-changed-data"}
KEYS = ("project", "prefix", "name", "weights", "common", "limits", "stages", "plans")
LIMITS = {name.replace("_", "-"): name for name in tools.LIMITS}
NAME = r"[\w.+-]+"

Flags = Mapping[str, tuple[str, ...]]  # {flag, spelt with -: its values}


@dataclass(frozen=True)
class Stage:
    pattern: str  # of its name
    number: str
    flags: Flags
    limits: Mapping[str, float] = field(default_factory=dict)  # that it does not share with the others

    @property
    def name(self) -> str:
        known = {"number": (self.number,), **self.flags}
        missing = [k for k in re.findall(r"\{([\w-]+)\}", self.pattern) if k not in known]
        if missing:
            raise UserError(f"name {self.pattern}: stage {self.number} has no flag {missing[0]}")
        return re.sub(r"\{([\w-]+)\}", lambda found: "_".join(known[found[1]]), self.pattern)


@dataclass(frozen=True)
class Plan:
    name: str
    about: str
    change: tuple[Mapping[str, Any], ...]  # a stage for each takes the place of a stage


@dataclass(frozen=True)
class Recipe:
    source: str
    project: str
    prefix: str
    weights: str
    common: Flags
    limits: Mapping[str, float]
    stages: tuple[Stage, ...]
    plans: Mapping[str, Plan]
    more: tuple[str, ...] = ()  # words for every stage, which win

    def words(self, stage: Stage) -> tuple[str, ...]:
        """train.py's, but for weights and place."""
        each = [*self.common.items(), *stage.flags.items()]
        return (*(w for name, values in each for w in (f"--{name}", *values)), *self.more)


def read(path: str) -> Recipe:
    """Errors: UserError that names the file, the stage and the key."""
    content = read_yaml(path, "recipe", ["cfg/recipes"])
    known(content, KEYS, path)
    listed = content.get("stages")
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{path}: stages: expected a list of stages, got {brief(listed)}")
    pattern = text(content, "name", path) or "stage{number}"
    stages = tuple(read_stage(s, str(i), pattern, f"{path}: stage {i}") for i, s in enumerate(listed, 1))
    plans = {str(k): read_plan(str(k), v, f"{path}: plan {k}") for k, v in table(content, "plans", path).items()}
    return Recipe(
        path, text(content, "project", path) or "runs/train", text(content, "prefix", path),
        text(content, "weights", path), read_flags(content, "common", path), read_limits(content, path), stages, plans,
    )  # fmt: skip


def read_stage(content: Any, number: str, pattern: str, where: str) -> Stage:
    known(content, ("name", "flags", "limits"), where)
    own = text(content, "name", where)
    return Stage(own or pattern, number, read_flags(content, "flags", where), read_limits(content, where))


def read_plan(name: str, content: Any, where: str) -> Plan:
    known(content, ("about", "change"), where)
    change = content.get("change")
    listed = change if isinstance(change, list) else [change]
    if not re.fullmatch(NAME, name) or not listed or not all(isinstance(c, dict) for c in listed):
        raise UserError(
            f"{where}: expected a name of letters, digits, _ . + -, and `change:` with flags or a list of such"
        )
    if all(len(c) == 0 for c in listed):
        raise UserError(f"{where}: change: it changes no flag")
    return Plan(name, text(content, "about", where), tuple({dashed(k): v for k, v in c.items()} for c in listed))


def known(content: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected `key: value` lines, got {brief(content)}")
    if unknown := [str(k) for k in content if k not in keys]:
        raise UserError(f"{where}: unknown key {unknown[0]!r:.60}; there are: {', '.join(keys)}")


def table(content: Mapping[str, Any], key: str, where: str) -> Mapping[Any, Any]:
    found = content.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"{where}: {key}: expected `key: value` lines, got {brief(found)}")
    return found


def text(content: Mapping[str, Any], key: str, where: str) -> str:
    found = content.get(key)
    if found is not None and not isinstance(found, (str, int)):
        raise UserError(f"{where}: {key}: expected text, got {brief(found)}")
    return "" if found is None else str(found)


def dashed(name: object) -> str:
    return str(name).removeprefix("--").replace("_", "-")


def read_flags(content: Mapping[str, Any], key: str, where: str) -> Flags:
    found: dict[str, tuple[str, ...]] = {}
    for name, value in table(content, key, where).items():
        if dashed(name) in OWN:
            raise UserError(f"{where}: {key}: {name}: the chain sets it for each stage, take it out")
        values = given(value, f"{where}: {key}: {name}")
        if values is not None:
            found[dashed(name)] = values
    return found


def given(value: Any, where: str) -> tuple[str, ...] | None:
    """The words of a value; None: the flag is not given."""
    if value is None or value is False or value == "":
        return None
    if value is True:
        return ()
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in listed):
        raise UserError(
            f"{where}: expected a number, a text, true, false, or a list of numbers and texts, got {brief(value)}"
        )
    return tuple(map(str, listed))


def read_limits(content: Mapping[str, Any], where: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in table(content, "limits", where).items():
        if dashed(key) not in LIMITS:
            raise UserError(f"{where}: limits: unknown key {key!r:.60}; there are: {', '.join(LIMITS)}")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
            raise UserError(f"{where}: limits: {key}: expected a number of at least 0, got {brief(value)}")
        found[LIMITS[dashed(key)]] = float(value)
    return found


def spread(recipe: Recipe, each: Sequence[str]) -> Recipe:
    """The recipe with `FLAG=VALUE,VALUE,...`: a value for each stage, its words parted by blanks; nothing: not given.
    The number of stages may become another, if every flag in which stages differ is given. Errors: UserError."""
    lists: dict[str, list[str]] = {}
    for word in each:
        name, equals, values = word.partition("=")
        name = dashed(name)
        if not equals or not re.fullmatch(NAME, name) or name in OWN:
            raise UserError(f"--each {word!r:.100}: expected FLAG=VALUE,VALUE,..., a value for each stage")
        lists[name] = [value.strip() for value in values.split(",")]
    if not lists:
        return recipe
    counts = {name: len(values) for name, values in lists.items()}
    count, old = next(iter(counts.values())), len(recipe.stages)
    if len(set(counts.values())) > 1:
        raise UserError(f"--each: a value for each stage is needed, but the numbers differ: {said(counts)}")
    names = dict.fromkeys(name for stage in recipe.stages for name in stage.flags)
    varying = [n for n in names if len({s.flags.get(n) for s in recipe.stages[int(n == "transfer-weights") :]}) > 1]
    if count != old and (short := [n for n in varying if n not in lists]):
        raise UserError(
            f"--each: {said(counts)}, but {', '.join(short)} {'have' if len(short) > 1 else 'has'} {old} in "
            f"{recipe.source}: give a value for each of the {count} stages: "
            f"{' '.join(f'--each {n}=...' for n in short)}"
        )
    stages = []
    for i in range(count):
        stage = recipe.stages[min(i, old - 1)]
        own = {name: tuple(values[i].split()) for name, values in lists.items()}
        flags = {name: own.get(name, value) for name, value in {**stage.flags, **own}.items()}
        stages.append(replace(stage, number=str(i + 1), flags={k: v for k, v in flags.items() if v or k not in own}))
    return replace(recipe, stages=tuple(stages))


def said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} has {count}" for name, count in counts.items())


def choose(recipe: Recipe, plan: str, stage: str) -> Recipe:
    """The chain with a plan from this stage on. Errors: UserError where there is no such plan or stage, or the plan
    cannot be carried out there."""
    names = [s.name for s in recipe.stages]
    where = f"--plan {plan}@{stage}"
    if plan not in recipe.plans:
        there = ", ".join(recipe.plans) or "none"
        raise UserError(f"{where}: {recipe.source} has no plan {plan!r:.60}; there are: {there}")
    if stage not in names:
        raise UserError(f"{where}: there is no stage {stage!r:.60}; there are: {', '.join(names)}")
    first, chosen = names.index(stage), recipe.plans[plan]
    stages = list(recipe.stages[:first])
    for i in range(first, len(names)):
        old = recipe.stages[i]
        for n, change in enumerate(chosen.change):
            letter = "abcdefgh"[n] if len(chosen.change) > 1 else ""
            pattern = f"{old.pattern}_{plan}" + ("" if "{number}" in old.pattern else letter)
            flags = dict(old.flags)
            for name, value in change.items():
                before = recipe.stages[i - 1] if i else None
                flags |= {name: changed(recipe, name, value, i, before, f"{where}: {name}")}
            if n or i > first:
                flags.pop("transfer-weights", None)
            stages.append(Stage(pattern, old.number + letter, flags, old.limits))
    return replace(recipe, stages=tuple(stages))


def changed(recipe: Recipe, name: str, value: Any, index: int, before: Stage | None, where: str) -> tuple[str, ...]:
    """What a plan's value means for the stage of this index."""
    now = recipe.stages[index]
    if isinstance(value, list) and value and all(is_factor(v) for v in value):
        if len(value) != len(recipe.stages):
            raise UserError(f"{where}: {len(value)} values, but the chain has {len(recipe.stages)} stages")
        value = value[index]
    if is_factor(value):
        with contextlib.redirect_stdout(io.StringIO()):
            own = getattr(parse(recipe.words(now)).cfg, name.replace("-", "_"), None)
        if not isinstance(own, (int, float)) or isinstance(own, bool):
            raise UserError(f"{where}: {value}: {name} is no number that could be multiplied")
        scaled = own * float(value[1:])
        return (str(round(scaled)) if isinstance(own, int) else f"{scaled:.6g}",)
    if value == "halfway":
        numbers = [stage.flags.get(name, ("0",)) if stage else () for stage in (before, now)]
        if not all(len(n) == 1 and n[0].isdecimal() for n in numbers):
            raise UserError(f"{where}: halfway: there is no stage before, or one of the two has no single number")
        a, b = (int(n[0]) for n in numbers)
        if abs(a - b) < 2:
            raise UserError(f"{where}: halfway: nothing lies between {a} and {b}")
        return (str((a + b) // 2),)
    values = given(value, where)
    if values is None:
        raise UserError(f"{where}: a plan gives flags, it cannot take one away")
    return values


def is_factor(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"x\d*\.?\d+", value) is not None
