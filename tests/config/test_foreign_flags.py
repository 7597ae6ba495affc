"""Flags of other programs are passed over with a line or refused with what does it here.

That every flag of YOLOv7's four programs is answered: tests/conformance/test_compatibility.py.
"""

import pytest

from tests.config.test_options import NEEDED, PROGRAMS
from utils.system.errors import UserError


def test_flags_without_meaning_are_passed_over_with_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--bucket", "gs://x", "--upload_dataset", "--bbox_interval=3", "--local-rank", "-1", "--epochs", "4"]
    assert PROGRAMS["train"].values(words) == {"epochs": 4}
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["--bucket", "--upload_dataset", "--bbox_interval", "--local-rank"]
    assert all("has no meaning here" in line for line in said)


@pytest.mark.parametrize(
    ("name", "flag", "said"),
    [
        ("train", "--optimizer", "--adam"),
        ("train", "--model", "--cfg"),
        ("train", "--cos-lr", "--linear-lr"),
        ("train", "--evolve", "utils study"),
        ("test", "--save-hybrid", "--save-txt"),
        ("export", "--dynamic-batch", "--batch dynamic"),
    ],
)
def test_flags_of_another_form_name_what_does_it_here(name: str, flag: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        PROGRAMS[name].parse([*NEEDED.get(name, []), flag, "x"])
    assert said in str(error.value) and f"{flag} is not a flag of {name}.py" in str(error.value)


@pytest.mark.parametrize("words", [["--cache", "ram"], ["--cache=ram"], ["--cache-images", "ram"], ["--cache_images"]])
def test_the_place_of_a_cache(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert PROGRAMS["train"].values([*words, "--epochs", "4"]) == {"cache_images": True, "epochs": 4}
    assert ("ram is passed over" in capsys.readouterr().out) == ("ram" in words[-1])


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("train", "--cache disk", "--cache-images disk: images are kept in RAM"),
        ("train", "--cache=disk", "leave --cache-images out"),
        ("test", "--task study", "once per --img-size"),
        ("export", "--img 640 640", "'640' belongs to no flag: --img-size takes one value"),
        ("train", "--adam yes", "'yes' belongs to no flag: --adam takes no value"),
        ("train", "yes", "'yes' belongs to no flag$"),
    ],
)
def test_values_of_another_program(name: str, words: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        PROGRAMS[name].parse([*NEEDED.get(name, []), *words.split()] if words != "yes" else ["yes"])
