"""Flags of export.py."""

import pytest

from utils.config.export import PROGRAM
from utils.system.errors import UserError


@pytest.mark.parametrize("size", ["0", "-1", "many", "1.5", ""])
def test_images_at_a_time_are_a_number_or_dynamic(size: str) -> None:
    with pytest.raises(UserError, match="expected a number of images, or dynamic"):
        PROGRAM.parse(["--weights", "w.pt", "--batch-size", size])
    assert [PROGRAM.parse(["--weights", "w.pt", "--batch", n]).cfg.batch_size for n in ("4", "dynamic")] == [
        "4",
        "dynamic",
    ]
