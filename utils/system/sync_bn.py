"""BatchNorm over the batch of all ranks (--sync-bn).

Mean and variance are those of the global batch: the ranks' means are averaged by their number of values, then the
squared deviations from that common mean, so that nothing cancels. PyTorch's own SyncBatchNorm runs on CUDA only; this
one is what the tests run too.
"""

import torch
import torch.distributed as td
from torch import Tensor, nn

from utils.system import dist


class SumOverRanks(torch.autograd.Function):
    """[n] -> [n], the sum over all ranks. Backward: each rank's gradient acts on every rank's input, so their sum."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        with dist.together():
            td.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
        total = grad.contiguous().clone()
        with dist.together():
            td.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the statistics of all ranks in training; in eval mode nn.BatchNorm2d itself."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,H,W] -> [B,C,H,W]; B may differ between ranks."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        mean_here = values.mean((0, 2, 3))
        sums = SumOverRanks.apply(torch.cat([mean_here * count, count]))  # [C+1]
        n = sums[-1]
        mean = sums[:-1] / n
        deviation = values - mean.view(1, -1, 1, 1)
        var = SumOverRanks.apply(deviation.square().mean((0, 2, 3)) * count) / n
        self.follow(mean.detach(), var.detach() * n.detach() / (n.detach() - 1))
        scale = self.weight * torch.rsqrt(var + self.eps)
        out: Tensor = deviation * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return out.to(x.dtype)

    @torch.no_grad()
    def follow(self, mean: Tensor, var: Tensor) -> None:
        """Running statistics: a moving average with the layer's momentum."""
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)


def synchronise_norms(module: nn.Module) -> None:
    """In place: every BatchNorm2d becomes a SyncBatchNorm2d with the same parameters, buffers and names."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, synchronised(child))
        else:
            synchronise_norms(child)


def synchronised(norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
    """The same layer, the same tensors, statistics over all ranks."""
    new = SyncBatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum, device="meta")
    for name, p in norm.named_parameters():
        setattr(new, name, p)
    for name, b in norm.named_buffers():
        setattr(new, name, b)
    return new.train(norm.training)
