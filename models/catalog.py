"""Every name that a row of a model YAML can have: blocks and heads; and why others are refused."""

import difflib
from collections.abc import Mapping

from models.anchored.aux_head import IAuxDetect
from models.blocks.known import BLOCKS
from models.blocks.known import Build as Build
from models.free.head import FreeDetect
from models.head import Detect, IDetect

FREE = "Detect without anchors"  # what a row `Detect, [nc]` stands for
LAYERS: dict[str, Build] = {
    **{name: block.build for name, block in BLOCKS.items()},
    "Detect": Detect,
    "IDetect": IDetect,
    "IAuxDetect": IAuxDetect,
    FREE: FreeDetect,
}
REFUSED = {
    **dict.fromkeys(
        ("Segment", "ISegment"), "it draws masks; this program detects boxes: take the model's detection form"
    ),
    **dict.fromkeys(
        ("Pose", "IKeypoint"), "it finds key points; this program detects boxes: take the model's detection form"
    ),
    **dict.fromkeys(
        ("OBB", "Classify", "RTDETRDecoder", "v10Detect", "WorldDetect", "YOLOEDetect"),
        "of the heads without anchors only Detect is supported",
    ),
    "MultiHeadDetect": "switch several heads on with --heads N --head-config FILE",
    "MultiHeadDetectAttn": "switch several heads on with --heads N --head-config FILE",
    "MultiHeadDetectAttention": "switch several heads on with --heads N --head-config FILE",
}


def advice(kind: str, builders: Mapping[str, Build]) -> str:
    """For a name that is not known: why, or what was meant."""
    if kind in REFUSED:
        return REFUSED[kind]
    close = difflib.get_close_matches(kind, builders, 3)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return f"{meant}`python -m utils modules` lists what is known, --modules FILE.py brings modules of your own"
