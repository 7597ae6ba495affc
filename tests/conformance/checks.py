"""Comparisons with the reference values, one per quantity: models, outputs, losses. `utils.conformance` tables them.

A comparison yields (case, difference) pairs. Differences are, by its `kind`:
    relative   max |ours - reference| / (|reference| + scale); scale 0 unless its quantity says otherwise
    absolute   max |ours - reference|
    identical  number of elements that differ
Arrays of unequal shapes, a NaN on one side alone, and an inf give inf, so that nothing passes by being incomparable.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.anchored.assign import box_targets, drop_idle, plain_rows
from models.fuse import fuse
from models.graph import Detector
from tests.conformance import reference
from tests.conformance.reference import Absent, Reference
from utils.weights.checkpoint import load_detector

Found = Iterator[tuple[str, float]]


def array(x: Any) -> NDArray[np.float64]:
    return np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64)


def differ(got: Any, want: Any, scale: float | None = None) -> float:
    """Largest |got - want|; with a scale, of |got - want| / (|want| + scale). Equal values give 0, even two NaNs."""
    a, b = array(got), array(want)
    if a.shape != b.shape:
        return math.inf
    off = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if not off.any():
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.abs(a - b)[off] / (1 if scale is None else np.abs(b)[off] + scale)
    return float(np.nan_to_num(gap, nan=math.inf, posinf=math.inf).max())


def unequal(got: Any, want: Any) -> float:
    a, b = array(got), array(want)
    return math.inf if a.shape != b.shape else float((a != b).sum())


@cache
def filled(ref: Reference, name: str) -> Detector:
    return reference.filled_model(ref, name)


def counts(ref: Reference, family: str) -> Found:
    for file in (f"{family}_info", f"{family}_info_more"):
        if file.endswith("more") and not (ref.root / f"models/{file}.json").exists():
            continue
        for name, info in ref.json(f"models/{file}.json")["models"].items():
            try:
                with torch.device("meta"):
                    model = reference.model_for(ref, name)
            except Absent:
                continue  # a model file that is not shipped
            ours = [sum(p.numel() for p in model.parameters()), len(list(model.parameters())), len(model.state_dict())]
            wanted = [info[k] for k in ("params", "param_tensors", "state_dict_len")]
            rows = [sum(p.numel() for p in module.parameters()) for module in model.model]
            yield name, unequal([*ours, *rows], [*wanted, *(row[3] for row in info["layer_table"])])


def state_keys(ref: Reference, family: str) -> Found:
    for name, want in ref.json(f"models/{family}_state_dict.json").items():
        try:
            with torch.device("meta"):
                state = reference.model_for(ref, name).state_dict()
        except Absent:
            continue
        ours = {k: [list(t.shape), str(t.dtype).removeprefix("torch.")] for k, t in state.items()}
        order = sum(a != b for a, b in zip(ours, want, strict=False))
        yield name, float(len(set(ours) ^ set(want)) + sum(ours.get(k) != v for k, v in want.items()) + order)


def forward(ref: Reference, name: str, what: str) -> Found:
    want = ref.npz(f"forward/{name}.npz")
    model = filled(ref, name)
    for image in ("a", "b"):
        if f"{image}_raw0" not in want.files:
            continue
        with torch.no_grad():
            det = model(ref.inputs(image))["det"]
        if what == "raw":
            raws = reference.raw_outputs(model, det)
            if len(raws) != sum(k.startswith(f"{image}_raw") for k in want.files):
                yield f"{image}: number of outputs", math.inf
            for i, raw in enumerate(raws):
                expected = want[f"{image}_raw{i}"]
                yield f"{image}_raw{i}", differ(raw, expected, float(expected.std()))
        else:
            yield from decoded(image, reference.dense(model, det), want[f"{image}_dec"])


def decoded(case: str, ours: Tensor, want: Any) -> Found:
    """Boxes and probabilities apart, each against the spread of its kind."""
    for part, columns in (("pixels", slice(0, 4)), ("probabilities", slice(4, None))):
        expected = array(want)[..., columns]
        yield f"{case} {part}", differ(ours[..., columns], expected, float(expected.std()))


def fused(ref: Reference, name: str) -> Found:
    image, model = ref.inputs("a"), filled(ref, name)
    with torch.no_grad():
        copy = fuse(model)
        one, two = model(image)["det"], copy(image)["det"]
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        yield f"raw{i}", differ(b, a, float(a.std()))
    yield from decoded("decoded", reference.dense(copy, two), reference.dense(model, one))


def batch_statistics(ref: Reference, name: str, what: str) -> Found:
    """Ours in float64: what is left is the reference's own rounding (see float32_noise), the same on every machine."""
    want, model = ref.npz(f"forward/{name}.npz"), reference.filled_model(ref, name).double().train()
    with torch.no_grad():
        raws = reference.raw_outputs(model, model(ref.inputs("b").double())["det"])
    if what == "raw":
        for i, raw in enumerate(raws):
            expected = want[f"b_trainbn_raw{i}"]
            yield f"raw{i}", differ(raw, expected, float(expected.std()))
        return
    state = model.state_dict()
    for key in (k for k in want.files if k.startswith("after_")):
        yield key, differ(state[key.removeprefix("after_")], want[key], float(want[key].std()))


def float32_noise(ref: Reference, name: str) -> tuple[float, float]:
    """How far raw outputs in train mode lie from our float64 ones: ours in float32, the reference."""
    want, outputs = ref.npz(f"forward/{name}.npz"), []
    for dtype in (torch.float32, torch.float64):
        model = reference.filled_model(ref, name).to(dtype).train()
        with torch.no_grad():
            outputs.append(reference.raw_outputs(model, model(ref.inputs("b").to(dtype))["det"]))
    theirs = [want[f"b_trainbn_raw{i}"] for i in range(len(outputs[0]))]
    ours, other = (
        max(differ(a, exact, float(exact.std())) for a, exact in zip(levels, outputs[1], strict=True))
        for levels in (outputs[0], theirs)
    )
    return ours, other


def checkpoint(ref: Reference, name: str) -> Found:
    want = np.load(ref.path(f"ckpt/{name}_expected.npz"))
    model, _ = load_detector(ref.path(f"ckpt/{name}_stripped.pt"))
    with torch.no_grad():
        yield from decoded(name, reference.dense(model, model(torch.from_numpy(want["x"]))["det"]), want["dec"])


def plain_keys(ref: Reference, family: str) -> list[str]:
    return [k for k in reference.loss_keys(ref.json(f"loss/{family}.json")) if not k.startswith("ota/")]


def built_rows(ref: Reference, family: str) -> Found:
    arrays = ref.npz(f"loss/{family}.npz")
    present = set(arrays.files)
    for key in (k for k in plain_keys(ref, family) if f"{k}/idx0" in present):
        case = reference.loss_case(ref, family, key)
        loss: Any = case.criterion
        for i, raw in enumerate(case.det):
            height, width = raw.shape[2:4]
            rows = drop_idle(
                plain_rows(case.target, loss.anchors[i : i + 1], [(height, width)], loss.settings.anchor_t)
            )
            index = (rows.image, rows.anchor, rows.gy, rows.gx, case.target[rows.target, 1].long())
            yield f"{key} level {i}", unequal(torch.stack(index, 1), arrays[f"{key}/idx{i}"])
            box, expected = box_targets(rows, case.target, [(height, width)]), arrays[f"{key}/tbox{i}"]
            yield f"{key} level {i}", float(differ(box, expected, 1.0) > 1e-6)


def norms(case: reference.LossCase, terms: Any) -> float:
    (sum(terms.values()) * case.batch).backward()
    return differ([float(r.grad.norm()) for r in case.det if r.grad is not None], case.grad, 0.0)


def losses(ref: Reference, family: str, what: str) -> Found:
    for key in plain_keys(ref, family):
        case = reference.loss_case(ref, family, key)
        if what == "items":
            with torch.no_grad():
                yield key, differ(reference.items_of(case.criterion(case.det, case.target)), case.items, 0.0)
        elif case.grad:
            yield key, norms(case, case.criterion(case.det, case.target))


def ota_groups(ref: Reference) -> dict[str, list[str]]:
    """Cases of OTA: `free` of ties, `tied` with a reference by the rule, `open`: tied, without such a reference."""
    ties = ref.json("loss/ota_ties.json")
    groups: dict[str, list[str]] = {"free": [], "tied": [], "open": []}
    for key in (k for k in reference.loss_keys(ref.json("loss/yolov7.json")) if k.startswith("ota/")):
        base = ties.get(f"{key.rsplit('/', 1)[0]}/base", {})
        tied = ties.get(key, {}).get("tie_sensitive", False)
        # a variant that is not listed assigns as its base does, as far as ties go
        groups["tied" if tied else "open" if key not in ties and base.get("tie_sensitive") else "free"].append(key)
    return groups


def ota(ref: Reference, group: str, what: str = "items") -> Found:
    ties = ref.json("loss/ota_ties.json")
    for key in ota_groups(ref)[group]:
        case = reference.loss_case(ref, "yolov7", key)
        terms = case.criterion(case.det, case.target)
        if what == "gradients":
            if case.grad:
                yield key, norms(case, terms)
            continue
        items = reference.items_of(terms)
        if group == "open":
            base = ties[f"{key.rsplit('/', 1)[0]}/base"]
            yield key, differ(items[:1], base["items_lowest_index_tie_break"][:1], 0.0)
        else:
            yield key, differ(items, ties[key]["items_lowest_index_tie_break"] if group == "tied" else case.items, 0.0)


def router(ref: Reference, what: str) -> Found:
    for key, want in ref.json("loss/router.json")["results"].items():
        if what == "gradients" and not key.endswith("/base"):
            continue
        case = reference.router_case(ref, key)
        loss: Any = case.criterion
        terms = loss(case.det, case.target)
        if what == "items":
            yield key, differ(reference.items_of(terms), case.items, 0.0)
            continue
        (sum(terms.values()) * case.batch).backward()
        for h, entry in enumerate(want["heads"]):
            if "grad" in entry:
                own = slice(loss.table.starts[h], loss.table.starts[h + 1])
                ours = [float(level.grad[..., own].norm()) for level in case.det if level.grad is not None]
                yield f"{key} head {h}", differ(ours, [g["l2"] for g in entry["grad"]], 0.0)
