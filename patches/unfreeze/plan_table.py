"""What --unfreeze-plan prints: stages with modules and parameters, and epoch by epoch the rates of each, by kind."""

import math
import re
from collections.abc import Mapping

from utils.seams import Groups, Rates
from utils.system.table import aligned

OTHERS = "others"  # what no stage names


def plan_table(rates: Rates, groups: Groups, modules: Mapping[str, str]) -> str:
    """groups: the final optimizer groups, named KIND...; those of a stage carry `stage`. modules: {stage: its words}.

    Rates are those of an epoch's last step; `-`: frozen. Epochs in which nothing but the decay goes on are left out.
    """
    stages: dict[str, Groups] = {}
    for group in groups:
        stages.setdefault(str(group["stage"]) if "stage" in group else OTHERS, []).append(group)
    shown = [stage for stage, parts in stages.items() if stage != OTHERS or any(map(learns, parts))]
    stages = {stage: stages[stage] for stage in sorted(shown, key=lambda s: (s == OTHERS, s.zfill(9)))}
    head = ["stage", "opens", "modules", "parameters", "rate x", "ramp (epochs)"]
    rows = [head]
    for stage, parts in stages.items():
        scales = sorted({g["lr_scale"] for g in parts})
        opens, ramp = parts[0].get("opens", 0), parts[0].get("ramp", 0.0)
        never = " (never)" if opens >= rates.epochs else ""
        rows.append([stage, f"{opens}{never}", modules.get(stage, "what patches add"), f"{size(parts):,}",
                     "..".join(f"{s:g}" for s in {scales[0]: 0, scales[-1]: 0}), f"{ramp:g}"])  # fmt: skip
    table = [["epoch", "learning", *(f"stage {s}" if s != OTHERS else s for s in stages)]]
    for epoch in telling_epochs(rates, groups):
        count = sum(size([g]) for parts in stages.values() for g in parts if learns(g) and g.get("opens", 0) <= epoch)
        cells = [cell(rates, parts, epoch) for parts in stages.values()]
        table.append([str(epoch), f"{count:,}", *cells])
    what = "rates at the epoch's last step: norms, weights, biases (one figure where they are equal); - = frozen"
    run = f"{rates.epochs} epochs of {rates.batches} steps"
    return f"plan for {run}\n{aligned(rows)}\n{what}\n{aligned(table)}"


def learns(group: Mapping[str, object]) -> bool:
    """Whether it ever does: --freeze keeps what it names from every stage."""
    return "opens" in group or any(p.requires_grad for p in group["params"])  # type: ignore[attr-defined]


def size(groups: Groups) -> int:
    return sum(p.numel() for g in groups for p in g["params"])


def cell(rates: Rates, parts: Groups, epoch: int) -> str:
    """Rates of a stage's groups, norm, weight, bias; a range where they are split further."""
    step = (epoch + 1) * rates.batches - 1
    if all(g.get("opens", 0) > epoch for g in parts):
        return "-"
    by_kind: dict[str, list[float]] = {}
    for group in parts:
        by_kind.setdefault(re.split("[/_]", group["name"])[0], []).append(rates.rate(step, group))
    texts = [
        f"{low:.3g}" if low == high else f"{low:.3g}..{high:.3g}"
        for low, high in ((min(r), max(r)) for r in by_kind.values())
    ]
    return texts[0] if len(set(texts)) == 1 else " ".join(texts)


def telling_epochs(rates: Rates, groups: Groups) -> list[int]:
    """First and last epoch, those of the warm-up, openings and cycles with their ramps, and the epochs before them."""
    starts = [(g["opens"], g["ramp"]) for g in groups if "opens" in g]
    starts += [(p["start"], p["ramp"]) for g in groups for p in g.get("phases", ())]
    found = {0, rates.epochs - 1, rates.warmup // rates.batches}
    for start, ramp in starts:
        end = start + math.ceil(ramp)
        found |= {start - 1, start, end - 1, end}
    return sorted(e for e in found if 0 <= e < rates.epochs)
