"""What goes wrong in the middle of a training, and what comes of it."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from finetune_trainer.data.shards import Shards
from finetune_trainer.errors import BadInput, Diverged, Stopped

FULL = {"type": "full"}


@pytest.fixture(scope="session")
def undisturbed(make_job) -> Any:
    """Full fine-tuning with dropout: the curve depends on the randomness of each step."""
    job = make_job("undisturbed", model="dropout", method=FULL)
    job.context = job.here()
    return job


@pytest.fixture(scope="session")
def interrupted(make_job) -> Any:
    """The same, stopped before step 1, between steps, before a validation that was due, and while it evaluates."""
    job = make_job("interrupted", model="dropout", method=FULL)
    job.stopped = []
    for when in (
        lambda progress: progress.stage == "evaluate",
        lambda progress: progress.step == 7,
        lambda progress: progress.step == 10,
        lambda progress: progress.stage == "evaluate" and progress.step > 0,
    ):
        with pytest.raises(Stopped) as stop:
            job.here(stop_when=when)
        job.stopped.append(str(stop.value))
    job.context = job.here()
    return job


def test_randomness_goes_on_where_it_was(undisturbed: Any, interrupted: Any) -> None:
    assert "measuring the loss" in interrupted.stopped[0]
    assert "at step 8 of 48" in interrupted.stopped[1]
    assert "at step 10 of 48" in interrupted.stopped[2]
    assert "generating answers" in interrupted.stopped[3]
    assert interrupted.losses(1) == undisturbed.losses(1)
    assert interrupted.eval_losses(1) == undisturbed.eval_losses(1)
    steps = [row["step"] for row in interrupted.history(1) if "loss" in row]
    assert steps == sorted(set(steps))


def test_base_of_a_full_tuning_is_measured_once_before_step_1(undisturbed: Any, interrupted: Any) -> None:
    for job in (undisturbed, interrupted):
        metrics = {row["metric"]: row for row in job.evaluation()["metrics"]}
        assert metrics["loss"]["tuned"] < metrics["loss"]["base"] - 0.5
    assert interrupted.evaluation() == undisturbed.evaluation()


def test_full_model_loads_with_plain_transformers(undisturbed: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = undisturbed.folder / "trained" / "model"
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert model.config.tie_word_embeddings
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size


def test_hang_is_found_and_leaves_stacks(make_job) -> None:
    job = make_job("hang")
    pods = job.start(nodes=2, strategy="ddp", environment={"FINETUNE_HANG_SECONDS": "6"})
    pods[0].wait_for_step(2)
    (frozen,) = pods[1].workers()
    frozen.suspend()
    try:
        assert pods[0].wait() == 7
    finally:
        frozen.resume()
    assert pods[0].message().cause.code == "Hang"
    assert "loop.py" in (job.folder / "attempt-1" / "stacks-rank-0.txt").read_text()
    assert pods[1].wait() == 7


def test_divergence_names_step_and_rank(make_job) -> None:
    """The embedding of one word is broken, so the loss is fine until a row with that word comes."""
    job = make_job("diverged", model="broken", evaluation={"baseline": False})
    shards = Shards.open(job.folder / "prepared")
    plan = shards.plan()
    token = job.broken_token
    first = next(
        step for step in range(plan.steps) if any(token in shards.train.tokens(row) for row in plan.rows(step))
    )
    with pytest.raises(Diverged, match=f"not finite at step {first + 1} on rank 0"):
        job.here()


def test_stop_before_the_first_step_has_nothing_to_save(make_job) -> None:
    job = make_job("early")
    (pod,) = job.start(strategy="ddp")
    while not pod.workers():
        pass
    pod.process.send_signal(signal.SIGTERM)
    assert pod.wait() == 5
    assert (pod.message().outcome, pod.message().last_checkpoint) == ("stopped", None)
    assert not (job.folder / "checkpoints").exists()


def test_weights_that_do_not_fit_the_config_are_bad_input(make_job) -> None:
    job = make_job("incomplete", model="incomplete")
    with pytest.raises(BadInput, match=r"do not fit its config.json: model.layers.2.* are missing") as bad:
        job.here()
    assert bad.value.cause.code == "InvalidModel"


def test_unknown_target_module_is_named_with_those_that_exist(make_job) -> None:
    job = make_job("targets", method={"type": "lora", "lora": {"targetModules": ["q_proj", "query"]}})
    with pytest.raises(BadInput, match=r"targetModules\[1\]: 'query' is no linear layer .* q_proj") as bad:
        job.here()
    assert bad.value.cause.code == "InvalidSpec"
