"""Draw detections on images, folders, globs, videos or a camera.

python detect.py --source images/ --weights runs/train/exp/weights/best.pt --img 640

A model that reads infrared (--modality) finds the partner of each visible picture by the rule it was trained with.

A model that also names the image's class has it on the screen and the picture with its probability, and with --save-txt
as a last line in the form of label files: one-hot, with --save-conf the probabilities of all classes.
"""

import sys
from pathlib import Path

from utils.config.detect import PROGRAM, Options

if __name__ == "__main__":
    PROGRAM.answer_help(sys.argv[1:])  # before torch, whose import takes longer than the answer

import cv2
import numpy as np
import torch

from models.fuse import fuse
from models.graph import Detector
from models.head import image_heads
from utils.data.build import whole_strides
from utils.data.pairs import PairRule, partner_rule, recorded, with_partner
from utils.evaluation.boxes import to_native
from utils.evaluation.nms import nms
from utils.evaluation.tables import free_name, label_lines
from utils.images.letterbox import letterbox
from utils.images.pixels import Image, fractions, viewable
from utils.images.sources import Frame, find_files, frames
from utils.runs import lock
from utils.runs.plots import colour, draw_box, draw_label
from utils.system.device import select_device
from utils.system.errors import UserError, run_main
from utils.weights.checkpoint import load_detector

Shares = list[float] | None  # [C] probabilities of the image's classes, for a model that has such


@torch.inference_mode()
def detect(
    model: Detector, image: Image, size: int, device: torch.device, args: Options
) -> tuple[torch.Tensor, Shares]:
    """Image [H,W,C] -> [n,6] x0,y0,x1,y1 in its own pixels, confidence, class; and what the image shows as a whole."""
    fitted, ratio, pad = letterbox(image, size, stride=int(model.stride.max()))
    tensor = fractions(torch.from_numpy(np.ascontiguousarray(fitted.transpose(2, 0, 1))).to(device)[None])
    out = model(tensor)
    parts = model.decode(out["det"])
    found = nms(
        parts, args.conf_thres, args.nms_iou, multi_label=False, classes=list(args.classes) or None,
        agnostic=args.agnostic_nms, max_det=args.max_det,
    )[0].cpu()  # fmt: skip
    native = to_native(found[:, :4], [*ratio, *pad], (image.shape[0], image.shape[1]))
    shares = [out[name][0].float().softmax(0).tolist() for name in image_heads(model)]
    return torch.cat((native, found[:, 4:]), 1), shares[0] if shares else None


def paired(frame: Frame, rule: PairRule, reads: str, args: Options) -> Image:
    """The picture as the model reads it, with its infrared partner or that one alone."""
    if frame.number is not None:
        raise UserError(f"--source {frame.source}: {args.weights} reads {reads}, and a video has no infrared partner")
    return with_partner(frame.image, Path(frame.source), rule, reads, alone=args.on_missing_pair == "single")


class Output:
    """Writes drawn pictures, videos frame by frame, and label files; never two results to one name."""

    def __init__(self, folder: Path, args: Options) -> None:
        self.folder, self.args = folder, args
        self.writers: dict[str, cv2.VideoWriter] = {}
        self.taken: set[str] = set()
        self.labels: set[str] = set()

    def add(self, frame: Frame, found: torch.Tensor, names: list[str], shares: Shares, shown: str) -> None:
        """shown: the image's class in words."""
        stem = Path(frame.source).stem
        if self.args.save_txt and (len(found) or shares):
            suffix = "" if frame.number is None else f"_{frame.number:06d}"
            (self.folder / "labels").mkdir(exist_ok=True)
            text = label_lines(found, frame.image.shape[:2], self.args.save_conf, shares)
            name = free_name(f"{stem}{suffix}.txt", self.labels)
            (self.folder / "labels" / name).write_text(text)
        if self.args.nosave:
            return
        drawn = np.ascontiguousarray(viewable(frame.image)[..., ::-1])
        scale = max(min(drawn.shape[:2]) / 1000, 0.4)
        for *box, confidence, c in found.flip(0).tolist():  # best on top
            draw_box(drawn, box, f"{names[int(c)]} {confidence:.2f}", colour(int(c)), scale=scale)
        if shown:
            draw_label(drawn, 0, 0, shown, (255, 255, 255), scale)
        if frame.number is None:
            cv2.imwrite(str(self.folder / free_name(Path(frame.source).name, self.taken)), drawn)
            return
        if frame.source not in self.writers:
            size = (drawn.shape[1], drawn.shape[0])
            path = str(self.folder / free_name(f"{stem}.mp4", self.taken))
            self.writers[frame.source] = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"mp4v"), frame.fps, size)
        self.writers[frame.source].write(drawn)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.release()


def main(argv: list[str]) -> None:
    given = PROGRAM.parse(argv)
    args = given.cfg
    device = select_device(args.device)
    with lock.new_run(args.project, args.name, named="name" in given.names, exist_ok=args.exist_ok) as held:
        run(args, device, held.folder)


def run(args: Options, device: torch.device, folder: Path) -> None:
    """Every picture of the source, and what was found, into `folder`."""
    if not args.source.isdigit():
        find_files(args.source)
    model, meta = load_detector(args.weights, args.cfg)
    names, size = meta["names"], whole_strides(args.img_size or 640, int(model.stride.max()))
    if args.classes and max(args.classes) >= model.nc:
        raise UserError(f"--classes {max(args.classes)}: the model has classes 0..{model.nc - 1}")
    model = fuse(model).to(device)
    record = recorded(meta)
    rule = partner_rule(record, args.weights) if record else None
    kinds = next(iter(image_heads(model).values()), ())
    output, count, boxes = Output(folder, args), 0, 0
    try:
        for frame in frames(args.source, model.in_channels):
            if rule is not None:
                frame = frame._replace(image=paired(frame, rule, record["modality"], args))
            found, shares = detect(model, frame.image, size, device, args)
            shown = "" if shares is None else f"{kinds[shares.index(max(shares))]} {max(shares):.2f}"
            output.add(frame, found, names, shares, shown)
            count, boxes = count + 1, boxes + len(found)
            seen = {names[c]: int((found[:, 5] == c).sum()) for c in found[:, 5].unique().int().tolist()}
            number = "" if frame.number is None else f" frame {frame.number}"
            said = ", ".join(f"{n} {name}" for name, n in seen.items()) or "nothing"
            print(f"{frame.source}{number}: {said}" + (f"; image {shown}" if shown else ""))
    finally:
        output.close()
    print(f"{count} images, {boxes} detections, results in {folder}")


if __name__ == "__main__":
    run_main(main)
