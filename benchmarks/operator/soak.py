"""`make soak MINUTES=30`: hundreds of jobs under random faults; the exit code says whether every invariant held.

For MINUTES things go wrong: pods, nodes, Jobs, specs, the API server, the operator's process and its clock. Then everything is
healed, every job must end within eight minutes, and at rest the operator must write nothing. SEED repeats the same draws (not the
same timing).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.operator import ours
from benchmarks.operator.control import Api, Object, cluster, memory_mb
from benchmarks.operator.faults import Faults
from benchmarks.operator.invariants import TERMINAL, Observer
from benchmarks.operator.proxy import Mode, Proxy
from benchmarks.operator.scale import has_leader_election
from benchmarks.report import OUT, machine

CLUSTER = "soak"
_NODES = 12
_MEMORY_LIMIT_MB = 256
"""The chart's limit."""
_FAULT_S = 1.0
_REST_S = 30.0
_QUIET_S = 65.0
"""Longer than the ttl of 60 s that some jobs get: their children are deleted when it is over."""
_SETTLE_S = 480.0
"""At most: longer than the longest backoff of the operator and of the Job controller."""
_LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
_CLOCK_JUMPS = _LIBFAKETIME.exists()
_JUMPS_S = (0, 3600, -3600, 86400, -86400)


def manifest(name: str, rng: random.Random) -> Object:
    """A job whose stages KWOK plays: half of them on GPUs, a third of them gangs of two."""
    pods: Object = {}
    for stage, longest in (("prepare", 4), ("train", 40), ("publish", 3)):
        pods[stage] = ours.ending(stage, f"{rng.uniform(0.5, longest):.1f}s")
        stopped = ours.message(stage, "stopped", 5, step=7, lastCheckpoint={"step": 7})
        pods[stage]["annotations"] |= {
            "localcluster/stop-exit-code": "5" if stage == "train" else "143",
            "localcluster/stop-message": stopped if stage == "train" else "",
        }
    nodes = 2 if rng.random() < 0.33 else 1
    compute: Object = {"nodes": nodes} | (
        {"gpusPerNode": rng.choice([1, 2])} if rng.random() < 0.5 else {"device": "cpu"}
    )
    return ours.manifest(name, pods, compute=compute, retry={"infra": 5})


@dataclass
class Replicas:
    """The operator's processes, through the proxy and with a clock that can be set."""

    proxy: Proxy
    folder: Path
    count: int
    observer: Observer
    progress_port: int
    running: list[ours.Operator | None] = field(default_factory=list)
    peak_mb: float = 0.0
    first_mb: float = 0.0
    last_mb: float = 0.0
    starts: int = 0
    asked_to_end: set[int] = field(default_factory=set)
    _unanswered: dict[int, float] = field(default_factory=dict)

    @property
    def clock(self) -> Path:
        return self.folder / "clock"

    def set_clock(self, offset: float) -> None:
        new = self.folder / "clock.new"
        new.write_text(f"{offset:+.0f}\n")
        new.replace(self.clock)

    def start(self, number: int) -> None:
        self.starts += 1
        settings = {
            "FINETUNE_PROGRESS_PORT": str(self.progress_port),
            "FINETUNE_RESYNC_SECONDS": "30",
            "FINETUNE_RETRY_SECONDS": "1",
            "FINETUNE_POLL_SECONDS": "5",
        }
        if self.count > 1:
            settings |= ours.replica(f"replica-{number}-{self.starts}")
        if _CLOCK_JUMPS:
            settings |= {
                "LD_PRELOAD": str(_LIBFAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        operator = ours.Operator(self.proxy.kubeconfig(self.folder / "kubeconfig"), **settings)
        if len(self.running) <= number:
            self.running.append(operator)
        else:
            self.running[number] = operator

    async def end(self, number: int, how: int) -> int | None:
        """Kill or stop one; the exit code."""
        operator = self.running[number]
        if operator is None or operator.process.poll() is not None:
            return None
        self.asked_to_end.add(operator.pid)
        began = time.monotonic()
        code = await asyncio.to_thread(operator.stop, how)
        if how == signal.SIGTERM and (code != 0 or time.monotonic() - began > 30):
            self.observer.violated(f"the operator answered SIGTERM with {code} after {time.monotonic() - began:.0f} s")
        return code

    async def check(self) -> None:
        """An operator that ended by itself is a violation, and is started again, as Kubernetes would."""
        for number, operator in enumerate(self.running):
            if operator is None:
                continue
            code = operator.process.poll()
            if code is not None:
                if operator.pid not in self.asked_to_end:
                    tail = operator.log.read_text(errors="replace")[-1500:]
                    self.observer.violated(f"the operator ended by itself with {code}: {tail}")
                self.start(number)
                continue
            with contextlib.suppress(OSError, StopIteration):
                self.last_mb = memory_mb(operator.pid)
                self.first_mb = self.first_mb or self.last_mb
                self.peak_mb = max(self.peak_mb, self.last_mb)
            await self._alive(operator)

    async def _alive(self, operator: ours.Operator) -> None:
        """Liveness fails once the process has served and then does not for 30 s: Kubernetes would restart it."""
        try:
            await asyncio.to_thread(operator.get, "/healthz")
        except OSError as error:
            since = self._unanswered.get(operator.pid)
            if since is not None and since and time.monotonic() - since > 30:
                self.observer.violated(f"liveness failed for 30 s: {error} {getattr(error, 'reason', '')}")
                self._unanswered[operator.pid] = 0
            elif since is None and time.monotonic() - operator.started > 15:
                self._unanswered[operator.pid] = time.monotonic()
        else:
            self._unanswered.pop(operator.pid, None)

    async def stop(self) -> None:
        for number in range(len(self.running)):
            await self.end(number, signal.SIGTERM)


@dataclass
class Soak:
    options: argparse.Namespace
    rng: random.Random
    api: Api
    observer: Observer
    proxy: Proxy
    replicas: Replicas
    faults: Faults
    happened: Counter[str] = field(default_factory=Counter)

    async def run(self) -> None:
        storm = 60 * self.options.minutes
        for number in range(self.replicas.count):
            self.replicas.start(number)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(task)
                for task in (self.observer.follow(), self._checks(), self._report())
            ]  # fmt: skip
            try:
                async with asyncio.TaskGroup() as chaos:
                    chaos.create_task(self._create(0.9 * storm))
                    going = [
                        chaos.create_task(task)
                        for task in (self._objects(), self._api_server(), self._process(), self._clock())
                    ]
                    await asyncio.sleep(storm)
                    for task in going:
                        task.cancel()
                await self._settle()
            finally:
                for task in tasks:
                    task.cancel()

    async def _create(self, seconds: float) -> None:
        for number in range(self.options.jobs):
            await self.api.post(ours.JOBS, manifest(f"s{number}", self.rng))
            await asyncio.sleep(seconds / self.options.jobs)

    async def _objects(self) -> None:
        while True:
            await asyncio.sleep(self.rng.expovariate(1 / _FAULT_S))
            await self.faults.one()

    async def _api_server(self) -> None:
        """A few errors always, and an episode every half minute."""
        while True:
            self.proxy.error_rate = 0.01
            await asyncio.sleep(self.rng.uniform(10, 40))
            modes: tuple[Mode, ...] = ("refuse", "unavailable", "error", "hang")
            episode = self.rng.choice([*modes, "flaky", "flaky", "cut", "expired"])
            self.happened[f"API server: {episode}"] += 1
            if episode in ("cut", "expired"):
                self.proxy.cut_watches(expired=episode == "expired")
            elif episode == "flaky":
                self.proxy.error_rate = self.rng.uniform(0.1, 0.5)
                await asyncio.sleep(self.rng.uniform(5, 30))
            else:
                self.proxy.mode = next(mode for mode in modes if mode == episode)
                self.proxy.cut_watches(expired=False)
                await asyncio.sleep(self.rng.uniform(2, 30))
                self.proxy.mode = "normal"

    async def _process(self) -> None:
        while True:
            await asyncio.sleep(self.rng.uniform(15, 60))
            number = self.rng.randrange(self.replicas.count)
            kill = self.rng.random() < 0.7
            self.happened["operator killed" if kill else "operator stopped"] += 1
            await self.replicas.end(number, signal.SIGKILL if kill else signal.SIGTERM)

    async def _clock(self) -> None:
        while _CLOCK_JUMPS:
            await asyncio.sleep(self.rng.uniform(20, 60))
            self.replicas.set_clock(self.rng.choice(_JUMPS_S))
            self.happened["clock jump"] += 1

    async def _checks(self) -> None:
        while True:
            await asyncio.sleep(2)
            await self.replicas.check()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(60)
            phases = Counter(known.phase for known in self.observer.jobs.values() if not known.deleted)
            recent = self.proxy.writes_since(time.monotonic() - 60)
            print(
                f"{time.monotonic() - self.observer.began:5.0f} s  {dict(phases)}  {self.replicas.last_mb:.0f} MB  "
                f"{recent.total() / 60:.1f} writes/s  {sum(self.faults.done.values())} faults, "
                f"{sum(self.proxy.injected.values())} bad answers, {len(self.observer.violations)} violations",
                flush=True,
            )

    async def _settle(self) -> None:
        """Heal, wait for every job to end, then for quiet."""
        healed = time.monotonic()
        self.proxy.mode, self.proxy.error_rate = "normal", 0.0
        self.replicas.set_clock(0)
        await self.faults.heal()
        while time.monotonic() < healed + _SETTLE_S:
            open_jobs = [k for k in self.observer.jobs.values() if not k.deleted and k.phase not in TERMINAL]
            quiet = not self.proxy.writes_since(time.monotonic() - _QUIET_S)
            if not open_jobs and quiet:
                break
            await asyncio.sleep(1)
        open_jobs = [k for k in self.observer.jobs.values() if not k.deleted and k.phase not in TERMINAL]
        for known in open_jobs:
            reason, message = known.status.get("reason"), known.status.get("message")
            self.observer.violated(f"{known.name} did not end: {known.phase} ({reason}: {message})")
        started = time.monotonic()
        await asyncio.sleep(_REST_S)
        if storm := self.proxy.writes_since(started):
            self.observer.violated(f"at rest the operator wrote {dict(storm)} in {_REST_S:.0f} s")
        if self.replicas.peak_mb > _MEMORY_LIMIT_MB:
            self.observer.violated(f"memory rose to {self.replicas.peak_mb:.0f} MB, over {_MEMORY_LIMIT_MB}")
        await self.observer.at_the_end(self.faults.orphaned, self.faults.orphaned_jobs)

    def summary(self, seconds: float) -> Object:
        phases = Counter(known.phase for known in self.observer.jobs.values() if not known.deleted)
        return {
            "machine": machine(),
            "commit": _commit(),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seed": self.options.seed,
            "minutes": round(seconds / 60, 1),
            "jobs": len(self.observer.jobs),
            "phases": dict(phases),
            "deleted": sum(known.deleted for known in self.observer.jobs.values()),
            "replicas": self.replicas.count,
            "operator starts": self.replicas.starts,
            "faults": dict(sorted(self.faults.done.items())),
            "episodes": dict(sorted(self.happened.items())),
            "bad answers": dict(sorted(self.proxy.injected.items())),
            "writes": dict(self.proxy.written.most_common()),
            "memory": {key: round(getattr(self.replicas, f"{key}_mb")) for key in ("first", "last", "peak")},
            "violations": [{"after": round(at), "what": what} for what, at in self.observer.violations.items()],
        }


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ours.ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    return done.stdout.strip()


@contextlib.asynccontextmanager
async def prepared(options: argparse.Namespace) -> AsyncIterator[Soak]:
    rng = random.Random(options.seed)
    async with contextlib.AsyncExitStack() as stack:
        spec = stack.enter_context(cluster(CLUSTER, kwok=_NODES))
        port = await stack.enter_async_context(ours.progress_server())
        folder = Path(tempfile.mkdtemp(prefix="finetune-soak-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        api = Api(spec.paths.kubeconfig, connections=0)
        stack.push_async_callback(api.close)
        await api.namespace()
        await ours.install(api)
        await ours.claims(api)
        proxy = Proxy(spec, random.Random(rng.random()))
        await stack.enter_async_context(proxy.serving())
        observer = Observer(api)
        replicas = Replicas(proxy, folder, 2 if has_leader_election() else 1, observer, port)
        replicas.set_clock(0)
        stack.push_async_callback(replicas.stop)
        faults = Faults(api, observer, random.Random(rng.random()), _NODES)
        yield Soak(options, rng, api, observer, proxy, replicas, faults)


async def soak(options: argparse.Namespace) -> int:
    print(f"seed {options.seed}, {options.minutes:g} min, {options.jobs} jobs", flush=True)
    if not _CLOCK_JUMPS:
        print(f"clock jumps are left out: {_LIBFAKETIME} is missing; install libfaketime", flush=True)
    began = time.monotonic()
    async with prepared(options) as work:
        await work.run()
        summary = work.summary(time.monotonic() - began)
    OUT.mkdir(exist_ok=True)
    (OUT / "soak.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    violations = len(summary["violations"])
    print("every invariant held" if not violations else f"{violations} violations", f"(seed {options.seed})")
    return 1 if violations else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    return asyncio.run(soak(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
