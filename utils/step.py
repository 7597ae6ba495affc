"""One training step as one Module, so that DDP and torch.compile wrap the model and the patches together."""

from torch import Tensor, nn

from models.graph import Detector
from models.loss import Criterion
from utils.seams import Batch, Patches, Terms, weighted_sum


class LossStep(nn.Module):
    """batch -> (scalar loss, named terms). Owns model, criterion and patches."""

    def __init__(self, model: Detector, criterion: Criterion, patches: Patches) -> None:
        super().__init__()
        self.model, self.criterion, self.patches = model, criterion, patches
        self.terms = patches.names(criterion.terms)

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        out = self.model(batch["image"])
        terms: Terms = self.criterion(out["det"], batch["target"])
        terms = {**terms, **self.patches.merge("loss_terms", batch, out, self.model)}
        if tuple(terms) != self.terms:
            raise ValueError(f"loss terms {tuple(terms)} are not the declared {self.terms}")
        weights = self.patches.merge("loss_weights", terms, self.model)
        # gradients add up over the images of the nominal batch, whatever the micro-batch (YOLOv5/YOLOv7)
        loss = weighted_sum(terms, weights) * len(batch["image"])
        return loss, {k: v.detach() for k, v in terms.items()}
