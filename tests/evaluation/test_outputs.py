"""One stem for each source, and the files of an earlier run."""

from pathlib import Path

from utils.evaluation.outputs import Outputs, Stems


def test_every_file_of_a_source_has_its_stem() -> None:
    stems = Stems()
    assert [stems.of(p) for p in ("a/f.png", "b/f.png", "c/f_2.png", "a/f.png")] == ["f", "f_2", "f_2_2", "f"]
    assert stems.numbered == {"f_2": "b/f.png", "f_2_2": "c/f_2.png"}


def test_frames_of_a_video_meet_no_picture() -> None:
    stems = Stems()
    assert stems.of("v.mp4", True) == "v" and stems.of("v_3.png") == "v_3_2" and stems.of("w_3.png") == "w_3"
    assert stems.of("w.mp4", True) == "w_2" and stems.of("x.avi", True) == "x" and stems.of("x.MP4", True) == "x_2"
    assert stems.of("x.png") == "x_picture"
    assert stems.of("0", True) == "camera0" and "/" not in stems.of("rtsp://host/one", True)
    assert stems.of("rtsp://me:secret@host/two", True) == "rtsp_host_two"


def test_only_files_of_an_earlier_run_are_removed(tmp_path: Path) -> None:
    first = Outputs(tmp_path)
    first.text("labels/a.txt", "0\n")
    first.text("b.csv", "1\n")
    (tmp_path / "mine.png").write_text("kept")
    (tmp_path / "written.txt").write_text((tmp_path / "written.txt").read_text() + "../outside.txt\n")
    (tmp_path.parent / "outside.txt").write_text("kept")
    Outputs(tmp_path).text("c.csv", "2\n")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["c.csv", "mine.png", "written.txt"]
    assert (tmp_path.parent / "outside.txt").exists()
