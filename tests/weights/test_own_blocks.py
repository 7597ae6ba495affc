"""Files of own blocks: what of them is offered, output channels, the rules of width and number, errors with a line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.catalog import LAYERS
from models.graph import Detector
from utils.system.errors import UserError
from utils.weights.own_blocks import check, main, read

FILE = '''
import torch
from torch import nn


class Twice(nn.Module):
    """Doubles the channels."""

    def __init__(self, c1):
        super().__init__()
        self.grow = nn.Conv2d(c1, 2 * c1, 1)
        self.norm = nn.BatchNorm2d(2 * c1)

    def forward(self, x):
        return self.norm(self.grow(x))


class Stack(nn.Module):
    def __init__(self, c1, c2, n=1, k=3):
        super().__init__()
        self.m = nn.Sequential(*(nn.Conv2d(c1 if i == 0 else c2, c2, k, padding=k // 2) for i in range(n)))

    def forward(self, x):
        return self.m(x)


class Exact(nn.Module):
    scales_width = False
    takes_repeats = False

    def __init__(self, c1, c2, n):
        super().__init__()
        self.conv, self.n = nn.Conv2d(c1, c2, 1), n

    def forward(self, x):
        return self.conv(x)


class Mean(nn.Module):
    def __init__(self, c1):
        super().__init__()

    def forward(self, xs):
        return torch.stack(xs).mean(0)
'''


def written(tmp_path: Path, text: str = FILE, name: str = "mine.py") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def model(tmp_path: Path, *rows: list[Any], **settings: Any) -> Detector:
    head = [[[-1], 1, "Detect", ["nc", "anchors"]]]
    spec = {"anchors": [[10, 13]], "backbone": [[-1, 1, "Conv", [16, 3, 2]], *rows], "head": head, **settings}
    return Detector(spec, 2, read([written(tmp_path)]).layers)


def test_output_channels_are_found_by_running_the_block(tmp_path: Path) -> None:
    built = model(tmp_path, [-1, 1, "Twice", []], [-1, 1, "Stack", [24]], [[-1, -1], 1, "Mean", []])
    assert [row.out_channels for row in built.model[:4]] == [16, 32, 24, 24]
    assert all(row.training for row in built.model[1].modules())
    assert not built.model[1].get_buffer("norm.running_mean").any(), "the run that finds them leaves no trace"
    out = built(torch.rand(2, 3, 64, 64))["det"]
    out[0].sum().backward()
    assert all(p.grad is not None for p in built.parameters())


def test_norms_have_the_constants_of_both_families(tmp_path: Path) -> None:
    norm = model(tmp_path, [-1, 1, "Twice", []]).model[1].get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d) and (norm.eps, norm.momentum) == (1e-3, 0.03)


def test_width_and_number_are_scaled_as_the_signature_says_or_the_class_itself(tmp_path: Path) -> None:
    rows = [[-1, 6, "Stack", [64]], [-1, 1, "Exact", [40, 7]], [-1, 2, "Twice", []]]
    built = model(tmp_path, *rows, width_multiple=0.25, depth_multiple=0.5)
    assert [row.out_channels for row in built.model[:3]] == [8, 16, 40]
    assert len(built.model[1].get_submodule("m")) == 3, "6 * .5 into the block"
    assert built.model[2].n == 7
    assert model(tmp_path, [-1, 2, "Twice", []]).model[1].out_channels == 64, "twice in a row where it takes no number"


def test_what_a_file_offers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(read([written(tmp_path)]).builders) == {"Twice", "Stack", "Exact", "Mean"}
    same = "class Conv(nn.Module):\n    pass\n\n\nclass Other(nn.Module):\n    pass\n"
    head = "from torch import nn\n\n\n"
    assert set(read([written(tmp_path, head + same)]).builders) == {"Other"}
    assert "rows Conv mean this program's" in capsys.readouterr().out
    claimed = read([written(tmp_path, head + "__all__ = ['Conv']\n" + same)])
    assert set(claimed.builders) == {"Conv"} and claimed.layers["Conv"] is not LAYERS["Conv"]
    assert "Conv stand for this program's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = 1 / 0\n", "mine.py, line 2: ZeroDivisionError"),
        ("def f(:\n", "mine.py, line 1: SyntaxError"),
        ("import no_such_thing_\n", "line 1: ModuleNotFoundError"),
        ("x = 1\n", "defines no nn.Module"),
        ("__all__ = ['Gone']\n", "__all__ names 'Gone'"),
    ],
)
def test_errors_name_file_and_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read([written(tmp_path, text)])


def test_files_that_are_missing_or_meet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        read([str(tmp_path / "gone.py")])
    with pytest.raises(UserError, match="came from another file"):
        read([written(tmp_path), written(tmp_path, name="other.py")])
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="two files are called"):
        read([written(tmp_path), written(tmp_path / "b")])


def test_a_checkpoint_is_held_against_the_files(tmp_path: Path) -> None:
    own = read([written(tmp_path)])
    check({}, "w.pt", own)
    check({"modules": dict(own.hashes)}, "w.pt", own)
    with pytest.raises(UserError, match=r"w\.pt: its model has blocks of mine\.py.*--modules mine\.py"):
        check({"modules": dict(own.hashes)}, "w.pt", read([]))
    changed = read([written(tmp_path, FILE + "\n")])
    with pytest.raises(UserError, match="has changed since the training"):
        check({"modules": dict(own.hashes)}, "w.pt", changed)


@pytest.mark.parametrize("body", ["return (x, x)", "return x.flatten(1)", "return x.nonsense()"])
def test_a_block_whose_channels_cannot_be_found_is_named_by_row(body: str, tmp_path: Path) -> None:
    text = FILE.replace("return self.norm(self.grow(x))", body)
    spec = {"anchors": [[9, 9]], "backbone": [[-1, 1, "Twice", []]], "head": [[[-1], 1, "Detect", ["nc", "anchors"]]]}
    with pytest.raises(ValueError, match=r"row 0 \(Twice.*(no tensor|mine.py, line 15: AttributeError)"):
        Detector(spec, 2, read([written(tmp_path, text)]).layers)


def test_the_list_has_every_module_and_those_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([written(tmp_path)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1].isalpha() and "(" in line]
    names = {line.split("(")[0] for line in lines}
    assert names >= {*LAYERS, "Twice", "Stack"}
    text = {line.split("(")[0]: line for line in lines}
    assert text["C3"].startswith("C3(c2, shortcut=True, g=1, e=0.5)  [width, number, tested against: original]")
    assert text["Stack"].startswith("Stack(c2, k=3)  [width, number, yours]")
