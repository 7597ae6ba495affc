"""Options of `python -m utils group`."""

import pytest

from utils.config.group import GROUP, GROUP_BY, Group
from utils.config.help import patch_tools
from utils.system.errors import UserError


def test_defaults_are_those_of_the_docs() -> None:
    args = GROUP.parse(["--data", "x.yaml"]).cfg
    assert args == Group(data="x.yaml") and (args.alpha, args.beta, args.min_confusion) == (0.5, 0.5, 0.02)


def test_what_there_is_to_group_by() -> None:
    assert [GROUP.parse(["--data", "x", "--by", by]).cfg.by for by in GROUP_BY] == list(GROUP_BY)
    with pytest.raises(UserError, match="--by"):
        GROUP.parse(["--data", "x", "--by", "shape"])


def test_the_tool_stands_in_a_patch() -> None:
    assert patch_tools()["group"].startswith("patches.")
