"""`make bench-operator`: the operator against Kubeflow Trainer and JobSet on one real API server, one after the other.

ONLY=burst,charges,life,scale,refused,failover does some of it; LONG=1 watches refused jobs for ten minutes; PROFILE=1 prints
which parts of the schema cost the API server's CPU time and where it goes, and measures nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable

from benchmarks.operator import pace, rival, scale, schema
from benchmarks.operator.specimen import Specimen, record
from benchmarks.report import Row, write

CLUSTER = "bench-operator"
RIVAL = rival.NAME
BARE = "a bare client with the same writes"


async def burst(specimen: Specimen, options: argparse.Namespace) -> list[Row]:
    theirs = await pace.of_rival(CLUSTER, options.jobs)
    mine = await pace.of_ours(CLUSTER, options.jobs)
    bare = await pace.of_bare_client(CLUSTER, options.jobs, specimen)
    what = f"burst of {options.jobs:,} jobs, first create to last child Job"
    return [
        Row(what, mine.burst, "s", "rival >= 5x", "lower", RIVAL, theirs.burst),
        Row(f"{what}, against the same writes", mine.burst, "s", "<= 1.6x", "lower", BARE, bare.burst),
        Row("creates alone", options.jobs / mine.creates, "jobs/s", None, "higher", RIVAL, options.jobs / theirs.creates),
        Row("CPU time of the controllers for the burst", mine.cpu, "s", None, "lower", RIVAL, theirs.cpu),
        Row("idle: create to child Job, p50", 1000 * mine.percentile(0.5), "ms", "<= 10", "lower", RIVAL, 1000 * theirs.percentile(0.5)),
        Row("idle: create to child Job, p99", 1000 * mine.percentile(0.99), "ms", "<= 25", "lower", RIVAL, 1000 * theirs.percentile(0.99)),
        Row("idle: create to child Job, p50, against the same writes", 1000 * mine.percentile(0.5), "ms", None, "lower", BARE, 1000 * bare.percentile(0.5)),
        Row("memory, idle", mine.idle_memory, "MB", "<= 75", "lower", RIVAL, theirs.idle_memory),
        Row("memory after the burst", mine.burst_memory, "MB", None, "lower", RIVAL, theirs.burst_memory),
    ]  # fmt: skip


async def charges(specimen: Specimen, options: argparse.Namespace) -> list[Row]:
    mine, theirs = await pace.charges(CLUSTER, specimen, options.jobs, profile=False)
    return [
        Row("API server CPU per create", mine.create, "ms", "<= 1.3x", "lower", "TrainJob", theirs.create),
        Row("API server CPU per status write", mine.status, "ms", "<= 1.3x", "lower", "TrainJob", theirs.status),
    ]


async def life(specimen: Specimen, _: argparse.Namespace) -> list[Row]:
    counted = specimen.writes()
    events = sum(number for what, number in counted.items() if what.endswith(" events"))
    children = sum(number for what, number in counted.items() if what.startswith("create ")) - events
    print("writes in a job's life: " + ", ".join(f"{number} {what}" for what, number in counted.most_common()))
    return [
        Row("API writes in a job's life, children and events apart", counted.total() - events - children, "", "<= 5", "lower"),
        Row("children created in a job's life", children, "", None, "lower"),
        Row("events in a job's life", events, "", None, "lower"),
    ]  # fmt: skip


async def at_scale(specimen: Specimen, options: argparse.Namespace) -> list[Row]:
    found = await scale.at_rest(CLUSTER, specimen, options.jobs, 9 * options.jobs)
    all_jobs = f"{10 * options.jobs:,} jobs, {9 * options.jobs:,} of them finished"
    print(f"memory of the API server with {all_jobs}: {found.api_server_memory:,.0f} MB")
    return [
        Row("memory, no jobs", found.idle.memory, "MB", "<= 75", "lower"),
        Row(f"memory, {options.jobs:,} jobs train", found.running.memory, "MB", "<= 110", "lower"),
        Row(f"memory, {all_jobs}", found.many.memory, "MB", "<= 260", "lower"),
        Row(f"peak memory, {all_jobs}", found.many.peak, "MB", None, "lower"),
        Row(f"restart to ready, {all_jobs}", found.many.ready, "s", "<= 15", "lower"),
        Row(f"writes after a restart, {all_jobs}", found.many.writes, "", "0", "lower"),
        Row(f"CPU time after ready until at rest, {all_jobs}", found.many.cpu, "s", None, "lower"),
    ]  # fmt: skip


async def refused(_: Specimen, options: argparse.Namespace) -> list[Row]:
    found = await scale.refused(CLUSTER, options.jobs, 10 if options.long else 3)
    print("requests/s with all jobs refused: " + ", ".join(f"{rate:.1f} at {at:.1f} min" for at, rate in found.after))
    at, rate = found.after[-1]
    goal = "<= 5 after 10 min"
    return [Row(f"{options.jobs:,} jobs refused by quota, after {at:.0f} min", rate, "requests/s", goal, "lower")]


async def failover(_: Specimen, __: argparse.Namespace) -> list[Row]:
    if not scale.has_leader_election():
        why = "this version has no leader election"
        return [
            Row("leader killed to next child Job", None, "s", "<= lease + 1", "lower", why=why),
            Row("leader stopped to next child Job", None, "s", "<= 1", "lower", why=why),
        ]
    found = await scale.failover(CLUSTER)
    return [
        Row("leader killed to next child Job", found.killed, "s", f"<= {found.lease + 1:g}", "lower"),
        Row("leader stopped to next child Job", found.stopped, "s", "<= 1", "lower"),
    ]


PARTS: dict[str, Callable[[Specimen, argparse.Namespace], Awaitable[list[Row]]]] = {
    "life": life,
    "burst": burst,
    "charges": charges,
    "scale": at_scale,
    "refused": refused,
    "failover": failover,
}


async def measure(options: argparse.Namespace) -> None:
    began = time.monotonic()
    specimen = await record(CLUSTER)
    if options.profile:
        print(f"\n{'API server CPU, ms':32} {'create':>8} {'status':>8}")
        for variant, (create, status) in (await schema.costs(CLUSTER, specimen, options.jobs // 5)).items():
            print(f"{variant:32} {create:8.2f} {status:8.2f}")
        await pace.charges(CLUSTER, specimen, options.jobs, profile=True)
        return
    rows: list[Row] = []
    for name in options.only or PARTS:
        print(f"-- {name} (load {os.getloadavg()[0]:.1f})", flush=True)
        rows += await PARTS[name](specimen, options)
    print(f"\n{'':66} {'measured':>10} {'':10} {'goal':>18} {'rival':>10} {'ratio':>6}")
    for row in rows:
        value = "-" if row.value is None else f"{row.value:,.4g}"
        theirs = "" if row.rival_value is None else f"{row.rival_value:,.4g}"
        ratio = row.to_json()["ratio"]
        shown = "" if ratio is None else f"{ratio:.2f}"
        print(f"{row.metric:66} {value:>10} {row.unit:10} {row.goal or '':>18} {theirs:>10} {shown:>6} {row.why or ''}")
    print(f"rival: {RIVAL}; {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")
    write("operator", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: [name for name in text.split(",") if name], default=[])
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if unknown := [name for name in options.only if name not in PARTS]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    asyncio.run(measure(options))


if __name__ == "__main__":
    main()
