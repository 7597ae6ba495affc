"""What becomes of an error: its exit code, its text, and the file that a parser choked on."""

import pytest

from utils.system.errors import UserError, parsing, run_main


def fails(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(None, 0, ""), (UserError("--x: wrong"), 2, "error: --x: wrong\n"), (SystemExit(3), 3, "")],
)
def test_exit_codes(
    error: BaseException | None,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit) as end:
        run_main(lambda argv: fails(error) if error else None)
    assert end.value.code == code and capsys.readouterr().err == said


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        run_main(lambda argv: fails(KeyError("x")))


def test_whatever_a_parser_raises_names_the_file_on_one_short_line() -> None:
    for error, said in (
        (RecursionError("deep"), "a.yaml: deep"),
        (ValueError("two\n  lines"), "a.yaml: two lines"),
        (MemoryError(), "a.yaml: MemoryError"),
        (OSError(13, "Permission denied"), "a.yaml: Permission denied"),
        (UserError("a.yaml:3: said already"), "a.yaml:3: said already"),
        (ValueError("x" * 100_000), "a.yaml: " + "x" * 300),
    ):
        with pytest.raises(UserError) as found, parsing("a.yaml"):
            raise error
        assert str(found.value) == said
