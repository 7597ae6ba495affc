"""What several programs ask for in the same way."""

import pytest

from utils.config import detect, export, test
from utils.config.options import Program
from utils.system.errors import UserError

PROGRAMS = [test.program(), detect.PROGRAM, export.PROGRAM]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: str(p.name))
def test_weights_are_needed(program: Program[object]) -> None:
    with pytest.raises(UserError, match="--weights is needed"):
        program.parse(["--source", "x"] if program.name == "detect.py" else [])


def test_a_column_of_no_file_is_refused() -> None:
    for program, words in ((test.program(), []), (detect.PROGRAM, ["--source", "x"])):
        with pytest.raises(UserError, match="--save-txt: give that too"):
            program.parse(["--weights", "w.pt", *words, "--save-conf"])
        assert program.parse(["--weights", "w.pt", *words, "--save-conf", "--save-txt"]).cfg.save_conf
