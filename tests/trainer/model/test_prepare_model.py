"""What prepare knows of a model without torch, and the process that it asks where it must be certain."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare import model as prepared
from finetune_trainer.prepare.facts import of_model
from finetune_trainer.prepare.model import check_method, inspect, task_of

from .conftest import FAMILIES, spec_of

URI = "pvc://models/base"


@pytest.mark.parametrize(
    ("family", "form", "task"),
    [
        ("llama", "messages", "causal-lm"),
        ("llama", None, "causal-lm"),
        ("llama", "classification", "sequence-classification"),
        ("opt", "text", "causal-lm"),
        ("t5", "prompt-completion", "seq2seq-lm"),
        ("t5", "classification", "sequence-classification"),
        ("bert", None, "sequence-classification"),
        ("bert", "classification", "sequence-classification"),
    ],
)
def test_the_task_follows_from_model_and_data(family, form, task, folder_of):
    facts = inspect(folder_of(family), URI)
    assert task_of(facts, spec_of({"type": "lora"}), form) == task
    asked = spec_of({"type": "lora"}, model={"uri": URI, "task": task})
    assert task_of(facts, asked, form) == task


def test_a_classifier_stays_one(folder_of, tmp_path):
    folder = _copy(folder_of("llama"), tmp_path, architectures=["LlamaForSequenceClassification"])
    assert task_of(inspect(folder, URI), spec_of({"type": "lora"}), None) == "sequence-classification"


@pytest.mark.parametrize(
    ("family", "task", "words"),
    [
        ("t5", "causal-lm", "a t5 model is an encoder-decoder model and cannot be tuned for causal-lm"),
        ("llama", "seq2seq-lm", "a llama model is a causal language model and cannot be tuned for seq2seq-lm"),
        ("bert", "causal-lm", "a bert model is a classifier and cannot be tuned for causal-lm"),
    ],
)
def test_a_task_that_the_model_cannot_have_is_refused(family, task, words, folder_of):
    spec = spec_of({"type": "lora"}, model={"uri": URI, "task": task})
    with pytest.raises(BadInput, match=rf"spec\.model\.task: {words}") as bad:
        task_of(inspect(folder_of(family), URI), spec, None)
    assert (bad.value.cause.code, bad.value.exit_code) == ("InvalidSpec", 3)
    assert bad.value.cause.remedy


def test_what_is_known_of_every_family(folder_of):
    for family in FAMILIES:
        facts = inspect(folder_of(family), URI)
        assert facts.vocab_size == 97, family
        assert facts.context_length == (None if family == "t5" else 64), family
        assert facts.parameters > 1000, family


def _copy(base, tmp_path, **config):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_the_models_own_runs_with_leave_alone(folder_of, tmp_path):
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    folder = _copy(folder_of("llama"), tmp_path, model_type="own", auto_map=own)
    (folder / "own.py").write_text(CODE)
    with pytest.raises(
        BadInput, match="knows no model_type 'own', and the Python code that the model brings is not run"
    ) as bad:
        inspect(folder, URI)
    assert "model.trustRemoteCode: true" in bad.value.cause.remedy
    facts = inspect(folder, URI, trust_remote_code=True)
    assert facts.tasks == ("causal-lm",)
    from .conftest import CAUSAL, batch_of, logits, made, plain, saved, train

    spec = spec_of({"type": "full"}, model={"uri": URI, "trustRemoteCode": True})
    net, batch = made(folder, spec), batch_of(CAUSAL)
    assert type(net).__name__ == "OwnModel"
    train(net, batch, steps=2)
    expected = logits(net, batch)
    result = saved(net, spec, tmp_path / "result")
    assert (result / "own.py").read_text() == CODE
    assert (logits(plain(folder, result, CAUSAL, trust_remote_code=True), batch) - expected).abs().max() < 1e-5


def test_torch_is_asked_only_where_the_files_do_not_tell(folder_of, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(prepared, "_probe", lambda folder, spec, purpose, adapter: asked.append(spec))

    def asks(method, adapter=None, **groups):
        asked.clear()
        check_method(inspect(folder_of("llama"), URI), spec_of(method, **groups), "causal-lm", adapter)
        return bool(asked)

    assert not asks({"type": "lora"})
    assert not asks({"type": "lora", "lora": {"targetModules": ["all-linear"]}})
    assert not asks({"type": "dora", "lora": {"targetModules": ["q_proj", "mlp.up_proj"]}})
    assert not asks({"type": "prefix"})
    assert not asks({"type": "full"})
    assert asks({"type": "lora", "lora": {"targetModules": ["query"]}})
    assert asks({"type": "lora", "lora": {"modulesToSave": ["lm_head"]}})
    assert asks({"type": "lora", "lora": {"targetParameters": ["experts.down_proj"]}})
    assert asks({"type": "full", "freeze": {"layers": [0]}})
    assert asks({"type": "lora", "initFrom": {"uri": "pvc://adapters/first"}}, tmp_path)
    assert asks({"type": "full"}, compute={"gpusPerNode": 1}), "a GPU must not wait for a model that cannot be loaded"


def test_the_process_that_is_asked(folder_of):
    """As prepare runs it: without torch in the asking process."""
    program = (
        "import json, sys\n"
        "sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from finetune_api.spec import FineTuneJobSpec\n"
        "from finetune_trainer.errors import BadInput\n"
        "from finetune_trainer.prepare.model import check_method, inspect\n"
        "spec = FineTuneJobSpec.model_validate_json(sys.stdin.read())\n"
        "try:\n"
        "    check_method(inspect(Path(sys.argv[1]), spec.model.uri), spec, 'causal-lm', None)\n"
        "except BadInput as bad:\n"
        "    print(bad.cause.code, bad)\n"
    )
    spec = spec_of({"type": "lora", "lora": {"targetModules": ["query"]}})
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder_of("llama"))],
        input=json.dumps(spec.wire()),
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin", "HOME": "/nonexistent"},
    )
    assert done.stdout.startswith("InvalidSpec spec.method.lora.targetModules[0]: 'query' is no linear layer"), done


def test_the_plan_learns_whether_attention_is_fused_where_the_type_does_not_say_it(folder_of):
    facts = inspect(folder_of("llama"), URI)
    assert facts.fused_attention is None, "no model was built"
    built = check_method(facts, spec_of({"type": "full"}, compute={"gpusPerNode": 1}), "causal-lm", None)
    assert built.fused_attention is True
    assert of_model(built, URI).fused_attention is None, "llama is known for it, and digests of plans stay as they were"
    assert of_model(replace(built, fused_attention=False), URI).fused_attention is False
