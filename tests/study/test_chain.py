"""Chains of toy stages in this process: what is taken, refused, trained anew; what is said after a failed check."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from tests.toy import common, trained
from utils.runs.folder import Facts
from utils.runs.record import read_rows
from utils.study import chain, child, wanted
from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml

STAGES: list[dict[str, Any]] = [
    {"flags": {"freeze": 50, "lr0": 0.002, "transfer-weights": True}},
    {"flags": {"freeze": 20, "lr0": 0.001}},
]
PLANS = {
    "half": {"about": "lower rates", "change": {"lr0": "x0.5"}},
    "steps": {"about": "smaller steps", "change": [{"freeze": "halfway"}, {}]},
    "never": {"change": {"lr0": ["x1", "x1", "x1"]}},
}


@pytest.fixture(scope="module")
def base(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(small_shapes, tmp_path_factory.mktemp("base"), "base").dir / "weights/best.pt"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs in this process; the names of those that were trained."""
    names: list[str] = []

    def run(folder: Path, words: Sequence[str], *_: object) -> child.Ended:
        names.append(folder.name)
        begun = folder.exists() and not child.resumable(folder)
        train.main(["--resume", str(folder)] if child.resumable(folder) else [*words, *["--exist-ok"] * begun])
        return child.Ended("finished" if child.ended(folder) else "stopped")

    monkeypatch.setattr(child, "train", run)
    return names


@pytest.fixture
def recipe(small_shapes: Path, base: Path, tmp_path: Path) -> Path:
    content = {"project": str(tmp_path), "prefix": "c", "weights": str(base), "name": "s{number}_f{freeze}",
               "stages": STAGES, "plans": PLANS, "limits": {"max-loss-jump": 9, "max-drop": 1}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def call(recipe: Path, data: Path, *own: str, more: Sequence[str] = ()) -> list[str]:
    return [str(recipe), *own, "--", *common(data), *more]


def test_a_chain_is_trained_told_and_taken(
    recipe: Path, small_shapes: Path, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chain.main(call(recipe, small_shapes))
    assert here == ["c_s1_f50", "c_s2_f20"]
    one, two = (Facts(tmp_path / name) for name in here)
    assert (one.config["lr0"], two.config["lr0"]) == (0.002, 0.001)
    assert two.start["weights"] == str(one.folder / "weights/best.pt") and "transfer" not in two.patches
    rows = {row["stage"]: row for row in read_rows(tmp_path / "c_chain/chain.csv")}
    first, last = rows["s1_f50"], rows["s2_f20"]
    assert (first["state"], last["epochs so far"], last["frozen"]) == ("finished", "2", "20")
    assert float(last["mAP50"]) == float(two.best["mAP50"])
    change = float(two.best["mAP50"]) - float(one.best["mAP50"])
    assert float(last["mAP50 since before"]) == pytest.approx(change, abs=1e-6)
    log = (tmp_path / "c_chain/chain.log").read_text()
    assert "stage 2 of 2, s2_f20: python train.py" in log and "compared: mAP@0.5" in log and "| s2_f20" in log
    assert "| s2_f20" in (tmp_path / "c_chain/chain.md").read_text() and (tmp_path / "c_chain/chain.png").exists()
    assert "table, picture and log" in capsys.readouterr().out

    here.clear()
    chain.main(call(recipe, small_shapes, more=["--lr0", "0.002"][:0]))
    assert here == [] and "s1_f50: finished before" in capsys.readouterr().out

    (two.folder / "result.yaml").unlink()  # as a kill before its end leaves it
    chain.main(call(recipe, small_shapes))
    assert here == ["c_s2_f20"] and (two.folder / "result.yaml").is_file()


def test_a_run_that_was_made_otherwise_is_never_taken(
    recipe: Path, base: Path, small_shapes: Path, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.main(call(recipe, small_shapes))
    here.clear()
    other_data = tmp_path / "other.yaml"
    other_data.write_text(small_shapes.read_text().replace("train: 12", "train: 8").replace("small", "less"))
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text(Path("data/hyp.demo.yaml").read_text().replace("fliplr: 0.5", "fliplr: 0.25"))
    again = trained(small_shapes, tmp_path, "again", "--seed", "3").dir / "weights/best.pt"
    for words, says in [
        (call(recipe, small_shapes, more=["--momentum", "0.8"]), "--momentum 0.8 (there 0.9"),
        (call(recipe, small_shapes, "--each", "lr0=0.002,0.0005"), "--lr0 0.0005 (there 0.001)"),
        (call(recipe, small_shapes, more=["--hyp", str(hyp)]), "--fliplr 0.25 (there 0.5)"),
        (call(recipe, small_shapes, more=["--layer-decay", "0.5"]), "--layer-decay 0.5 (there not given)"),
        (call(recipe, small_shapes, "--weights", str(again)), "weights: it started from "),
        (call(recipe, other_data), "data " + str(other_data)),
    ]:
        with pytest.raises(UserError) as refused:
            chain.main(words)
        assert says in str(refused.value) and "--redo s" in str(refused.value), refused.value
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"code \(\w+, now 0123\)"):
        patch.setattr(wanted.fingerprint, "of_code", lambda: "0123")
        chain.main(call(recipe, small_shapes))
    chain.main(call(recipe, small_shapes, more=["--device", "cpu", "--workers", "1"]))  # where and how fast
    assert here == []

    lower = call(recipe, small_shapes, "--each", "lr0=0.002,0.0005")
    chain.main([*lower[:1], "--keep", "s2_f20", *lower[1:]])
    assert here == []
    with pytest.raises(UserError, match=r"--redo s3: there is no such stage; there are: s1_f50, s2_f20"):
        chain.main([*lower[:1], "--redo", "s3", *lower[1:]])
    for _ in range(2):  # the second time it is what was asked for
        chain.main([*lower[:1], "--redo", "s2_f20", *lower[1:]])
        assert here == ["c_s2_f20"] and Facts(tmp_path / "c_s2_f20").config["lr0"] == 0.0005
    assert Facts(tmp_path / "c_s2_f20_before_redo").config["lr0"] == 0.001
    assert not (tmp_path / "c_s2_f20_before_redo2").exists()

    here.clear()
    with pytest.raises(UserError, match="the stage before is still to be trained"):
        chain.main(call(recipe, small_shapes, "--each", "lr0=0.003,0.0005"))
    chain.main(call(recipe, small_shapes, "--each", "lr0=0.003,0.0005", "--redo", "s1_f50"))
    assert here == ["c_s1_f50", "c_s2_f20"]


@pytest.mark.slow
def test_what_is_said_after_a_failed_check_works(
    recipe: Path,
    small_shapes: Path,
    tmp_path: Path,
    here: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge = chain.checks.judge

    def found(start: Any, before: Any, now: Facts, limits: Any) -> Any:
        bad = ["head_1 fell"] if now.name == "c_s2_f20" else []
        return chain.checks.Judgement(bad, judge(start, before, now, limits).compared)

    monkeypatch.setattr(chain.checks, "judge", found)
    with pytest.raises(SystemExit) as ended:
        chain.main(call(recipe, small_shapes))
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "s2_f20: head_1 fell" in said and "never" not in said
    assert read_rows(tmp_path / "c_chain/chain.csv")[-1]["check"] == "head_1 fell"
    commands = dict(re.findall(r"^  (.*?): python -m utils chain (.*)$", said, re.M))
    assert list(commands) == ["lower rates", "smaller steps", "go on all the same"]

    made = {}
    for remedy, rest in commands.items():
        here.clear()
        chain.main(shlex.split(rest))
        made[remedy] = {name: Facts(tmp_path / name) for name in here}
    assert list(made["lower rates"]) == ["c_s2_f20_half"] and made["go on all the same"] == {}
    assert made["lower rates"]["c_s2_f20_half"].config["lr0"] == 0.0005
    steps = made["smaller steps"]
    assert {name: run.patches["freeze"]["freeze"] for name, run in steps.items()} == {
        "c_s2a_f35_steps": ["35"],
        "c_s2b_f20_steps": ["20"],
    }
    assert steps["c_s2a_f35_steps"].start["run"] == str(tmp_path / "c_s1_f50"), "the good stage is kept"


@pytest.mark.parametrize(
    ("own", "more", "says"),
    [
        (["--each", "freeze=50,20,0"], [], r"freeze has 3, but lr0 has 2 in .*: give a value .* 3 stages: --each lr0="),
        (["--each", "freeze=50,20,0", "--each", "lr0=1,2"], [], "the numbers differ: freeze has 3, lr0 has 2"),
        (["--each", "freeze=50,999"], [], "stage s2_f999: --freeze 999: the model has 78 modules"),
        (["--each", "hyp=data/hyp.demo.yaml,no.yaml"], [], "stage s1_f50: --hyp: there is no file 'no.yaml'|no.yaml"),
        (
            ["--each", "cfg=cfg/training/demo.yaml,cfg/training/yolov5n.yaml"],
            [],
            "does not fit the weights of the stage",
        ),
        (["--each", "epochs=1,x"], [], "stage s2_f20: --epochs: expected a whole number"),
        (["--weights", "none.pt"], [], "stage s1_f50: .*none.pt"),
        (["--plan", "half"], [], r"expected PLAN@STAGE; stages: s1_f50, s2_f20"),
        (["--plan", "no@s1_f50"], [], "has no plan 'no'; there are: half, never, steps"),
        (["--plan", "never@s1_f50"], [], "lr0: 3 values, but the chain has 2 stages"),
        (["--max-drop", "7"], [], r"--max-drop must lie in 0\.\.1"),
        ([], ["--name", "x"], "--name: the chain sets it for each stage"),
    ],
)
def test_what_is_wrong_is_said_before_anything_trains(
    own: list[str], more: list[str], says: str, recipe: Path, small_shapes: Path, tmp_path: Path, here: list[str]
) -> None:
    words = call(recipe, small_shapes, *own, more=more)
    if any("hyp=" in w or "cfg=" in w or "epochs=" in w for w in own):  # what stands behind `--` wins
        flags = {"--hyp", "--cfg", "--epochs"}
        words = [w for i, w in enumerate(words) if w not in flags and words[i - 1] not in flags]
        words += [] if "hyp=" in own[1] else ["--hyp", "data/hyp.demo.yaml"]
        words += [] if "cfg=" in own[1] else ["--cfg", "cfg/training/demo.yaml"]
    with pytest.raises(UserError, match=says):
        chain.main(words)
    assert here == [] and not [p for p in tmp_path.iterdir() if p.name.startswith("c_")]


def test_a_stage_that_failed_or_was_stopped(
    recipe: Path,
    small_shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for how, code, says in [("failed", 1, "failed: no room"), ("stopped", 1, "the same command goes on")]:
        monkeypatch.setattr(child, "train", lambda *_, how=how: child.Ended(how, "no room"))
        with pytest.raises(SystemExit) as ended:
            chain.main(call(recipe, small_shapes))
        assert ended.value.code == code and says in capsys.readouterr().err
        assert read_rows(tmp_path / "c_chain/chain.csv")[0]["state"] == how


def test_a_dry_run_trains_nothing(
    recipe: Path, small_shapes: Path, tmp_path: Path, here: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chain.main(call(recipe, small_shapes, "--dry-run"))
    out = capsys.readouterr().out
    assert here == [] and not (tmp_path / "c_chain").exists()
    assert out.count("not begun") == 2 and f"--weights {tmp_path}/c_s1_f50/weights/best.pt" in out


def test_recorded_commands_are_the_stages(recipe: Path, small_shapes: Path, tmp_path: Path, here: list[str]) -> None:
    chain.main(call(recipe, small_shapes, more=["--seed", "5"]))
    recorded = read_yaml(tmp_path / "c_s2_f20/run.yaml")
    assert recorded["config"]["seed"] == 5 and recorded["config"]["weights"].endswith("c_s1_f50/weights/best.pt")
