"""What the pages and recipes tell people to type: tools, flags and files that there are."""

import re
from pathlib import Path

import pytest

from tests.shared import ROOT
from utils.config import detect, export, test, train
from utils.config.foreign_flags import INSTEAD, WITHOUT_MEANING
from utils.config.tools import BENCH, TOOLS, Commands

PAGES = [ROOT / "README.md", ROOT / "tests/README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "scripts").glob("*.sh")]
PROGRAMS = {"train": train.program(), "test": test.program(), "detect": detect.PROGRAM, "export": export.PROGRAM}
FLAGS = {name: {*program.names(), "help"} for name, program in PROGRAMS.items()}
TRIED = ("README.md", "compatibility.md")  # whose flags of other programs tests/conformance tries
EXAMPLES = {"patches/NAME.py", "tests/patches/test_NAME.py", "data/echo.yaml"}  # files that the reader is to make


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.name))
def test_what_is_to_be_typed_exists(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for program, words in re.findall(r"(?:python|python\"|PY) (train|test|detect|export)\.py([^\n`]*)", text):
        flags = {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", words)}
        assert flags <= FLAGS[program], f"{program}.py has no {flags - FLAGS[program]}"
    for name, command in re.findall(r"python -m utils ([a-z]\w*)(?: ([a-z]+)\b)?", text):
        assert name in TOOLS
        tool = TOOLS[name][1]
        assert not isinstance(tool, Commands) or not command or command in tool.programs, f"{name} {command}"
    if page.name not in TRIED:
        alone = [program for _, tool in TOOLS.values() for program in getattr(tool, "programs", {"": tool}).values()]
        known = set().union(*FLAGS.values(), *(program.names() for program in (BENCH, *alone)))
        named = {flag.replace("_", "-") for flag in re.findall(r"`--([a-z][\w-]*)", text)}
        assert named <= known | INSTEAD.keys() | WITHOUT_MEANING.keys(), named - known
    folders = "cfg|data|scripts|docs|utils|models|patches|tests"
    files = set(re.findall(rf"(?<![\w/.$}}])((?:{folders})/[\w./-]+\.(?:yaml|sh|md|py|html))", text)) - EXAMPLES
    assert not [file for file in sorted(files) if not (ROOT / file).exists()]
