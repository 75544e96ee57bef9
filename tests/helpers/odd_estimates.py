"""Estimates that do something to the process which scores them. No torch is imported, so that such a process starts fast."""

from __future__ import annotations

import os
import signal

import numpy as np


class Killer:
    """Takes the scoring process down, as a fault in C code would."""

    def __init__(self) -> None:
        self.parent = os.getpid()

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        assert os.getpid() != self.parent, "scored in the calling process"
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


class Interrupted:
    """Ctrl-C is pressed while `samples` are scored."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGINT)
        return self.samples.astype(np.float64)
