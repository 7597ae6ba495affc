"""--patience and the guard: what they decide, on plain numbers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.train.audit.test_audit import LIVE, Toy, write
from utils.config.train import Config, parse
from utils.runs.choice import Choice
from utils.runs.resumable import BEFORE
from utils.system.errors import UserError
from utils.train.guard import Guard

Groups = list[dict[str, Any]]
LOSS = Choice("val_box", ("val_box",), lower=True)


def groups_at(*opens: int) -> Groups:
    return [{"name": f"weight/{i}", "opens": e, "ramp": 1.0, "lr_scale": 1.0} for i, e in enumerate(opens)]


def play(groups: Groups, maps: list[float], restart: bool = False, **flags: Any) -> tuple[Guard, list[Any]]:
    """The loop's calls, an epoch for each value; the guard and what happened. Going back brings the fields back that
    the groups had at the snapshot. restart: every epoch begins with a guard read from the state of the one before."""
    cfg = Config(**{"epochs": 50, "guard_drop": 0.01, "guard_patience": 2, **flags})
    guard, log, best, kept = Guard(cfg, groups, Choice()), [], -1.0, {}
    for epoch, value in enumerate(maps):
        if guard.ended:
            break
        if restart:
            state = json.loads(json.dumps(guard.state()))
            guard = Guard(cfg, groups, Choice())
            guard.restore(state)
        if guard.opens_now(epoch, groups):
            assert guard.opening
            kept[guard.opening.file] = [dict(g) for g in groups]
            log.append((epoch, guard.opening.file))
        rows = guard.judge(epoch, {"mAP50": value, "mAP": value}, best, groups)
        best = max(best, guard.choice.score({"mAP50": value, "mAP": value}))
        log += [(epoch, row["event"], row["action"]) for row in rows]
        if guard.back:
            for group, before in zip(groups, kept[guard.back], strict=True):
                group.update(before)
            guard.rewrite(groups)
    return guard, log


@pytest.mark.parametrize("restart", [False, True])
def test_halved_and_halved_again_from_the_same_state(restart: bool) -> None:
    groups = groups_at(0, 2, 8)
    _, log = play(groups, [0.4, 0.5, 0.45, 0.3, 0.52, 0.48, 0.4, 0.5, 0.5], restart)
    assert log == [
        (2, f"{BEFORE}002.pt"),
        (2, "opening", "weight/1"),
        (2, "below", "1 of 2"),
        (3, "below", "2 of 2"),
        (3, "back", "halve: weight/1 lr_scale 0.5, opens at epoch 4"),
        (4, "opening", "weight/1"),
        (5, "below", "1 of 2"),
        (6, "below", "2 of 2"),
        (6, "back", "halve: weight/1 lr_scale 0.25, opens at epoch 7"),
        (7, "opening", "weight/1"),
    ]
    assert [(g["opens"], g["lr_scale"]) for g in groups] == [(0, 1.0), (7, 0.25), (13, 1.0)]


def test_what_is_not_more_than_the_drop_or_not_in_a_row_stands() -> None:
    maps = [0.5, 0.489, 0.495, 0.489, 0.5, 0.489, 0.49]
    assert not any(event == "back" for _, event, *_ in play(groups_at(0, 1), maps)[1])
    assert not any(event == "below" for _, event, *_ in play(groups_at(0, 1), [0.5, 0.25, 0.25], guard_drop=0.25)[1])


@pytest.mark.parametrize("restart", [False, True])
def test_postponed_with_what_comes_later(restart: bool) -> None:
    """Two opening epochs later a new snapshot is taken, of the run as it stands then; the best before counts anew."""
    groups = groups_at(0, 2, 3)
    _, log = play(groups, [0.5, 0.5, 0.3, 0.2, 0.6, 0.61, 0.6, 0.6], restart, guard_action="postpone")
    events = [entry[:2] for entry in log]
    assert (3, "back") in events and (6, f"{BEFORE}006.pt") in events and (7, f"{BEFORE}007.pt") in events
    assert [(g["opens"], g["lr_scale"]) for g in groups] == [(0, 1.0), (6, 1.0), (7, 1.0)]


def test_an_opening_while_below_is_judged_with_the_one_before() -> None:
    groups = groups_at(0, 2, 3)
    guard, log = play(groups, [0.5, 0.5, 0.3, 0.2])
    assert [entry for entry in log if entry[1].startswith(BEFORE)] == [(2, f"{BEFORE}002.pt")]
    assert guard.back == f"{BEFORE}002.pt"
    assert [(g["opens"], g["lr_scale"]) for g in groups] == [(0, 1.0), (4, 0.5), (5, 0.5)]
    assert guard.opening and guard.opening.groups == [1] and guard.opening.before == 0.5


def test_stop() -> None:
    guard, log = play(groups_at(0, 2), [0.5, 0.5, 0.1, 0.1, 0.9], guard_action="stop")
    assert log[-1][:2] == (3, "back") and "stayed below 0.5000 after the opening at epoch 2" in guard.ended


def test_the_best_before_an_opening_is_not_one_that_was_taken_back() -> None:
    """0.7 was reached after an opening that was taken back later; the next one is held against 0.5."""
    guard, _ = play(groups_at(0, 1, 20), [0.5, 0.7, 0.3, 0.3, 0.5, 0.5], guard_action="postpone")
    assert guard.top == 0.5 and guard.undone == 0


@pytest.mark.parametrize("restart", [False, True])
def test_patience_counts_evaluated_epochs_without_a_better_fitness(restart: bool) -> None:
    flags = {"guard_drop": 0.0, "patience": 3}
    guard, log = play(groups_at(0), [0.1, 0.3, 0.3, 0.2, 0.3, 0.4, 0.4], restart, **flags)
    assert log == [(4, "end", "no better fitness in 3 evaluated epochs (--patience)")] and guard.ended
    assert not play(groups_at(0), [0.1, 0.3, 0.3, 0.2, 0.31, 0.3, 0.3], restart, **flags)[0].ended
    guard = Guard(Config(patience=1), [], Choice())
    assert guard.judge(0, {}, -1.0, []) == [] and guard.since == 0


def test_what_chooses_best_pt_is_guarded() -> None:
    """A loss, of which lower is better: it rises after the opening, while the mAP rises too."""
    groups, events = groups_at(0, 1), []
    guard = Guard(Config(epochs=9, guard_drop=0.1, guard_patience=1, guard_action="stop"), groups, LOSS)
    for epoch, value in enumerate((2.0, 2.05, 2.2)):
        guard.opens_now(epoch, groups)
        events += guard.judge(epoch, {"mAP50": value, "mAP": value, "val_box": value}, -9.0, groups)
    assert [(row["event"], row["before"], row["now"]) for row in events] == [
        ("opening", 2.0, 2.05), ("below", 2.0, 2.2), ("back", 2.0, 2.2)
    ]  # fmt: skip
    assert guard.ended == "val_box stayed above 2.0000 after the opening at epoch 1"


def test_only_files_that_a_checkpoint_refers_to_are_kept(tmp_path: Path) -> None:
    """That of last.pt and that of the checkpoint before it."""
    cfg = Config(epochs=50, guard_drop=0.01)
    groups = groups_at(0, 1, 2, 3)
    guard = Guard(cfg, groups, Choice())
    found = []
    for epoch in range(5):
        if guard.opens_now(epoch, groups):
            assert guard.opening
            (tmp_path / guard.opening.file).touch()
        guard.tidy(tmp_path)
        found.append(sorted(int(p.stem.removeprefix(BEFORE)) for p in tmp_path.iterdir()))
        if epoch == 2:
            state = guard.state()
            guard = Guard(cfg, groups, Choice())
            guard.restore(state)
    assert found == [[], [1], [1, 2], [2, 3], [3]]


def test_flags_that_do_not_go_together() -> None:
    with pytest.raises(UserError, match="this run has no opening to guard"):
        Guard(Config(epochs=5, guard_drop=0.01), groups_at(0, 5), Choice())
    with pytest.raises(UserError, match="take out --notest"):
        Config(patience=3, notest=True)
    with pytest.raises(UserError, match="belong to --guard-drop"):
        parse(["--guard-action", "stop"])


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_the_audit_accepts_what_is_declared_and_exact(declared: bool, exact: bool) -> None:
    """A toy run of three epochs whose second one is taken back."""
    toy = Toy().run(6)
    parts = (toy.model, toy.ema.model, toy.optimizer)
    kept = [copy.deepcopy(part.state_dict()) for part in parts]
    toy.audit.remember()
    toy.run(6)
    for part, state in zip(parts, kept, strict=True):
        part.load_state_dict(state)
    toy.ema.updates -= 6
    if not exact:
        write(LIVE)(toy)
    message = ""
    try:
        if declared:
            toy.audit.went_back(6)
        toy.run(6)
    except UserError as error:
        message = str(error)
    if declared:
        assert message == "" if exact else "as before the opening" in message and LIVE in message
    else:
        assert "updates of the average" in message
