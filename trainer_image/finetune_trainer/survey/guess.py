"""Facts where the rows are not read: the model as it is, and the data from the size of its files."""

from __future__ import annotations

from finetune_api.contract import RunConfig, SurveyAnswer
from finetune_api.effective import resolve
from finetune_api.planner.decide import decide
from finetune_api.planner.facts import DataFacts, PlanFacts

from finetune_trainer import prepare
from finetune_trainer.prepare import facts as gather

BYTES_A_ROW = 1024
BYTES_A_TOKEN = 4
"""Of English text in JSON, roughly."""


def answer(config: RunConfig) -> SurveyAnswer:
    """Raises BadInput, StageError where model or data are out of reach."""
    inputs = prepare.gather(config)
    rows = max(1, inputs.bytes // BYTES_A_ROW)
    longest = min(BYTES_A_ROW // BYTES_A_TOKEN * 4, inputs.longest_allowed())
    share = config.spec.data.split
    data = DataFacts(
        rows=max(1, int(rows * share.train)),
        validation_rows=int(rows * share.validation),
        test_rows=int(rows * share.test),
        tokens=max(1, int(inputs.bytes * share.train) // BYTES_A_TOKEN),
        longest=longest,
        bytes=inputs.bytes,
    )
    model = gather.of_model(inputs.model, config.spec.model.uri)
    facts = PlanFacts(model=model, data=data, task=config.spec.model.task or inputs.model.tasks[0])
    decided, _ = decide(resolve(config.spec), facts)
    return SurveyAnswer(facts=facts, decided=decided)
