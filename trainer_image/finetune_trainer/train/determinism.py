"""Results that never vary: `training.deterministic`."""

from __future__ import annotations

import os

import torch


def only_deterministic_kernels() -> None:
    """For the rest of the process, and before CUDA is touched: cuBLAS reads its workspace's size only once.

    A kernel that has no deterministic twin raises RuntimeError when it is called, which the step turns into BadInput.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
