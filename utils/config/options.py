"""One option system for every program: an option is a dataclass field with its help, topic, range and type.

A dataclass of options becomes the flags of a command line (`Program`). Names are spelt with - or _, some have second
names (ALIASES, the same in every program); nothing is abbreviated. What is wrong is one line that names the flag.
"""

import argparse
import dataclasses
import difflib
import math
import re
import sys
import textwrap
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from utils.config import foreign_flags
from utils.system.errors import UserError, brief, quiet_pipe

TOPICS = {
    "start": "where a run begins, on what device",
    "data": "data",
    "model": "model and weights",
    "schedule": "epochs, rates, optimizer",
    "loss": "loss",
    "augmentation": "augmentation",
    "freezing": "freezing and stages",
    "heads": "several heads",
    "tasks": "tasks: class of the image, weights of the losses",
    "pairs": "pairs of visible and infrared pictures",
    "distillation": "distillation from a teacher",
    "speed": "speed",
    "saving": "what is written, and where",
    "evaluation": "evaluation and detection",
}
ALIASES = {  # second names of options, of whatever program
    "img_size": ("img", "imgsz"),
    "batch_size": ("batch",),
    "cache_images": ("cache",),
    "conf_thres": ("conf",),
    "iou_thres": ("iou",),
    "notest": ("noval",),
}
LONG = 40  # options, from which on a program's help is a list of topics
SHORT = 10  # up to so many stand in one list, without topics
FLAG = re.compile(r"--[A-Za-z][\w-]*")
T = TypeVar("T")
hints_of = cache(get_type_hints)  # working them out takes longer than all else here
TYPES: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}  # as in YAML
KINDS = {int: "a whole number", float: "a number"}


def opt(default: object, help: str, topic: str = "start", **meta: object) -> Any:
    """A dataclass field that is an option. meta: low, high, choices, nargs, const, negatable (--no-NAME too), hidden,
    positional, required, repeated (given several times), hyp (a key of the --hyp file too), place (says where or how
    fast, not what comes out)."""
    if topic not in TOPICS:
        raise ValueError(f"topic {topic!r} of {help!r} is not one of {', '.join(TOPICS)}")
    return field(default=default, metadata={"help": help, "topic": topic, **meta})


def hyper(default: float, help: str, topic: str, low: float = 0.0, high: float = math.inf) -> Any:
    """A hyper-parameter with its allowed range."""
    return opt(default, help, topic, hyp=True, low=low, high=high)


def again(schema: type, name: str, default: object, **meta: object) -> Any:
    """The option of another dataclass with another default."""
    return field(default=default, metadata={**schema.__dataclass_fields__[name].metadata, **meta})  # type: ignore[attr-defined]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def kind_of(hint: object) -> Any:
    """The type of one value: `int` of `int`, `int | None` and `tuple[int, ...]`."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(arg for arg in get_args(hint) if arg is not type(None))
    return get_args(hint)[0] if get_origin(hint) is tuple else hint


def check_ranges(values: Any) -> None:
    """Every option of a dataclass, by what its `opt` says."""
    for f in dataclasses.fields(values):
        check_range(f, getattr(values, f.name))


def check_range(f: dataclasses.Field[object], value: object, name: str = "") -> None:
    """name: how the message calls the option (default: its flag). The default of an option is always allowed."""
    if value == f.default:
        return
    name = name or (f.name.upper() if f.metadata.get("positional") else flag(f.name))
    low, high = f.metadata.get("low", -math.inf), f.metadata.get("high", math.inf)
    choices = f.metadata.get("choices")
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, int) and abs(one) >= 2**53:
            raise UserError(f"{name} must be a whole number of 15 digits at most, got {brief(one)}")
        if isinstance(one, (int, float)) and not (low <= one <= high and math.isfinite(one)):
            within = f"be at least {low:g}" if high == math.inf else f"lie in {low:g}..{high:g}"
            raise UserError(f"{name} must {within if math.isfinite(low) else 'be a finite number'}, got {one}")
        if choices and one not in choices:
            raise UserError(f"{name} must be one of {', '.join(map(str, choices))}, got {str(one)!r:.100}")


@dataclass(frozen=True)
class Given(Generic[T]):
    """A command line, read once."""

    cfg: T
    names: frozenset[str] = frozenset()  # of the options that were given, spelt with _
    flags: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # {patch that is switched on: what was given}
    rest: tuple[str, ...] = ()  # the words behind `--`

    def only(self, allowed: Iterable[str], why: str) -> None:
        """A UserError that says why, where other options are given."""
        if others := sorted(self.names - set(allowed)):
            raise UserError(f"{why}, without {' '.join(map(flag, others))}; to change them start a stage: --weights")


class Parser(argparse.ArgumentParser):
    """What argparse finds wrong is a UserError."""

    def error(self, message: str) -> Any:
        raise UserError(message.removeprefix("argument "))


@dataclass(frozen=True)
class Program(Generic[T]):
    """Something with a command line.

    name: as it is started; schemas: further dataclasses of options, {name: dataclass}; rest: what the words behind `--`
    are, where it takes any.
    """

    name: str
    about: str
    options: type[T]
    schemas: Mapping[str, type] = field(default_factory=dict)
    rest: str = ""

    def fields(self) -> list[tuple[dataclasses.Field[object], object]]:
        """(option, its type) of all dataclasses."""
        found = []
        for schema in (self.options, *self.schemas.values()):
            hints = hints_of(schema)
            found += [(f, hints[f.name]) for f in dataclasses.fields(schema) if not f.metadata.get("hidden")]  # type: ignore[arg-type]
        return found

    def parse(self, argv: Sequence[str]) -> Given[T]:
        """argv -> the options. Prints the help and ends where that is asked for."""
        self.answer_help(argv)
        own, rest = self.cut(argv)
        values = self.values(own)
        names = frozenset(values)
        flags = self.parted(values)
        return Given(self.options(**values), names, flags, rest)

    def parted(self, values: dict[str, object]) -> dict[str, dict[str, Any]]:
        """What belongs to the further dataclasses, taken out of the values."""
        return {
            name: {f.name: values.pop(f.name) for f in dataclasses.fields(schema) if f.name in values}
            for name, schema in self.schemas.items()
        }

    def cut(self, argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
        """The program's own words, and those behind `--`."""
        at = argv.index("--") if "--" in argv else len(argv)
        if at < len(argv) and not self.rest:
            raise UserError(f"{self.name} takes no words behind `--`")
        return list(argv[:at]), tuple(argv[at + 1 :])

    def values(self, argv: Sequence[str]) -> dict[str, Any]:
        """What the command line gives, by the options' names, checked."""
        if odd := [word for word in argv if any("\ud800" <= c <= "\udfff" for c in word)]:
            raise UserError(f"{odd[0]!r:.100} is not written in UTF-8: what a run records must be text")
        words = self.canonical(argv)
        found, extra = self.parser().parse_known_args(words)
        if extra:
            raise UserError(f"{extra[0]!r:.100} belongs to no flag{self.why_left(extra[0], words)}")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(found).items()}
        for f, _ in self.fields():
            if f.name in values:
                check_range(f, values[f.name])
            elif f.metadata.get("required"):
                raise UserError(f"{flag(f.name)} is needed: {f.metadata['help']} (see {self.name} --help)")
        return values

    def why_left(self, word: str, words: Sequence[str]) -> str:
        """What is probably meant with a word that no flag takes."""
        key, equals, value = word.partition("=")
        if equals and key in self.names():
            return f"; write --{key} {value}"
        at = max((i for i, other in enumerate(words) if other == word), default=0)
        before = next((i for i in range(at - 1, -1, -1) if FLAG.fullmatch(words[i])), None)
        if before is None:
            return ""
        return f": {words[before]} takes {'one value' if at > before + 1 else 'no value'}"

    def names(self) -> dict[str, str]:
        """{name or second name, spelt with -: the flag's name}."""
        known: dict[str, str] = {}
        for f, _ in self.fields():
            if f.metadata.get("positional"):
                continue
            name = f.name.replace("_", "-")
            known |= dict.fromkeys((name, *ALIASES.get(f.name, ())), name)
            if f.metadata.get("negatable"):
                known[f"no-{name}"] = f"no-{name}"
        return known

    def canonical(self, argv: Sequence[str]) -> list[str]:
        """The words with every flag under its own name; flags of other programs without meaning here are left out, and
        said. Errors: UserError for unknown ones."""
        known, words, skip, last = self.names(), list[str](), 0, ""
        for word in argv:
            head, equals, tail = word.partition("=")
            name = head[2:].replace("_", "-")
            if skip and not re.match(r"-(?!\d)", word):  # a number may be negative
                skip -= 1
                continue
            skip = 0
            if not FLAG.fullmatch(head):
                if not passed_over(last, word):
                    words.append(word)
            elif name in known:
                last = known[name]
                words.append(f"--{last}" if equals and passed_over(last, tail) else f"--{last}{equals}{tail}")
            elif name in foreign_flags.WITHOUT_MEANING:
                takes_value, why = foreign_flags.WITHOUT_MEANING[name]
                skip = int(takes_value and not equals)
                say(f"{head} has no meaning here and is passed over: {why}")
            else:
                raise UserError(self.unknown(head, known))
        return words

    def unknown(self, head: str, known: Mapping[str, str]) -> str:
        name = head[2:].replace("_", "-")
        if name in foreign_flags.INSTEAD:
            return f"{head} is not a flag of {self.name}: {foreign_flags.INSTEAD[name]}"
        near = dict.fromkeys(known[n] for n in difflib.get_close_matches(name, known, 4, 0.6))
        near |= dict.fromkeys(known[n] for n in known if name in n.split("-") or n in name.split("-"))
        hint = f"; did you mean {' or '.join('--' + n for n in list(near)[:3])}?" if near else "; see --help"
        return f"{head} is not a flag of {self.name}{hint}"

    def parser(self, topic: str = "") -> Parser:
        """argparse's, of all options or of those of one topic."""
        parser = Parser(
            prog=self.name, description=self.about, allow_abbrev=False, add_help=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=" ".join([self.name, *self.positionals(), "[OPTIONS]", *(["--", self.rest] if self.rest else [])]),
        )  # fmt: skip
        groups: dict[str, Any] = {}
        for name in (topic,) if topic else TOPICS:
            for f, hint in self.fields():
                if f.metadata.get("positional") and f.metadata["topic"] == name:
                    parser.add_argument(f.name, metavar=f.name.upper(), type=converter(hint), default=argparse.SUPPRESS,
                                        nargs=f.metadata.get("nargs"), help=f.metadata["help"])  # fmt: skip
                elif f.metadata["topic"] == name:
                    title = titled(name) if len(self.fields()) > SHORT else "options"
                    if title not in groups:
                        groups[title] = parser.add_argument_group(title)
                    add_flag(groups[title], f, hint)
        return parser

    def positionals(self) -> list[str]:
        return [
            f.name.upper() + "..." * ("nargs" in f.metadata) for f, _ in self.fields() if f.metadata.get("positional")
        ]

    def help(self, topic: str = "") -> str:
        """The help on one topic, or on all: for a long list of options what the topics are."""
        used = {f.metadata["topic"] for f, _ in self.fields()}
        topics = [t for t in TOPICS if t in used]
        if topic and topic != "all":
            chosen = [t for t in topics if topic == t or topic in TOPICS[t].split()]
            if not chosen:
                raise UserError(f"--help {topic}: there is no such topic; there are: {', '.join(topics)}, all")
            return self.parser(chosen[0]).format_help()
        if topic == "all" or len(self.fields()) < LONG:
            return self.parser().format_help()
        lines = [
            f"usage: {self.name} [OPTIONS]\n",
            self.about,
            "\ntopics (--help TOPIC shows one, --help all the lot):",
        ]
        for name in topics:
            flags = " ".join(flag(f.name) for f, _ in self.fields() if f.metadata["topic"] == name)
            lines += [f"  {titled(name)}"]
            lines += textwrap.wrap(
                flags, 110, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
            )
        return "\n".join(lines) + "\n"

    def answer_help(self, argv: Sequence[str]) -> None:
        """Print the help and end, where --help stands before any `--`."""
        asked = help_topic(argv)
        if asked is not None:
            with quiet_pipe(0):
                print(self.help(asked), end="")
                sys.stdout.flush()
            raise SystemExit(0)


def titled(topic: str) -> str:
    """A topic as the help heads it: its name is always there to be asked for."""
    return TOPICS[topic] if topic in TOPICS[topic].split() else f"{topic} ({TOPICS[topic]})"


def passed_over(name: str, value: str) -> bool:
    """Whether the value, of another program for a flag of that name, is left out, which is said. UserError: refused."""
    over, text = foreign_flags.VALUES.get((name, value), (False, ""))
    if text and not over:
        raise UserError(f"--{name} {value}: {text}")
    if over:
        say(f"--{name} takes no value, {value} is passed over: {text}")
    return over


def help_topic(argv: Sequence[str]) -> str | None:
    """None where no help is asked for, else the topic; empty for all."""
    own = list(argv[: argv.index("--")] if "--" in argv else argv)
    for i, word in enumerate(own):
        if word in ("-h", "--help"):
            following = own[i + 1] if i + 1 < len(own) else ""
            return "" if following.startswith("-") else following
        if word.startswith("--help="):
            return word.removeprefix("--help=")
    return None


def converter(hint: object) -> Any:
    kind = kind_of(hint)

    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {KINDS.get(kind, kind.__name__)}, got {text!r:.100}") from None

    return convert


def add_flag(group: Any, f: dataclasses.Field[object], hint: object) -> None:
    """Absent flags stay absent, so that a YAML value can win over the default."""
    meta, kind = f.metadata, kind_of(hint)
    shared: dict[str, Any] = {"dest": f.name, "default": argparse.SUPPRESS, "help": meta["help"]}
    if kind is bool:
        action: Any = argparse.BooleanOptionalAction if meta.get("negatable") else "store_true"
        group.add_argument(flag(f.name), action=action, **shared)
        return
    extra = {k: meta[k] for k in ("nargs", "const") if k in meta}
    extra |= {"action": "append"} if meta.get("repeated") else {}
    plain = f.default in ("", None, ()) or "(default" in meta["help"]
    also = "".join(f", also --{name}" for name in ALIASES.get(f.name, ()))
    shared["help"] += also + ("" if plain else f" (default: {show(f.default)})")
    metavar = "{" + ",".join(map(str, meta["choices"])) + "}" if "choices" in meta else None
    metavar = metavar or {int: "N", float: "X"}.get(kind, "TEXT")
    group.add_argument(flag(f.name), type=converter(hint), metavar=meta.get("metavar", metavar), **extra, **shared)


def show(value: object) -> str:
    return " ".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value)


def say(text: str) -> None:
    """A note about the command line, once for all ranks."""
    from utils.system import dist  # which imports torch
    from utils.system.notes import note

    if dist.main():
        print(note("command line", text))


def restored(schema: type[T], values: object, where: str) -> T:
    """A dataclass of options from the plain values of a YAML file. Unknown keys and values of another type or out of
    range are errors that name `where` and the key."""
    hints = hints_of(schema)  # type: ignore[arg-type]  # mypy: a type is hashable
    if not isinstance(values, dict) or (unknown := values.keys() - hints.keys()):
        raise UserError(
            f"{where}: "
            + (f"unknown settings {brief(sorted(map(str, unknown)))}" if isinstance(values, dict) else "missing")
        )
    for key, value in values.items():
        several = get_origin(hints[key]) is tuple
        kind = get_args(hints[key])[0] if several else hints[key]
        right = isinstance(value, (list, tuple)) == several and (
            kind not in TYPES or all(type(v) in TYPES[kind] for v in (value if several else [value]))
        )
        if kind in TYPES and not right:
            raise UserError(f"{where}: {key}: expected {'a list of ' * several}{kind.__name__}, got {brief(value)}")
    try:
        return schema(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
