"""One training step as one Module, and in which type, memory order and form it is computed.

Mixed precision is a matter of CUDA: on CPUs bf16 was measured ten times slower than float32. fp16 needs its loss
scaled, as small gradients would become 0; bf16 has float32's range, and a quarter of fp16's digits.
"""

import torch
from torch import Tensor, nn

from models.graph import Detector
from models.loss import Criterion
from utils.config.options import flag
from utils.config.train import Config
from utils.data.loader import Loader, multiscale_sizes, resized_to
from utils.seams import Batch, Groups, Patches, Terms, weighted_sum
from utils.system.errors import UserError
from utils.system.sync_bn import SyncBatchNorm2d

# Settings that only the loss of anchor heads has, and their value where they do nothing.
ANCHORED = {"loss_ota": 0, "fl_gamma": 0, "label_smoothing": 0, "cls_pw": 1}


class LossStep(nn.Module):
    """batch -> (scalar loss, named terms). Owns model, criterion and patches."""

    def __init__(self, model: Detector, criterion: Criterion, patches: Patches) -> None:
        super().__init__()
        self.model, self.criterion, self.patches = model, criterion, patches
        self.terms = patches.names(criterion.terms)

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        out = self.model(batch["image"])
        terms: Terms = self.criterion(out["det"], batch["target"], batch.get("most"))
        terms = {**terms, **self.patches.merge("loss_terms", batch, out, self.model)}
        if tuple(terms) != self.terms:
            raise ValueError(f"loss terms {tuple(terms)} are not the declared {self.terms}")
        weights = self.patches.merge("loss_weights", terms, batch, self.model)
        # gradients add up over the images of the nominal batch, whatever the micro-batch (YOLOv5/YOLOv7), and the ranks
        loss = weighted_sum(terms, weights) * batch["images"]
        return loss, {k: v.detach() for k, v in terms.items()}


def check_recipe(model: Detector, cfg: Config) -> None:
    """UserError where the recipe is for another kind of head than the model has."""
    free = "dfl" in model.head.loss_kinds()
    if free != (cfg.dfl > 0):
        other = "data/hyp.yolo11.yaml" if free else "data/hyp.scratch.tiny.yaml"
        raise UserError(
            f"--hyp {cfg.hyp}: its gains are for heads with{'' if free else 'out'} anchors (dfl is {cfg.dfl:g}), the "
            f"model's head has {'none' if free else 'some'}: take another recipe, e.g. {other}"
        )
    lost = [f"{flag(name)} {getattr(cfg, name):g}" for name, idle in ANCHORED.items() if getattr(cfg, name) != idle]
    if free and lost:
        raise UserError(f"{', '.join(lost)}: without effect on a head without anchors")


def check_norms(model: Detector, groups: Groups, loader: Loader, cfg: Config) -> None:
    """UserError where a batch would leave a BatchNorm that trains, now or once its group has opened, one value per
    channel, as a single picture of a single cell does: one value has no variance."""
    opening = {id(p) for group in groups if "opens" in group for p in group["params"]}
    names = {module: name for name, module in model.named_modules()}
    norms = [m for m in names if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    trains = [m for m in norms if m.training or id(m.weight) in opening]
    stride, lone = int(model.stride.max()), list[str]()

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0][0, 0].numel() == 1:
            lone.append(names[norm])

    for height, width in sorted(loader.single_pictures(together=any(isinstance(m, SyncBatchNorm2d) for m in trains))):
        if cfg.multi_scale:
            smallest = int(multiscale_sizes(loader.dataset.img_size, stride)[0])
            height, width = resized_to(height, width, smallest, stride)
        hooks = [norm.register_forward_pre_hook(look) for norm in trains]
        model.dry_run(height, width)
        for hook in hooks:
            hook.remove()
        if lone:
            raise UserError(
                f"--img-size {cfg.train_size} with --batch-size {cfg.batch_size}: a batch of one picture of {height}x"
                f"{width} px leaves BatchNorm {lone[0]} one value per channel, which has no variance: take a larger "
                "--img-size, or a --batch-size that leaves no single picture over"
            )


def compute_type(cfg: Config, device: torch.device) -> torch.dtype | None:
    """Type for autocast, None = float32. Errors: UserError where the device has no bf16."""
    if device.type != "cuda" or not cfg.amp:
        return None
    if cfg.amp_dtype == "fp16":
        return torch.float16
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(f"--amp-dtype bf16: {torch.cuda.get_device_name(device)} computes in fp16 or float32 only")
    return torch.bfloat16


def make_scaler(cfg: Config, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling for fp16, else one that does nothing."""
    return torch.amp.GradScaler(enabled=compute_type(cfg, device) == torch.float16)


def place(step: LossStep, cfg: Config, device: torch.device) -> LossStep:
    """The step on its device, in its memory order. Before optimizer and average, which take both over."""
    step.to(device)
    return step.to(memory_format=torch.channels_last) if cfg.channels_last else step


def compile_model(step: LossStep) -> None:
    """torch.compile in place: parameters keep their names. The average stays plain, and so does evaluation."""
    step.model.compile()
