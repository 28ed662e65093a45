"""How to load and ask what was published: a few lines of Python for this method and task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from finetune_api.method import Task
from finetune_api.spec import FineTuneJobSpec

HERE = "path/to/this/folder"
BASE = "path/to/the/base/model"
_CLASSES: dict[Task, str] = {
    "causal-lm": "ModelForCausalLM",
    "seq2seq-lm": "ModelForSeq2SeqLM",
    "sequence-classification": "ModelForSequenceClassification",
}


@dataclass(frozen=True, slots=True)
class Result:
    """What the lines depend on. `hub_base` is the base's name on a hub, None when it lies elsewhere; `labels` are a classifier's."""

    spec: FineTuneJobSpec
    task: Task
    hub_base: str | None
    labels: list[str]
    multi_label: bool
    chat: bool
    stop: list[int]
    max_new_tokens: int


def code(result: Result) -> str:
    """Runs as it stands once the paths are filled in. It needs transformers, and peft for adapters."""
    return "\n".join([*_loading(result), "", *_asking(result)])


def _loading(result: Result) -> list[str]:
    spec, kind = result.spec, _CLASSES[result.task]
    options = {"trust_remote_code": "True"} if spec.model.trust_remote_code else {}
    classifies = result.task == "sequence-classification"
    labels = [f"LABELS = {json.dumps(result.labels, ensure_ascii=False)}"] if classifies else []
    torch = ["import torch"] if classifies else []
    if spec.method.type == "full":
        return [
            *torch,
            f"from transformers import Auto{kind}, AutoTokenizer",
            "",
            f"MODEL = {json.dumps(HERE)}",
            *labels,
            "",
            "tokenizer = AutoTokenizer.from_pretrained(MODEL)",
            f"model = Auto{kind}.from_pretrained(MODEL{_arguments(options)})",
        ]
    if classifies:
        options["num_labels"] = "len(LABELS)"
    quantization = spec.method.quantization
    names = ["AutoTokenizer"]
    if quantization is not None:
        options["quantization_config"] = _bits_and_bytes(quantization.wire())
        names.append("BitsAndBytesConfig")
    if result.hub_base is not None:  # the adapter's own config names it
        return [
            *torch,
            f"from peft import AutoPeft{kind}",
            f"from transformers import {', '.join(names)}",
            "",
            f"ADAPTER = {json.dumps(HERE)}",
            *labels,
            "",
            "tokenizer = AutoTokenizer.from_pretrained(ADAPTER)",
            f"model = AutoPeft{kind}.from_pretrained(ADAPTER{_arguments(options)})",
        ]
    return [
        *torch,
        "from peft import PeftModel",
        f"from transformers import {', '.join([f'Auto{kind}', *names])}",
        "",
        f"BASE = {json.dumps(BASE)}",
        f"ADAPTER = {json.dumps(HERE)}",
        *labels,
        "",
        "tokenizer = AutoTokenizer.from_pretrained(ADAPTER)",
        f"model = Auto{kind}.from_pretrained(BASE{_arguments(options)})",
        "model = PeftModel.from_pretrained(model, ADAPTER)",
    ]


def _asking(result: Result) -> list[str]:
    if result.task == "sequence-classification":
        chosen = (
            "print([label for label, score in zip(LABELS, logits.sigmoid()) if score > 0.5])"
            if result.multi_label
            else "print(LABELS[logits.argmax()])"
        )
        return [
            'inputs = tokenizer("...", return_tensors="pt")',
            "with torch.no_grad():",
            "    logits = model.eval()(**inputs).logits[0]",
            chosen,
        ]
    lines = ['inputs = tokenizer("...", return_tensors="pt")']
    if result.chat:
        given = _arguments({name: repr(value) for name, value in (result.spec.data.template_arguments or {}).items()})
        lines = [
            'messages = [{"role": "user", "content": "..."}]',
            f'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True{given}, return_tensors="pt", return_dict=True)',
        ]
    lines.append(
        f"answer = model.generate(**inputs, max_new_tokens={result.max_new_tokens}, do_sample=False, eos_token_id={result.stop})"
    )
    skip = "" if result.task == "seq2seq-lm" else '[inputs["input_ids"].shape[1]:]'
    return [*lines, f"print(tokenizer.decode(answer[0]{skip}, skip_special_tokens=True))"]


def _bits_and_bytes(quantization: dict[str, Any]) -> str:
    if quantization["bits"] == 8:
        return "BitsAndBytesConfig(load_in_8bit=True)"
    return (
        f'BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="{quantization["type"]}", '
        f'bnb_4bit_use_double_quant={quantization["doubleQuant"]}, bnb_4bit_compute_dtype="bfloat16")'
    )


def _arguments(options: dict[str, str]) -> str:
    return "".join(f", {name}={value}" for name, value in options.items())
