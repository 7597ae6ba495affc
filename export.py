"""Write a checkpoint as an ONNX file.

  python export.py --weights runs/train/exp/weights/best.pt --img 320 [--batch 1|dynamic] [--out FILE.onnx] [--only-det]

Input   image  float32 [B,C,H,W], RGB (or the C channels of the data) as fractions 0..1 of full scale, fitted into
        H x W = img x img by letterbox.
Output  boxes  float32 [B,M,5+n] of a detector with one head; boxes_HEAD of each head where there are several. A row is
        cx, cy, w, h in pixels of the input, objectness 0..1, then the probabilities of the head's n classes. Rows go
        by level (fine to coarse), anchor, y, x. NMS is not in the file: score = objectness * probability. Without
        anchors there is no objectness: [B,M,4+n], score = probability.
        NAME   of each branch (image_class: logits [B,k], softmax gives shares), unless --only-det.
Metadata (JSON): names, objectness (true where there is that column), groups {output: class number of each column},
stride of each level, img_size, image_classes {output: names}, weights.
The weights are fused. onnxruntime runs what was written on random and on real images; nothing is kept where it differs
from the unfused model by more than 3e-5 of the scale (image size for box columns, else the largest output, at least 1).
"""

import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from utils.config.export import PROGRAM, Options

if __name__ == "__main__":
    PROGRAM.answer_help(sys.argv[1:])  # before torch, whose import takes longer than the answer

import numpy as np
import torch
from torch import Tensor, nn

from models.fuse import fuse
from models.graph import Detector
from models.head import image_heads
from utils.data.build import whole_strides
from utils.data.scan import scan_split
from utils.data.spec import read_data
from utils.images.letterbox import letterbox
from utils.images.pixels import fractions
from utils.images.read import read_image
from utils.runs.record import VERSION
from utils.seams import State
from utils.system.errors import UserError
from utils.system.files import write_whole
from utils.system.processes.program import run_main
from utils.weights.checkpoint import check_pixels, load_detector

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 3e-5  # of the scale; measured: up to 4e-6 (yolov5n, 640 px)


class Exported(nn.Module):
    """image [B,C,H,W] -> the outputs described above, in the order of `names`."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model
        self.boxes = ["boxes"] if len(model.groups) == 1 else [f"boxes_{name}" for name in model.group_names]
        self.branches = [str(name) for name in model.branches]
        self.names = [*self.boxes, *self.branches]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        out = self.model(image)
        return (*(part.pred for part in self.model.decode(out["det"])), *(out[name] for name in self.branches))


def target(args: Options) -> Path:
    """The file to write. Errors: UserError where it cannot be, or a package is missing."""
    out = Path(args.out or Path(args.weights).with_suffix(".onnx"))
    if out.exists() and not args.exist_ok:
        raise UserError(f"--out {out} exists: choose another name, or replace it with --exist-ok")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"export needs {', '.join(missing)}: pip install {' '.join(PACKAGES)}")
    return out


def to_onnx(module: Exported, channels: int, size: int, batch: str) -> Any:
    """The file's content as an onnx.ModelProto."""
    count = 2 if batch == "dynamic" else int(batch)  # 1 would be taken for a constant
    shapes = {"image": {0: torch.export.Dim("batch", min=1)}} if batch == "dynamic" else None
    try:
        program = torch.onnx.export(
            module, (torch.rand(count, channels, size, size),), input_names=["image"], output_names=module.names,
            dynamic_shapes=shapes, dynamo=True, verbose=False,
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        advice = "; a fixed size may go: --batch 1" if batch == "dynamic" else ""
        raise UserError(
            f"torch {torch.__version__} cannot export this model: {str(error).splitlines()[0]}{advice}"
        ) from None
    return cast(Any, program).model_proto


def strip(proto: Any) -> None:
    """In place: out with the exporter's notes, which name source files of this machine."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        del part.metadata_props[:]


def describe(module: Exported, meta: Mapping[str, object], size: int, weights: str) -> dict[str, str]:
    """The metadata."""
    found = {
        "names": meta["names"],
        "groups": dict(zip(module.boxes, module.model.groups, strict=True)),
        "objectness": "obj" in module.model.head.loss_kinds(),
        "stride": [int(s) for s in module.model.stride],
        "img_size": size,
        "image_classes": {name: list(classes) for name, classes in image_heads(module.model).items()},
        "weights": Path(weights).name,
        "thaw": VERSION,
    }
    return {key: json.dumps(value) for key, value in found.items()}


def real_images(path: str, meta: Mapping[str, object], weights: str, size: int, count: int) -> Tensor:
    """The first validation images of a data YAML, [count,C,size,size] in 0..1; few images are repeated."""
    spec = read_data(path)
    check_pixels(spec, meta, weights)
    files = scan_split(spec, "val", on_bad_data="skip", progress=False).files
    if not files:
        raise UserError(f"{path}: there is no validation image to compare on")
    fitted = []
    for i in range(count):
        image = read_image(files[i % len(files)], channels=spec.channels, scale=spec.scale)
        if image is None:
            raise UserError(f"{files[i % len(files)]} cannot be read any more")
        fitted.append(letterbox(image, size, auto=False)[0].transpose(2, 0, 1))
    return fractions(torch.from_numpy(np.stack(fitted)))


def differences(expected: State, got: State, boxes: list[str], size: int) -> dict[str, tuple[float, float]]:
    """{what: (largest difference, what is allowed)}, all heads together."""
    out: dict[str, tuple[float, float]] = {}
    for name, want in expected.items():
        parts = {"box pixels": slice(0, 4), "probabilities": slice(4, None)} if name in boxes else {name: slice(None)}
        for title, columns in parts.items():
            one, other = want[..., columns], got[name][..., columns]
            scale = size if title == "box pixels" else max(1.0, float(one.abs().max()))
            off = float((one - other).abs().max())
            before, most = out.get(title, (0.0, np.inf))
            out[title] = (float(np.maximum(off, before)), min(most, TOLERANCE * scale))  # nan stays nan
    return out


def verify(content: bytes, module: Exported, image: Tensor, kind: str) -> None:
    """Errors: UserError where onnxruntime and torch differ."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    got = dict(
        zip(module.names, map(torch.from_numpy, session.run(module.names, {"image": image.numpy()})), strict=True)
    )
    with torch.no_grad():
        expected = dict(zip(module.names, module(image), strict=True))
    found = differences(expected, got, module.boxes, image.shape[-1])
    said = ", ".join(f"{name} {off:.1e} (allowed {most:.1e})" for name, (off, most) in found.items())
    print(f"onnxruntime against torch, {len(image)} {kind}: largest difference of {said}")
    if wrong := [name for name, (off, most) in found.items() if not off <= most]:
        raise UserError(f"{', '.join(wrong)}: the ONNX file does not compute what the model does; nothing was written")


def main(argv: list[str]) -> None:
    args = PROGRAM.parse(argv).cfg
    out = target(args)
    model, meta = load_detector(args.weights, args.cfg, args.modules)
    size = whole_strides(args.img_size or int(meta.get("img_size") or 640), int(model.stride.max()))
    if args.only_det:
        model.branches.clear()
    if model.stem:
        raise UserError(f"{args.weights} reads two pictures; --only-det exports the detector of the visible one")
    plain, fused = Exported(model).eval(), Exported(fuse(model)).eval()
    proto = to_onnx(fused, model.in_channels, size, args.batch_size)
    strip(proto)
    for key, value in describe(fused, meta, size, args.weights).items():
        proto.metadata_props.add(key=key, value=value)
    content = proto.SerializeToString()
    path = args.data or (meta.get("config") or {}).get("data", "the weights name none")
    counts, real = (1, 3) if args.batch_size == "dynamic" else (int(args.batch_size),), None
    try:
        real = real_images(path, meta, args.weights, size, max(counts))
    except UserError as error:
        if args.data:
            raise
        print(f"not compared on real images (give a data set with --data): {error}")
    noise = torch.rand(max(counts), model.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    for count in counts:
        verify(content, plain, noise[:count], "random images")
        if real is not None:
            verify(content, plain, real[:count], f"images of {path}")
    write_whole(out, lambda file: file.write(content))
    print(f"{out}: {len(content) / 1e6:.1f} MB, opset {proto.opset_import[0].version}; outputs {fused.names}")


if __name__ == "__main__":
    run_main(main)
