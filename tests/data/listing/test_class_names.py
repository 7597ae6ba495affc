"""Class names as they are written: what YAML turns into something else is refused."""

from pathlib import Path

import pytest

from utils.data.listing.class_names import class_names
from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml


def names(folder: Path, text: str) -> tuple[str, ...]:
    file = folder / "d.yaml"
    file.write_text(f"names: {text}\n", encoding="utf-8")
    return class_names(file, "names", read_yaml(file)["names"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[cat, 'yes', \"007\"]", ("cat", "yes", "007")),
        ("[0, 1, 12]", ("0", "1", "12")),
        ("{1: b, 0: a}", ("a", "b")),
        ("[日本, Ärzte, 🐈]", ("日本", "Ärzte", "🐈")),
        ("\n- a\n- b # remark", ("a", "b")),
    ],
)
def test_text_and_plain_whole_numbers(tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
    assert names(tmp_path, text) == found


@pytest.mark.parametrize(
    "written",
    ["yes", "no", "on", "Off", "null", "~", "007", "12:30", "1_000", "0x1F", "+5", "1.5", "1e3", ".inf", "2024-01-31"],
)
def test_what_yaml_reads_as_something_else_must_be_quoted(tmp_path: Path, written: str) -> None:
    if written == "1e3":  # text for YAML 1.1
        assert names(tmp_path, "[a, 1e3]") == ("a", "1e3")
        return
    with pytest.raises(UserError) as error:
        names(tmp_path, f"[a, {written}]")
    assert f"names: {written} is read by YAML as " in str(error.value) and f'quote it: "{written}"' in str(error.value)
    with pytest.raises(UserError, match="quote it"):
        names(tmp_path, f"{{0: a, 1: {written}}}")
    assert names(tmp_path, f'[a, "{written}"]') == ("a", written)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[a], [b]]", "is read by YAML as ['a']"),
        ("[a, b, a]", "a given more than once"),
        ("[1, '1']", "1 given more than once"),
        ("{0: a, 2: b}", "the ids must be 0..1"),
        ("{'0': a}", "the ids must be 0..0"),
        ("{yes: a}", "the ids must be 0..0"),
        ("cat", "expected a list or a map"),
        ("[a, '']", "is no name"),
        ('[a, "b\\n"]', "is no name"),
    ],
)
def test_what_are_no_names(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        names(tmp_path, text)
    assert words in str(error.value)
