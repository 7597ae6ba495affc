"""Checkpoints: tensors, numbers and one JSON text; loading never runs code (weights_only=True).

Keys: format, meta (JSON: model YAML, names, patches, configuration, progress), ema (the weights to use); a resumable
one also has model, optimizer, patches, scaler. Foreign files are read by foreign.py, which builds no foreign object.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from models.graph import Detector, GraphError
from models.rows import spelled
from utils import seams
from utils.data.pairs import recorded
from utils.data.spec import DataSpec
from utils.system.errors import UserError, parsing
from utils.system.files import write_whole
from utils.system.schema import check
from utils.system.table import few
from utils.weights import foreign, own_blocks, torch_file
from utils.weights.description import MOST_CLASSES, Description, check_description
from utils.weights.detector_forms import as_built
from utils.weights.guess import guess_exactly
from utils.weights.limited import limited
from utils.weights.model_files import read_model as read_model

FORMAT = "thaw-1"
OPENING = 100  # bytes of the description within which ours name their format


def save_checkpoint(
    path: Path,
    *,
    state: Mapping[str, Tensor],
    meta: Mapping[str, object],
    training: Mapping[str, object] | None = None,
    keep: Path | None = None,
) -> None:
    """state: the weights to use, in whatever memory order. training: everything the next step depends on (absent: not
    resumable). keep: the name under which the file of before stays. Written aside, flushed, then renamed; UserError
    where that fails."""
    weights = {k: v.contiguous() for k, v in state.items()}
    content = {"format": FORMAT, "meta": json.dumps(meta), "ema": weights, **(training or {})}
    write_whole(path, lambda file: torch.save(content, file), keep)


def read_checkpoint(path: str | Path, *, trusted: bool = False) -> dict[str, Any]:
    """One of our own checkpoints, meta parsed; UserError for anything else. trusted: this run wrote it."""
    content = try_own(path, trusted=trusted)
    if content is None:
        raise UserError(
            f"{path} is not a checkpoint of this program or it is damaged "
            f"(one of another program is converted by python -m utils convert {path} OUT.pt)"
        )
    return content


def read_resumable(path: Path) -> dict[str, Any]:
    """A checkpoint with everything that the next step depends on; best.pt and numbered copies hold weights only."""
    content = read_checkpoint(path)
    if "optimizer" not in content:
        raise UserError(
            f"--resume {path}: it holds weights only; give the run's last.pt, or start a stage with --weights"
        )
    return content


def try_own(path: str | Path, *, trusted: bool = False) -> dict[str, Any] | None:
    """Our own format, or None where the file is something else. A missing or damaged file is an error: what says that
    it is ours is never read as a foreign file. trusted: it is not tried in a child first, which doubles the time."""
    file = Path(path)
    try:
        if not file.is_file():
            kept = sorted(str(p) for p in file.glob("weights/*.pt"))
            cure = f"; the run folder holds {few(kept)}" if kept else ""
            raise UserError(f"there is no checkpoint {str(path)!r}{cure}")
        if not says_own(file):
            return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    with parsing(f"{path} is damaged"):
        if not trusted:
            limited(_trial, file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    # of these exact types: a file may hang attributes on others, in place of their methods
    if type(content) is not dict or content.get("format") != FORMAT:
        raise UserError(f"{path} is damaged: it is no table, or not of format {FORMAT}")
    meta, state = parsed(content.get("meta")), content.get("ema")
    if meta is None or type(state) is not dict or not all(type(v) is Tensor for v in state.values()):
        raise UserError(f"{path} is damaged: its {'description' if meta is None else 'weights'} cannot be read")
    check_description(meta, f"{path} is damaged: its description")
    return {**content, "meta": meta}


def says_own(file: Path) -> bool:
    """Whether a zip of torch.save begins as ours. UserError for a damaged one of which that can still be seen; of
    another foreign.py looks again in the same way and says what is wrong with it."""
    with file.open("rb") as opened:
        begins = opened.read(10 * OPENING)  # torch.save writes the description first
    if begins[:4] != torch_file.ZIP:
        return False
    try:
        with parsing("damaged"):
            return FORMAT.encode() in torch_file.look(file)[:OPENING]
    except UserError as error:
        if FORMAT.encode() in begins:
            raise UserError(f"{file} is damaged: {str(error).removeprefix('damaged: ')}") from None
        return False


def _trial(path: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """In a child with limits: that reading the description ends at all. The numbers are not read."""
    torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {}, {}


def parsed(text: object) -> dict[str, object] | None:
    """The JSON object in `text`, or None where it is none."""
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_source(path: str | Path) -> seams.Source:
    """The weights of any supported file, ours or foreign, and what it says about itself. Errors: UserError, also for
    weights that are no numbers, as a training leaves them that diverged: they would detect nothing, without a word."""
    own = try_own(path)
    if own is not None:
        source = seams.Source(str(path), own["ema"], own["meta"])
    else:
        found = foreign.read_foreign(path)
        meta = foreign.as_meta(found)
        check(meta, Description, str(path))
        source = seams.Source(str(path), found.state, meta)
    bad = [key for key, value in source.state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise UserError(
            f"{path}: {len(bad)} of its tensors hold NaN or infinity: {few(bad)}; take an earlier checkpoint"
        )
    return source


def model_yaml(cfg: str, source: seams.Source | None) -> dict[str, object]:
    """The model YAML of --cfg, else the one stored with the weights."""
    if cfg:
        return read_model(cfg)
    spec = source.meta.get("spec") if source else None
    if spec is None:
        raise UserError(
            "--cfg MODEL.yaml is needed: "
            + ("--weights do not carry a model YAML" if source else "there are no --weights")
        )
    if source:
        own_blocks.check(source.meta, source.path)
    return dict(spec)


def check_behaviour(model: Detector, source: seams.Source) -> None:
    """What a pickled model is beside its tensors: its activations and the eps of its norms are those of the model that
    was built, where it has all of the file's tensors."""
    own = model.state_dict()
    if any(k not in source.state or v.shape != source.state[k].shape for k, v in own.items() if k[-4:] != "grid"):
        return
    built = {k: spelled(type(m).__name__, getattr(m, "negative_slope", None)) for k, m in model.named_modules()}
    stated: Mapping[str, str] = source.meta.get("activations") or {}
    if other := [k for k, kind in stated.items() if built.get(k, kind) != kind]:
        raise UserError(
            f"{source.path}: {len(other)} activations are not those of the model YAML: {other[0]} is "
            f"{stated[other[0]]} in the file, {built[other[0]]} here (a YAML says it by `activation: nn.NAME(...)`)"
        )
    eps, own_eps = source.meta.get("norm_eps"), {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    if eps is not None and own_eps - {eps}:
        raise UserError(f"{source.path}: its BatchNorms have eps {eps:g}, those here {own_eps.pop():g}")


def load_into(model: Detector, state: Mapping[str, Tensor], path: str, source: seams.Source | None = None) -> None:
    """Strict: every tensor of the model from the file and the reverse, else a UserError that lists what does not fit.

    `anchor_grid`, which is anchors * stride, may be absent or left over. source: the file, if it is to be asked how its
    model behaves.
    """
    if source:
        check_behaviour(model, source)
    own = model.state_dict()
    derived = {k for k in {**own, **state} if k.endswith(".anchor_grid")}
    missing = [k for k in own if k not in state and k not in derived]
    extra = [k for k in state if k not in own and k not in derived]
    shapes = [
        f"{k}: {list(state[k].shape)} in the file, {list(v.shape)} in the model"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or extra or shapes:
        fused = any(k.endswith("conv.bias") for k in extra) and all(".bn." in k for k in missing)
        kinds = {"of another shape": shapes, "missing in the file": missing, "not in the model": extra}
        lines = [f"{len(found)} {kind}: {few(found, 5, '; ')}" for kind, found in kinds.items() if found]
        if fused:
            raise UserError(
                f"--weights {path}: a fused model, whose BatchNorms are merged into the convolutions; give the weights "
                "as they were before that"
            )
        raise UserError(
            f"--weights {path} does not fit the model (take what fits with --transfer-weights):\n  "
            + "\n  ".join(lines)
        )
    fitting = {k: v for k, v in state.items() if k in own and k not in derived}
    model.load_state_dict(fitting, strict=False)
    for k in derived & own.keys():
        anchors = own[k.removesuffix("anchor_grid") + "anchors"]
        own[k].copy_((anchors * model.stride.view(-1, 1, 1).to(anchors)).view(own[k].shape))


def channels_of(meta: Mapping[str, Any]) -> int:
    """Channels of the images that a checkpoint's model reads. YOLOv5 writes them into the model YAML, as `ch`."""
    said = meta.get("channels") or (meta.get("spec") or {}).get("ch") or 3
    check(said, Annotated[int, (1, 64)], "channels (ch) of the model")
    return int(said)


def check_pixels(spec: DataSpec, meta: Mapping[str, Any], path: str | Path) -> None:
    """The images of a data set have as many channels as the model of checkpoint `path` reads, and where both are of
    floating point numbers, the same values are black and full. Errors: UserError."""
    if channels_of(meta) != spec.channels:
        raise UserError(
            f"{path} reads images of {channels_of(meta)} channels, {spec.source} has images of {spec.channels}"
        )
    known = meta.get("scale")
    if known and spec.scale and tuple(known) != spec.scale:
        raise UserError(
            f"{path} was trained with `scale: {list(known)}` (the values that are black and full), {spec.source} says "
            f"{list(spec.scale)}: the same value would be another shade to it; write {list(known)} there"
        )


def check_groups(model: Detector, source: seams.Source) -> None:
    """The heads that were built have the classes that the file says, number by number."""
    theirs = source.meta.get("groups")
    if theirs is not None and len(theirs) > 1 and theirs != model.groups:
        moved = [c for mine, other in zip(model.groups, theirs, strict=False) for c in mine if c not in other]
        raise UserError(
            f"{source.path} was trained with another grouping of the classes over the heads "
            f"(differing classes: {moved[:10]})"
        )


def build_detector(
    spec: Mapping[str, object], nc: int, patches: seams.Patches, where: str, channels: int = 3
) -> Detector:
    """Model YAML -> Detector for images of so many channels, with the layers and branches that patches add; errors
    name the file."""
    try:
        model = Detector(spec, nc, {**own_blocks.in_use().layers, **patches.merge("layers")}, channels)
        with torch.random.fork_rng(devices=[]):  # a branch must not shift the random numbers of the base
            for name, (index, module) in patches.merge("branches", model).items():
                model.add_branch(name, index, module)
        return model
    except GraphError as error:
        raise UserError(f"{where}: {error}") from None


def load_detector(
    path: str | Path, cfg: str = "", modules: Sequence[str] | None = None
) -> tuple[Detector, dict[str, Any]]:
    """A trained detector in eval mode, on the CPU, and its meta (nc, names, spec, patches, img_size, ... as far as the
    file says).

    cfg: model YAML, for files that do not carry one. modules: what --modules names; None: what is in use already.
    """
    if modules is not None:
        own_blocks.use(modules)
    source = read_source(path)
    meta = dict(source.meta)
    spec = read_model(cfg) if cfg else meta.get("spec")
    if spec is None and (guess := guess_exactly(source.state)):
        spec = guess.spec
        print(f"{path} does not say its architecture; all of its tensors fit {guess.where}")
    if spec is None:
        raise UserError(f"{path} does not say its architecture: give the model YAML with --cfg")
    if not cfg:
        own_blocks.check(meta, path)
    patches = seams.revive(lasting(meta))
    nc: Any = meta.get("nc") or spec.get("nc")
    check(nc, Annotated[int, (1, MOST_CLASSES)], f"{cfg or path}: nc, the number of classes")
    model = build_detector(spec, nc, patches, cfg or str(path), channels_of(meta))
    load_into(model, as_built(source.state, model, str(path)), str(path), source)
    check_groups(model, source)
    meta |= {"nc": nc, "names": list(meta.get("names") or [str(i) for i in range(nc)]), "spec": spec}
    return model.eval(), meta


def detection_alone(state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> tuple[seams.State, dict[str, Any]]:
    """State and meta of a checkpoint without its branches and the patches that made them: a plain detector's."""
    records: dict[str, Any] = dict(meta.get("patches") or {})
    modules = seams.kinds(records)
    branched = {k for k in records if "branches" in vars(modules[k].patch)}
    if recorded(meta).get("modality") == "infrared":  # which is no matter of branches
        branched -= {"modality"}
    kept = {k: v for k, v in records.items() if k not in branched}
    plain = {k: v for k, v in state.items() if not k.startswith("branches.")}
    return plain, {**meta, "patches": kept}


def lasting(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Records of those patches that matter after training: what they add to the model, or to its evaluation."""
    records: dict[str, Any] = dict(meta.get("patches") or {})
    modules = seams.kinds(records)
    return {k: v for k, v in records.items() if {"layers", "branches", "observe"} & vars(modules[k].patch).keys()}
