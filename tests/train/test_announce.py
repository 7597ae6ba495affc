"""What a stage says about the one before it."""

from utils.train.announce import inheritance

SETTINGS = {f"setting_{i}": i for i in range(60)}


def test_a_stage_says_what_differs_a_line_each() -> None:
    before = {"config": {**SETTINGS, "epochs": 3, "name": "a"}, "patches": {"old": {"gain": 2}}, "epoch": 2}
    now = {"config": {**SETTINGS, "epochs": 5, "name": "b"}, "patches": {"new": {"depth_factor": 0.8, "ramp": (1, 2)}}}
    text = inheritance(before, now, "best.pt", {"new.ramp": "1 2", "new.depth_factor": "1.0"})
    assert text.splitlines() == [
        "starts from best.pt (epoch 2); against its training 60 settings are the same, 3 differ:",
        "  --epochs: 3 -> 5",
        "  --depth-factor: off -> 0.8",
        "  --gain: 2 -> off",
    ]


def test_a_file_without_settings_says_so() -> None:
    assert "does not say how it was trained" in inheritance({}, {"config": SETTINGS}, "yolov5n.pt")
