"""A study of two arms through the command line: one fails, the finished one is skipped, other flags are refused."""

from pathlib import Path

from tests.conftest import CommandLine
from tests.toy import common
from utils.runs.record import read_rows


def test_arms_are_trained_skipped_and_told_apart(small_shapes: Path, tmp_path: Path, command_line: CommandLine) -> None:
    project = tmp_path / "study"
    tested = small_shapes.parent / "with_test.yaml"
    tested.write_text(small_shapes.read_text() + "test: images/val\n")
    shared = common(tested, epochs=3)
    words = ["-m", "utils", "study", "--project", str(project), "--columns", "mAP50,mAP"]
    arms = ["--arm", "one epoch: --epochs 1", "--arm", "bad: --box 1e30"]
    never = command_line(*words, *arms, "--arm", "wrong: --freeze 999", "--", *shared)
    assert never.returncode == 2 and "arm wrong: --freeze 999: the model has 78 modules" in never.stderr
    assert not project.exists(), "found before anything trains"
    done = command_line(*words, *arms, "--jobs", "2", "--", *shared)
    assert done.returncode == 1, done.stderr
    assert f"failed: {project / 'bad_seed0'}; the same command tries them again" in done.stderr
    row, bad = read_rows(project / "study.csv")
    (found,) = read_rows(project / "one_epoch_seed0/results.csv")
    assert row["epochs"] == "1" and row["mAP final"] == found["mAP"] and row["mAP50 best"] == found["mAP50"]
    assert row["mAP start"] == "" and {bad[k] for k in bad if k not in ("arm", "seed", "run")} == {""}
    said = " ".join(done.stdout.split())
    assert "| one epoch (baseline) | 1 of 1 |" in said and "| bad | 0 of 1 |" in said
    assert (project / "study.png").stat().st_size > 5000

    last = project / "one_epoch_seed0/weights/last.pt"
    before = last.stat().st_mtime_ns
    again = command_line(*words, *arms[:2], "--test", "--", *shared)
    assert again.returncode == 0 and "run 1 of 1, one_epoch_seed0: finished before" in again.stdout, again.stderr
    assert last.stat().st_mtime_ns == before
    (test,) = read_rows(project / "one_epoch_seed0/test.csv")  # the images of val once more
    assert {k: float(v) for k, v in test.items()} == {k: float(found[k]) for k in ("mAP50", "mAP")}
    assert "| one epoch (baseline) | 1 of 1 |" in " ".join((project / "study.md").read_text().split())
    without = command_line(*words, *arms[:2], "--test", "--", *shared, "--data", str(small_shapes))
    assert without.returncode == 2 and "key 'test' is missing" in without.stderr

    other = command_line(*words, *arms[:2], "--", *shared, "--lr0", "0.5")
    assert other.returncode == 2 and "another run than this study asks for: --lr0 0.5 (there" in other.stderr
    placed = command_line(*words, *arms[:2], "--report-only", "--", *shared, "--lr0", "0.5")
    assert placed.returncode == 0 and "| one epoch (baseline) | 1 of 1 |" in " ".join(placed.stdout.split())
    wrong = command_line(*words[:-1], "mAP5", *arms[:2], "--", *shared)
    assert wrong.returncode == 2 and "--columns mAP5: not in results.csv, which has epoch, step," in wrong.stderr
