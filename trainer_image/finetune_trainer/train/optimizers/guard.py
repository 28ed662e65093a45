"""Keeps the weights as they were before the first update whose gradients are not finite, so that its cause can be looked for.

The host does not wait for the device to learn of it: torch's fused optimizers read from `found_inf`, a number on the
device, whether to leave everything as it is. Once it is set it stays so: the run will end at its next log line. Other
optimizers are held back on CPUs, where asking costs nothing; on GPUs they go on, and the cause is then told less well.
"""

from __future__ import annotations

from typing import Any

import torch


class Guard:
    """Of one optimizer, or of all its parts."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        parts = getattr(optimizer, "parts", [optimizer])
        self._fused = [part for part in parts if part.defaults.get("fused")]
        self._all_fused = len(self._fused) == len(parts)
        self._bad: torch.Tensor | None = None

    def see(self, norm: torch.Tensor) -> bool:
        """The norm of the gradients that the next `step` would take, the same on every rank; whether to take that step."""
        self._note(~torch.isfinite(norm.detach()))
        return self._all_fused or norm.device.type != "cpu" or not bool(self._bad)

    def watch(self) -> None:
        """Look at the gradients before each step, for engines that clip within it: a bad norm makes all of them bad."""
        for part in self._fused:
            part.register_step_pre_hook(self._look)

    def _look(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        sums = [p.grad.sum() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if sums:
            self._note(~torch.isfinite(torch.stack(sums).sum()))

    def _note(self, bad: torch.Tensor) -> None:
        now = bad.to(torch.float32)
        self._bad = now if self._bad is None else torch.maximum(self._bad, now)
        for part in self._fused:
            part.found_inf = self._bad  # type: ignore[attr-defined]  # the name under which fused kernels look for it
