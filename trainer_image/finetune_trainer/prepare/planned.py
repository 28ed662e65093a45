"""What model and data decide of the spec, and the plan that follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.effective import resolve
from finetune_api.planner.decide import decide
from finetune_api.planner.draw import draw
from finetune_api.planner.estimate import steps_of
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.steps import StepsPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import PlanStatus

from finetune_trainer import throughput
from finetune_trainer.data.lengths import bin_width
from finetune_trainer.data.shards import SplitCounts
from finetune_trainer.prepare.facts import of_data, of_model
from finetune_trainer.prepare.read import Reading


@dataclass(slots=True)
class Planned:
    """`spec` has every field decided, `given` not. `status` is what status.plan will show, once the steps' tokens are counted."""

    given: FineTuneJobSpec
    spec: FineTuneJobSpec
    facts: PlanFacts
    decided: dict[str, Any]
    steps: StepsPlan
    status: PlanStatus

    def draw(self, measured: PlanStatus) -> None:
        """Fill `status` from what was counted."""
        self.status = draw(self.given, self.facts, self.decided, measured)


def planned(reading: Reading, counts: dict[str, SplitCounts]) -> Planned:
    inputs, made = reading.inputs, reading.made
    assert made is not None
    longest = max(count.longest for count in counts.values())
    lengths = {
        min(start + bin_width(start) - 1, longest): rows for start, rows in sorted(reading.found.lengths.items())
    }
    labels = len(made.labels.names()) if made.labels else 0
    facts = PlanFacts(
        model=of_model(inputs.model, inputs.config.spec.model.uri),
        data=of_data(counts, lengths, size=inputs.bytes, labels=labels),
        task=made.task,
    )
    decided, _ = decide(inputs.config.spec, facts)
    spec = resolve(inputs.config.spec, decided=decided)
    measured = throughput.known(inputs.config.model_copy(update={"spec": spec}), facts)
    facts = facts.model_copy(update={"measured": measured})
    return Planned(inputs.config.spec, spec, facts, decided, steps_of(spec, facts), PlanStatus())
