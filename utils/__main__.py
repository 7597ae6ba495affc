"""The front door of the tools: `python -m utils` lists them, `python -m utils NAME ...` runs one."""

import importlib

from utils.system.errors import UserError, run_main

TOOLS = {  # name: (module with main(argv), what it does)
    "report": ("utils.report.report", "one page on a run, or on all runs of a folder"),
    "compare": ("utils.study.compare", "runs side by side: tables, curves, pictures, one HTML page"),
    "study": ("utils.study.study", "train several arms with several seeds, then compare"),
    "ablate": ("utils.study.ablate", "train with several freeze points and seeds, then compare"),
    "stages": ("utils.runs.chain", "table of a chain of runs, and the checks between stages"),
    "replay": ("utils.runs.replay", "the stages that led to a run, and how their replays ended"),
    "convert": ("utils.weights.convert", "weights of YOLOv5 or YOLOv7 -> a checkpoint of ours, or safetensors"),
    "split": ("utils.data.prepare.split", "split a data set so that groups stay together, or check that they do"),
    "voc2yolo": ("utils.data.prepare.voc2yolo", "Pascal VOC XML or bbGt text -> YOLO label files"),
    "shapes": ("utils.data.shapes.scenes", "render the embedded data set"),
}


def main(argv: list[str]) -> None:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print("usage: python -m utils TOOL ...   (python -m utils TOOL --help says more)\n")
        print("\n".join(f"  {tool:10}{what}" for tool, (_, what) in TOOLS.items()))
        return
    if name not in TOOLS:
        raise UserError(f"there is no tool {name!r}; there are: {', '.join(TOOLS)}")
    importlib.import_module(TOOLS[name][0]).main(argv[1:])


if __name__ == "__main__":
    run_main(main)
