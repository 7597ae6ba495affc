"""Run configuration: one frozen dataclass, filled from defaults < --hyp YAML < command line.

Nothing downstream edits it; derived numbers are properties. A field marked `hyp` is a hyper-parameter: a key of the
--hyp file (YOLOv7's names) and a flag of its own. Unknown keys, wrong types and values out of range are errors that
name the key.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from utils.config.help import patch_schemas, patch_table, record_name
from utils.config.hyp import fill_in, keys_of, read_hyp
from utils.config.options import Given, Program, again, check_ranges, flag, hyper, opt, say
from utils.config.settings import DataSettings, EvalSettings
from utils.config.shared import LARGEST, MATCHES, Device, OwnModules, Place
from utils.system.errors import UserError

if TYPE_CHECKING:
    import torch

    from models.loss import LossSettings


@dataclass(frozen=True, kw_only=True)
class Config(Place, Device, OwnModules):
    """Flags of train.py."""

    weights: str = opt("", "start a new stage from this checkpoint (empty: from scratch)", "model", place=True)
    cfg: str = opt("", "model YAML (default: the one stored in --weights)", "model")
    data: str = opt("data/coco.yaml", "data YAML", "data")
    hyp: str = opt("data/hyp.scratch.p5.yaml", "hyper-parameter YAML; single keys can be overridden by flags", "start")
    resume: str = opt(
        "",
        "continue a run: its last.pt or folder; without a value the newest run",
        "start",
        place=True,
        nargs="?",
        const="auto",
    )
    replay: str = opt(
        "", "repeat a recorded run (its run.yaml or folder) into a new folder, and compare", "start", place=True
    )
    allow_changed_data: bool = opt(
        False, "with --resume: go on though the data set is another one now", "start", place=True
    )
    epochs: int = opt(300, "epochs", "schedule", low=1)
    batch_size: int = opt(16, "images per step, all devices together", "schedule", low=1)
    nominal_batch: int = opt(
        64,
        "images per optimizer step that rates and decay are meant for; smaller batches are gathered",
        "schedule",
        low=1,
    )
    test_batch_size: int = opt(0, "batch of the validation passes (default: twice the batch size)", "evaluation", low=0)
    img_size: tuple[int, ...] = opt(
        (640, 640), "training and validation size, pixels (one value: both)", "data", nargs="+", low=32
    )
    patience: int = opt(
        0, "end the run when the figure of --best-by has not got better for so many evaluated epochs (0: never)",
        "schedule", low=0,
    )  # fmt: skip
    best_by: str = opt(
        "fitness",
        "figure that chooses best.pt, also for --patience and --guard-drop: fitness (0.1 mAP@0.5 + 0.9 mAP@0.5:0.95), "
        "mAP50, mAP50-95, val_loss, or another of results.csv, such as align_top1",
        "evaluation",
    )
    guard_drop: float = opt(
        0.0,
        "take an opening (--unfreeze) back when mAP@0.5, or the figure of --best-by, stays more than this worse than "
        "its best before (0: no guard)",
        "freezing",
        low=0,
        high=1,
    )
    guard_patience: int = opt(3, "for so many evaluated epochs in a row", "freezing", low=1)
    guard_action: str = opt(
        "halve",
        "then: halve the rates of what was opened, postpone the opening by guard-patience epochs, or stop the run",
        "freezing",
        choices=("halve", "postpone", "stop"),
    )
    rect: bool = opt(False, "rectangular training batches (no mosaic)", "data")
    cache_images: bool = opt(False, "keep the images in RAM, shared by the workers", "speed", place=True)
    image_weights: bool = opt(False, "draw training images by how badly their classes are found", "data")
    multi_scale: bool = opt(False, "vary the training size by +-50 %%", "augmentation")
    single_cls: bool = opt(False, "treat all classes as one", "data")
    quad: bool = opt(False, "join four images into one of twice the size, now and then", "augmentation")
    close_mosaic: int = opt(
        0, "no mosaic, and no mixup, which mixes two of them, in the last N epochs", "augmentation", low=0, hyp=True
    )
    workers: int = opt(8, "data loader processes", "speed", place=True, low=0)
    on_bad_data: str = opt(
        "error", "broken images and labels: stop, or skip and count them", "data", choices=("error", "skip")
    )
    on_missing_pair: str = opt(
        "error",
        "an image without its infrared partner (data YAML: pairs): stop, leave it out, or keep it alone",
        "pairs",
        choices=("error", "skip", "single"),
    )
    force_hsv: bool = opt(False, "hue and saturation jitter even where the data YAML says color: none", "augmentation")
    strict_split: bool = opt(
        False, "stop where splits share groups (the data YAML's group_pattern)", "data", place=True
    )
    noautoanchor: bool = opt(False, "do not adapt the anchors to the data", "data")
    adam: bool = opt(False, "Adam instead of SGD", "schedule")
    linear_lr: bool = opt(False, "linear instead of cosine decay", "schedule", hyp=True)
    auto_lr: bool = opt(False, "lr0 *= sqrt(batch / 64) above 64; warm-up of 5 epochs from batch 128 on", "schedule")
    sync_bn: bool = opt(False, "BatchNorm statistics over all ranks (with torchrun)", "speed")
    label_smoothing: float = hyper(0.0, "share of the class target spread over the classes", "loss", high=1)
    warmup_share: float = opt(0.1, "largest share of the run that warm-up may take", "schedule", low=0, high=1)
    freeze_bn: str = opt(
        "eval",
        "BatchNorm of frozen modules: eval = nothing moves; train = statistics drift (YOLOv5/YOLOv7)",
        "freezing",
        choices=("eval", "train"),
    )
    fold_frozen: bool = opt(
        True,
        "fold BatchNorm into the convolutions of the leading frozen modules while training",
        "freezing",
        negatable=True,
    )
    compat: str = opt(
        "none",
        "repeat the originals' quirks: warm-up of at least 1,000 (v7) or 100 (v5) steps with uncapped bias rate, "
        "rates one epoch late, OTA's square boxes",
        "schedule",
        choices=("none", "v5", "v7"),
    )
    amp: bool = opt(True, "mixed precision on CUDA; a CPU always computes in float32", "speed", negatable=True)
    amp_dtype: str = opt(
        "fp16",
        "type of mixed precision: fp16 with loss scaling, or bf16 without (coarser; Ampere or later)",
        "speed",
        choices=("fp16", "bf16"),
    )
    channels_last: bool = opt(
        False, "weights and features in NHWC order: faster, other last digits", "speed", negatable=True
    )
    compile: bool = opt(False, "compile the model (torch.compile): minutes at the start, then faster", "speed")
    notest: bool = opt(
        False, "no evaluation between the epochs, only of the start and after the last one", "evaluation", place=True
    )
    measure_start: bool = opt(
        True, "evaluate the --weights before the first epoch (start.csv)", "evaluation", place=True, negatable=True
    )
    nosave: bool = opt(False, "write checkpoints after the last epoch only", "saving", place=True)
    save_steps: int = opt(0, "also write last.pt every so many steps within an epoch", "saving", low=0)
    save_minutes: float = opt(0.0, "also write last.pt every so many minutes within an epoch", "saving", low=0)
    save_period: int = opt(-1, "also keep a checkpoint every so many epochs", "saving", place=True, low=-1)
    audit: bool = opt(
        False, "check that what trains, moves and stands still is what was declared; else stop", "freezing", place=True
    )
    max_det: int = opt(300, "detections kept of a validation picture", "evaluation", low=1)
    v5_metric: bool = opt(False, "end the precision-recall curve at recall 1, as YOLOv5 does", "evaluation")
    match: str = opt("coco", "rule that matches detections to boxes", "evaluation", choices=MATCHES)
    project: str = again(Place, "project", "runs/train")
    seed: int = opt(0, "random seed", "start", low=0)
    deterministic: bool = opt(False, "only deterministic operations on CUDA as well (a CPU always does so)", "speed")
    lr0: float = hyper(0.01, "peak learning rate", "schedule", low=1e-12)
    lrf: float = hyper(0.1, "final learning rate = lr0 * lrf", "schedule")
    momentum: float = hyper(0.937, "SGD momentum or Adam beta1", "schedule", high=1)
    weight_decay: float = hyper(0.0005, "L2 on weights, at 64 images per step", "schedule")
    warmup_epochs: float = hyper(3.0, "warm-up, epochs", "schedule", high=1e6)
    warmup_momentum: float = hyper(0.8, "momentum at the start of warm-up", "schedule", high=1)
    warmup_bias_lr: float = hyper(0.1, "learning rate of biases at the start of warm-up", "schedule")
    box: float = hyper(0.05, "box loss gain, for 3 levels", "loss")
    cls: float = hyper(0.3, "class loss gain, for 80 classes and 3 levels", "loss")
    cls_pw: float = hyper(1.0, "weight of positive class targets", "loss")
    obj: float = hyper(0.7, "objectness loss gain, for 640 px and 3 levels", "loss")
    obj_pw: float = hyper(1.0, "weight of positive objectness targets", "loss")
    dfl: float = hyper(
        0.0, "gain of the box distributions of heads without anchors, whose gains of box and cls are others", "loss"
    )
    iou_t: float = hyper(
        0.2, "IoU threshold of training (a key of YOLOv5's and YOLOv7's files; has no effect)", "loss", high=1
    )
    anchor_t: float = hyper(4.0, "largest side ratio between a box and its anchor", "loss", low=1)
    fl_gamma: float = hyper(0.0, "focal loss exponent", "loss")
    hsv_h: float = hyper(0.015, "hue jitter, share", "augmentation", high=1)
    hsv_s: float = hyper(0.7, "saturation jitter, share", "augmentation", high=1)
    hsv_v: float = hyper(0.4, "value jitter, share", "augmentation", high=1)
    degrees: float = hyper(0.0, "rotation, +- degrees", "augmentation", high=180)
    translate: float = hyper(0.2, "translation, +- share", "augmentation", high=1)
    scale: float = hyper(0.9, "scaling, +- share", "augmentation", high=1)
    shear: float = hyper(0.0, "shear, +- degrees", "augmentation", high=90)
    perspective: float = hyper(0.0, "perspective, +- share", "augmentation", high=0.001)
    flipud: float = hyper(0.0, "probability of flipping up and down", "augmentation", high=1)
    fliplr: float = hyper(0.5, "probability of flipping left and right", "augmentation", high=1)
    mosaic: float = hyper(1.0, "probability of mosaic", "augmentation", high=1)
    mixup: float = hyper(0.15, "probability of mixup", "augmentation", high=1)
    copy_paste: float = hyper(0.0, "probability of copy-paste (needs polygons)", "augmentation", high=1)
    paste_in: float = hyper(0.15, "probability of pasting in cut-out objects", "augmentation", high=1)
    anchors: float = hyper(
        0.0, "anchors per level that autoanchor is to find, rounded (0: as many as the model has)", "model", high=20
    )
    loss_ota: float = hyper(1.0, "1: OTA assignment, 0: plain", "loss", high=1)

    def __post_init__(self) -> None:
        if len(self.img_size) not in (1, 2) or min(self.img_size) < 32 or max(self.img_size) > LARGEST:
            raise UserError(f"--img-size takes one or two sizes of 32 to {LARGEST} px, got {self.img_size}")
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

    def judging(self, names: Sequence[str], autocast: "torch.dtype | None", nms_iou: float) -> EvalSettings:
        """How validation judges. autocast: type to compute in. nms_iou: the head's."""
        return EvalSettings(
            names=names, match=self.match, v5_metric=self.v5_metric, single_cls=self.single_cls, autocast=autocast,
            max_det=self.max_det, iou_thres=nms_iou,
        )  # fmt: skip

    def training_data(self, size: int, stride: int) -> DataSettings:
        """size: of the training pictures. stride: of the model, pixels."""
        return DataSettings(
            img_size=size, stride=stride, batch_size=self.batch_size, rect=self.rect, quad=self.quad,
            cache_images=self.cache_images, single_cls=self.single_cls, on_bad_data=self.on_bad_data,
            on_missing_pair=self.on_missing_pair, workers=self.workers, seed=self.seed,
        )  # fmt: skip

    def validation_data(self, stride: int) -> DataSettings:
        return replace(
            self.training_data(self.test_size, stride), batch_size=self.val_batch, rect=True, pad=0.5, quad=False
        )

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
            dfl=self.dfl,
        )


HYP_KEYS = keys_of(Config)
PLACES = {f.name for f in dataclasses.fields(Config) if f.metadata.get("place")}


def program() -> Program[Config]:
    """The command line of train.py: the base and every patch."""
    return Program("train.py", "Train a detector.", Config, patch_schemas())


def help_alone(argv: Sequence[str]) -> None:
    """Answer --help and end, where it is asked for without a model (whose table needs torch)."""
    if "--cfg" not in {word.split("=")[0] for word in argv}:
        program().answer_help(argv)


def parse(argv: Sequence[str]) -> Given[Config]:
    """argv -> the options of the base, and of each patch that one of its switches (patches.TABLE) turns on. The --hyp
    file is read unless the run has its settings from elsewhere (--resume, --replay)."""
    train = program()
    own, _ = train.cut(argv)
    given = train.values(own)
    on = {record_name(place) for switch, place in patch_table().items() if switch.replace("-", "_") in given}
    names, flags = frozenset(given), train.parted(given)
    for name in [name for name in flags if name not in on]:
        if off := flags.pop(name):
            switches = [f"--{s}" for s, place in patch_table().items() if record_name(place) == name]
            raise UserError(f"{flag(next(iter(off)))} is of no use without {' or '.join(switches)}")
    if not given.get("guard_drop") and {"guard_patience", "guard_action"} & names:
        raise UserError("--guard-patience and --guard-action belong to --guard-drop: give that too, e.g. 0.01")
    if not {"resume", "replay"} & names:
        path = given.get("hyp", Config.hyp)
        recipe = read_hyp(path, Config)
        filled, said = fill_in(recipe, Config, names)
        given = {**recipe, **filled, **given}
        if said:
            say(f"{path}: {said}")
    return Given(Config(**given), names, flags)
