"""The lines that a model card shows really run, for each method and task."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.publish import usage

LABELS = ["delivery", "repair"]
WORDS = ["<pad>", "<end>", "<unk>", "...", "user", "assistant", "a", "b", "c"]
TASKS = {"causal-lm": "CAUSAL_LM", "seq2seq-lm": "SEQ_2_SEQ_LM", "sequence-classification": "SEQ_CLS"}
CHAT = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model of each task."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    folder = tmp_path_factory.mktemp("bases")
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    tokenizer.chat_template = CHAT
    llama = {
        "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    t5 = {
        "vocab_size": len(WORDS),
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
        "decoder_start_token_id": 0,
    }
    for task, model in (
        ("causal-lm", LlamaForCausalLM(LlamaConfig(**llama))),
        ("seq2seq-lm", T5ForConditionalGeneration(T5Config(**t5))),
        ("sequence-classification", LlamaForSequenceClassification(LlamaConfig(**llama, num_labels=len(LABELS)))),
    ):
        model.save_pretrained(folder / task)
        tokenizer.save_pretrained(folder / task)
    return folder


def published(folder: Path, base: Path, task: str, method: str) -> Path:
    """What the stage would have published."""
    import peft
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    if method == "full":
        return base
    kind = {
        "causal-lm": AutoModelForCausalLM,
        "seq2seq-lm": AutoModelForSeq2SeqLM,
        "sequence-classification": AutoModelForSequenceClassification,
    }[task]
    config: Any = peft.PromptTuningConfig(task_type=TASKS[task], num_virtual_tokens=2)
    if method in ("lora", "dora"):
        config = peft.LoraConfig(task_type=TASKS[task], target_modules="all-linear", r=2, use_dora=method == "dora")
    model = peft.get_peft_model(kind.from_pretrained(base), config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("on_a_hub", [False, True])
@pytest.mark.parametrize(
    ("task", "method", "more"),
    [
        ("causal-lm", "lora", {"chat": True}),
        ("causal-lm", "prompt", {}),
        ("causal-lm", "full", {}),
        ("seq2seq-lm", "dora", {}),
        ("sequence-classification", "lora", {}),
        ("sequence-classification", "full", {"multi_label": True}),
    ],
)
def test_it_runs(bases: Path, tmp_path: Path, task: str, method: str, more: dict[str, Any], on_a_hub: bool) -> None:
    base = bases / task
    folder = published(tmp_path, base, task, method)
    code = usage.code(result(task, method, hub_base="some/base" if on_a_hub else None, **more))
    code = code.replace(usage.HERE, str(folder)).replace(usage.BASE, str(base))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code, "card", "exec"), {})
    answer = said.getvalue().strip()
    if task == "sequence-classification":
        assert answer in LABELS or (more and answer.startswith("["))
    else:
        assert all(word in WORDS for word in answer.split())


def test_prompts_take_the_arguments_of_the_training() -> None:
    given = {"enable_thinking": False, "effort": "low"}
    code = usage.code(result("causal-lm", "lora", hub_base="a/b", data={"templateArguments": given}, chat=True))
    compile(code, "card", "exec")
    assert "add_generation_prompt=True, enable_thinking=False, effort='low', return_tensors" in code


def test_quantised_weights_are_loaded_as_they_were_trained() -> None:
    code = usage.code(result("causal-lm", "qlora", hub_base=None))
    compile(code, "card", "exec")
    assert 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True' in code


def result(task: str, method: str, *, hub_base: str | None, **more: Any) -> usage.Result:
    spec = {
        "model": {"uri": "pvc://models/base"},
        "method": {"type": method},
        "data": {"train": [{"uri": "pvc://data/rows.jsonl"}], **more.pop("data", {})},
        "workspace": {"uri": "pvc://scratch"},
        "output": {"uri": "pvc://out/x"},
    }
    how: dict[str, Any] = {"multi_label": False, "chat": False} | more
    return usage.Result(
        spec=resolve(FineTuneJobSpec.model_validate(spec), decided={}),
        task=task,  # type: ignore[arg-type]
        hub_base=hub_base,
        labels=LABELS if task == "sequence-classification" else [],
        stop=[1],
        max_new_tokens=4,
        **how,
    )
