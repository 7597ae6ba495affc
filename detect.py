"""Draw detections on images, folders, globs, videos or a camera.

python detect.py --source images/ --weights runs/train/exp/weights/best.pt --img 640

A model that reads infrared (--modality) finds the partner of each visible picture by the rule it was trained with.

A model that also names the image's class has it on the screen and the picture with its probability, and with --save-txt
as a last line in the form of label files: one-hot, with --save-conf the probabilities of all classes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.config.detect import PROGRAM, Options

if __name__ == "__main__":
    PROGRAM.answer_help(sys.argv[1:])  # before torch, whose import takes longer than the answer

import numpy as np
import torch

from models.fuse import fuse
from models.graph import Detector
from models.head import image_heads
from utils.data.build import trained_size
from utils.data.pairs import PairRule, partner_rule, recorded, with_partner
from utils.evaluation.boxes import to_native
from utils.evaluation.nms import nms
from utils.evaluation.outputs import Outputs
from utils.evaluation.predict import check_together, predictions
from utils.evaluation.tables import label_lines
from utils.images.letterbox import letterbox
from utils.images.pixels import Image, fractions, viewable
from utils.images.sinks import Film, has_display, show, write_picture
from utils.images.sources import Frame, find_sources, frames
from utils.runs import lock
from utils.runs.plots import colour, draw_box, draw_label
from utils.system.device import select_device
from utils.system.errors import UserError, naming
from utils.system.processes.program import run_main
from utils.weights.checkpoint import load_detector

Shares = list[float] | None  # [C] probabilities of the image's classes, for a model that has such


@torch.inference_mode()
def detect(
    models: Sequence[Detector], image: Image, size: int, device: torch.device, args: Options
) -> tuple[torch.Tensor, Shares]:
    """Image [H,W,C] -> [n,6] x0,y0,x1,y1 in its own pixels, confidence, class; and what the image shows as a whole,
    as the first model sees it."""
    stride = max(int(model.stride.max()) for model in models)
    fitted, ratio, pad = letterbox(image, size, stride=stride)
    tensor = fractions(torch.from_numpy(np.ascontiguousarray(fitted.transpose(2, 0, 1))).to(device)[None])
    out = models[0](tensor)
    parts = predictions(models, tensor, out["det"], args.augment)
    found = nms(
        parts, args.conf_thres, args.nms_iou, multi_label=False, classes=list(args.classes) or None,
        agnostic=args.agnostic_nms, max_det=args.max_det,
    )[0].cpu()  # fmt: skip
    native = to_native(found[:, :4], [*ratio, *pad], (image.shape[0], image.shape[1]))
    shares = [out[name][0].float().softmax(0).tolist() for name in image_heads(models[0])]
    return torch.cat((native, found[:, 4:]), 1), shares[0] if shares else None


def paired(frame: Frame, rule: PairRule, reads: str, args: Options) -> Image:
    """The picture as the model reads it, with its infrared partner or that one alone."""
    if frame.number is not None:
        raise UserError(f"--source {frame.source}: {args.said} reads {reads}, and a video has no infrared partner")
    return with_partner(frame.image, Path(frame.source), rule, reads, alone=args.on_missing_pair == "single")


class Output:
    """Writes drawn pictures, videos frame by frame, and label files, all named by their source."""

    def __init__(self, folder: Path, args: Options) -> None:
        self.files, self.args, self.window = Outputs(folder), args, args.view_img and has_display()
        self.films: dict[str, Film] = {}

    def add(self, frame: Frame, found: torch.Tensor, names: list[str], shares: Shares, shown: str) -> None:
        """shown: the image's class in words."""
        stem = self.files.stems.of(frame.source, frame.number is not None)
        if self.args.save_txt and (len(found) or shares):
            text = label_lines(found, frame.image.shape[:2], self.args.save_conf, shares)
            self.files.text(f"labels/{stem}{'' if frame.number is None else f'_{frame.number}'}.txt", text)
        if self.args.nosave and not self.window:
            return
        drawn = np.ascontiguousarray(viewable(frame.image)[..., ::-1])
        scale = max(min(drawn.shape[:2]) / 1000, 0.4)
        for *box, confidence, c in found.flip(0).tolist():  # best on top
            draw_box(drawn, box, f"{names[int(c)]} {confidence:.2f}", colour(int(c)), scale=scale)
        if shown:
            draw_label(drawn, 0, 0, shown, (255, 255, 255), scale)
        if self.window:
            self.window = show(drawn, Path(frame.source).name)
        if self.args.nosave:
            return
        if frame.number is None:
            write_picture(self.files.path(stem + Path(frame.source).suffix), drawn)
            return
        if frame.source not in self.films:
            self.films[frame.source] = Film(self.files.path(f"{stem}.mp4"), frame.fps, drawn)
        self.films[frame.source].add(drawn)

    def close(self) -> None:
        for film in self.films.values():
            film.close()
        self.files.tell_numbered()


def main(argv: list[str]) -> None:
    given = PROGRAM.parse(argv)
    args = given.cfg
    device = select_device(args.device)
    with (
        lock.new_run(args.project, args.name, named="name" in given.names, exist_ok=args.exist_ok) as held,
        naming(held.folder),
    ):
        run(args, device, held.folder)


def run(args: Options, device: torch.device, folder: Path) -> None:
    """Every picture of the source, and what was found, into `folder`."""
    find_sources(args.source)
    loaded = [load_detector(path, args.cfg, args.modules) for path in args.weights]
    models, (meta, *_) = [model for model, _ in loaded], [meta for _, meta in loaded]
    check_together(models, [meta["names"] for _, meta in loaded], args.weights)
    names, stride = meta["names"], max(int(model.stride.max()) for model in models)
    size = trained_size(args.img_size, meta, stride)
    if args.classes and max(args.classes) >= models[0].nc:
        raise UserError(f"--classes {max(args.classes)}: the model has classes 0..{models[0].nc - 1}")
    kinds = next(iter(image_heads(models[0]).values()), ())
    models = [fuse(model).to(device) for model in models]
    record = recorded(meta)
    rule = partner_rule(record, args.weights[0]) if record else None
    scale = (float(meta["scale"][0]), float(meta["scale"][1])) if meta.get("scale") else None
    lost: list[str] = []

    def bad(source: str, reason: str) -> None:
        lost.append(f"{source}: {reason}")
        print(f"left out: {lost[-1]}", file=sys.stderr)

    output, count, boxes = Output(folder, args), 0, 0
    try:
        for frame in frames(args.source, models[0].in_channels, scale, bad if args.on_bad_data == "skip" else None):
            if rule is not None:
                frame = frame._replace(image=paired(frame, rule, record["modality"], args))
            found, shares = detect(models, frame.image, size, device, args)
            shown = "" if shares is None else f"{kinds[shares.index(max(shares))]} {max(shares):.2f}"
            output.add(frame, found, names, shares, shown)
            count, boxes = count + 1, boxes + len(found)
            seen = {names[c]: int((found[:, 5] == c).sum()) for c in found[:, 5].unique().int().tolist()}
            number = "" if frame.number is None else f" frame {frame.number}"
            said = ", ".join(f"{n} {name}" for name, n in seen.items()) or "nothing"
            print(f"{frame.source}{number}: {said}" + (f"; image {shown}" if shown else ""))
    finally:
        output.close()
    for film in output.films.values():
        film.check()
    if not count:
        raise UserError(f"--source {lost[0] if lost else args.source}: not one picture could be read")
    left = f", {len(lost)} left out" if lost else ""
    print(f"{count} images{left}, {boxes} detections, results in {folder}")


if __name__ == "__main__":
    run_main(main)
