"""Which flag switches on which file. Order here is the order of application. Nothing is imported until asked for."""

TABLE = {
    "heads": "multihead",
    "head-config": "multihead",
    "transfer-weights": "transfer",
    "freeze": "freeze",
    "trainable-first": "freeze",
    "unfreeze": "unfreeze",
    "progressive-unfreeze": "unfreeze",
    "unfreeze-plan": "unfreeze",
    "layer-decay": "layer_decay",
    "classify": "image_class.joint",
    "dual-backbone": "image_class.dual_backbone",
    "mtl": "weighting",
    "gradnorm-alpha": "weighting",
    "teacher": "distill",
    "modality": "modality",
    "join-node": "modality",
    "align": "align",
}

# Files that add flags to test.py as well.
IN_TEST = ("modality",)

# Tools of `python -m utils` that stand in a patch; their options in utils/config.
TOOLS = {"group": "multihead.group"}
