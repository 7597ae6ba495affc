"""What every patch owes, in one table: switched off, plain training to the bit; resumed within an epoch, the unbroken
run to the bit; evaluated and used for detection from its checkpoint alone; two ranks that end in one state; its flags
in --help. What a patch does is tested in its own file."""

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

import detect
import patches
import test as evaluation
import train
from tests.ranks import free_port, on_ranks
from tests.toy import STEPS, contents, cut, equal, resumed, same, trained, unpainted
from utils import seams
from utils.runs.record import read_rows
from utils.train.audit.digest import digest
from utils.weights import checkpoint

EPOCHS = 2
FAMILIES = {  # model files, recipe, kinds of loss terms, and the modules 0.., their first and their later part
    "demo": {
        "one": "cfg/training/demo.yaml", "four": "cfg/training/demo-1b4h.yaml", "hyp": "data/hyp.demo.yaml",
        "kinds": "box obj cls", "all": "0-77", "early": "0-39", "late": "40-77",
    },
    "free": {
        "one": "cfg/training/demo-free.yaml", "four": "cfg/training/demo-free-1b4h.yaml",
        "hyp": "data/hyp.demo.free.yaml", "kinds": "box cls dfl", "all": "0-23", "early": "0-10", "late": "11-23",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Words of the command line; {one}, {four}: the family's model files, {base}: a checkpoint of plain training."""

    on: str  # the patch acts
    off: str = ""  # it is there and changes nothing
    plain: str = ""  # the run without it that `off` must equal
    never_off: str = ""  # or why there is no such pair


ROWS = {  # by the patch's name; a second row of one patch has a word behind it
    "multihead": Row("--heads 4 --head-config data/shapes_1b4h.yaml --cfg {four}", never_off="it is another network"),
    "transfer": Row(
        "--weights {base} --transfer-weights --transfer-heads fresh --freeze 5",
        off="--weights {base} --transfer-weights",
        plain="--weights {base}",
    ),
    "freeze": Row("--freeze 10", off="--freeze 0"),
    "unfreeze": Row("--unfreeze 0:{late}, 1:{early}@0.5 --unfreeze-ramp 1.5", off="--unfreeze 0:{all}"),
    "layer_decay": Row("--layer-decay 0.5", off="--layer-decay 1"),
    "joint": Row("--classify --cls-weights balanced --cls-dropout .5 --mosaic 0", off="--classify --cls-gain 0"),
    "dual_backbone": Row("--dual-backbone same --mosaic 0", off="--dual-backbone same --dual-gain 0"),
    "weighting": Row("--mtl gradnorm --mtl-tasks {kinds} --gradnorm-every 2", off="--mtl fixed --mtl-tasks {kinds}"),
    "weighting by-uncertainty": Row(
        "--mtl uncertainty --mtl-tasks {kinds} --nominal-batch 8",
        off="--mtl fixed --mtl-tasks {kinds} --mtl-weights 1 1 1",
    ),
    "distill": Row(
        "--noautoanchor --teacher {base}",
        off="--noautoanchor --teacher {base} --distill-gain 0",
        plain="--noautoanchor",
    ),
    "modality": Row("--modality both --freeze 5 --weights {base}", off="--modality visible"),
    "align": Row("--align --align-weight 0.1 --align-bank 16", off="--align --align-weight 0"),
}
every_row = pytest.mark.parametrize("name", ROWS)
ASKING = ("multihead", "transfer", "distill")  # patches that ask the head for more than its loss: always on both kinds
every_pair = pytest.mark.parametrize(
    "name, family",
    [
        pytest.param(name, family, marks=[pytest.mark.slow] * (family == "free" and name not in ASKING))
        for family in FAMILIES
        for name in ROWS
    ],
)


class Runs:
    """Runs that several of the tests look at, each trained once."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.trained = cache(self.trained)  # type: ignore[method-assign]

    def words(self, family: str, text: str) -> list[str]:
        base = str(self.trained(family, "") / "weights/last.pt") if "{base}" in text else ""
        words = FAMILIES[family]
        return ["--cfg", words["one"], "--hyp", words["hyp"], *text.format(**words, base=base).split()]

    def trained(self, family: str, text: str) -> Path:
        words, name = self.words(family, text), str(len(list(self.folder.iterdir())))
        return trained(self.data, self.folder, name, *words, "--audit", epochs=EPOCHS).dir


@pytest.fixture(scope="module")
def runs(rich: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patches.weighting.FIRST", 1)  # a toy run has fewer windows than a run waits for
        yield Runs(rich, tmp_path_factory.mktemp("contract"))


def test_every_patch_has_a_row() -> None:
    named = {name.split()[0] for name in ROWS}
    assert named == {seams.record_name(place) for place in patches.TABLE.values()}
    assert all(bool(row.off) != bool(row.never_off) for row in ROWS.values())


@every_pair
def test_switched_off_it_is_plain_training_to_the_bit(name: str, family: str, runs: Runs) -> None:
    """Every number of the plain run, in tensors and tables, and the acting run has others: the rows do prove it."""
    row = ROWS[name]
    plain, acting = (contents(runs.trained(family, text)) for text in (row.plain, row.on))
    state = [key for key in plain if key.startswith(("last.pt.model.", "last.pt.ema."))]
    assert acting.keys() != plain.keys() or any(not equal(plain[key], acting.get(key)) for key in state)
    if row.never_off:
        return
    folder = runs.trained(family, row.off)
    off = contents(folder)
    assert len(state) > 100 and not [key for key in state if not equal(plain[key], off.get(key))]
    tables = [read_rows(run / "results.csv") for run in (runs.trained(family, row.plain), folder)]
    for one, other in zip(*tables, strict=True):
        columns = [c for c in one if not c.startswith("lr_")]  # groups may be more and have names of their own
        assert [(c, one[c]) for c in columns] == [(c, other.get(c)) for c in columns]


@every_pair
def test_resumed_within_an_epoch_it_is_the_unbroken_run(name: str, family: str, runs: Runs, tmp_path: Path) -> None:
    words = [*runs.words(family, ROWS[name].on), "--audit"]
    stopped = cut(runs.data, tmp_path, "cut", *words, epochs=EPOCHS, step=STEPS + 1)
    assert checkpoint.read_checkpoint(stopped / "weights/last.pt")["meta"]["next_batch"] > 0
    resumed(stopped)
    same(runs.trained(family, ROWS[name].on), stopped)


@every_pair
def test_its_checkpoint_is_enough(name: str, family: str, runs: Runs, tmp_path: Path) -> None:
    """The patch, the network and the evaluation are those of the run; detect.py works."""
    run = runs.trained(family, ROWS[name].on)
    weights = run / "weights/last.pt"
    content = checkpoint.read_checkpoint(weights)
    records = content["meta"]["patches"]
    assert name.split()[0] in records
    assert plain(seams.revive(records).records()) == plain(records)
    model, _ = checkpoint.load_detector(weights)
    assert model.state_dict().keys() == content["ema"].keys()
    size = ["--weights", str(weights), "--img", "64", "--device", "cpu", "--project", str(tmp_path)]
    result = evaluation.main([*size, "--data", str(runs.data), "--batch", "8", "--workers", "0", "--name", "test"])
    assert result.map == pytest.approx(float(read_rows(run / "results.csv")[-1]["mAP"]), rel=1e-6, abs=1e-9)
    image = sorted((runs.data.parent / "images/val").iterdir())[0]
    detect.main([*size, "--source", str(image), "--conf-thres", "0.0001", "--save-txt", "--name", "detect"])
    assert (tmp_path / "detect" / image.name).is_file() and (tmp_path / f"detect/labels/{image.stem}.txt").read_text()


def plain(records: Any) -> Any:
    return json.loads(json.dumps(records))


def states(data: Path, folder: Path, cases: dict[str, list[str]], ports: list[int], rank: int) -> Any:
    """{case: digest of what the run ended in on this rank}; one pair of processes does for all of them."""
    found = {}
    with unpainted():
        for (case, words), port in zip(cases.items(), ports, strict=True):
            os.environ["MASTER_PORT"] = str(port)
            run = trained(data, folder, case.replace(" ", "_"), *words, "--audit")
            state = {**run.loss_step.state_dict(), **run.ema.model.state_dict()}
            found[case] = digest([v for v in state.values() if isinstance(v, torch.Tensor)])
    return found


@pytest.mark.parametrize("family", ["demo", pytest.param("free", marks=pytest.mark.slow)])
def test_two_ranks_end_in_one_state(family: str, runs: Runs, tmp_path: Path) -> None:
    """All rows in one pair of processes; --audit compares the ranks before every checkpoint, too."""
    cases = {name: runs.words(family, row.on) for name, row in ROWS.items()}
    ports = [free_port() for _ in cases]
    first, second = on_ranks(partial(states, runs.data, tmp_path, cases, ports), tmp_path)
    assert first.keys() == second.keys() == cases.keys()
    assert not [name for name in cases if not torch.equal(first[name], second[name])]


@every_row
def test_its_flags_are_in_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--help", "--cfg", FAMILIES["demo"]["one"]])
    text = capsys.readouterr().out
    (kind,) = seams.kinds([name.split()[0]]).values()
    shown = [f.name for f in dataclasses.fields(kind.Flags) if not f.metadata.get("hidden")]
    assert shown and all(f"--{flag.replace('_', '-')}" in text for flag in shown)
