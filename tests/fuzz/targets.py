"""What is damaged, and who reads it then: kind -> a piece of work made of a folder and a source of random numbers.

Readers are called in this process's copies (trial.py), the way the programs call them; programs as `main([...])`.
"""

import contextlib
import functools
import importlib
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import torch
import yaml

import bench
import detect
import export
import test as evaluation
import train
from models.graph import Detector
from tests.fuzz import mutate
from tests.toy import FOUR_HEADS, common, trained, unpainted
from utils.__main__ import TOOLS
from utils.__main__ import main as tool
from utils.data.scan import scan_split
from utils.data.spec import read_data
from utils.images.read import decode, examine
from utils.images.tiff import encode_tiff
from utils.seams import Batch
from utils.train.run import Run
from utils.weights import checkpoint
from utils.weights.convert import convert

ROOT = Path(__file__).resolve().parents[2]
Work = Callable[[], object]
PROGRAMS: dict[str, Callable[[list[str]], object]] = {
    "train": train.main, "test": evaluation.main, "detect": detect.main, "export": export.main, "bench": bench.main,
}  # fmt: skip


@dataclass(frozen=True)
class Stock:
    """What is there to be damaged."""

    folder: Path
    data: Path  # YAML of a small data set
    run: Path  # folder of a run of two epochs

    @property
    def weights(self) -> Path:
        return self.run / "weights" / "last.pt"


def stock(folder: Path) -> Stock:
    """A data set of four pictures and a run on it."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for i in range(4):
            cv2.imwrite(str(folder / f"images/{split}/{i}.png"), draw.integers(0, 255, (64, 64, 3), np.uint8))
            (folder / f"labels/{split}/{i}.txt").write_text(f"{i % 2} .5 .5 .4 .3\n1 .2 .3 .1 .2\n")
    data = folder / "data.yaml"
    data.write_text("train: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n")
    with unpainted():
        trained(data, folder, "run", "--batch", "2", epochs=2)
    return Stock(folder, data, folder / "run")


def linked(stock: Stock, folder: Path) -> Path:
    """A data set of the stock's pictures whose labels are copies."""
    (folder / "images").symlink_to(stock.folder / "images")
    shutil.copytree(stock.folder / "labels", folder / "labels")
    data = folder / "d.yaml"
    data.write_text(stock.data.read_text())
    return data


# YAML


def data_yaml(stock: Stock, folder: Path, draw: Random) -> Work:
    own, tail = f"path: {stock.folder}\n", "train: images/train\nval: images/val\n"
    text = draw.choice((
        f"{own}{tail}nc: 2\nnames: [cat, dog]\n",
        f"{own}train: [images/train, images/val]\nval: images/val\nnames: {{0: cat, 1: dog}}\nchannels: 3\ncolor: rgb\n"
        "pairs: {replace: [images, images]}\ncls_names: [day, night]\ngroup_pattern: '^(.*)$'\nlabels: polygons\n"
        "test: images/val\n",
        f"path: shapes\n{tail}generator: shapes\nimages: {{train: 2, val: 2}}\nseed: 0\nnc: 1\nnames: [a]\n",
        f"{own}train: train.json\nval: {{annotations: val.json, images: images/val}}\nscale: [0, 1]\ncls_csv: c.csv\n"
        "cls_names: [a, b]\nnames: [cat, dog]\ndownload: |\n  from somewhere\n",
    ))  # fmt: skip
    file = folder / "d.yaml"
    file.write_bytes(mutate.of_yaml(text, draw))

    def work() -> None:
        spec = read_data(file)
        scan_split(spec, "train", progress=False, on_missing_pair="single", on_bad_data=draw.choice(("skip", "error")))

    return work


def data_list(stock: Stock, folder: Path, draw: Random) -> Work:
    """A .txt list of images, a COCO file, or a table of image classes."""
    names = [f"{stock.folder}/images/train/{i}.png" for i in range(4)]
    kind = draw.randrange(3)
    extra = ""
    entry = "l.txt"
    if kind == 1:
        entry = "c.json"
        coco: Any = {
            "images": [{"id": i, "file_name": name, "width": 64, "height": 64} for i, name in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 10], "iscrowd": 0,
                 "segmentation": [[4, 4, 24, 4, 24, 14]]} for i in range(4)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }  # fmt: skip
        text = mutate.of_json(coco, draw).encode()
        (folder / entry).write_bytes(mutate.of_bytes(text, draw) if draw.random() < 0.3 else text)
    else:
        (folder / entry).write_bytes(mutate.of_text("\n".join(names), draw) if kind == 0 else "\n".join(names).encode())
        if kind == 2:
            rows = "image,class\n" + "".join(f"{name},{'day' if i % 2 else 'night'}\n" for i, name in enumerate(names))
            (folder / "c.csv").write_bytes(mutate.of_text(rows, draw))
            extra = "cls_names: [day, night]\ncls_csv: c.csv\n"
    (folder / "d.yaml").write_text(f"train: {entry}\nval: {stock.folder}/images/val\nnames: [cat, dog]\n{extra}")
    return lambda: scan_split(read_data(folder / "d.yaml"), "train", progress=False)


def model_yaml(stock: Stock, folder: Path, draw: Random) -> Work:
    shipped = ("demo", "demo", "demo-1b4h", "yolov5n", "yolov7-tiny")
    text = (ROOT / f"cfg/training/{draw.choice(shipped)}.yaml").read_text()
    file = folder / "m.yaml"
    file.write_bytes(mutate.of_yaml(text, draw))
    argv = [*common(stock.data, batch=2), "--cfg", str(file), "--project", str(folder), "--notest"]
    return lambda: quick(argv)


def hyp_yaml(stock: Stock, folder: Path, draw: Random) -> Work:
    file = folder / "h.yaml"
    file.write_bytes(mutate.of_yaml((ROOT / "data/hyp.demo.yaml").read_text(), draw))
    argv = [*common(stock.data, batch=2), "--hyp", str(file), "--project", str(folder), "--notest"]
    return lambda: quick(argv)


def head_yaml(stock: Stock, folder: Path, draw: Random) -> Work:
    text = "nc: 2\nnames: [cat, dog]\nheads: 2\ngrouping: g\nhead_assignments:\n"
    text += "  head_0: {name: a, classes: [0], weight: 1.0}\n  head_1: {name: b, classes: [1], weight: 1.0}\n"
    file = folder / "heads.yaml"
    file.write_bytes(mutate.of_yaml(text, draw))
    flags = ["--cfg", FOUR_HEADS[1], "--heads", "2", "--head-config", str(file)]
    argv = [*common(stock.data, batch=2), *flags, "--project", str(folder), "--notest"]
    return lambda: quick(argv)


def unfreeze_yaml(stock: Stock, folder: Path, draw: Random) -> Work:
    text = "stages:\n  - {epoch: 0, open: 50-77}\n  - {epoch: 1, open: 10-49, ramp: 1, hyp: {lr0: 0.001, lrf: 0.01}}\n"
    text += "  - {epoch: 2, open: 0-9, scale: 0.1}\n"
    file = folder / "u.yaml"
    file.write_bytes(mutate.of_yaml(text, draw))
    weights = ["--weights", str(stock.run / "weights/best.pt"), "--epochs", "4", "--unfreeze", str(file)]
    return lambda: quick([*common(stock.data, batch=2), *weights, "--project", str(folder), "--notest"])


# pictures and labels


def label(stock: Stock, folder: Path, draw: Random) -> Work:
    lines = ["0 .5 .5 .4 .3", "1 .2 .3 .1 .2", "0 .1 .1 .9 .1 .9 .9 .1 .9", "1 0 0 1"]
    pieces = (
        "nan", "inf", "-1", "1e-300", "1e300", "0", "1", "2", ".5", "1e400", "9" * 400, "0x1", "٣", "1_0", "-0",
        "+.5", "\x00", "x", "a" * 5000,
        "\ufeff", "\u2028", "\x0c", ",", ".5 .5", "1 0 0 0",
    )  # fmt: skip
    content = mutate.of_text("\n".join(draw.choices(lines, k=draw.randrange(1, 6))), draw, pieces)
    if draw.random() < 0.1:
        content = content * draw.choice((10, 3000))
    data = linked(stock, folder)
    target = folder / "labels/train/1.txt"
    target.unlink()
    target.write_bytes(content)
    policy = draw.choice(("skip", "error"))
    return lambda: scan_split(read_data(data), "train", progress=False, on_bad_data=policy)


def image(stock: Stock, folder: Path, draw: Random) -> Work:
    pixels = np.random.default_rng(draw.randrange(99)).integers(0, 255, (40, 30, 3), np.uint8)
    kind = draw.choice((".png", ".jpg", ".bmp", ".webp", ".tif", ".tif"))
    if kind == ".tif":
        shape = (40, 30, draw.choice((1, 3, 5)))
        content = encode_tiff(np.random.default_rng(0).integers(0, 255, shape, np.uint8))
    else:
        content = cv2.imencode(kind, pixels)[1].tobytes()
    change = mutate.of_head if draw.random() < 0.6 else mutate.of_bytes
    data = np.frombuffer(change(content, draw), np.uint8)
    channels = draw.choice((3, 3, 1, 4, 5))

    def work() -> None:
        decode(data, draw.choice((1, 8)), channels)
        examine(data)

    return work


# weights


def own_checkpoint(stock: Stock, folder: Path, draw: Random) -> Work:
    """The bytes of a checkpoint of ours."""
    file = folder / "w.pt"
    file.write_bytes(mutate.of_bytes((stock.run / "weights/best.pt").read_bytes(), draw))
    return lambda: checkpoint.load_detector(file)


def checkpoint_meta(stock: Stock, folder: Path, draw: Random) -> Work:
    """A well-formed checkpoint of ours whose description, or one of whose parts, is odd: every program on it."""
    shutil.copytree(stock.run, folder / "run")
    file = folder / "run/weights/last.pt"
    (folder / "run/result.yaml").unlink()
    content = torch.load(file, weights_only=True)
    meta = json.loads(content["meta"])
    meta |= {"next_epoch": 1, "next_batch": draw.choice((0, 1))}
    parts = ["model", "ema", "optimizer", "patches", "scaler", "sums"]
    if draw.random() < 0.75:
        focus = draw.choice([None, *meta])
        if focus is None:
            content["meta"] = mutate.of_json(meta, draw)
        else:
            content["meta"] = mutate.of_json({"x": meta[focus]}, draw)
            with contextlib.suppress(KeyError, TypeError):
                content["meta"] = json.dumps({**meta, focus: json.loads(content["meta"])["x"]})
    else:
        content["meta"] = json.dumps(meta)
        part = draw.choice(parts)
        odd = [v for v in mutate.NAUGHTY if isinstance(v, (int, float, str, list, dict, type(None)))]
        content[part] = mutate.of_tree(as_lists(content[part]), draw, (*odd, torch.zeros(2), torch.zeros(3, 1 << 10)))
        if draw.random() < 0.2:
            del content[part]
    with contextlib.suppress(OverflowError, TypeError, UnicodeEncodeError):
        torch.save(content, file)
    data, program = str(stock.data), draw.randrange(5)
    plain = ["--weights", str(file), "--project", str(folder), "--img", "64", "--device", "cpu"]
    if program < 2:
        return lambda: train.main(["--resume", str(folder / "run")])
    if program == 2:
        return lambda: evaluation.main([*plain, "--data", data, "--batch", "2"])
    if program == 3:
        return lambda: detect.main([*plain, "--source", f"{stock.folder}/images/val/0.png"])
    return lambda: quick([*common(data, batch=2), "--cfg", "", "--weights", str(file), "--project", str(folder)])


def as_lists(value: Any) -> Any:
    """An odd value may go anywhere, so mappings of torch become plain ones."""
    if isinstance(value, dict):
        return {k: as_lists(v) for k, v in value.items()}
    return [as_lists(v) for v in value] if isinstance(value, (list, tuple)) else value


def foreign_checkpoint(stock: Stock, folder: Path, draw: Random) -> Work:
    """A state dict, in a zip whose description or container is damaged, or in torch's older stream."""
    model = Detector(yaml.safe_load((ROOT / "cfg/training/demo.yaml").read_text()), 2)
    state: Any = {"model": dict(list(model.state_dict().items())[: draw.choice((3, 30, 10_000))]), "epoch": 3}
    zipped, file = draw.random() < 0.7, folder / "w.pt"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    if zipped and draw.random() < 0.6:
        parts = {}
        with zipfile.ZipFile(file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        name = draw.choice([n for n in parts if n.endswith(("data.pkl", "data/0", "byteorder", "version"))])
        parts[name] = mutate.of_bytes(parts[name], draw)
        with zipfile.ZipFile(file, "w", draw.choice((0, 0, zipfile.ZIP_DEFLATED))) as archive:
            for key, value in parts.items():
                archive.writestr(key, value)
    else:
        file.write_bytes(mutate.of_bytes(file.read_bytes(), draw))
    return lambda: any_program(stock, folder, file, draw)


def safetensors_file(stock: Stock, folder: Path, draw: Random) -> Work:
    file = folder / "w.safetensors"
    source = stock.folder / "w.safetensors"
    if not source.exists():
        convert(stock.run / "weights/best.pt", source)
    content = source.read_bytes()
    if draw.random() < 0.5:
        file.write_bytes(mutate.of_head(content, draw, draw.choice((16, 4000))))
    else:
        length = int.from_bytes(content[:8], "little")
        head = mutate.of_json(json.loads(content[8 : 8 + length]), draw).encode()
        file.write_bytes(len(head).to_bytes(8, "little") + head + content[8 + length :])
    return lambda: any_program(stock, folder, file, draw)


def any_program(stock: Stock, folder: Path, file: Path, draw: Random) -> object:
    """A weights file to one of those who take it."""
    which = draw.randrange(3)
    if which == 0:
        return convert(file, folder / "out.pt")
    if which == 1:
        return checkpoint.load_detector(file, "cfg/training/demo.yaml" if draw.random() < 0.5 else "")
    return quick([*common(stock.data, batch=2), "--weights", str(file), "--project", str(folder)])


# folders and command lines


def run_folder(stock: Stock, folder: Path, draw: Random) -> Work:
    """A run folder with damaged files, to the tools that read it."""
    run = folder / "run"
    shutil.copytree(stock.run, run)
    files = [f for f in sorted(run.rglob("*")) if f.is_file() and f.suffix in (".csv", ".yaml", ".txt", ".json", ".pt")]
    for file in draw.sample(files, draw.choice((1, 1, 2))):
        kind = draw.randrange(7)
        if kind == 0:
            file.unlink()
        elif kind == 1:
            file.write_bytes(b"")
        elif file.suffix == ".yaml" and kind < 6:
            file.write_bytes(mutate.of_yaml(file.read_text(), draw))
        elif file.suffix != ".pt" and kind < 6:
            file.write_bytes(mutate.of_text(file.read_text(), draw))
        else:
            file.write_bytes(mutate.of_bytes(file.read_bytes(), draw))
    best = str(run / "weights/best.pt")
    choices: tuple[Work, ...] = (
        lambda: tool(["compare", str(run), str(stock.run), "--out", str(folder / "c")]),
        lambda: tool(["report", str(run), "--out", str(folder / "r")]),
        lambda: tool(["report", str(folder), "--out", str(folder / "r")]),
        lambda: tool(["stages", "table", str(stock.run), str(run)]),
        lambda: tool(["stages", "check", best, str(run)]),
        lambda: tool(["replay", "chain", str(run)]),
        lambda: tool(["replay", "table", str(run), str(folder)]),
        lambda: train.main(["--resume", str(run)]),
        lambda: quick(["--replay", str(run), "--project", str(folder)]),
        lambda: tool(["study", "--project", str(folder), "--arm", "run: --seed 0", "--", "--epochs", "x"]),
    )  # fmt: skip
    return draw.choice(choices)


ODD_WORDS = (
    "", " ", "-", "--", "-1", "0", "1", "2", "1e400", "nan", "inf", "-inf", "9" * 30, "0.5", "x", "None", "true",
    "a" * 300, "\udc80", "a\0b", "/dev/zero",
    "/dev/null",  "~nosuchuser", ".", "data/shapes.yaml", "cfg/training/demo.yaml", "[1,2]", "{}",
    "0:0-10,1:0-9@0.1", "0-9",
    "backbone", "neck", "cat", "{seed}", "%s", "--epochs=", "--img=64", "=", "é", "box", "head_0", "detection", "\n",
)  # fmt: skip


def flags(stock: Stock, folder: Path, draw: Random) -> Work:
    """A command line of a program or a tool, words of which are exchanged."""
    tools = [name for name in TOOLS if name not in ("shapes", "ablate")]
    name = draw.choice((*PROGRAMS, *PROGRAMS, *tools))
    known = flags_of(name)
    weights = ["--weights", str(stock.weights)]
    place = ["--project", str(folder)]
    argv = {
        "train": [*common(stock.data, batch=2), *place, "--notest"],
        "test": [*weights, "--data", str(stock.data), "--img", "64", "--device", "cpu", *place],
        "detect": [*weights, "--source", f"{stock.folder}/images/val", "--img", "64", "--device", "cpu", *place],
        "export": [*weights, "--img", "64", "--out", str(folder / "m.onnx")],
        "bench": ["step", "--out", str(folder / "b.html"), "--", *common(stock.data, batch=2)],
        "report": [str(stock.run), "--out", str(folder)],
        "compare": [str(stock.run), "--out", str(folder)],
        "stages": ["table", str(stock.run)],
        "replay": ["chain", str(stock.run)],
        "study": [*place, "--arm", "a: --seed 0", "--", "--epochs", "x"],
        "convert": [str(stock.weights), str(folder / "o.safetensors")],
        "split": ["check", str(stock.data)],
        "voc2yolo": [f"{stock.folder}/images", "--out", str(folder)],
    }.get(name, [])
    for _ in range(draw.choice((1, 1, 2, 3))):
        words = draw.choices((*ODD_WORDS, *argv, *known), k=draw.randrange(0, 3))
        if known and draw.random() < 0.7:
            argv[len(argv) :] = [draw.choice(known), *words]
        else:
            at = draw.randrange(len(argv) + 1)
            argv[at : at + draw.randrange(2)] = words
    # what a user may ask for and no machine does within the limit
    if {"--source", "--img", "--img-size", "--imgsz"} & set(argv[-3:]) and name == "detect":
        argv += ["--img", "64"]
    if name == "train":
        return lambda: quick([*argv, "--project", str(folder), "--device", "cpu", "--workers", "0"])
    run = PROGRAMS.get(name) or (lambda argv: tool([name, *argv]))
    return lambda: run(argv)


def program_of(name: str) -> Any:
    """What reads the command line of a program or tool; None where it has commands of its own."""
    places = {"train": "utils.config.train", "test": "utils.config.test", "detect": "utils.config.detect"}
    places |= {"export": "utils.config.export", "bench": "bench"} | {tool: place for tool, (place, _) in TOOLS.items()}
    module = importlib.import_module(places[name])
    return getattr(module, "PROGRAM", None) or getattr(module, "program", lambda: None)()


@functools.cache
def flags_of(name: str) -> list[str]:
    program = program_of(name)
    return [f"--{flag}" for flag in program.names()] if program else []


def quick(argv: list[str]) -> object:
    """train.py with empty pictures, which ends after a few steps however long the run was to be."""
    step = train.step

    def counted(run: Run, batch: Batch) -> Any:
        if run.step >= 4:
            raise SystemExit(0)
        return step(run, batch)

    with unpainted():
        train.step = counted
        return train.main(argv)


TARGETS: dict[str, Callable[[Stock, Path, Random], Work]] = {
    f.__name__: f
    for f in (
        data_yaml, data_list, model_yaml, hyp_yaml, head_yaml, unfreeze_yaml, label, image, own_checkpoint,
        checkpoint_meta,
        foreign_checkpoint, safetensors_file, run_folder, flags,
    )
}  # fmt: skip
