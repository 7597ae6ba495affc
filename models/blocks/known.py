"""Every block that a model YAML can name, with what its outputs are tested against.

`ORIGINAL`: the outputs of YOLOv5's or YOLOv7's block of that name with the same weights and input. `FORMULA`: a formula
written out a second time, of the paper that the block's text names or of the operator that it stands for.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from models.blocks import attention, c2f, csp, ghost, layers, lean, pooling

Build = Callable[..., nn.Module]
ORIGINAL, FORMULA = "original", "formula"


class Known(NamedTuple):
    """A block, and what its outputs are tested against."""

    build: Build
    test: str


_BY_TEST: dict[str, tuple[type[nn.Module], ...]] = {
    ORIGINAL: (
        layers.Conv, layers.DWConv, layers.ReOrg, layers.Contract, layers.Expand, layers.Focus, layers.DownC,
        layers.Stem, layers.RepConv, layers.DWConvTranspose2d,
        csp.Bottleneck, csp.Res, csp.ResX, csp.CrossConv, csp.C3, csp.C3x, csp.BottleneckCSP,
        csp.BottleneckCSPA, csp.BottleneckCSPB, csp.BottleneckCSPC, csp.ResCSPA, csp.ResCSPB, csp.ResCSPC,
        csp.ResXCSPB, csp.RepResCSPB, csp.RepResXCSPB,
        ghost.GhostConv, ghost.GhostBottleneck, ghost.Ghost, ghost.GhostCSPA, ghost.GhostCSPB, ghost.GhostCSPC,
        ghost.C3Ghost,
        pooling.SPP, pooling.SPPF, pooling.C3SPP, pooling.SPPCSPC, pooling.GhostSPPCSPC,
        attention.TransformerBlock, attention.C3TR, lean.MixConv2d, lean.RobustConv, lean.RobustConv2,
        c2f.C2f, c2f.C3k, c2f.C3k2, c2f.C2PSA,
    ),
    FORMULA: (
        layers.Concat, layers.Shortcut, layers.Chuncat, layers.Foldcut, layers.MP, layers.SP,
        csp.ResXCSPA, csp.ResXCSPC, csp.RepBottleneck, csp.RepRes, csp.RepResX, csp.RepBottleneckCSPA,
        csp.RepBottleneckCSPB, csp.RepBottleneckCSPC, csp.RepResCSPA, csp.RepResCSPC, csp.RepResXCSPA, csp.RepResXCSPC,
        ghost.GhostStem, pooling.SPPFCSPC, pooling.SimSPPF,
        attention.CBAM, attention.SE, attention.ECA, attention.CoordAtt, attention.SimAM, attention.GAM_Attention,
        lean.ShuffleV2Block, lean.Shuffle_Block, lean.conv_bn_relu_maxpool, lean.PConv, lean.ConvNextBlock, lean.CNeB,
    ),
}  # fmt: skip
BLOCKS: dict[str, Known] = {
    **{build.__name__: Known(build, test) for test, builds in _BY_TEST.items() for build in builds},
    "nn.Upsample": Known(layers.Upsample, FORMULA),
    "nn.MaxPool2d": Known(layers.MaxPool2d, FORMULA),
    "nn.ZeroPad2d": Known(layers.ZeroPad2d, FORMULA),
    "nn.ConvTranspose2d": Known(layers.ConvTranspose2d, FORMULA),
    "nn.BatchNorm2d": Known(layers.BatchNorm2d, FORMULA),
    "BiFPN_Concat2": Known(layers.WeightedConcat, FORMULA),
    "BiFPN_Concat3": Known(layers.WeightedConcat, FORMULA),
}
