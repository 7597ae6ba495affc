"""Run configuration: one frozen dataclass, filled from defaults < --hyp YAML < command line.

Nothing downstream edits it; derived numbers are properties. A field marked `hyp` is a hyper-parameter: a key of the
--hyp file (YOLOv7's names) and a flag of its own. Unknown keys, wrong types and values out of range are errors that
name the key.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.config.options import add_flags, check_range, check_ranges, given_flags, hyper, make_parser, only_flags, opt
from utils.system.errors import UserError
from utils.system.yaml_file import read_yaml

if TYPE_CHECKING:
    from models.loss import LossSettings


@dataclass(frozen=True, kw_only=True)
class Config:
    """Flags of train.py."""

    # what to train
    weights: str = opt("", "start a new stage from this checkpoint (empty: from scratch)")
    cfg: str = opt("", "model YAML (default: the one stored in --weights)")
    data: str = opt("data/coco.yaml", "data YAML")
    hyp: str = opt("data/hyp.scratch.p5.yaml", "hyper-parameter YAML; single keys can be overridden by flags")
    resume: str = opt(
        "", "continue a run: its last.pt or folder; without a value the newest run", nargs="?", const="auto"
    )
    replay: str = opt("", "repeat a recorded run (its run.yaml or folder) into a new folder, and compare")
    allow_changed_data: bool = opt(False, "with --resume: go on though the data set is another one now")
    # budget
    epochs: int = opt(300, "epochs", low=1)
    batch_size: int = opt(16, "images per step, all devices together", low=1, alias="--batch")
    nominal_batch: int = opt(
        64, "images per optimizer step that rates and decay are meant for; smaller batches are gathered", low=1
    )
    test_batch_size: int = opt(0, "batch of the validation passes (default: twice the batch size)", low=0)
    img_size: tuple[int, ...] = opt(
        (640, 640), "training and validation size, pixels (one value: both)", nargs="+", alias="--img"
    )
    patience: int = opt(0, "end the run when the fitness has not risen for so many evaluated epochs (0: never)", low=0)
    guard_drop: float = opt(
        0.0,
        "take an opening (--unfreeze) back when mAP@0.5 stays more than this below the best before it (0: no guard)",
        low=0,
        high=1,
    )
    guard_patience: int = opt(3, "for so many evaluated epochs in a row", low=1)
    guard_action: str = opt(
        "halve",
        "then: halve the rates of what was opened, postpone the opening by guard-patience epochs, or stop the run",
        choices=("halve", "postpone", "stop"),
    )
    # data
    rect: bool = opt(False, "rectangular training batches (no mosaic)")
    cache_images: bool = opt(False, "keep the images in RAM, shared by the workers", alias="--cache")
    image_weights: bool = opt(False, "draw training images by how badly their classes are found")
    multi_scale: bool = opt(False, "vary the training size by +-50 %%")
    single_cls: bool = opt(False, "treat all classes as one")
    quad: bool = opt(False, "collate four images into one of twice the size, now and then")
    close_mosaic: int = opt(0, "no mosaic, and no mixup, which mixes two of them, in the last N epochs", low=0)
    workers: int = opt(8, "data loader processes", low=0)
    on_bad_data: str = opt("error", "broken images and labels: stop, or skip and count them", choices=("error", "skip"))
    on_missing_pair: str = opt(
        "error",
        "an image without its infrared partner (data YAML: pairs): stop, leave it out, or keep it alone",
        choices=("error", "skip", "single"),
    )
    force_hsv: bool = opt(False, "hue and saturation jitter even where the data YAML says color: none")
    strict_split: bool = opt(False, "stop where splits share groups (the data YAML's group_pattern)")
    noautoanchor: bool = opt(False, "do not adapt the anchors to the data")
    # optimisation
    adam: bool = opt(False, "Adam instead of SGD")
    linear_lr: bool = opt(False, "linear instead of cosine decay")
    auto_lr: bool = opt(False, "lr0 *= sqrt(batch / 64) above 64; warm-up of 5 epochs from batch 128 on")
    sync_bn: bool = opt(False, "BatchNorm statistics over all ranks (with torchrun)")
    label_smoothing: float = opt(0.0, "share of the class target spread over the classes", low=0, high=1)
    warmup_share: float = opt(0.1, "largest share of the run that warm-up may take", low=0, high=1)
    freeze_bn: str = opt(
        "eval",
        "BatchNorm of frozen modules: eval = nothing moves; train = statistics drift (YOLOv5/YOLOv7)",
        choices=("eval", "train"),
    )
    fold_frozen: bool = opt(
        True, "fold BatchNorm into the convolutions of the leading frozen modules while training", negatable=True
    )
    compat: str = opt(
        "none",
        "repeat the originals' quirks: warm-up of at least 1,000 (v7) or 100 (v5) steps with uncapped bias rate, "
        "rates one epoch late, OTA's square boxes",
        choices=("none", "v5", "v7"),
    )
    amp: bool = opt(True, "mixed precision on CUDA; a CPU always computes in float32", negatable=True)
    amp_dtype: str = opt(
        "fp16",
        "type of mixed precision: fp16 with loss scaling, or bf16 without (coarser; Ampere or later)",
        choices=("fp16", "bf16"),
    )
    channels_last: bool = opt(False, "weights and features in NHWC order: faster, other last digits", negatable=True)
    compile: bool = opt(False, "compile the model (torch.compile): minutes at the start, then faster")
    # evaluation and outputs
    notest: bool = opt(False, "evaluate after the last epoch only")
    nosave: bool = opt(False, "write checkpoints after the last epoch only")
    save_steps: int = opt(0, "also write last.pt every so many steps within an epoch", low=0)
    save_minutes: float = opt(0.0, "also write last.pt every so many minutes within an epoch", low=0)
    save_period: int = opt(-1, "also keep a checkpoint every so many epochs", low=-1)
    audit: bool = opt(False, "check that what trains, moves and stands still is what was declared; else stop")
    v5_metric: bool = opt(False, "YOLOv5's recall sentinel in AP")
    match: str = opt("coco", "rule that matches detections to boxes", choices=("coco", "v7", "v5"))
    project: str = opt("runs/train", "parent folder of runs")
    name: str = opt("exp", "run name")
    exist_ok: bool = opt(False, "write into an existing run folder (its files are replaced)")
    device: str = opt("", "cuda device number(s), cpu or mps (default: the best there is)")
    seed: int = opt(0, "random seed", low=0)
    deterministic: bool = opt(False, "only deterministic operations on CUDA as well (a CPU always does so)")
    # hyper-parameters
    lr0: float = hyper(0.01, "peak learning rate", low=1e-12)
    lrf: float = hyper(0.1, "final learning rate = lr0 * lrf")
    momentum: float = hyper(0.937, "SGD momentum or Adam beta1", high=1)
    weight_decay: float = hyper(0.0005, "L2 on weights, at 64 images per step")
    warmup_epochs: float = hyper(3.0, "warm-up, epochs")
    warmup_momentum: float = hyper(0.8, "momentum at the start of warm-up", high=1)
    warmup_bias_lr: float = hyper(0.1, "learning rate of biases at the start of warm-up")
    box: float = hyper(0.05, "box loss gain, for 3 levels")
    cls: float = hyper(0.3, "class loss gain, for 80 classes and 3 levels")
    cls_pw: float = hyper(1.0, "weight of positive class targets")
    obj: float = hyper(0.7, "objectness loss gain, for 640 px and 3 levels")
    obj_pw: float = hyper(1.0, "weight of positive objectness targets")
    iou_t: float = hyper(
        0.2, "IoU threshold of training (kept for the file format; unused by both assignments)", high=1
    )
    anchor_t: float = hyper(4.0, "largest side ratio between a box and its anchor", low=1)
    fl_gamma: float = hyper(0.0, "focal loss exponent")
    hsv_h: float = hyper(0.015, "hue jitter, share", high=1)
    hsv_s: float = hyper(0.7, "saturation jitter, share", high=1)
    hsv_v: float = hyper(0.4, "value jitter, share", high=1)
    degrees: float = hyper(0.0, "rotation, +- degrees", high=180)
    translate: float = hyper(0.2, "translation, +- share", high=1)
    scale: float = hyper(0.9, "scaling, +- share", high=1)
    shear: float = hyper(0.0, "shear, +- degrees", high=90)
    perspective: float = hyper(0.0, "perspective, +- share", high=0.001)
    flipud: float = hyper(0.0, "probability of flipping up and down", high=1)
    fliplr: float = hyper(0.5, "probability of flipping left and right", high=1)
    mosaic: float = hyper(1.0, "probability of mosaic", high=1)
    mixup: float = hyper(0.15, "probability of mixup", high=1)
    copy_paste: float = hyper(0.0, "probability of copy-paste (needs polygons)", high=1)
    paste_in: float = hyper(0.15, "probability of pasting in cut-out objects", high=1)
    loss_ota: float = hyper(1.0, "1: OTA assignment, 0: plain", high=1)

    def __post_init__(self) -> None:
        if len(self.img_size) not in (1, 2) or min(self.img_size) < 32:
            raise UserError(f"--img-size takes one or two sizes of at least 32 px, got {self.img_size}")
        if self.rect and self.image_weights:
            raise UserError(
                "--rect batches images of like shape, --image-weights draws them singly: give one of the two"
            )
        if self.notest and (self.patience or self.guard_drop):
            raise UserError("--patience and --guard-drop judge every epoch's evaluation: take out --notest")
        check_ranges(self)

    @property
    def train_size(self) -> int:
        return self.img_size[0]

    @property
    def test_size(self) -> int:
        return self.img_size[-1]

    @property
    def val_batch(self) -> int:
        return self.test_batch_size or 2 * self.batch_size

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimizer step after warm-up."""
        return max(round(self.nominal_batch / self.batch_size), 1)

    @property
    def scaled_decay(self) -> float:
        return self.weight_decay * self.batch_size * self.accumulate / self.nominal_batch

    @property
    def peak_lr(self) -> float:
        return self.lr0 * (math.sqrt(self.batch_size / 64) if self.auto_lr and self.batch_size > 64 else 1.0)

    @property
    def warmup(self) -> float:
        """Warm-up epochs asked for (before the cap by warmup_share)."""
        return max(self.warmup_epochs, 5.0) if self.auto_lr and self.batch_size >= 128 else self.warmup_epochs

    @property
    def loss(self) -> "LossSettings":
        """Settings of the criterion, gains as in the hyp file."""
        from models.loss import LossSettings

        return LossSettings(
            box=self.box,
            obj=self.obj,
            cls=self.cls,
            cls_pw=self.cls_pw,
            obj_pw=self.obj_pw,
            anchor_t=self.anchor_t,
            fl_gamma=self.fl_gamma,
            label_smoothing=self.label_smoothing,
            ota=self.loss_ota > 0,
            square_ota=self.compat == "v7",
        )


HYP_KEYS = tuple(f.name for f in dataclasses.fields(Config) if f.metadata.get("hyp"))


def read_hyp(path: str) -> dict[str, float]:
    """Hyper-parameters of a YAML file, checked: every key known, every value a number."""
    values = read_yaml(path, "--hyp")
    for key, value in values.items():
        if key not in HYP_KEYS:
            raise UserError(f"{path}: unknown hyper-parameter {key!r}; known: {', '.join(HYP_KEYS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{path}: {key} must be a number, got {value!r}")
    for f in dataclasses.fields(Config):
        if f.name in values:
            try:
                check_range(f, values[f.name])
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
    return {key: float(value) for key, value in values.items()}


def train_parser(patches: Mapping[str, type]) -> argparse.ArgumentParser:
    """The parser of train.py with the flags of these patches, {name: Flags class}."""
    parser = make_parser("train.py", "Train a detector.", "With --cfg, --help also prints the model's module table.")
    add_flags(parser, Config, "base")
    for name, schema in patches.items():
        add_flags(parser, schema, f"patches/{name}.py (active when one of the flags that switch it on is given)")
    return parser


def resume_flags(argv: Sequence[str], cfg: Config) -> dict[str, Any]:
    """What --resume takes from the command line beside itself: --device, --workers, --allow-changed-data. Any other
    flag is an error: a changed setting is a new stage (--weights), not the same one."""
    allowed = {"resume", "project", "device", "workers", "allow_changed_data"}
    only_flags(argv, allowed, "--resume goes on with the run's own settings")
    own: dict[str, Any] = {name: getattr(cfg, name) for name in ("device", "workers") if name in given_flags(argv)}
    return {**own, "allow_changed_data": cfg.allow_changed_data}  # never the stored one: it is allowed once


def parse(argv: Sequence[str], patches: Mapping[str, type]) -> tuple[Config, dict[str, Any]]:
    """argv -> (base configuration, {patch: its flags}). patches: {name: Flags class} of the active ones."""
    parser = train_parser(patches)
    given = vars(parser.parse_args(list(argv)))
    if not given.get("guard_drop") and {"guard_patience", "guard_action"} & given.keys():
        raise UserError("--guard-patience and --guard-action belong to --guard-drop: give that too, e.g. 0.01")
    values = {**read_hyp(given.get("hyp", Config.hyp)), **given}

    def fill(schema: type) -> Any:
        own = {f.name: values[f.name] for f in dataclasses.fields(schema) if f.name in values}
        return schema(**{k: tuple(v) if isinstance(v, list) else v for k, v in own.items()})

    return fill(Config), {name: fill(schema) for name, schema in patches.items()}


PLACES = {
    "weights",
    "resume",
    "replay",
    "project",
    "name",
    "exist_ok",
    "allow_changed_data",
    "device",
    "workers",
    "nosave",
    "notest",
    "save_period",
    "cache_images",
    "strict_split",
    "audit",
}
