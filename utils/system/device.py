"""Which device to use: CUDA where it is present, else the CPU, or Apple's MPS on request.

Under torchrun each process takes the device of its number on the machine (LOCAL_RANK).
"""

import os
import resource
import sys

import torch

from utils.system.errors import UserError


def select_device(name: str) -> torch.device:
    """'' -> the best there is; '0', 'cuda:0', 'cpu', 'mps'; '0,1' with torchrun: one for each process. A device that is
    not there is an error that says what is."""
    name = name.strip().lower()
    processes, mine = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if name in ("", "auto"):
        name = str(mine) if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(f"--device mps: not on this machine; there is: {present()}")
        return torch.device("mps")
    numbers = (name.removeprefix("cuda").removeprefix(":") or str(mine)).split(",")
    if len(numbers) > processes:
        start = f"torchrun --nproc-per-node {len(numbers)} train.py ..."
        raise UserError(f"--device {name}: one process drives one device; start with {start}; there is: {present()}")
    number = numbers[mine] if len(numbers) > 1 else numbers[0]
    if len(numbers) < processes and number != str(mine):
        raise UserError(f"--device {name}: {processes} processes need as many numbers, or none to count up from 0")
    if not number.isdigit():
        raise UserError(f"--device {name}: expected a CUDA number, cpu or mps; there is: {present()}")
    if not torch.cuda.is_available() or int(number) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there is no CUDA device {number}; there is: {present()}")
    return torch.device(f"cuda:{number}")


def present() -> str:
    """The devices of this machine, for messages."""
    cuda = (
        [f"{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ", ".join([*cuda, *mps, "cpu"])


def peak_memory(device: torch.device) -> float:
    """Largest memory held on the device so far, GiB; 0 where it is not counted."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def peak_resident(device: torch.device) -> float:
    """As peak_memory, and on a CPU the most that this whole process ever held (its resident set); 0 where neither is
    counted."""
    if device.type != "cpu":
        return peak_memory(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
