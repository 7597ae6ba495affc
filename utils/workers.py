"""What every helping process does first: those that load batches and those that check a data set."""

import os
import signal

import cv2


def start_worker(_: int) -> None:
    """Workers are the parallelism; threads of OpenCV inside them would only compete. Signals to the
    process group (Ctrl-C, a job's end) are the main process's: it finishes its step with the workers alive."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
