"""Modules by words, back to words, and the groups by depth."""

import pytest

from models.graph import Detector
from tests.models.test_zoo import spec
from utils.system.errors import UserError
from utils.train.modules import depth_groups, parse_modules, spans


@pytest.fixture(scope="module")
def demo() -> Detector:
    return Detector({**spec("demo"), "width_multiple": 0.25}, 12)


def test_a_number_by_itself_is_that_module(demo: Detector) -> None:
    assert parse_modules(["7"], demo, "--x") == [7]
    assert parse_modules(["head+3-5, 1"], demo, "--x") == [1, 3, 4, 5, 77]
    for word in ("78", "9-3", "trunk", ""):
        with pytest.raises(UserError, match=rf"--x {word}: .*valid: 0\.\.77, backbone \(0-28\)"):
            parse_modules([word], demo, "--x")


def test_spans_are_words(demo: Detector) -> None:
    for words in ("7", "0-10", "0-2+7", "0+2+4-77"):
        assert spans(parse_modules([words], demo, "--x")) == words
    assert spans([]) == ""


def test_groups_by_depth(demo: Detector) -> None:
    groups = {name: spans(modules) for name, modules in depth_groups(demo).items()}
    backbone = {"stride 32": "22-28", "stride 16": "15-21", "stride 8": "8-14", "stride 4": "1-7", "stride 2": "0"}
    assert list(groups.items()) == list({"head": "77", "neck": "29-76", **backbone}.items())


@pytest.mark.parametrize("name", ["yolov7", "yolov5n", "yolov7-tiny"])
def test_groups_cover_each_module_with_parameters_once(name: str) -> None:
    model = Detector(spec(name), 80)
    modules = [i for group in depth_groups(model).values() for i in group]
    assert len(modules) == len(set(modules))
    assert {i for i, m in enumerate(model.model) if list(m.parameters())} <= set(modules)
