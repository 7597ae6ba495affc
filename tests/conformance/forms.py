"""Small files in the forms that users bring, each read by what reads it in a run.

Every reader returns what it found in words, prints what it has to say, or raises a UserError.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from models.fuse import fuse
from models.graph import Detector
from tests.weights import payloads
from utils import seams
from utils.config.hyp import fill_in, keys_of, read_hyp
from utils.config.train import Config
from utils.data.build import check_objects
from utils.data.scan import scan_split
from utils.data.spec import read_data
from utils.train import anchors
from utils.weights import checkpoint

Read = Callable[[Path], str]  # in an empty folder that is the working folder, too
BOXES = ((0, 0.5, 0.5, 0.25, 0.5), (1, 0.25, 0.5, 0.25, 0.25))  # class, cx, cy, w, h: one object on each picture
LINES = tuple(" ".join(map(str, box)) for box in BOXES)
CORNERS = tuple(
    f"{c} {x - w / 2} {y - h / 2} {x + w / 2} {y - h / 2} {x + w / 2} {y + h / 2} {x - w / 2} {y + h / 2}"
    for c, x, y, w, h in BOXES
)
KEYS: dict[str, Any] = {"path": ".", "train": "images/train", "val": "images/train", "nc": 2, "names": ["cat", "dog"]}
COLUMNS = {"lr0": 0.01, "lrf": 0.1, "momentum": 0.937, "weight_decay": 0.0005, "warmup_epochs": 3.0,
           "warmup_momentum": 0.8, "warmup_bias_lr": 0.1, "box": 0.05, "cls": 0.3, "cls_pw": 1.0, "obj": 0.7,
           "obj_pw": 1.0, "iou_t": 0.2, "anchor_t": 4.0, "fl_gamma": 0.0, "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4,
           "degrees": 0.0, "translate": 0.2, "scale": 0.9, "shear": 0.0, "perspective": 0.0, "flipud": 0.0,
           "fliplr": 0.5, "mosaic": 1.0, "mixup": 0.15, "copy_paste": 0.0}  # fmt: skip
ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


# data sets


def pictures(root: Path, images: str = "images/train", labels: str = "labels/train", lines: tuple[str, ...] = LINES,
             suffix: str = ".txt", channels: int = 3) -> None:  # fmt: skip
    """Two pictures of 80 x 40 pixels and their label files; none for an empty `labels`."""
    for i, line in enumerate(lines):
        (root / images).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / images / f"{i}.png"), np.full((40, 80, channels), 60 + 50 * i, np.uint8))
        if labels:
            (root / labels).mkdir(parents=True, exist_ok=True)
            (root / labels / f"{i}{suffix}").write_bytes(line.encode())


def scanned(file: Path, **changed: Any) -> str:
    """A data YAML written (None takes a key out), read and checked as a training does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        file.write_text(yaml.safe_dump({k: v for k, v in (KEYS | changed).items() if v is not None}))
    spec = read_data(file)
    scan = scan_split(spec, "train", progress=False)
    check_objects(spec, "train", scan, needed=True)
    for said in scan.said:
        print(said)
    found = [labels.boxes for labels in scan.labels]
    same = len(found) == 2 and all(np.allclose(f, [w], atol=1e-6) for f, w in zip(found, BOXES, strict=True))
    missing = f", {scan.missing} without a label file" if scan.missing else ""
    objects = sum(map(len, found))
    return f"{len(found)} images, {objects} objects{missing}" + ("" if same or objects < 2 else ", OTHER BOXES")


def data_form(root: Path, images: str = "images/train", yaml_at: str = "data.yaml", **changed: Any) -> str:
    pictures(root, images, images.replace("images", "labels"))
    return scanned(root / yaml_at, **changed)


def listed(root: Path, path: str = "./images/train") -> str:
    pictures(root)
    (root / "train.txt").write_text("".join(f"{path}/{i}.png\n" for i in range(2)))
    return scanned(root / "data.yaml", path=None, train="./train.txt", val="./train.txt")


def two_folders(root: Path) -> str:
    pictures(root)
    for kind, suffix in (("images", ".png"), ("labels", ".txt")):
        (root / kind / "more").mkdir()
        (root / kind / "train" / f"1{suffix}").rename(root / kind / "more" / f"1{suffix}")
    return scanned(root / "data.yaml", train=["images/train", "images/more"])


def linked_folder(root: Path) -> str:
    pictures(root, "store/images", "images/../labels/train/night")
    (root / "images/train").mkdir(parents=True)
    (root / "images/train/night").symlink_to(root / "store/images")
    return scanned(root / "data.yaml")


def coco_json(root: Path) -> str:
    pictures(root, labels="")
    images = [{"id": i + 5, "file_name": f"{i}.png", "width": 80, "height": 40} for i in range(2)]
    rows = [
        {"image_id": i + 5, "category_id": 17 + c, "bbox": [(x - w / 2) * 80, (y - h / 2) * 40, w * 80, h * 40]}
        for i, (c, x, y, w, h) in enumerate(BOXES)
    ]
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    (root / "annotations").mkdir()
    file = root / "annotations/instances_train.json"
    file.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    splits = {"annotations": "annotations/instances_train.json", "images": "images/train"}
    return scanned(root / "data.yaml", train=splits, val=splits)


def literal(root: Path, text: str) -> str:
    pictures(root)
    (root / "data.yaml").write_text(text)
    return scanned(root / "data.yaml")


DATA: dict[str, Read] = {
    "`path`, folders relative to it": data_form,
    "no `path`: folders relative to the YAML": partial(data_form, path=None),
    "`.txt` list of images (YOLOv7's coco.yaml)": listed,
    "list of folders": two_folders,
    "a sub-folder that is a symbolic link": linked_folder,
    "Roboflow: `train: ../train/images` beside the folders": partial(
        data_form, images="train/images", path=None, train="../train/images", val="../train/images"
    ),
    "Ultralytics: `path: NAME` in ../datasets": partial(
        data_form, images="datasets/mine/images/train", yaml_at="program/mine.yaml", path="mine"
    ),
    "YOLOv5: `path: ../datasets/NAME` from its own folder": partial(
        data_form, images="datasets/mine/images/train", yaml_at="program/mine.yaml", path="../datasets/mine"
    ),
    "`names` as mapping of numbers": partial(data_form, names={0: "cat", 1: "dog"}),
    "`names` without `nc`": partial(data_form, nc=None),
    "`nc` without `names`": partial(data_form, names=None),
    "`nc` that is not the number of names": partial(data_form, nc=3),
    "`valid:` for `val:`": partial(data_form, val=None, valid="images/train"),
    "`ch: 3`": partial(data_form, ch=3),
    "COCO annotations as `train:`": coco_json,
    "`download:` and images that are not there": partial(
        data_form, train="images/other", download="https://example.org/mine.zip"
    ),
    "`kpt_shape:` (key points)": partial(data_form, kpt_shape=[17, 3]),
    "`names: [yes, no]`, unquoted": partial(literal, text="train: images\nval: images\nnames: [yes, no]\n"),
    "a key given twice": partial(literal, text="train: images\nval: images\nnc: 2\nnames: [a, b]\nnc: 3\n"),
}


# label files


def label_form(root: Path, *lines: str, changed: Mapping[str, Any] | None = None, **how: Any) -> str:
    pictures(root, lines=lines, **how)
    return scanned(root / "data.yaml", **(changed or {}))


LABELS: dict[str, Read] = {
    "`class cx cy w h`": lambda root: label_form(root, *LINES),
    "class as `0.0`": lambda root: label_form(root, *(line.replace(" ", ".0 ", 1) for line in LINES)),
    "tabs, Windows line ends, byte order mark": lambda root: label_form(
        root, *("\ufeff" + line.replace(" ", "\t") + "\r\n" for line in LINES)
    ),
    "polygons, `labels: polygons` in the YAML": lambda root: label_form(
        root, *CORNERS, changed={"labels": "polygons"}
    ),
    "polygons, not declared": lambda root: label_form(root, *CORNERS),
    "box and confidence (six values)": lambda root: label_form(root, *(f"{line} 0.9" for line in LINES)),
    "box and 17 key points": lambda root: label_form(root, *(f"{line}{' 0.5 0.5 2' * 17}" for line in LINES)),
    "pixels instead of shares": lambda root: label_form(root, "0 40 20 20 20", LINES[1]),
    "a class that the YAML does not have": lambda root: label_form(root, "2 0.5 0.5 0.25 0.5", LINES[1]),
    "an empty file: background": lambda root: label_form(root, LINES[0], ""),
    "`.TXT` files": lambda root: label_form(root, *LINES, suffix=".TXT"),
    "`Images/` and `Labels/`": lambda root: label_form(
        root, *LINES, images="Images/train", labels="Labels/train",
        changed={"train": "Images/train", "val": "Images/train"},
    ),
    "label files beside the images": lambda root: label_form(root, *LINES, labels="images/train"),
    "not one label": lambda root: label_form(root, *LINES, labels=""),
}  # fmt: skip


# recipes


def recipe(root: Path, values: Mapping[str, Any] | str) -> str:
    file = root / "hyp.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(dict(values)))
    found = read_hyp(str(file), Config)
    filled, said = fill_in(found, Config)
    if said:
        print(said)
    return f"{len(found)} of {len(keys_of(Config))} keys, OTA {'on' if ({**filled, **found})['loss_ota'] else 'off'}"


HYP: dict[str, Read] = {
    "YOLOv7: with `paste_in` and `loss_ota`": partial(recipe, values=COLUMNS | {"paste_in": 0.15, "loss_ota": 1}),
    "YOLOv7: with `paste_in`, no `loss_ota`": partial(recipe, values=COLUMNS | {"paste_in": 0.15}),
    "YOLOv5: neither": partial(recipe, values=COLUMNS),
    "YOLOv5: `anchors: 3.4` (VOC, Objects365, evolved)": partial(recipe, values=COLUMNS | {"anchors": 3.4}),
    "numbers such as `1e-2`": partial(recipe, values="lr0: 1e-2\npaste_in: 0\nloss_ota: 0\n"),
    "a key given twice": partial(recipe, values="lr0: 0.01\nlr0: 0.02\n"),
    "a value out of range": partial(recipe, values=COLUMNS | {"mosaic": 2}),
    "a key of a fork (`kpt`)": partial(recipe, values=COLUMNS | {"kpt": 0.1}),
    "Ultralytics' default.yaml": partial(recipe, values="task: detect\nmode: train\nepochs: 100\nlr0: 0.01\n"),
}


# models


def built(spec: Mapping[str, Any], where: str) -> Detector:
    spec = anchors.per_level(spec, 0)
    return checkpoint.build_detector(spec, int(spec["nc"]), seams.Patches(), where)


def model_form(root: Path, row: str = "[-1, 1, Conv, [32]]", head: str = "Detect, [nc, anchors]", more: str = "",
               listed: Any = ANCHORS, inputs: str = "2, 3, 5") -> str:  # fmt: skip
    """A network of five halvings, one row of the form in question, and a detector on three levels."""
    rows = ", ".join("[-1, 1, Conv, [32, 3, 2]]" for _ in range(5))
    file = root / "model.yaml"
    file.write_text(
        f"nc: 2\ndepth_multiple: 1.0\nwidth_multiple: 1.0\nanchors: {listed}\n{more}\n"
        f"backbone: [{rows}, {row}]\nhead: [[[{inputs}], 1, {head}]]\n"
    )
    return described(built(checkpoint.read_model(str(file)), "model.yaml"))


def shipped_model(root: Path, name: str) -> str:
    return described(built(checkpoint.read_model(name), name))


def described(model: Detector) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


MODELS: dict[str, Read] = {
    "YOLOv7-tiny": partial(shipped_model, name="yolov7-tiny.yaml"),
    "YOLOv5n": partial(shipped_model, name="yolov5n.yaml"),
    "`IDetect`": partial(model_form, head="IDetect, [nc, anchors]"),
    "`IAuxDetect` (w6, e6, d6, e6e for training)": partial(
        model_form, head="IAuxDetect, [nc, anchors]", inputs="2, 3, 5, 2, 3, 5"
    ),
    "`IBin`": partial(model_form, head="IBin, [nc, anchors]"),
    "`IKeypoint`": partial(model_form, head="IKeypoint, [nc, anchors]"),
    "Ultralytics' `Detect, [nc]` without anchors": partial(model_form, head="Detect, [nc]", listed="null"),
    "`anchors: 3` (autoanchor finds them)": partial(model_form, listed=3),
    "uneven anchors": partial(model_form, listed=[[10, 13], [30, 61, 62, 45], [116, 90]]),
    "`RepConv`": partial(model_form, row="[-1, 1, RepConv, [32, 3, 1]]"),
    "`ResCSPB` (r50-csp)": partial(model_form, row="[-1, 1, ResCSPB, [32]]"),
    "`CBAM, [channels]` (forks)": partial(model_form, row="[-1, 1, CBAM, [32]]"),
    "`C2f` (YOLOv8)": partial(model_form, row="[-1, 1, C2f, [32, True]]"),
    "a list as kernel: `Conv, [32, [1, 1]]`": partial(model_form, row="[-1, 1, Conv, [32, [1, 1]]]"),
    "`activation: nn.LeakyReLU(0.1)`": partial(model_form, more="activation: nn.LeakyReLU(0.1)"),
    "`activation: torch.nn.ReLU()`": partial(model_form, more="activation: torch.nn.ReLU()"),
    "`scales:` (Ultralytics)": partial(model_form, more="scales: {n: [0.33, 0.25, 1024]}"),
    "a key that nothing reads": partial(model_form, more="author: someone"),
    "a module that is not known": partial(model_form, row="[-1, 1, MyBlock, [32]]"),
}


# weights


@cache
def network() -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return built(checkpoint.read_model("demo.yaml"), "demo.yaml").eval()


def loaded(file: Path, cfg: str = "demo.yaml") -> str:
    """Loaded as test.py and detect.py do, and compared with what was saved."""
    model, _ = checkpoint.load_detector(file, cfg)
    if not cfg:
        return described(model)
    want = network().state_dict()
    same = sum(torch.allclose(value, want[key], rtol=1e-3, atol=1e-3) for key, value in model.state_dict().items())
    return f"{same} of {len(want)} tensors"


def weights_form(root: Path, form: Callable[[dict[str, Tensor]], Any]) -> str:
    torch.save(form(dict(network().state_dict())), root / "w.pt")
    return loaded(root / "w.pt")


def own(root: Path) -> str:
    meta = {"nc": 12, "names": [str(i) for i in range(12)], "spec": checkpoint.read_model("demo.yaml")}
    checkpoint.save_checkpoint(root / "w.pt", state=network().state_dict(), meta=meta)
    model, _ = checkpoint.load_detector(root / "w.pt")
    return described(model)


def safetensors(root: Path) -> str:
    save_file({k: v.clone() for k, v in network().state_dict().items()}, root / "w.safetensors")
    return loaded(root / "w.safetensors")


def fused(state: dict[str, Tensor]) -> Any:
    model = built(checkpoint.read_model("demo.yaml"), "demo.yaml")
    return dict(fuse(model.eval()).state_dict())


def bytes_of(root: Path, content: bytes) -> str:
    (root / "w.pt").write_bytes(content)
    return loaded(root / "w.pt")


def hostile(root: Path) -> str:
    call = payloads.called("os", "system", payloads.text("true"))
    return loaded(payloads.write(root / "w.pt", payloads.weights(call)))


def script(root: Path) -> str:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(root / "w.pt"))  # type: ignore[no-untyped-call]
    return loaded(root / "w.pt")


def reference(file: str, folder: Path) -> str:
    return loaded(folder / file, "")


WEIGHTS: dict[str, Read] = {
    "checkpoint of this program": own,
    "state dict, with `--cfg`": partial(weights_form, form=lambda state: state),
    "`{model: state dict}`": partial(weights_form, form=lambda state: {"model": state, "epoch": 3}),
    "`{state_dict: ...}`": partial(weights_form, form=lambda state: {"state_dict": state}),
    "names with `module.` (DataParallel)": partial(
        weights_form, form=lambda state: {f"module.{k}": v for k, v in state.items()}
    ),
    "half precision": partial(
        weights_form, form=lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    ),
    "safetensors": safetensors,
    "fused (no BatchNorm)": partial(weights_form, form=fused),
    "a tensor is missing": partial(weights_form, form=lambda state: dict(list(state.items())[1:])),
    "TorchScript": script,
    "ONNX": partial(bytes_of, content=b"\x08\x08\x12\x07pytorch" + bytes(64)),
    "a web page saved as .pt": partial(bytes_of, content=b"<!DOCTYPE html><html></html>"),
    "a pickle that runs a command": hostile,
}
PUBLISHED = {  # by file of the shared material
    "YOLOv5n as published": "data/weights/yolov5n.pt",
    "YOLOv5n of release 6.0 as published": "data/weights/yolov5n_v60.pt",
    "a published YOLOv5n of one class": "data/weights/yolov5n_face_nc1.pt",
    "YOLOv7's pickled model, in training": "golden/ckpt/yolov7-tiny-w025-nc3_full.pt",
    "YOLOv7's pickled model, stripped": "golden/ckpt/yolov7-tiny-w025-nc3_stripped.pt",
}
