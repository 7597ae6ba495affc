"""Flags of export.py."""

from dataclasses import dataclass

from utils.config.options import Program, opt
from utils.config.shared import Size, Trained
from utils.system.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options(Size, Trained):
    data: str = opt("", "data YAML; some of its images try the written file (default: that of the training)", "data")
    batch_size: str = opt("1", "images at a time: a number, or dynamic", "evaluation")
    only_det: bool = opt(False, "leave out what --classify or --dual-backbone added to the detector", "model")
    out: str = opt("", "file to write (default: the weights' name with .onnx)", "saving")
    exist_ok: bool = opt(False, "replace the file", "saving")

    def __post_init__(self) -> None:
        if self.batch_size != "dynamic" and not (self.batch_size.isdecimal() and int(self.batch_size)):
            raise UserError(f"--batch-size {self.batch_size:.100}: expected a number of images, or dynamic")


PROGRAM = Program("export.py", "Write a checkpoint as an ONNX file.", Options)
