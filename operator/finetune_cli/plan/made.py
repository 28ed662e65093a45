"""The plan itself: facts and spec through the planner, and what speaks against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.budget_policy import over_budget, unknown_cost
from finetune_api.effective import resolve, shown
from finetune_api.finetunejob import FineTuneJob
from finetune_api.planner.decide import decide
from finetune_api.planner.draw import draw
from finetune_api.planner.estimate import Estimate, estimate
from finetune_api.planner.facts import PlanFacts
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import PlanStatus

from finetune_cli.plan.facts import Known


@dataclass(frozen=True, slots=True)
class Made:
    """`spec` is decided. `problems` are sentences: with one of them the job would not start, or not end well."""

    job: FineTuneJob
    spec: FineTuneJobSpec
    facts: PlanFacts
    plan: PlanStatus
    estimate: Estimate
    problems: list[str]
    notes: list[str]

    def wire(self) -> dict[str, Any]:
        taken = self.estimate
        return {
            "job": self.job.metadata.name,
            "plan": self.plan.wire(),
            "fits": taken.fits,
            "change": taken.change,
            "memory": {**taken.memory.parts(), "total": taken.memory.total, "capacity": taken.capacity},
            "hostMemory": {**taken.host.parts(), "total": taken.host.total},
            "seconds": {
                "expected": taken.duration.seconds,
                "shortest": taken.duration.shortest,
                "longest": taken.duration.longest,
            },
            "tokensPerSecond": taken.duration.tokens_per_second,
            "flops": taken.model_flops,
            "gpus": taken.gpus,
            "storageBytes": taken.storage,
            "effective": shown(self.spec),
            "facts": self.facts.wire(),
            "problems": self.problems,
            "notes": self.notes,
        }


def make(job: FineTuneJob, known: Known) -> Made:
    """The same arithmetic as the operator's, from the same facts where they could be read."""
    decided = known.decided if known.decided is not None else decide(job.spec, known.facts)[0]
    spec = resolve(job.spec, None, decided)
    measured = known.measured or PlanStatus()
    plan = draw(job.spec, known.facts, decided, known.measured)
    taken = estimate(spec, known.facts, tokens=measured.tokens, steps=measured.steps)
    problems = [f"The job {taken.warning}."] if taken.warning else []
    if over := over_budget(plan, spec.budget):
        problems.append(over)
    notes = list(known.notes)
    if unknown := unknown_cost(plan, spec.budget):  # the cluster may know a price
        notes.append(f"{unknown}, or give --gpu-hour-price")
    return Made(job, spec, known.facts, plan, taken, problems, notes)
