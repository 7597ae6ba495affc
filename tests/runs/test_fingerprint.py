"""Fingerprints: sensitive to every byte, name, type and shape; blind to files, order and memory layout."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from utils.runs import fingerprint
from utils.runs.fingerprint import of_flags, of_tensors, tensors_in


def sample() -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        "conv": torch.randn(4, 3, 2, 2, generator=made),
        "half": torch.arange(6, dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 5),
    }


def test_every_byte_counts() -> None:
    first = of_tensors(sample())
    for name, tensor in sample().items():
        size = tensor.numel() * tensor.element_size()
        for i in range(size):
            changed = sample()
            changed[name].reshape(-1).view(torch.uint8)[i] ^= 1
            assert of_tensors(changed) != first, (name, i)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s | {"conv2": s.pop("conv")},
        lambda s: s | {"half": s["half"].view(torch.int16)},
        lambda s: s | {"half": s["half"].view(2, 3)},
        lambda s: s | {"none": torch.zeros(5, 0)},
        lambda s: s | {"count": s["count"].view(1)},
        lambda s: {k: v for k, v in s.items() if k != "none"},
        lambda s: s | {"conv": s["half"], "half": s["conv"]},
    ],
    ids=["name", "type", "shape", "empty shape", "scalar", "missing", "exchanged"],
)
def test_names_types_and_shapes_count(change) -> None:  # type: ignore[no-untyped-def]
    assert of_tensors(change(sample())) != of_tensors(sample())


def test_order_layout_and_file_do_not_count(tmp_path: Path) -> None:
    tensors = sample()
    first = of_tensors(tensors)
    assert of_tensors(dict(reversed(tensors.items()))) == first
    assert of_tensors({**tensors, "conv": tensors["conv"].to(memory_format=torch.channels_last)}) == first
    wide = torch.zeros(6, 2, dtype=torch.bfloat16)
    wide[:, 0] = tensors["half"]
    assert of_tensors({**tensors, "half": wide[:, 0]}) == first
    assert of_tensors({**tensors, "conv": torch.nn.Parameter(tensors["conv"])}) == first
    torch.save({"a": 1, **tensors}, tmp_path / "x.pt")
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert of_tensors({k: loaded[k] for k in tensors}) == first


def test_tensors_of_nested_states() -> None:
    one, two = torch.zeros(1), torch.ones(2)
    content = {"state": {0: {"momentum": one}, 1: {"momentum": None}}, "groups": [{"lr": 0.1}, (two,)]}
    found = tensors_in(content)
    assert list(found) == ["state.0.momentum", "groups.1.0"] and found["groups.1.0"] is two


def test_flags_that_name_files(tmp_path: Path) -> None:
    """Whatever patch the flag belongs to; the weights have a section of their own."""
    for name in ("a.yaml", "b.yaml", "w.pt"):
        (tmp_path / name).write_text(name)
    config = {"hyp": str(tmp_path / "a.yaml"), "weights": str(tmp_path / "w.pt"), "cfg": "gone", "n": 1}
    found = of_flags({"config": config, "patches": {"any": {"list_of": (str(tmp_path / "b.yaml"), "x"), "dir": "."}}})
    assert {flag: entry["path"] for flag, entry in found.items()} == {
        "hyp": str(tmp_path / "a.yaml"),
        "list_of": str(tmp_path / "b.yaml"),
    }
    before = found["hyp"]["sha256"]
    (tmp_path / "a.yaml").write_text("b.yaml")
    assert of_flags({"config": config, "patches": {}})["hyp"]["sha256"] == found["list_of"]["sha256"] != before


def test_listing_is_read_back(tmp_path: Path) -> None:
    listing = {'train a,"b".jpg': ("12", ""), "val ü.png": ("34", "56")}
    fingerprint.write_listing(tmp_path / "data.csv", listing)
    assert fingerprint.read_listing(tmp_path / "data.csv") == listing
    assert fingerprint.read_listing(tmp_path / "none.csv") == {}
