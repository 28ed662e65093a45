"""Gangs give the same training as one process, and what they leave is right."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer import sealed
from finetune_trainer.data.shards import Shards

CURVE_TOLERANCE = 5e-5


def test_single_process_tells_everything(single: Any) -> None:
    message = single.pods[-1].message()
    assert (message.outcome, message.exit_code, message.step) == ("succeeded", 0, single.steps)
    assert message.last_checkpoint is not None
    assert message.last_checkpoint.step == single.steps
    assert set(message.metrics) == {"loss", "eval_loss", "best_eval_loss", "best_step", "tokens_per_second"}
    assert [row.metric for row in message.evaluation.metrics] == ["loss", "perplexity", "exact-match"]
    losses = single.losses(1)
    assert list(losses) == list(range(1, single.steps + 1))
    assert losses[single.steps] < losses[1] - 0.1
    row = single.history(1)[0]
    assert set(row) == {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "time"}
    checkpoints = {path.name for path in (single.folder / "checkpoints").iterdir()}
    best = min(single.eval_losses(1), key=single.eval_losses(1).get)
    assert checkpoints == {f"step-{single.steps}", f"step-{single.steps - 4}", f"step-{best}"}
    sealed.verify(single.folder / "trained")


def test_first_loss_is_transformers_own(single: Any, claims: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    shards = Shards.open(single.folder / "prepared")
    rows = [(shards.train.tokens(row), shards.train.mask(row)) for row in shards.plan().rows(0)]
    width = max(len(ids) for ids, _ in rows)
    ids, mask, labels = (torch.full((len(rows), width), fill) for fill in (0, 0, -100))
    for i, (tokens, trained) in enumerate(rows):
        ids[i, : len(tokens)] = torch.from_numpy(tokens.copy()).long()
        mask[i, : len(tokens)] = 1
        labels[i, : len(tokens)] = torch.where(torch.from_numpy(trained.copy()), ids[i, : len(tokens)], -100)
    model = AutoModelForCausalLM.from_pretrained(claims / "models" / "base")
    expected = float(model(input_ids=ids, attention_mask=mask, labels=labels).loss.detach())
    assert single.losses(1)[1] == pytest.approx(expected, abs=1e-5)


def test_adapter_gives_the_recorded_answers_with_plain_peft(single: Any, claims: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = single.folder / "trained" / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(claims / "models" / "base")
    recorded = single.evaluation()
    limit = Shards.open(single.folder / "prepared").resolved["max_new_tokens"]
    assert len(recorded["samples"]) == min(8, recorded["rows"])

    def answer(model: torch.nn.Module, prompt: str) -> str:
        inputs = tokenizer(prompt + "\n", return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**inputs, max_new_tokens=limit, do_sample=False, eos_token_id=1, pad_token_id=0)
        return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    for which in ("base", "tuned"):
        model = base if which == "base" else PeftModel.from_pretrained(base, folder)
        for sample in recorded["samples"]:
            assert answer(model, sample["prompt"]) == sample[which]
    assert any(sample["base"] + sample["tuned"] for sample in recorded["samples"])


def test_finished_run_is_not_trained_again(single: Any) -> None:
    before, first = json.dumps(single.history(1)), single.pods[-1].message().evaluation
    pod = single.run(strategy="ddp", attempt=2)
    assert "was trained and measured before" in pod.said()
    assert pod.message().evaluation == first
    assert json.dumps(single.history(1)) == before
    assert not (single.folder / "attempt-2" / "history.jsonl").exists()


@pytest.fixture(scope="session")
def preempted(make_job) -> Any:
    """Three attempts: two pods with ZeRO-2, one of which is told to stop; two DDP processes, one of which is killed; one process."""
    job = make_job("preempted")
    job.first = job.start(nodes=2, strategy="zero2")
    job.first[0].wait_for_step(6)
    job.progress, job.metrics = json.loads(job.first[0].get("/progress")), job.first[0].get("/metrics")
    job.first[1].process.send_signal(signal.SIGTERM)
    job.codes = [pod.wait() for pod in job.first]

    (job.second,) = job.start(attempt=2, processesPerNode=2, strategy="ddp")
    job.second.wait_for_step(job.first[0].message().step + 9)
    next(worker for worker in job.second.workers() if worker.environ()["RANK"] == "1").kill()
    job.code = job.second.wait()
    job.damaged = max((job.folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    weights = next(job.damaged.glob("rank-*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    job.third = job.run(attempt=3, strategy="zero2")
    return job


def test_stop_of_one_pod_stops_all_with_a_checkpoint(preempted: Any) -> None:
    assert preempted.codes == [5, 5]
    first, second = (pod.message() for pod in preempted.first)
    assert first.outcome == second.outcome == "stopped"
    assert first.step == second.step == first.last_checkpoint.step < preempted.steps
    for message in (first, second):
        assert 0 < message.checkpoint_seconds < 60
        assert 0 < message.step_seconds < 60
        assert (message.resumed_from_step, message.stacks) == (None, None)
    assert "DeepSpeedEngine over 2 ranks: strategy zero2" in preempted.first[0].said()


def test_steps_lost_by_a_killed_rank_are_known(preempted: Any) -> None:
    message = preempted.second.message()
    assert message.resumed_from_step == preempted.first[0].message().step
    assert 0 <= message.step - message.last_checkpoint.step <= 4
    assert preempted.second.message().checkpoint_seconds > 0


def test_a_slow_rank_is_named(make_job) -> None:
    """Rank 1 is held up for most of the time, as by a hot GPU: both ranks' steps take longer, but only its own work does."""
    training = {"maxSteps": 1000, "globalBatchSize": 8, "learningRate": 0.01}
    job = make_job("slow", training=training, checkpoint={"everySteps": 1000}, own_data=True)
    (pod,) = job.start(processesPerNode=2, strategy="ddp")
    pod.wait_for_step(1)
    slow = next(worker for worker in pod.workers() if worker.environ()["RANK"] == "1")
    progress: dict[str, Any] = {}
    while "rank 1 is slow" not in pod.said() or progress.get("slowestRank") != 1:
        assert pod.process.poll() is None, pod.said()
        for _ in range(20):
            slow.suspend()
            time.sleep(0.03)
            slow.resume()
            time.sleep(0.005)
        progress = json.loads(pod.get("/progress"))
    pod.process.send_signal(signal.SIGTERM)
    assert progress["stepTimeSkew"] > 1.5
    assert progress["stepSeconds"] > 0
    assert pod.wait() == 5


def test_progress_is_served_while_training(preempted: Any) -> None:
    assert preempted.progress["step"] >= 5
    assert preempted.progress["totalSteps"] == preempted.steps
    assert 0 < preempted.progress["percent"] < 90
    labels = 'job_name="preempted",job_namespace="team",stage="train",attempt="1"'
    assert f"finetune_total_steps{{{labels}}} {preempted.steps}" in preempted.metrics


def test_resumed_attempt_takes_each_step_once(preempted: Any) -> None:
    stopped_at = preempted.first[0].message().step
    assert "DistributedDataParallel over 2 ranks" in preempted.second.said()
    assert preempted.second.message().resumed_from_step == stopped_at
    assert list(preempted.losses(1)) == list(range(1, stopped_at + 1))
    assert min(preempted.losses(2)) == stopped_at + 1


def test_killed_rank_decides_the_verdict(preempted: Any) -> None:
    message = preempted.second.message()
    assert preempted.code == message.exit_code == 1
    assert (message.rank, message.cause.code) == (1, "Killed")
    assert "SIGKILL" in message.cause.message
    assert message.step > preempted.first[0].message().step, "what its peer knew"
    log = (preempted.folder / "attempt-2" / "rank-0.log").read_text()
    assert "remote worker" in log
    assert "loop.py" in (preempted.folder / "attempt-2" / "stacks-rank-0.txt").read_text(), "where its peer left it"
    assert "[rank 0]" not in log


def test_damaged_checkpoint_is_passed_over_and_said(preempted: Any) -> None:
    assert f"checkpoint {preempted.damaged.name} is damaged and not used" in preempted.third.said()
    assert preempted.third.message().resumed_from_step < int(preempted.damaged.name[5:])


def test_curve_is_the_same_over_all_worlds_and_strategies(single: Any, preempted: Any) -> None:
    assert preempted.losses(1, 2, 3) == pytest.approx(single.losses(1), abs=CURVE_TOLERANCE)
    assert preempted.eval_losses(1, 2, 3) == pytest.approx(single.eval_losses(1), abs=CURVE_TOLERANCE)
    for mine, theirs in zip(preempted.evaluation()["metrics"], single.evaluation()["metrics"], strict=True):
        assert mine["metric"] == theirs["metric"]
        assert [mine["base"], mine["tuned"]] == pytest.approx([theirs["base"], theirs["tuned"]], rel=1e-3)


def test_superseded_attempt_leaves_everything_alone(preempted: Any) -> None:
    folder = preempted.folder
    trained = folder / "trained"
    aside = trained.rename(folder / "aside")
    try:
        before = sorted(path.name for path in (folder / "checkpoints").iterdir())
        (pod,) = preempted.start(attempt=1, strategy="ddp")
        assert pod.wait() == 7
        assert pod.message().cause.code == "Superseded"
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before
        assert not trained.exists()
    finally:
        aside.rename(trained)
    assert json.loads((folder / "fence.json").read_text())["attempt"] == 3
