"""Weights of other programs -> a plain state: YOLOv5/YOLOv7 `.pt` (pickled models), plain state dicts, safetensors.

`read_foreign` runs no code of the file and builds no object of it (torch_file.py says how), in a child process with
limits (limited.py). State keys are those of the original program (`model.N....`); floating tensors come as float32,
counters as they are. Where a checkpoint holds an average of the weights (EMA), that is taken, as the original programs
do."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from models.rows import spelled
from utils.system.errors import UserError, fail
from utils.weights import torch_file
from utils.weights.limited import limited
from utils.weights.model_files import detector_part, linear_pools
from utils.weights.torch_file import Node

CONTAINERS = ("ema", "model", "state_dict", "model_state_dict")  # in order of preference
V5_CLASSES = {"C3", "SPPF", "Focus"}
V7_CLASSES = {"IDetect", "IAuxDetect", "IKeypoint", "IBin", "SPPCSPC", "RepConv", "MP", "MultiHeadDetect"}
MAX_DEPTH, MAX_ITEMS = 32, 200_000  # nesting and size of what a description may hold; real ones stay far below


@dataclass(frozen=True)
class ForeignCheckpoint:
    """What a file of another program holds. Everything but `state` and `source` is None where the file does not say."""

    state: dict[str, Tensor]
    source: str  # in words: program, container, which weights, their precision
    nc: int | None = None
    names: list[str] | None = None  # by class id
    anchors: Tensor | None = None  # [L,A,2] width and height in input pixels
    stride: Tensor | None = None  # [L] input pixels per cell
    yaml: dict[str, Any] | None = None  # the model description
    detector: str | None = None  # class of the last module
    groups: list[list[int]] | None = None  # class ids of each head, where there are several
    epoch: int | None = None
    activations: dict[str, str] = field(default_factory=dict)  # of a pickled model, by module: `LeakyReLU(0.1)`
    norm_eps: float | None = None  # of all its BatchNorms
    notes: tuple[str, ...] = field(default=())  # what was renamed or assumed

    @property
    def parameters(self) -> int:
        """Numbers in the state, without counters, running statistics and anchors."""
        skip = ("num_batches_tracked", "running_mean", "running_var", "anchors", "anchor_grid")
        return sum(t.numel() for k, t in self.state.items() if not k.endswith(skip))


def read_foreign(path: str | Path) -> ForeignCheckpoint:
    """Read a weights file of another program. UserError: what is wrong with it, and where."""
    path = Path(path)
    try:
        if not path.is_file():
            fail(f"{path}: no such file")
        about, state = limited(_read, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    for key in ("anchors", "stride"):
        about[key] = None if about[key] is None else torch.tensor(about[key])
    return ForeignCheckpoint(state={key: state[key] for key in about.pop("keys")}, **about)


def is_safetensors(path: Path) -> bool:
    """By the suffix, or by the start: a length and a JSON header."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """In the child -> (the fields of a ForeignCheckpoint as plain values, its state)."""
    state, about = _from_safetensors(path) if is_safetensors(path) else _from_torch(path)
    for key in ("anchors", "stride"):
        about[key] = None if about[key] is None else about[key].tolist()
    return {**about, "keys": list(state)}, state


def _from_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    root = torch_file.load(path)
    where, content = _choose(root)
    modules = list(_modules(content)) if isinstance(content, Node) else []
    stored = dict(_tensors(modules)) if modules else dict(dict.items(content))
    state, notes = _rename(_copies(stored, path.stat().st_size))
    which = {"ema": "EMA weights", "": "weights"}.get(where, f"weights under {where!r}")
    kind = f"{_family(modules)} pickle of {content.name[:100]}" if isinstance(content, Node) else "state dict"
    epoch = dict.get(root, "epoch") if isinstance(root, dict) else None
    about = _about(root, state, modules)
    about["yaml"], others = detector_part(about["yaml"])
    if left := [k for k in state if others and k.startswith(others)]:
        state = {k: t for k, t in state.items() if k not in left}
        notes.append(f"{len(left)} tensors of masks or key points are left out: the detector alone")
    return state, {
        **about,
        "source": f"{kind}, {which}, {_precision(stored)}",
        "notes": (*notes, *about["notes"]),
        "epoch": epoch if type(epoch) is int else None,
    }


def _family(modules: list[tuple[str, Node]]) -> str:
    if modules and modules[0][1].name.startswith("ultralytics."):
        return "Ultralytics"
    classes = {node.name.rpartition(".")[2] for _, node in modules}
    return "YOLOv7" if classes & V7_CLASSES else "YOLOv5" if classes & V5_CLASSES else "PyTorch"


def _choose(root: object) -> tuple[str, Any]:
    """-> (key in the file, pickled model or {name: tensor}). The average is preferred to the model."""
    if isinstance(root, Node) or _is_state(root):
        return "", root
    if not isinstance(root, dict):
        fail(f"holds a {type(root).__name__}, neither a model nor a state dict")
    for key in CONTAINERS:
        value = dict.get(root, key)  # not root.get: the file may hang attributes on an OrderedDict
        if isinstance(value, Node) or _is_state(value):
            return key, value
    keys = ", ".join(str(k)[:30] for k in list(dict.keys(root))[:12] if isinstance(k, str | int))
    fail(f"no weights under {', '.join(CONTAINERS)}; the file has {keys or 'nothing'}")


def _is_state(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in dict.items(value))
    )


def _modules(root: Node) -> Iterator[tuple[str, Node]]:
    """The modules of a pickled model with their dotted names, in order. Depth is bounded: a pickle can be circular."""
    stack: list[tuple[str, Node, int]] = [("", root, 0)]
    count = 0
    while stack:
        name, node, depth = stack.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_ITEMS:
            fail("the modules of the pickled model contain themselves; no real model does")
        yield name, node
        children = node.get("_modules")
        for key, child in reversed(list(dict.items(children))) if isinstance(children, dict) else ():
            if isinstance(child, Node):
                stack.append((f"{name}.{key}" if name else str(key), child, depth + 1))


def _tensors(modules: list[tuple[str, Node]]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, named as in a state dict."""
    for name, node in modules:
        transient = node.get("_non_persistent_buffers_set")
        transient = transient if isinstance(transient, set | list | tuple) else ()
        for part in ("_parameters", "_buffers"):
            table = node.get(part)
            for key, tensor in dict.items(table) if isinstance(table, dict) else ():
                if isinstance(tensor, Tensor) and key not in transient:
                    yield (f"{name}.{key}" if name else str(key)), tensor


def _copies(stored: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """The numbers, each tensor by itself. Tied weights may repeat some of a file of `size` bytes, a made-up file may
    not repeat it at will."""
    if not stored:
        fail("the pickled object has no parameters; is it a model?")
    budget = 4 * size
    for key, tensor in stored.items():
        held = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.numel() > held:
            fail(f"{key[:100]}: a tensor of size {list(tensor.shape)} over a storage of {held} elements")
        budget -= tensor.numel()
        if budget < 0:
            fail("its tensors have more numbers than the file can hold")
    copies = {k: t.detach().clone(memory_format=torch.contiguous_format) for k, t in stored.items()}
    return {k: t.float() if t.is_floating_point() else t for k, t in copies.items()}


def _rename(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Take wrappers' prefixes away, or add the one that a bare list of modules lacks: keys shall read `model.N....`."""
    notes = []
    for prefix in ("module.", "_orig_mod.", "model."):
        wrapped = f"{prefix}model." if prefix == "model." else prefix
        if all(k.startswith(wrapped) for k in state):
            state = {k.removeprefix(prefix): t for k, t in state.items()}
            notes.append(f"removed the prefix {prefix!r} from every key")
    if all(k.split(".", 1)[0].isdigit() for k in state):
        state = {f"model.{k}": t for k, t in state.items()}
        notes.append("put 'model.' before every key")
    return state, notes


def _precision(stored: Mapping[str, Tensor]) -> str:
    kinds = {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()}
    words = {torch.float16: "half precision", torch.float32: "single precision", torch.float64: "double precision"}
    return " and ".join(sorted(words.get(k, str(k).removeprefix("torch.")) for k in kinds)) or "no floating numbers"


def _detector(modules: list[tuple[str, Node]]) -> Node | None:
    """The last module with anchors."""
    found = None
    for _, node in modules:
        buffers = node.get("_buffers")
        if (isinstance(buffers, dict) and "anchors" in buffers) or isinstance(node.get("anchors"), Tensor):
            found = node
    return found


def _about(root: Any, state: dict[str, Tensor], modules: list[tuple[str, Node]]) -> dict[str, Any]:
    """names, nc, anchors, stride, yaml, detector, groups, notes: from the model's attributes, else from the shapes."""
    model, detector = (modules[0][1] if modules else None), _detector(modules)

    def attribute(key: str) -> Any:
        for holder in (model, detector, root):
            value = dict.get(holder, key) if isinstance(holder, dict) else holder.get(key) if holder else None
            if value is not None:
                return value
        return None

    yaml = plain(attribute("yaml"))
    yaml = yaml if isinstance(yaml, dict) else None
    stride = attribute("stride")
    layout = describe(state, stride.float().flatten() if isinstance(stride, Tensor) else None)
    names = name_list(plain(attribute("names")))
    counts = (attribute("nc"), (yaml or {}).get("nc"), layout["nc"], len(names) if names else None)
    nc = next((n for n in counts if type(n) is int), None)
    return {
        **layout,
        "yaml": yaml,
        "names": names,
        "nc": nc,
        "detector": detector.name.rpartition(".")[2] if detector else None,
        "groups": find_groups(plain(detector), nc) if detector and nc else None,
        **_behaviour(modules),
    }


def _behaviour(modules: list[tuple[str, Node]]) -> dict[str, object]:
    """What the tensors do not tell: activations, and what norms add to the variance."""
    acts = {name.removeprefix("module."): node for name, node in modules if name.rpartition(".")[2] == "act"}
    eps = {node.get("eps") for _, node in modules if node.name.endswith(".BatchNorm2d")}
    value = eps.pop() if len(eps) == 1 else None
    return {
        "activations": {
            name: spelled(node.name.rpartition(".")[2], node.get("negative_slope")) for name, node in acts.items()
        },
        "norm_eps": value if isinstance(value, float) else None,
    }


def describe(state: Mapping[str, Tensor], stride: Tensor | None) -> dict[str, Any]:
    """nc, anchors in pixels, stride and notes, as far as the state alone tells."""
    at = next((k.removesuffix("anchors") for k in state if k.endswith(".anchors")), None)
    anchors = state[f"{at}anchors"] if at else None
    if at is None or anchors is None or anchors.ndim != 3:
        last = next((t for k, t in state.items() if k.endswith(".cv3.0.2.bias")), None)  # of a head without anchors
        return {"nc": None if last is None else len(last), "anchors": None, "stride": stride, "notes": ()}
    notes: tuple[str, ...] = ()
    if stride is None or len(stride) != len(anchors):
        stride = torch.tensor([8.0 * 2**i for i in range(len(anchors))])
        notes = (f"the file does not give strides; {', '.join(f'{s:g}' for s in stride.tolist())} assumed",)
    weight = state.get(f"{at}m.0.weight")
    nc = len(weight) // anchors.shape[1] - 5 if weight is not None and weight.ndim == 4 else None
    return {"nc": nc, "anchors": anchors * stride.view(-1, 1, 1), "stride": stride, "notes": notes}


def plain(value: object, depth: int = 0, budget: list[int] | None = None) -> Any:
    """A copy made of dicts, lists, strings, numbers and None; pickled objects become dicts of their attributes."""
    budget = budget if budget is not None else [MAX_ITEMS]
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        return None
    if isinstance(value, Node):
        value = value.state
    if isinstance(value, dict):
        return {k: plain(v, depth + 1, budget) for k, v in dict.items(value) if isinstance(k, str | int)}
    if isinstance(value, list | tuple):
        return [plain(v, depth + 1, budget) for v in value]
    return value if isinstance(value, str | int | float) else None


def name_list(names: object) -> list[str] | None:
    """Class names by id from a list or from {id: name}; None where it is neither or has gaps."""
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[i] for i in range(len(names))]
    return [str(n) for n in names] if isinstance(names, list) and names else None


def find_groups(attributes: object, nc: int) -> list[list[int]] | None:
    """The class ids of each head: the one partition of 0..nc-1 into lists among the detector's attributes."""
    found: list[list[list[int]]] = []
    stack = [attributes]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            value = [v.get("classes", v) if isinstance(v, dict) else v for v in value.values()]
        if not isinstance(value, list):
            continue
        ids = [v for v in value if isinstance(v, list) and all(type(c) is int for c in v)]
        flat = sorted(c for v in ids for c in v)
        if len(value) > 1 and len(ids) == len(value) and len(flat) == nc and flat == list(range(nc)):
            found.append(ids)
        stack.extend(v for v in value if isinstance(v, dict | list))
    return found[0] if found and all(f == found[0] for f in found) else None


def as_meta(found: ForeignCheckpoint) -> dict[str, Any]:
    """What our checkpoints say about a model, as far as the file says it: spec, nc, names, groups, from, patches.

    A model with several heads is built by the patch `multihead`, whose record is its table of heads. Weights of the
    heads in the loss are not to be found in such files; they are 1.
    """
    spec, kinds = linear_pools(found.yaml, found.activations), set(found.activations.values())
    if spec and "activation" not in spec and len(kinds) == 1 and (kind := kinds.pop()) != "SiLU":
        name, _, slope = kind.partition("(")
        spec = {**spec, "activation": f"nn.{name}({slope.rstrip(')')})"}  # set in code, which the YAML does not know
    meta = {
        "spec": spec,
        "nc": found.nc,
        "names": found.names,
        "groups": found.groups,
        "from": found.source,
        "activations": found.activations or None,
        "norm_eps": found.norm_eps,
    }
    if found.groups:
        count = len(found.groups)
        rows = next((len(t) for k, t in found.state.items() if k.endswith(".heads.0.0.bias")), 0)
        anchors = found.anchors.shape[1] if found.anchors is not None else 3
        table = {
            "names": [f"head_{i}" for i in range(count)],
            "groups": found.groups,
            "weights": [1.0] * count,
            "grouping": "",
            "full_head": rows // anchors - 5 != len(found.groups[0]),
        }
        meta["patches"] = {"multihead": {"heads": count, "head_table": table}}
    return {k: v for k, v in meta.items() if v is not None}


def _from_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        text = dict(file.metadata() or {})
    if not stored:
        fail("no tensors in it")
    kinds = " and ".join(
        sorted({str(t.dtype).removeprefix("torch.") for t in stored.values() if t.is_floating_point()})
    )
    state, notes = _rename(_copies(stored, path.stat().st_size))
    about = describe(state, None)
    names = name_list(_json(text.get("names")))
    yaml = _json(text.get("yaml"))
    counts = (about["nc"], _json(text.get("nc")), len(names) if names else None)
    nc = next((n for n in counts if type(n) is int), None)
    return state, {
        **about,
        "source": f"safetensors, {kinds}",
        "nc": nc,
        "names": names,
        "yaml": yaml if isinstance(yaml, dict) else None,
        "groups": find_groups({"groups": _json(text.get("groups"))}, nc) if nc else None,
        "notes": (*notes, *about["notes"]),
    }


def _json(text: str | None) -> object:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
