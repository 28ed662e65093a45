"""What goes wrong in the middle of a training, and what comes of it."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.data.shards import Shards
from finetune_trainer.errors import BadInput, Diverged, OutOfMemory, Stopped
from finetune_trainer.tasks.causal import CausalTask
from finetune_trainer.train import loop, micro_batches

from .conftest import STEPS

FULL = {"type": "full"}
TRAINING = {"maxSteps": STEPS, "globalBatchSize": 8, "learningRate": 0.01, "warmupRatio": 0.1}
NOISY = {"training": {**TRAINING, "neftuneAlpha": 5, "labelSmoothing": 0.1}}
NO_BASE = {"evaluation": {"baseline": False, "metrics": ["loss"]}}


@pytest.fixture(scope="session")
def undisturbed(make_job) -> Any:
    """Full fine-tuning with dropout and noise: the curve depends on the randomness of each step."""
    job = make_job("undisturbed", model="dropout", method=FULL, **NOISY)
    job.context = job.here()
    return job


@pytest.fixture(scope="session")
def interrupted(make_job) -> Any:
    """The same, stopped before step 1, between steps, before a validation that was due, and while it evaluates."""
    job = make_job("interrupted", model="dropout", method=FULL, **NOISY)
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


def test_a_hang_leaves_the_stacks_of_all_ranks_of_its_pod(make_job) -> None:
    """Also of one that cannot watch itself, and says it when PID 1 asks. Each step saves: the hang is now in one, now in a checkpoint."""
    training = {**TRAINING, "maxSteps": 1000}
    job = make_job("hang-stacks", training=training, checkpoint={"everySteps": 1}, own_data=True, **NO_BASE)
    (pod,) = job.start(processesPerNode=2, strategy="ddp", environment={"FINETUNE_HANG_SECONDS": "6"})
    pod.wait_for_step(2)
    frozen = next(worker for worker in pod.workers() if worker.environ()["RANK"] == "1")
    frozen.suspend()
    try:
        while len(pod.workers()) == 2:
            assert pod.process.poll() is None
            time.sleep(0.05)
    finally:
        frozen.resume()
    assert pod.wait() == 7
    assert pod.message().cause.code == "Hang"
    assert pod.message().stacks == "pvc://scratch/hang-stacks/abcde/attempt-1"
    for rank in (0, 1):
        assert "loop.py" in (job.folder / "attempt-1" / f"stacks-rank-{rank}.txt").read_text()


def test_a_loss_that_is_no_number_is_traced_to_step_rank_layer_and_row(make_job) -> None:
    """The embedding of one word is broken, so the loss is fine until a row with that word comes."""
    job = make_job("diverged", model="broken", **NO_BASE)
    shards = Shards.open(job.folder / "prepared")
    plan, lengths, token = shards.plan(), shards.train.lengths(), job.broken_token
    shares = [micro_batches.divide(plan.rows(step), lengths, 2) for step in range(plan.steps)]
    bad = [[[row for row in share if token in shards.train.tokens(row)] for share in step] for step in shares]
    step = next(step for step in range(plan.steps) if any(bad[step]))
    rank = next(rank for rank in range(2) if bad[step][rank])
    (pod,) = job.start(processesPerNode=2, strategy="zero2")
    assert pod.wait() == 6
    message = pod.message()
    said = message.cause.message
    assert message.cause.code == "Diverged"
    assert f"not finite at step {step + 1} on rank {rank}: the weights themselves are not finite in " in said
    assert message.cause.remedy.startswith("the model's files hold such numbers")
    assert re.search(r"in [\w.]*model\.embed_tokens, with rows? ", said)
    for row in bad[step][rank][:3]:
        assert f"rows.jsonl:{shards.train.source(row).line}" in said
    assert not list((job.folder / "checkpoints").glob("step-*"))


@pytest.fixture(scope="session")
def long(make_job) -> Any:
    """As many steps as the watch over the loss needs."""
    training = {"maxSteps": 240, "globalBatchSize": 4, "learningRate": 0.01}
    return make_job("long", method=FULL, training=training, checkpoint={"everySteps": 1000}, own_data=True, **NO_BASE)


def test_a_loss_that_stays_far_above_its_best_ends_the_run(long: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step throws all weights far off, and none brings them back. No rate that the API allows does that to so small a model."""
    monkeypatch.setattr(loop, "learning_rate", lambda step, **_: {80: 3.0}.get(step, 0.01 if step < 80 else 0.0))
    with pytest.raises(Diverged, match="training diverged at about step") as raised:
        long.here()
    assert raised.value.exit_code == 6
    now, best = map(
        float, re.search(r"the loss is ([\d.e+]+) at step \d+, and was ([\d.e+]+)", str(raised.value)).groups()
    )
    assert now > best + 1
    told = long.losses(1)
    assert max(told) < 240
    assert min(told.values()) <= best


STILL = {**TRAINING, "learningRate": 1e-9, "earlyStopping": {"metric": "perplexity", "patience": 2, "minDelta": 0.01}}


@pytest.fixture(scope="session")
def stopped_early(make_job) -> Any:
    """Nothing is learnt at this rate, so that patience ends soon."""
    job = make_job("early-stop", training=STILL)
    job.context = job.here()
    return job


class TestStoppingEarly:
    def test_it_is_an_ordinary_end(self, stopped_early: Any) -> None:
        (line,) = [row for row in stopped_early.history(1) if "stopped_early" in row]
        validated = sorted(stopped_early.eval_losses(1))
        assert line["step"] == validated[2] < STEPS
        assert "perplexity has not improved since step" in line["stopped_early"]
        assert stopped_early.context.known["metrics"]["stopped_early_step"] == line["step"]
        assert max(stopped_early.losses(1)) == line["step"]
        assert {row["metric"] for row in stopped_early.evaluation()["metrics"]} >= {"loss"}

    def test_the_best_is_chosen_by_the_metric_and_written_down(self, stopped_early: Any) -> None:
        best = json.loads((stopped_early.folder / "trained" / "manifest.json").read_text())["best"]
        values = {row["step"]: row["eval_perplexity"] for row in stopped_early.history(1) if "eval_perplexity" in row}
        assert best["metric"] == "perplexity"
        assert best["value"] == min(values.values()) == values[best["step"]]
        assert stopped_early.context.known["metrics"]["best_eval_perplexity"] == best["value"]

    def test_patience_survives_a_stop(self, make_job, stopped_early: Any) -> None:
        second = make_job("early-stop-resumed", training=STILL)
        validated = sorted(stopped_early.eval_losses(1))
        with pytest.raises(Stopped):
            second.here(stop_when=lambda progress: progress.step > validated[1])
        second.here(attempt=2)
        assert sorted(second.eval_losses(1, 2)) == validated
        (line,) = [row for row in second.history(2) if "stopped_early" in row]
        assert line["step"] == validated[-1]

    def test_a_run_that_stopped_early_is_over_after_a_stop_too(self, make_job, stopped_early: Any) -> None:
        third = make_job("early-stop-evaluated", training=STILL)
        with pytest.raises(Stopped):
            third.here(stop_when=lambda progress: progress.stage == "evaluate")
        third.here(attempt=2)
        assert not (third.folder / "attempt-2" / "history.jsonl").read_text().count('"loss"')
        assert third.evaluation()["metrics"] == stopped_early.evaluation()["metrics"]


def test_a_kernel_without_a_deterministic_twin_is_named(make_job, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs hardly any is left: one is put where the loss is computed."""
    job = make_job("deterministic", training={**TRAINING, "deterministic": True}, **NO_BASE)

    def loss(self: Any, model: Any, batch: Any, *, label_smoothing: float = 0.0) -> Any:
        assert torch.are_deterministic_algorithms_enabled()
        return torch.zeros(3).put_(torch.zeros(1, dtype=torch.long), torch.ones(1)).sum()

    monkeypatch.setattr(CausalTask, "loss", loss)
    try:
        with pytest.raises(BadInput, match=r"training.deterministic: put_ .* in the forward pass") as bad:
            job.here()
    finally:
        torch.use_deterministic_algorithms(False)
    assert bad.value.cause.remedy == "remove spec.training.deterministic"


def test_lack_of_memory_names_phase_step_rows_and_size(make_job, claims: Path) -> None:
    """The system really gives no more: one wide layer needs far more than what is left to this process after step 1."""
    wide(claims / "models")
    job = make_job("memory", model="wide", **NO_BASE)
    before = resource.getrlimit(resource.RLIMIT_DATA)

    def cut(progress: Any) -> bool:
        if progress.step == 1:
            resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + (16 << 20), before[1]))
        return False

    try:
        with pytest.raises(OutOfMemory) as raised:
            job.here(stop_when=cut)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    said = str(raised.value)
    assert raised.value.exit_code == 4
    assert re.search(r"in the (forward|backward) pass of step 2 on rank 0", said)
    assert re.search(r"a micro-batch of \d rows? of up to \d+ tokens \(\d+ in all\)", said)
    assert re.search(r"\d+\.\d+ MiB more were asked for", said)
    assert "activationCheckpointing" in raised.value.cause.remedy
    assert "lower spec.compute.microBatchTokens to " in raised.value.cause.remedy


def data_bytes() -> int:
    """Of this process, as RLIMIT_DATA counts it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:")]
    return int(line.split()[1]) * 1024


def wide(models: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(models / "base", models / "wide")
    config = AutoConfig.from_pretrained(models / "base")
    config.intermediate_size, config.num_hidden_layers = 100_000, 1
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(models / "wide")


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
