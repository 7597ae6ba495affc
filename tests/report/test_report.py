"""Reports: their numbers are those of the files, each rule fires on what it is for and on nothing else, nothing is made
up, and a page needs no other file."""

import math
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.report import report_cases as cases
from tests.report.report_cases import CASES, EPOCHS, HEADS, Rows, change, edit, put, read, settings, tell, write
from tests.toy import toy as toy_words
from tests.toy import trained
from utils.config.train import parse
from utils.report.next_commands import next_commands, next_name, without
from utils.report.report import main, report
from utils.report.rules import RULES, findings, levels
from utils.runs.fingerprint import of_tensors
from utils.runs.folder import read_facts
from utils.system.errors import UserError
from utils.weights.checkpoint import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def toy(small_shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs: four heads, the first ten modules frozen."""
    project = tmp_path_factory.mktemp("report")
    four = ["--cfg", "cfg/training/demo-1b4h.yaml", "--heads", "4", "--head-config", "data/shapes_1b4h.yaml"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        words = [*four, "--freeze", "50", "--noautoanchor"]
        run = trained(small_shapes, project, "a_stage1_freeze50", *words, epochs=2)
    command = shlex.join(["train.py", *toy_words(small_shapes, project, run.dir.name, epochs=2), *words])
    put(run.dir, {**settings(run.dir), "command": command})  # it has the tests' command line
    return run.dir


@pytest.fixture
def healthy(good: Path, tmp_path: Path) -> Path:
    """A folder of one's own."""
    return Path(shutil.copytree(good, tmp_path / good.name))


@pytest.fixture(scope="module")
def good(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy run's folder, told as a run of twelve good epochs."""
    folder = tmp_path_factory.mktemp("good") / toy.name
    pictures = shutil.ignore_patterns("*.png", "*.jpg", "previous.pt")
    shutil.copytree(toy, folder, ignore=pictures)
    shutil.copy(toy / "labels.png", folder)
    first, rows = read(toy / "results.csv")[0], []
    for epoch in range(EPOCHS):
        row = {**first, "epoch": epoch, "step": 3 * (epoch + 1)}
        for k, column in enumerate(row):
            if column.split("/")[0].removeprefix("val_") in ("box", "obj", "cls"):
                row[column] = (1 + k / 100) * 0.5 * 0.9**epoch
            if column.split("/")[0] in ("P", "R", "F1", "mAP50", "mAP"):
                row[column] = 0.05 * (epoch + 1)
        rows.append(row)
    write(folder / "results.csv", rows)
    write(
        folder / "timing.csv", [{"epoch": e, "seconds": 2, "memory_gib": 0.5, "data_wait": 0.02} for e in range(EPOCHS)]
    )
    write(folder / "per_class.csv", [{**r, "AP50": 0.5, "AP": 0.25} for r in read(toy / "per_class.csv")])
    content = settings(folder)
    put(folder, {**content, "config": {**content["config"], "epochs": EPOCHS}})
    for name in ("best.pt", "last.pt"):
        edit(folder / "weights" / name, {"epoch": EPOCHS - 1, "map": 0.6, "map50": 0.6})
    best = of_tensors(read_checkpoint(folder / "weights/best.pt")["ema"])
    put(folder, {"epochs": EPOCHS, "tensors": {"best.pt ema": best}}, "result.yaml")
    return folder


def found(folder: Path, name: str) -> list[str] | str:
    return next(rule for rule in RULES if rule.name == name).check(read_facts(folder))


def tables(text: str) -> dict[str, list[str]]:
    """{first cell: other cells} of every row of the Markdown's tables."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells}


def test_a_loss_may_rise_with_the_score(good: Path, tmp_path: Path) -> None:
    """Objectness is to be the IoU: it grows as boxes get better, and its loss with it."""
    folder = shutil.copytree(good, tmp_path / "a")
    change(folder, lambda i, r: {"obj/head_1": 0.1 + 0.01 * i, "val_obj/head_1": 0.1 + 0.02 * i})
    assert found(folder, "a term rises") == []
    change(folder, lambda i, r: {"mAP": 0.3})
    assert len(found(folder, "a term rises")) == 2


def test_a_run_that_ends_below_its_start_is_told(good: Path, tmp_path: Path) -> None:
    """The best epoch is above it."""
    folder = shutil.copytree(good, tmp_path / "a")
    row = {c: v for c, v in read(folder / "results.csv")[0].items() if not c.startswith("lr_")}
    write(folder / "start.csv", [{**row, "epoch": "start", "step": 0, "mAP": 0.58, "mAP50": 0.5}])
    assert found(folder, "worse than the start") == []
    change(folder, lambda i, r: {"mAP": 0.5 if i == EPOCHS - 1 else r["mAP"]})
    (said,) = found(folder, "worse than the start")
    assert said == "ended worse than it began: mAP@0.5:0.95 0.5800 at the start, 0.5000 in the last epoch"


def test_every_number_is_that_of_the_files(toy: Path, tmp_path: Path) -> None:
    summary = report(toy, tmp_path)
    rows, rest = read(toy / "results.csv"), tables((tmp_path / "report.md").read_text())
    terms = [c for c in rows[0] if c.split("/")[0].removeprefix("val_") in ("box", "obj", "cls")]
    assert len(terms) == 24
    for column in (*terms, *(f"mAP50/{h}" for h in HEADS)):
        values = [float(r[column]) for r in rows]
        best = max(values) if column.startswith("mAP50") else min(values)
        want = [f"{values[0]:.5g}", f"{best:.5g}", str(values.index(best)), f"{values[-1]:.5g}"]
        assert rest[column] == [*want, "not measured: 2 values"], column
    for row in read(toy / "per_class.csv"):
        assert rest[row["class"]] == [
            row["objects"],
            *(f"{float(v):.5g}" if v else "-" for v in list(row.values())[2:]),
        ]
    meta, end = read_checkpoint(toy / "weights/last.pt")["meta"], settings(toy, "result.yaml")
    assert rest["steps (micro-batches)"] == [rows[-1]["step"]] and rest["epochs done"] == ["2 of 2"]
    assert rest["updates of the average"] == [str(meta["ema_updates"])]
    assert rest["last.pt"][1:] == [
        "1",
        "the latest; a run goes on from it",
        f"{meta['map50']:.5g}",
        f"{meta['map']:.5g}",
        "coco",
    ]
    assert rest["trainable_params"] == [f"{settings(toy)['parameters']['trainable_params']:,}"]
    assert end["tensors"]["best.pt ema"] in (tmp_path / "report.md").read_text()
    listed = [line for line in (toy / "data.csv").read_text().splitlines() if line.startswith("train ")]
    assert rest["train"][0] == str(len(listed)) == "12"
    assert summary[1] == "finished: 2 of 2 epochs" and f"epoch {best_row(rows)['epoch']} " in summary[2]
    assert rest["warm-up capped"][0] == "1"  # what the run noted itself
    assert rest["epochs"] == ["2", "300"] and rest["seed"] == ["0", "0"]


def best_row(rows: Rows) -> dict[str, Any]:
    return max(rows, key=lambda r: 0.1 * float(r["mAP50"]) + 0.9 * float(r["mAP"]))


class References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "style", "onload")]


def test_a_page_needs_no_other_file_and_escapes_what_it_shows(healthy: Path) -> None:
    bad = '<script src="http://a.example/x.js"></script>'
    (healthy / "notes.csv").write_text(f'epoch,kind,count,text\n,kind,1,"{bad.replace(chr(34), chr(34) * 2)}"\n')
    put(healthy, {**settings(healthy), "command": f"train.py --name '{bad}'"})
    report(healthy)
    page = (healthy / "report.html").read_text()
    seen = References()
    seen.feed(page)
    assert len(seen.found) == 1 and seen.found[0].startswith("data:image/png;base64,")
    assert not seen.tags & {"script", "link", "iframe", "object", "base", "a"}
    assert "url(" not in page and "@import" not in page and page.count("&lt;script src=") >= 2
    lines = (healthy / "report.md").read_text().splitlines()
    assert not [line for line in lines if "<script" in line and not line.startswith("    ")]  # but in code
    assert page.count("<polyline") > 20


def test_a_good_run_has_no_anomaly(healthy: Path) -> None:
    verdicts = {rule.name: verdict for rule, verdict in findings(read_facts(healthy))}
    assert not [name for name, v in verdicts.items() if v and not isinstance(v, str)], verdicts
    assert {name for name, v in verdicts.items() if isinstance(v, str)} == {
        "at chance", "a task starves", "worse than the start", "opening taken back",
    }  # fmt: skip
    report(healthy)
    assert "nothing looks wrong: 16 rules looked, 4 could not" in (healthy / "report.md").read_text()


@pytest.mark.parametrize(("name", "spoil", "said"), CASES, ids=[f"{n}-{f.__name__}" for n, f, _ in CASES])
def test_each_rule_fires_on_what_it_is_for(healthy: Path, name: str, spoil: Any, said: str) -> None:
    before = found(healthy, name)
    assert not before or isinstance(before, str)
    spoil(healthy)
    verdict = found(healthy, name)
    assert isinstance(verdict, list) and len(verdict) >= 1 and any(said in text for text in verdict), verdict


def test_every_rule_is_tested() -> None:
    assert {rule.name for rule in RULES} - {name for name, _, _ in CASES} == {"at chance"}


@pytest.mark.parametrize(("share", "fires"), [(0.999, True), (0.6, False)])
def test_losses_at_their_chance_level(healthy: Path, share: float, fires: bool) -> None:
    joint = {"cls_gain": 0.5, "cls_names": ["a", "b", "c"], "cls_weights": ["none"]}
    level = 0.5 * math.log(3) * (1 - 1 / 3)  # in one of three steps no class was known
    tell(healthy, "joint", joint, lambda i: {"image_class": level * share, "image_blank_steps": 1})
    align = {"align_weight": 0.1, "align_start": 2, "align_ramp": 2}
    weights = [0, 0, 0.05, *[0.1] * (EPOCHS - 3)]
    tell(healthy, "align", align, lambda i: {"align": weights[i] * math.log(8) * share, "align_pairs": 24})
    run = read_facts(healthy)
    assert levels(run)["image_class"][0][4] == (4, pytest.approx(level, rel=1e-12))
    assert [e for e, _ in levels(run)["align"][0]] == list(range(2, EPOCHS))
    assert dict(levels(run)["align"][0])[2] == pytest.approx(0.05 * math.log(8), rel=1e-12)
    verdict = found(healthy, "at chance")
    assert isinstance(verdict, list)
    assert [text.split()[0] for text in verdict] == (["image_class", "align"] if fires else [])


def test_what_patches_measured_has_its_sections(healthy: Path) -> None:
    values = {"image_acc": 0.5, "grad_norm/box": 2.5, "cosine/box:obj": -0.25, "weight/box": 1.5, "align_gap": 0.125}
    tell(healthy, "joint", {}, lambda i: {k: v * (i + 1) for k, v in values.items()})
    report(healthy)
    text = (healthy / "report.md").read_text()
    rows = tables(text)
    for name, value in values.items():
        low, high = sorted((value, 12 * value))
        assert rows[name][:4] == [f"{v:.5g}" for v in (value, low, high, 12 * value)]
    for title in ("Image classes", "Gradient norms at the shared layer", "Cosines", "Task weights", "Alignment"):
        assert f"## {title}" in text


def test_what_is_not_there_is_called_not_measured(healthy: Path) -> None:
    for name in ("timing.csv", "per_class.csv", "notes.csv", "data.csv", "labels.png"):
        (healthy / name).unlink()
    for file in (healthy / "weights").iterdir():
        file.unlink()
    cases.no_validation(healthy)
    report(healthy)
    text = (healthy / "report.md").read_text()
    rows = tables(text)
    assert rows["seconds per epoch, median"] == rows["peak memory, GiB"] == ["not measured"]
    assert rows["updates of the average"] == ["not measured"] and rows["train"] == ["not measured"] * 3
    assert "not measured: no epoch was evaluated" in text and "not measured: the run kept no notes.csv" in text
    assert rows["val_box/head_0"] == ["not measured"] * 5
    assert rows["silent class"][0] == "could not look: per_class.csv is not there"
    assert "best result: not measured, no epoch was evaluated" in text and "## Gradient norms\n\nnot measured" in text


def test_a_run_that_was_killed(healthy: Path) -> None:
    cases.kill(healthy)
    put(healthy, {**settings(healthy), "config": {**settings(healthy)["config"], "epochs": 20}})
    summary = report(healthy)
    assert summary[1].startswith("unfinished: stopped or killed after 12 of 20 epochs; last.pt is of step")
    assert summary[4].endswith(f"python train.py --resume {healthy}")
    for name in ("results.csv", "timing.csv", "weights/last.pt", "weights/best.pt", "per_class.csv"):
        (healthy / name).unlink()
    summary = report(healthy)
    assert summary[1] == "unfinished: killed in its first epoch, before anything was saved"
    assert "begin again" in summary[4] and summary[4].endswith("--exist-ok")


def test_a_run_that_runs(healthy: Path) -> None:
    code = "import sys; from pathlib import Path; from utils.runs.lock import Lock; x = Lock(Path(sys.argv[1]))"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(1, flush=True); input()", str(healthy)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout and other.stdout.readline() == "1\n"
        summary = report(healthy)
        other.communicate("\n")
    assert summary[1].startswith(f"running: the folder is being written by process {other.pid} ")
    assert report(healthy)[1] == "finished: 12 of 12 epochs"


def test_a_stage_has_its_chain_and_a_replay_its_outcome(healthy: Path) -> None:
    cases.loss_jumps(healthy)
    put(healthy, {**settings(healthy, "result.yaml"), "replay": {"of": "x", "outcome": "identical"}}, "result.yaml")
    report(healthy)
    text = (healthy / "report.md").read_text()
    rows = text.split("## Chain of stages")[1].split("##")[0].split("| ")
    assert rows.index("before ") < rows.index(f"{healthy.name} ")
    assert "Replay of x: identical" in text
    assert f"python -m utils compare {healthy.parent / 'before'} {healthy}" in text
    (healthy.parent / "before/run.yaml").unlink()
    report(healthy)
    chain = (healthy / "report.md").read_text().split("## Chain of stages")[1].split("##")[0]
    assert "before/run.yaml is missing" in chain and "| before | missing | missing | 12 |" in chain


def test_a_run_that_ended_early(healthy: Path) -> None:
    put(healthy, {**settings(healthy, "result.yaml"), "ended": "no better fitness (--patience)"}, "result.yaml")
    assert report(healthy)[1] == "ended early after 12 of 12 epochs: no better fitness (--patience)"


@pytest.mark.parametrize("name", ["run.yaml", "results.csv", "timing.csv", "per_class.csv", "result.yaml", "data.csv",
                                  "notes.csv", "weights/best.pt", "weights/last.pt"])  # fmt: skip
@pytest.mark.parametrize("content", [b"\xff\xfe\x00: [", b"", b"a,b\n1,2\n"])
def test_a_damaged_file_is_named(healthy: Path, name: str, content: bytes) -> None:
    (healthy / name).write_bytes(content)
    report(healthy)
    text = (healthy / "report.md").read_text()
    if content or name.endswith((".yaml", ".pt")):
        assert re.search(rf"damaged files: [^\n]*{Path(name).name}", text), name


def test_damaged_rows_are_named_and_left_out(healthy: Path) -> None:
    lines = (healthy / "results.csv").read_text().splitlines(keepends=True)
    lines[3] = lines[3].replace(",", ",x", 1)
    (healthy / "results.csv").write_text("".join(lines)[:-40])
    verdict = found(healthy, "damaged files")
    assert isinstance(verdict, list) and len(verdict) == 2
    assert "cut short" in verdict[0] and "results.csv:4: damaged row left out" in verdict[1]
    assert read_facts(healthy).epochs == EPOCHS - 2


def test_frozen_tensors_against_the_start(healthy: Path) -> None:
    start, content = healthy / "start.pt", settings(healthy)
    shutil.copy(healthy / "weights/best.pt", start)
    tensors = of_tensors(read_checkpoint(start)["ema"])
    put(healthy, {**content, "start": {"weights": str(start), "tensors": tensors}})
    assert found(healthy, "frozen tensors moved") == []
    edit(healthy / "weights/best.pt", {}, lambda c: cases.bump(c, "model.60."))
    assert found(healthy, "frozen tensors moved") == []  # that one may move
    edit(healthy / "weights/best.pt", {}, lambda c: cases.bump(c, "model.1."))
    verdict = found(healthy, "frozen tensors moved")
    assert isinstance(verdict, list) and len(verdict) == 1 and "model.1." in verdict[0]
    start.unlink()
    assert len(found(healthy, "frozen tensors moved")) == 2  # last.pt against best.pt, average and model
    shutil.copy(healthy / "weights/best.pt", start)
    (healthy / "weights/last.pt").unlink()
    assert "has other tensors now than when the run started" in found(healthy, "frozen tensors moved")


def test_stages_that_open_later_are_frozen_until_then(healthy: Path) -> None:
    content = settings(healthy)
    stages = [{"epoch": 0, "modules": "50-77"}, {"epoch": 4, "modules": "20-49"}, {"epoch": 30, "modules": "0-19"}]
    plan = {"unfreeze_table": {"stages": [{**s, "scale": 1.0, "ramp": 1.0} for s in stages]}}
    patches = {"multihead": content["patches"]["multihead"], "unfreeze": plan}
    put(healthy, {**content, "patches": patches})
    assert found(healthy, "frozen tensors moved") == []
    edit(healthy / "weights/last.pt", {}, lambda c: cases.bump(c, "model.30."))
    assert found(healthy, "frozen tensors moved") == []
    edit(healthy / "weights/last.pt", {}, lambda c: cases.bump(c, "model.5."))
    verdict = found(healthy, "frozen tensors moved")
    assert isinstance(verdict, list) and len(verdict) == 2 and "model.5." in verdict[0]
    report(healthy)
    rows = tables((healthy / "report.md").read_text())
    assert rows["2"] == ["4", "20-49", "1", "1", "0.2", "0.25", "0.6"]


def test_after_alignment_detection_goes_on_without_it(healthy: Path) -> None:
    """No flag of the alignment, no rate of it, and every other one."""
    command = "train.py --data d.yaml --align --align-weight 0.1 --align_node=28 --best-by align_top1 --epochs 9 "
    command += "--lr0 0.02"
    content = settings(healthy)
    config = {**content["config"], "best_by": "align_top1", "lr0": 0.02, "hyp": "data/hyp.scratch.p5.yaml"}
    put(healthy, {**content, "command": command, "config": config, "patches": {"align": {}}})
    purpose, said = next_commands(read_facts(healthy))[0]
    assert "without the infrared" in purpose
    assert shlex.split(said)[2:] == [
        "--data", "d.yaml", "--epochs", "9", "--transfer-weights", "--freeze", "backbone", "--lr0", "0.002", "--name",
        f"{healthy.name}_freeze_backbone", "--weights", str(healthy / "weights/best.pt"), "--project",
        str(healthy.parent),
    ]  # fmt: skip


def test_the_next_stage_keeps_every_other_setting(toy: Path) -> None:
    run = read_facts(toy)
    purpose, command = next_commands(run)[0]
    words = shlex.split(command)
    assert words[:2] == ["python", "train.py"] and "--freeze 30" in purpose
    given = parse(words[2:])
    cfg, flags = given.cfg, given.flags
    own = settings(toy)["config"]
    now = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(cfg).items()}
    differ = {k for k in own if own[k] != now[k]}
    assert differ - {"lr0", "warmup_bias_lr", "warmup_epochs"} <= {"weights", "name", "hyp"}
    assert cfg.weights == str(toy / "weights/best.pt") and cfg.name == "a_stage2_freeze30"
    assert (
        cfg.hyp == "data/hyp.demo.stage2.yaml"
        and flags["freeze"]["freeze"] == ("30",)
        and flags["multihead"]["heads"] == 4
    )


def test_words_of_the_next_command() -> None:
    words = ["--freeze", "1", "2", "--img", "64", "--freeze=3", "--exist_ok", "--lr0", "-1", "--batch-size", "4"]
    assert without(words, {"--freeze", "--exist-ok", "--batch-size"}) == ["--img", "64", "--lr0", "-1"]
    assert next_name("g_stage1_freeze50", "30") == "g_stage2_freeze30" and next_name("mine", "0") == "mine_freeze0"


def test_a_folder_of_runs(toy: Path, healthy: Path, tmp_path: Path) -> None:
    project = tmp_path / "study"
    shutil.copytree(healthy, project / "arm_seed0")
    shutil.copytree(healthy, project / "arm_seed1")
    cases.kill(project / "arm_seed1")
    (project / "study.md").write_text("mAP50, mean\n\n| arm | final |\n")
    shutil.copy(toy / "labels.png", project / "study.png")
    summary = report(project)
    text = (project / "report.md").read_text()
    assert summary[:2] == ["study: 2 runs", "1 finished, 0 running, 1 unfinished"]
    assert tables(text)["arm_seed1"][:2] == ["unfinished", "0"] and tables(text)["arm_seed0"][5:8] == [
        "0.6",
        "0.6",
        "0.6",
    ]
    assert "arm_seed1: unfinished: no result.yaml" in text and f"--resume {project / 'arm_seed1'}" in text
    assert "| arm | final |" in text and "data:image/png;base64," in (project / "report.html").read_text()


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_no_run_is_an_error(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=folder):
        main([str(tmp_path / folder)])
