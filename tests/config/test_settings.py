"""What Config hands to an evaluation and to a data set is what was asked for."""

import dataclasses

from utils.config.settings import DataSettings, EvalSettings
from utils.config.train import Config

ASKED = Config(
    img_size=(96, 64), batch_size=6, test_batch_size=5, quad=True, rect=True, cache_images=True, single_cls=True,
    on_bad_data="skip", on_missing_pair="single", workers=3, seed=7, match="v7", v5_metric=True, max_det=5,
)  # fmt: skip


def test_nothing_of_a_name_is_dropped_on_the_way() -> None:
    """A field that Config has by the same name has its value, or the reason stands here."""
    made = {
        EvalSettings: (ASKED.judging(["a"], None, 0.65), set()),
        DataSettings: (ASKED.training_data(96, 32), {"img_size"}),  # of the two, the training's
    }
    for schema, (settings, others) in made.items():
        for field in dataclasses.fields(schema):
            if hasattr(ASKED, field.name) and field.name not in others:
                assert getattr(settings, field.name) == getattr(ASKED, field.name) != field.default, field.name


def test_validation_is_in_rectangles_of_its_own_size_and_batch() -> None:
    val = ASKED.validation_data(32)
    assert (val.img_size, val.batch_size, val.rect, val.pad, val.quad) == (64, 5, True, 0.5, False)
    assert (val.single_cls, val.on_bad_data, val.workers) == (True, "skip", 3)
