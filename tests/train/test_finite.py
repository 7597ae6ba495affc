"""The first bad step of each loss term is found later and named with its images."""

from pathlib import Path

import pytest
import torch
from torch import nn

from utils.system.errors import UserError
from utils.train.finite import Watch

NAN, INF = float("nan"), float("inf")


def noted(bad: dict[int, dict[str, float]], steps: int = 8) -> Watch:
    watch = Watch(("box", "cls"), torch.device("cpu"), Path("nowhere/last.pt"))
    for step in range(steps):
        values = {"box": 1.0, "cls": 2.0, **bad.get(step, {})}
        watch.note(step, {k: torch.tensor(v) for k, v in values.items()}, [f"{step}.png", f"{step}b.png"])
    return watch


def test_finite_terms_pass_and_their_paths_are_forgotten() -> None:
    watch = noted({})
    watch.look()
    assert list(watch.paths) == [7]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_the_first_bad_step_is_named(value: float) -> None:
    watch = noted({3: {"cls": value}, 5: {"box": NAN, "cls": 1.0}, 7: {"cls": NAN}})
    with pytest.raises(UserError, match=r"(?s)term cls is not finite at step 3.*3\.png\n  3b\.png$"):
        watch.look()


def test_a_term_that_was_bad_before_the_last_look_but_one_is_not_lost() -> None:
    watch = noted({})
    watch.look()
    watch.note(8, {"box": torch.tensor(NAN), "cls": torch.tensor(INF)}, ["8.png"])
    watch.note(9, {"box": torch.tensor(1.0), "cls": torch.tensor(1.0)}, ["9.png"])
    with pytest.raises(UserError, match=r"(?s)term box, cls is not finite at step 8;.*  8\.png$"):
        watch.look()


def test_weights_are_looked_at_before_a_save() -> None:
    """A finite loss may have an infinite gradient."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    watch = noted({})
    watch.check(model)
    with torch.no_grad():
        model[0].weight[0, 0] = INF
    with pytest.raises(UserError, match=r"(?s)0\.weight not finite after step 7;.*7\.png"):
        watch.check(model)


def test_before_a_save_the_terms_are_looked_at_too() -> None:
    with pytest.raises(UserError, match="term box is not finite at step 2"):
        noted({2: {"box": NAN}}).check(nn.Linear(1, 1))
