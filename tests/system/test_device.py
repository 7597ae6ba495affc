"""--device: what a word means on a machine, alone and as one of several processes."""

import pytest
import torch

from utils.system.device import select_device
from utils.system.errors import UserError


@pytest.fixture(params=[0, 4])
def cards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Card")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return int(request.param)


def test_words(cards: int) -> None:
    assert select_device("cpu") == select_device(" CPU ") == torch.device("cpu")
    assert select_device("") == torch.device("cuda:0" if cards else "cpu")
    if cards:
        assert select_device("3") == select_device("cuda:3") == torch.device("cuda:3")
    else:
        with pytest.raises(UserError, match="--device 3: there is no CUDA device 3; there is: cpu"):
            select_device("3")


@pytest.mark.parametrize("word", ["4", "gpu", "0,1", "mps"])
def test_what_is_not_there_is_named_beside_what_is(cards: int, word: str) -> None:
    there = "0 (Card), 1 (Card), 2 (Card), 3 (Card), cpu" if cards else "there is: cpu"
    with pytest.raises(UserError) as error:
        select_device(word)
    assert f"--device {word}" in str(error.value) and there in str(error.value)


def test_each_process_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Card")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device("") == torch.device("cuda:1")
    assert select_device("2,3") == torch.device("cuda:3")
    with pytest.raises(UserError, match="2 processes need as many numbers"):
        select_device("0")
