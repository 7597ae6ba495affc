"""The history of a run is what its results.csv says, sorted."""

import csv
import json
from pathlib import Path

from patches.weighting import history

PAINTED = True

RESULTS = """\
epoch,step,lr_weight,box/head_0,image_class,mAP,match,val_box,image_acc,weight/a,weight/b,grad_norm/a,cosine/a:b
0,3,0.01,0.5,1.1,,,,,1.0,1.0,nan,nan
1,6,0.02,0.4,1.0,0.25,coco,0.6,0.75,0.8,1.2,0.3,-0.5
"""


def test_rows_by_family(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(RESULTS + "2,9,0.0")  # cut short by a kill
    history.write(tmp_path, ("box/head_0", "image_class"))
    first, second = json.loads((tmp_path / "history.json").read_text())
    assert second == {
        "epoch": 1,
        "loss": {"box/head_0": 0.4, "image_class": 1.0},
        "val_loss": {"box": 0.6},
        "weight": {"a": 0.8, "b": 1.2},
        "grad_norm": {"a": 0.3},
        "cosine": {"a:b": -0.5},
        "rate": {"weight": 0.02},
        "metric": {"mAP": 0.25, "image_acc": 0.75},
    }
    assert first["metric"] == {"mAP": None, "image_acc": None} and first["cosine"] == {"a:b": None}
    rows = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    assert [r["epoch"] for r in rows] == ["0", "1"]
    assert (rows[0]["cosine/a:b"], rows[1]["cosine/a:b"], rows[1]["loss/box/head_0"]) == ("", "-0.5", "0.4")
    history.plot(tmp_path)
    assert (tmp_path / "history.png").stat().st_size > 10_000
