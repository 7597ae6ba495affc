"""YOLOv7's command for models with auxiliary heads (yolov7-w6, -e6, -d6, -e6e), which train.py trains as any other."""

from train import main
from utils.system.processes.program import run_main

if __name__ == "__main__":
    run_main(main)
