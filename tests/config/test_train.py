"""train.py's command line: which patches it switches on, and from where a run has its settings."""

from pathlib import Path

import pytest

from tests.shared import ROOT
from utils.config.train import PLACES, Config, parse
from utils.system.errors import UserError


def test_a_patch_is_on_by_its_switches_and_gets_what_was_given() -> None:
    given = parse(["--freeze", "3", "0-1", "--mtl_tasks", "box", "obj", "--mtl", "dwa", "--epochs", "7"])
    assert given.flags == {"freeze": {"freeze": ("3", "0-1")}, "weighting": {"mtl_tasks": ("box", "obj"), "mtl": "dwa"}}
    assert given.cfg.epochs == 7 and {"freeze", "mtl", "epochs"} <= given.names and not parse([]).flags


def test_a_flag_of_a_patch_that_is_off_names_its_switches() -> None:
    with pytest.raises(UserError, match="--gradnorm-lr is of no use without --mtl or --gradnorm-alpha"):
        parse(["--gradnorm-lr", "0.1"])


def test_the_command_line_wins_over_the_hyp_file() -> None:
    cfg = parse(["--hyp", "data/hyp.demo.yaml", "--lr0", "0.5"]).cfg
    assert (cfg.lr0, cfg.obj, cfg.paste_in) == (0.5, 1.0, 0.0)


def test_default_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse([]).cfg == parse(["--hyp", str(ROOT / "data/hyp.scratch.p5.yaml"), "--hyp", Config.hyp]).cfg


@pytest.mark.parametrize("words", [["--resume", "x"], ["--resume"], ["--replay", "x"]])
def test_a_run_with_settings_of_its_own_reads_no_hyp_file(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.config.train.read_hyp", lambda *_: pytest.fail("the default hyp was read"))
    assert parse(words).names == {words[0][2:]}


def test_the_guards_flags_need_the_guard() -> None:
    with pytest.raises(UserError, match="belong to --guard-drop"):
        parse(["--guard-patience", "2"])


def test_what_says_where_is_marked() -> None:
    assert {"project", "device", "workers", "exist_ok"} <= PLACES and "epochs" not in PLACES
