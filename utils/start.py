"""How a run starts: anew (from scratch or from weights, a new stage) or resumed (the same stage). Never two of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils import checkpoint, dist, record, seams
from utils.config import Config, parse, resume_flags
from utils.device import select_device


@dataclass(frozen=True)
class Start:
    """What a run is made from."""

    cfg: Config
    patches: seams.Patches
    device: torch.device
    folder: Path  # of the run; made later, when everything else has been found right
    resumed: dict[str, Any] | None  # content of the checkpoint that is continued


def begin(argv: Sequence[str]) -> Start:
    """argv -> where to start from. Errors: UserError for flags that are wrong or do not go together."""
    kinds = seams.active(argv)
    cfg, flags = parse(argv, {name: kind.Flags for name, kind in kinds.items()})
    if cfg.resume:
        return resume(argv, cfg)
    with torch.random.fork_rng(devices=[]):
        patches = seams.Patches({name: kind.patch(flags[name]) for name, kind in kinds.items()})
    named = any(a.split("=")[0] == "--name" for a in argv)
    device = meet(cfg)
    folder = dist.share(record.free_folder(cfg.project, cfg.name, named, cfg.exist_ok))
    return Start(cfg, patches, device, folder, None)


def resume(argv: Sequence[str], cfg: Config) -> Start:
    """The run's own settings; only where it runs is taken from the command line."""
    path = checkpoint.find_last(cfg.resume, cfg.project)
    resumed = checkpoint.read_resumable(path)
    own = Config(**{**seams.plain(resumed["meta"]["config"]), **resume_flags(argv, cfg)})
    return Start(own, seams.revive(resumed["meta"]["patches"]), meet(own), path.parent.parent, resumed)


def meet(cfg: Config) -> torch.device:
    """The device of this process; with torchrun the ranks have found each other afterwards."""
    device = select_device(cfg.device)
    dist.join(device)
    return device
