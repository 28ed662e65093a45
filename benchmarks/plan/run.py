"""`make bench-plan`: what plans say against what happens, written to benchmarks/out/plan.json.

`--only gpu|memory|published|speed` does a part; `--cases TEXT` takes the cases of gpu and memory whose name has TEXT in it.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.plan.cases import CASES, FULL, LORA
from benchmarks.plan.gpu_cases import GPU_CASES
from benchmarks.plan.gpu_memory import compare
from benchmarks.plan.memory import Bench, Compared
from benchmarks.plan.published import CLAIMS, RECIPES, expected, hold
from benchmarks.plan.speed import Run, runs
from benchmarks.report import Row, write

_MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("gpu", "memory", "published", "speed"))
    parser.add_argument("--cases", default="")
    asked = parser.parse_args()
    rows: list[Row] = []
    if asked.only in (None, "published"):
        rows += published()
    if asked.only in (None, "speed"):
        rows += [row for name, method in (("full", FULL), ("lora", LORA)) for row in of_runs(name, runs(method))]
    if asked.only in (None, "gpu"):
        rows += on_gpu(asked.cases)
    if asked.only in (None, "memory"):
        rows += memory(asked.cases)
    for row in rows:
        rival = f"  {row.rival}: {row.rival_value:,.4g}" if row.rival_value is not None else f"  {row.rival or ''}"
        print(f"{row.metric}: {row.value:,.4g} {row.unit}{rival}")
    write("plan", rows)


def on_gpu(having: str) -> list[Row]:
    """Of the trainer's own step with tensors that have no values."""
    found = []
    for case in GPU_CASES:
        if having in case.name:
            found.append(compare(case))
            one = found[-1]
            print(
                f"{case.name}: {one.error:+.1%}, {one.predicted / 2**30:.1f} GiB planned, {one.measured / 2**30:.1f} held at {one.at}",
                flush=True,
            )
    errors = [abs(one.error) for one in found]
    return [
        Row(f"peak on a GPU, bf16, median error of {len(found)}", statistics.median(errors), "", "<= 0.1", "lower"),
        Row("peak on a GPU, bf16, worst error", max(errors), "", "<= 0.1", "lower"),
        *(
            Row(
                f"peak on a GPU, {one.case.name}", one.predicted / _MIB, "MiB", "within 10%", "equal",
                "held by the trainer's step", one.measured / _MIB,
            )
            for one in found
        ),
    ]  # fmt: skip


def memory(having: str) -> list[Row]:
    bench, found = Bench(), []
    for case in CASES:
        if having in case.name:
            found.append(bench.compare(case))
            print(f"{case.name}: {found[-1].error:+.1%}", flush=True)
    return of_memory(found)


def of_memory(found: list[Compared]) -> list[Row]:
    """A row a case, and two over all."""
    errors = [abs(one.error) for one in found]
    each = [
        Row(
            f"peak memory, {one.case.name}", one.predicted / _MIB, "MiB", "within 10%", "equal",
            "measured", one.measured / _MIB,
        )
        for one in found
    ]  # fmt: skip
    return [
        Row(f"predicted peak memory, median error of {len(found)}", statistics.median(errors), "", "<= 0.1", "lower"),
        Row("predicted peak memory, worst error", max(errors), "", "<= 0.1", "lower"),
        *each,
    ]


def published() -> list[Row]:
    rows = []
    for claim in CLAIMS:
        for count in (1, 16):
            held = hold(claim, count)
            rows.append(
                Row(
                    f"{claim.said} ({claim.gpus} {claim.gpu}), {count} row{'s' * (count > 1)} a step: longest that fits",
                    held.longest, "tokens", ">= 512", "higher", "with nothing computed again", held.plain or None,
                )
            )  # fmt: skip
    for recipe in RECIPES:
        speed, gib = expected(recipe)
        name = "published"
        rows.append(
            Row(f"{recipe.said}: planned", speed, "tokens/s/GPU", None, "equal", name, recipe.tokens_per_second)
        )
        rows.append(
            Row(f"{recipe.said}: planned peak", gib, "GiB", None, "equal", name if recipe.gib else None, recipe.gib)
        )
    return rows


def of_runs(name: str, both: list[Run]) -> list[Row]:
    second = both[-1]
    return [
        Row(f"{name}: planned steps", second.planned_steps, "steps", "equal", "equal", "taken", second.steps),
        Row(f"{name}: planned tokens", second.planned_tokens, "tokens", "equal", "equal", "taken", second.tokens),
        Row(f"{name}: planned time, first run ({both[0].basis})", both[0].planned_seconds, "s", None, "equal", "taken", both[0].seconds),
        Row(f"{name}: planned time, second run ({second.basis})", second.planned_seconds, "s", "within 20%", "equal", "taken", second.seconds),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
