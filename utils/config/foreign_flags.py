"""Flags that users bring from YOLOv5, YOLOv7 and Ultralytics: those without a meaning here, and what does it here.

An option that a program has itself comes first. Names are spelt with -, underscores fit as well.
"""

NO_SERVICE = "nothing is uploaded or logged to a service"
NOT_TRACED = "nothing is ever traced"
SIMPLE = "the ONNX file is written simple"

# {flag: (whether it takes a value, why it has no meaning)}: passed over with a line
WITHOUT_MEANING = {
    "bucket": (True, NO_SERVICE),
    "entity": (True, NO_SERVICE),
    "upload-dataset": (False, NO_SERVICE),
    "bbox-interval": (True, NO_SERVICE),
    "artifact-alias": (True, NO_SERVICE),
    "ndjson-console": (False, NO_SERVICE),
    "ndjson-file": (False, NO_SERVICE),
    "local-rank": (True, "ranks are read from the environment that torchrun or torch.distributed.launch sets"),
    "no-trace": (False, NOT_TRACED),
    "update": (False, "no optimizer is kept in the weights that are meant for use"),
    "grid": (False, "the decoded boxes are always in the file"),
    "simplify": (False, SIMPLE),
    "inplace": (False, SIMPLE),
    "dnn": (False, "ONNX files are run by onnxruntime, not by OpenCV"),
}

# {(flag of ours, its value elsewhere): (whether it is passed over, with a line; else an error), what to say}
VALUES = {
    ("cache-images", "ram"): (True, "images are kept in RAM in any case"),
    ("cache-images", "disk"): (False, "images are kept in RAM or read from their files; leave --cache-images out"),
    ("task", "study"): (
        False,
        "run test.py once per --img-size, each with a --name of its own; the figures are in metrics.yaml of the folder",
    ),
}

# {flag: what to give instead, or why there is nothing}: an error
INSTEAD = {
    "optimizer": "SGD is the default, --adam takes Adam",
    "model": "give --cfg MODEL.yaml, --weights FILE, or both",
    "cos-lr": "the cosine schedule is the default; --linear-lr takes the linear one",
    "evolve": "no hyper-parameters are searched; `python -m utils study` compares arms over seeds",
    "evolve-population": "no hyper-parameters are searched; see `python -m utils study`",
    "resume-evolve": "no hyper-parameters are searched; see `python -m utils study`",
    "noplots": "pictures take no part in training; there is no switch",
    "lr": "the rate is --lr0, its end --lrf",
    "learning-rate": "the rate is --lr0, its end --lrf",
    "layers": "give --freeze, with numbers or backbone, neck, head",
    "mode": "each mode is a program: train.py, test.py, detect.py, export.py",
    "task": "each task is a program: train.py, test.py, detect.py, export.py; test.py --task chooses the split",
    "split": "give --task val, train or test",
    "save-hybrid": "labels and detections are not mixed; --save-txt writes the detections",
    "show": "there is no window; the drawn pictures lie in the run folder",
    "visualize": "there is no such picture; `train.py --help --cfg MODEL.yaml` lists the modules",
    "half": "test.py, detect.py and export.py compute in float32",
    "fp16": "test.py, detect.py and export.py compute in float32",
    "int8": "export.py writes float32; quantise the ONNX file with onnxruntime",
    "include": "export.py writes ONNX",
    "format": "export.py writes ONNX",
    "dynamic": "give --batch dynamic",
    "dynamic-batch": "give --batch dynamic",
    "end2end": "NMS is not in the file; the output is described by export.py --help",
    "include-nms": "NMS is not in the file; the output is described by export.py --help",
    "nms": "NMS is not in the file; the output is described by export.py --help",
    "max-wh": "NMS is not in the file; the output is described by export.py --help",
    "topk-all": "NMS is not in the file; the output is described by export.py --help",
    "topk-per-class": "NMS is not in the file; the output is described by export.py --help",
    "device": "export.py computes on the CPU",
    "opset": "the exporter chooses the opset; export.py prints it",
    "conf-thres": "NMS is not in the file; detect.py and test.py have --conf-thres",
    "iou-thres": "NMS is not in the file; detect.py and test.py have --iou-thres",
    "vid-stride": "every frame of a video is read",
    "line-thickness": "lines follow the size of the picture",
    "hide-labels": "boxes are drawn with class and confidence; --nosave draws none",
    "hide-conf": "boxes are drawn with class and confidence; --nosave draws none",
    "save-crop": "give --save-txt, and cut by the boxes written there",
    "save-csv": "give --save-txt --save-conf",
    "save-vid": "videos are written unless --nosave is given",
    "pretrained": "give --weights FILE",
    "dropout": "dropout belongs to the branches: --cls-dropout, --dual-dropout",
    "fraction": "give a .txt list of the images as train: in the data YAML",
    "save": "checkpoints are written; --nosave leaves only the last",
    "val": "every epoch is evaluated; --notest leaves only the last",
    "plots": "pictures are always drawn",
}
