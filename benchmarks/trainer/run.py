"""`make bench-trainer`: tokens per second and peak memory of all contenders, in turns, and the table of it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.report import Row, write
from benchmarks.trainer.contenders import CONTENDERS
from benchmarks.trainer.pace import Window
from benchmarks.trainer.workload import Workload, make

WARM_UP_STEPS = 2


class Worker:
    """One contender's process."""

    def __init__(self, name: str, workload: Workload, log: Path, threads: int) -> None:
        mine, theirs = os.pipe()
        described = json.dumps(asdict(workload) | {"folder": str(workload.folder)})
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.trainer.worker", name, described, str(theirs)],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs],
                env=os.environ | _environment(name, workload, threads),
                text=True,
            )
        os.close(theirs)
        self._answers = os.fdopen(mine)
        self._log = log

    def window(self, steps: int) -> Window:
        assert self._process.stdin is not None
        answer = ""
        with contextlib.suppress(BrokenPipeError):
            print(steps, file=self._process.stdin, flush=True)
            answer = self._answers.readline()
        if not answer:
            raise SystemExit(f"a contender ended early; its log:\n{self._log.read_text()[-4000:]}")
        return Window(**json.loads(answer))

    def end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(120)


def _environment(name: str, workload: Workload, threads: int) -> dict[str, str]:
    """The same threads for all; ours also gets what its launcher sets for a worker."""
    common = {
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    if name != "ours":
        return common
    from finetune_trainer.environment import make_folders, place, worker_environment
    from finetune_trainer.train.watchdog import ENV_SECONDS

    folder = workload.folder / "worker"
    make_folders(folder)
    config = workload.config("train")
    waits = {ENV_SECONDS: "86400"}  # while others have their turn, it does not hang
    return worker_environment(config, place(config), 0, folder) | common | waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="JSON Lines with question and answer; absent: made-up rows")
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--rows", type=int, default=16, help="rows in an optimizer step")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps in a window")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each contender")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Fewer than 100 steps in all: then ours tells of every one of them.
        steps = min(99, WARM_UP_STEPS + options.steps * options.rounds + 1)
        workload = Workload(Path(folder), options.method, options.rows, steps, options.compile)
        make(workload, options.data)
        names = options.contenders.split(",")
        windows = measure(names, workload, options)
    report(names, windows, options)


def measure(names: list[str], workload: Workload, options: argparse.Namespace) -> dict[str, list[Window]]:
    """Windows of each contender: all live at once, but one at a time trains, in an order that turns round by round."""
    workers: dict[str, Worker] = {}
    windows: dict[str, list[Window]] = {name: [] for name in names}
    try:
        for name in names:  # one after the other, so that none is built while another warms up
            workers[name] = Worker(name, workload, workload.folder / f"{name}.log", options.threads)
            workers[name].window(WARM_UP_STEPS)
        for turn in range(options.rounds):
            order = names if turn % 2 == 0 else names[::-1]
            for name in order:
                windows[name].append(workers[name].window(options.steps))
                last = windows[name][-1]
                print(
                    f"round {turn + 1}  {name:<16} {last.tokens / last.seconds:8.0f} tokens/s  {last.tokens / last.cpu_seconds:8.0f} tokens/cpu s",
                    flush=True,
                )
    finally:
        for worker in workers.values():
            worker.end()
    return windows


def report(names: list[str], windows: dict[str, list[Window]], options: argparse.Namespace) -> None:
    speed = {name: statistics.median(one.tokens / one.seconds for one in windows[name]) for name in names}
    by_cpu = {name: statistics.median(one.tokens / one.cpu_seconds for one in windows[name]) for name in names}
    peak = {name: max(one.peak_mib for one in windows[name]) for name in names}
    print(f"\n{'contender':<16} {'tokens/s':>10} {'tokens/cpu s':>13} {'peak MiB':>9} {'ours is':>9}")
    for name in names:
        ratio = f"{speed['ours'] / speed[name]:.2f}x" if "ours" in speed else ""
        print(f"{name:<16} {speed[name]:>10.0f} {by_cpu[name]:>13.0f} {peak[name]:>9.0f} {ratio:>9}")
    if "ours" not in names:
        return
    tuned = max((name for name in names if name.startswith("trl-")), key=speed.__getitem__, default=None)
    what = f"{options.method}, fp32, {options.rows} rows a step, {options.threads} threads" + (
        ", compiled" if options.compile else ""
    )
    rows = []
    for rival, goal in (("trl", "1.5"), (tuned, "1.05"), ("transformers", None)):
        if rival in speed:
            rows.append(
                Row(
                    f"tokens per second ({what})",
                    speed["ours"],
                    "tokens/s",
                    goal and f">= {goal}x",
                    "higher",
                    rival,
                    speed[rival],
                )
            )
            rows.append(Row(f"peak memory ({what})", peak["ours"], "MiB", "not above", "lower", rival, peak[rival]))
    write("trainer" if options.method == "full" else f"trainer-{options.method}", rows)


if __name__ == "__main__":
    main()
