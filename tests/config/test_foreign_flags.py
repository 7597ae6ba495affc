"""Every flag of YOLOv7's four programs works, is passed over with a line, or is refused with what does it here."""

import pytest

from tests.config.test_options import NEEDED, PROGRAMS
from utils.config.foreign_flags import INSTEAD, WITHOUT_MEANING
from utils.system.errors import UserError

V7 = {
    "train": "weights cfg data hyp epochs batch-size img-size rect resume nosave notest noautoanchor evolve bucket "
    "cache-images image-weights device multi-scale single-cls adam sync-bn local_rank workers project entity name "
    "exist-ok quad linear-lr label-smoothing upload_dataset bbox_interval save_period artifact_alias freeze v5-metric",
    "test": "weights data batch-size img-size conf-thres iou-thres task device single-cls augment verbose save-txt "
    "save-hybrid save-conf save-json project name exist-ok no-trace v5-metric",
    "detect": "weights source img-size conf-thres iou-thres device view-img save-txt save-conf nosave classes "
    "agnostic-nms augment update project name exist-ok no-trace",
    "export": "weights img-size batch-size dynamic dynamic-batch grid end2end max-wh topk-all iou-thres conf-thres "
    "device simplify include-nms fp16 int8",
}
V5 = "optimizer cos-lr imgsz batch cache noval noplots evolve seed patience local-rank ndjson-file"


@pytest.mark.parametrize(("name", "flags"), [*V7.items(), ("train", V5)])
def test_every_flag_is_answered(name: str, flags: str) -> None:
    for flag in flags.split():
        plain = flag.replace("_", "-")
        known = plain in PROGRAMS[name].names() or plain in WITHOUT_MEANING or plain in INSTEAD
        assert known, f"{name}.py --{flag}"


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
