"""The tools' command lines: what --help says, quickly, and what is wrong with a word."""

import importlib

import pytest

from tests.config.test_help import help_and_heavy
from utils.__main__ import main
from utils.bench import sections
from utils.config.options import Program
from utils.config.tools import SECTIONS, TOOLS
from utils.system.errors import UserError

COMMANDS = [words for name, (_, tool) in TOOLS.items() for words in (
    [(name,)] if isinstance(tool, Program) else [(name,), *((name, word) for word in tool.programs)])]  # fmt: skip


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_help_imports_no_torch(words: tuple[str, ...]) -> None:
    out, loaded = help_and_heavy("utils/__main__.py", *words)
    assert out.startswith(f"usage: {' '.join(('python -m utils', *words))} ") and not loaded


def test_every_tool_is_there_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(hasattr(importlib.import_module(module), "main") for module, _ in TOOLS.values())
    main([])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(TOOLS) and all(len(line) < 120 for line in lines)


def test_every_section_of_bench_can_be_asked_for() -> None:
    assert tuple(sections.SECTIONS) == SECTIONS


@pytest.mark.parametrize(("name", "module"), [(name, module) for name, (module, _) in TOOLS.items()])
@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_of_a_tool_alone(name: str, module: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(module).main([word])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith(f"usage: python -m utils {name}")


def test_what_is_no_tool_or_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="there is no tool 'repot'; there are: report, compare"):
        main(["repot"])
    with pytest.raises(UserError, match="there is no command 'mak'; there are: make, check"):
        main(["split", "mak"])
    with pytest.raises(SystemExit):
        main(["split", "make", "--help"])
    assert "--ratios" in capsys.readouterr().out
