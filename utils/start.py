"""How a run starts: anew (from scratch or from weights, a new stage) or resumed (the same stage). Never two of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils import checkpoint, record, seams
from utils.config import Config, parse, resume_flags


@dataclass(frozen=True)
class Start:
    """What a run is made from."""

    cfg: Config
    patches: seams.Patches
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
    return Start(cfg, patches, record.free_folder(cfg.project, cfg.name, named, cfg.exist_ok), None)


def resume(argv: Sequence[str], cfg: Config) -> Start:
    """The run's own settings; only where it runs is taken from the command line."""
    path = checkpoint.find_last(cfg.resume, cfg.project)
    resumed = checkpoint.read_resumable(path)
    own = Config(**{**seams.plain(resumed["meta"]["config"]), **resume_flags(argv, cfg)})
    return Start(own, seams.revive(resumed["meta"]["patches"]), path.parent.parent, resumed)
