"""Every method through the whole train stage: what it leaves behind, loaded by peft and transformers alone, has the loss that the report tells."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from finetune_trainer.data.shards import Shards
from finetune_trainer.tasks.choose import task_of

METHODS: dict[str, dict[str, Any]] = {
    "dora": {"type": "dora", "lora": {"rank": 2, "targetModules": ["q_proj", "v_proj"]}},
    "qlora": {"type": "qlora", "lora": {"rank": 4}},
    "prefix": {"type": "prefix", "promptTuning": {"virtualTokens": 4}},
    "prompt": {"type": "prompt", "promptTuning": {"virtualTokens": 4, "initText": "Reverse:"}},
    "saving-head": {"type": "lora", "lora": {"targetModules": ["q_proj"], "modulesToSave": ["lm_head"]}},
    "half": {"type": "full", "freeze": {"allButLast": 1}},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_leaves_what_it_says(name: str, make_job: Any) -> None:
    job = _made(make_job, name, METHODS[name])
    job.here()
    said = {row["metric"]: row for row in job.evaluation()["metrics"]}["loss"]
    assert said["tuned"] < said["base"]
    assert _loss(job) == pytest.approx(said["tuned"], rel=1e-4)


def test_training_goes_on_from_an_adapter(make_job: Any) -> None:
    first = _made(make_job, "first", {"type": "lora", "lora": {"rank": 3, "targetModules": ["q_proj", "v_proj"]}})
    first.here()
    shutil.copytree(first.folder / "trained" / "model", first.root / "models" / "adapter")
    then = _made(make_job, "then", {"type": "lora", "initFrom": {"uri": "pvc://models/adapter"}})
    then.here()
    assert json.loads((then.folder / "trained" / "model" / "adapter_config.json").read_text())["r"] == 3
    assert then.losses(1)[1] < first.losses(1)[1], "its first step begins where the other ended"
    ended, further = ({row["metric"]: row for row in job.evaluation()["metrics"]}["loss"] for job in (first, then))
    assert further["base"] == pytest.approx(ended["base"], rel=1e-5), "the base is the model without any adapter"
    assert further["tuned"] < ended["tuned"]


def _made(make_job: Any, name: str, method: dict[str, Any]) -> Any:
    """Answers are written only where virtual tokens stand before them, which is another way of generating."""
    metrics = ["loss"] if method["type"] not in ("prefix", "prompt") else ["loss", "exact-match"]
    return make_job(f"method-{name}", method=method, evaluation={"metrics": metrics})


def _loss(job: Any) -> float:
    """Of what the job left, on its test rows."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, result = job.root / "models" / "base", job.folder / "trained" / "model"
    if (result / "adapter_config.json").is_file():
        how = {}
        if job.spec["method"]["type"] == "qlora":
            how = {"quantization_config": _as_trained(job)}
        net = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **how), result)
    else:
        net = AutoModelForCausalLM.from_pretrained(result)
    shards = Shards.open(job.folder / "prepared")
    task, rows = task_of(shards), range(shards.test.rows)
    with torch.no_grad():
        total = task.loss(net.eval(), task.collate(shards.test, rows))
    return float(total) / task.weight(shards.test, rows)


def _as_trained(job: Any) -> Any:
    from finetune_trainer.model.load import load
    from finetune_trainer.model.purpose import Purpose

    return load(job.root / "models" / "base", job.config("train", 1, {}).spec, Purpose()).config.quantization_config
