"""`make bench-gpu CASE=lora-8b RIVAL=trl-tuned`: one case and two contenders, one after the other on one model, and the table of it."""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import contenders
from benchmarks.gpu.cases import CASES, PEAK_FLOPS, Case, build, flops, steps_of, write_rows
from benchmarks.report import Row, write

WARM_UP, WINDOWS = 5, 3
GOALS = {"trl": 1.7, "trl-tuned": 1.2}


class Clock:
    """Told after each step; cuts windows after the warm-up."""

    def __init__(self, device: torch.device, steps: list[np.ndarray], lengths: np.ndarray, window: int) -> None:
        self._device = device
        self._steps = steps
        self._lengths = lengths
        self._window = window
        self._done = self._tokens = 0
        self.windows: list[contenders.Window] = []

    def step(self, tokens: int | None = None) -> None:
        """`tokens`: those of the step, if it did not take the rows that were planned."""
        planned = int(self._lengths[self._steps[self._done]].sum())
        self._tokens += planned if tokens is None else tokens
        self._done += 1
        within = self._done - WARM_UP
        if within < 0 or within % self._window:
            return
        now = contenders.now(self._device)
        if within:
            rows = np.concatenate(self._steps[self._done - self._window : self._done])
            seconds = now - self._began
            self.windows.append(contenders.Window(seconds, self._tokens, self._lengths[rows], _peak(self._device)))
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._tokens = 0
        self._began = contenders.now(self._device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="lora-8b")
    parser.add_argument("--rival", choices=["trl", "trl-tuned", "none"], default="none")
    parser.add_argument("--window", type=int, default=20, help="steps in each of three windows")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    case = CASES[options.case] if on_gpu else CASES[options.case].tiny()
    window = options.window if on_gpu else 2
    name = torch.cuda.get_device_name(device) if on_gpu else "no GPU"
    count = WARM_UP + WINDOWS * window
    with tempfile.TemporaryDirectory() as folder:
        split = write_rows(Path(folder), case, count + 1)
        steps = steps_of(split, case)[:count]
        model = build(case, device)
        measured = {"ours": _ours(model, case, split, steps, device, window, compile=options.compile)}
        if options.rival != "none":
            _clear(model)
            clock = Clock(device, steps, split.lengths(), window)
            tuned = options.rival == "trl-tuned"
            contenders.trl(model, case, split, steps, device, tuned=tuned, on_step=clock.step)
            measured[options.rival] = clock.windows
        planned = planned_gib(case, split, steps)
    report(case, model, measured, name, planned=planned, on_gpu=on_gpu)


def _ours(
    model: Any, case: Case, split: Any, steps: list[np.ndarray], device: torch.device, window: int, *, compile: bool
) -> list[contenders.Window]:
    clock = Clock(device, steps, split.lengths(), window)
    for _ in contenders.ours(model, case, split, steps, device, compile=compile):
        clock.step()
    return clock.windows


def _clear(model: Any) -> None:
    """What the contender before left on the model and the device."""
    model.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def planned_gib(case: Case, split: Any, steps: list[np.ndarray]) -> float:
    """What the planner says of this training's peak."""
    from finetune_api.planner.estimate import estimate
    from finetune_api.planner.facts import DataFacts, PlanFacts
    from finetune_api.planner.shape import shape_of

    lengths = split.lengths()[np.concatenate(steps)]
    tokens = int(lengths.sum())
    data = DataFacts(rows=len(lengths), tokens=tokens, trained_tokens=tokens // 2, longest=int(lengths.max()))
    facts = PlanFacts(model=shape_of({"model_type": "llama", **case.shape}), data=data)
    spec = contenders.spec_of(case.method, torch.device("cuda"))
    spec.training.global_batch_size = max(1, len(lengths) // len(steps))
    return estimate(spec, facts).memory.total / 2**30


def report(
    case: Case,
    model: Any,
    measured: dict[str, list[contenders.Window]],
    device: str,
    *,
    planned: float,
    on_gpu: bool,
) -> None:
    peak = next((flops_ for word, flops_ in PEAK_FLOPS.items() if word in device), None)
    full = case.method == "full"
    speed, used, memory = {}, {}, {}
    for name, windows in measured.items():
        speed[name] = statistics.median(one.tokens / one.seconds for one in windows)
        rate = statistics.median(
            flops(model, one.lengths, full=full) / one.lengths.sum() * one.tokens / one.seconds for one in windows
        )
        used[name] = rate / peak if peak else None
        memory[name] = max(one.peak_bytes for one in windows) / 2**30
    why = None if on_gpu else "not measured: no GPU here (the script ran its tiny shapes on the CPU)"
    print(f"\n{case.name} on {device}" + (f"\n{why}" if why else ""))
    print(f"{'contender':<12} {'tokens/s':>10} {'MFU':>7} {'peak GiB':>9}")
    for name in measured:
        shown = (
            (f"{speed[name]:.0f}", f"{used[name]:.1%}" if used[name] else "-", f"{memory[name]:.1f}")
            if on_gpu
            else ("-",) * 3
        )
        print(f"{name:<12} {shown[0]:>10} {shown[1]:>7} {shown[2]:>9}")

    def value(of: dict[str, float | None], name: str | None) -> float | None:
        return of.get(name) if on_gpu and name else None

    rival = next((name for name in measured if name != "ours"), None)
    goal = f">= {GOALS[rival]}x" if rival else None
    rows = [
        Row(f"{case.name}: MFU", value(used, "ours"), "share of dense bf16 peak", f">= {case.goal}", "higher", rival, value(used, rival), why),
        Row(f"{case.name}: tokens per second", value(speed, "ours"), "tokens/s", goal, "higher", rival, value(speed, rival), why),
        Row(f"{case.name}: peak memory", value(memory, "ours"), "GiB", None, "lower", rival, value(memory, rival), why),
        Row(f"{case.name}: planned peak memory, of the measured", planned / memory["ours"] if on_gpu else None, "ratio", "0.95 to 1.15", "lower", why=why),
    ]  # fmt: skip
    write(f"gpu-{case.name}", rows)


if __name__ == "__main__":
    main()
