"""Each task from rows to a published folder: what was learnt is told, and plain transformers and peft find it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.evaluate.compare import NO_LABEL
from finetune_trainer.publish import publish

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def base_of(claims: Path) -> Callable[..., str]:
    """base_of(config class, **sizes): a folder on the models claim with a random model and the other tests' tokenizer."""

    def make(name: str, architecture: str, **sizes: Any) -> str:
        import transformers

        folder = claims / "models" / name
        if not folder.exists():
            tokenizer = transformers.AutoTokenizer.from_pretrained(claims / "models" / "base")
            tokenizer.save_pretrained(folder)
            torch.manual_seed(0)
            config = getattr(transformers, architecture).config_class(
                vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **sizes
            )
            getattr(transformers, architecture)(config).save_pretrained(folder)
        return name

    return make


def texts() -> list[str]:
    words = ("cat", "dog", "sun", "moon")
    return [f"{a} {colour} {b}" for a in words for colour in (*COLOURS, "one") for b in words for _ in range(2)]


def single_label() -> list[dict[str, Any]]:
    """The colour in the text."""
    rows = [(text, next((c for c in COLOURS if c in text), None)) for text in texts()]
    return [{"text": f"{text} {i}", "label": label} for i, (text, label) in enumerate(rows) if label]


def several_labels() -> list[dict[str, Any]]:
    """Every colour in the text, and whether it speaks of the sun."""
    return [
        {"text": f"{text} {i}", "labels": [name for name in (*COLOURS, "sun") if name in text]}
        for i, text in enumerate(texts())
    ]


def pairs() -> list[dict[str, Any]]:
    return [
        {"prompt": f"{text} {i}", "completion": next((c for c in COLOURS if c in text), "one")}
        for i, text in enumerate(texts())
    ]


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
BERT = SMALL | {"initializer_range": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.0,
}
CASES = {
    # name: (model, its architecture, sizes, rows, method, metric that must get good, how good)
    "decoder, one label, lora": ("llama", "LlamaForCausalLM", SMALL, single_label, {"type": "lora", "lora": {"rank": 8}}, "accuracy", 0.8),
    "encoder, several labels, full": ("bert", "BertForMaskedLM", BERT, several_labels, {"type": "full"}, "f1", 0.8),
    "encoder-decoder, full": ("t5", "T5ForConditionalGeneration", T5, pairs, {"type": "full"}, "exact-match", 0.8),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, claims: Path, make_job: Any, base_of: Any) -> tuple[str, Any]:
    """(name of the case, the job after its training)"""
    model, architecture, sizes, rows, method, metric, _ = CASES[request.param]
    (claims / "datasets" / f"{model}.jsonl").write_text("\n".join(json.dumps(row) for row in rows()))
    job = make_job(
        f"task-{model}",
        model=base_of(model, architecture, **sizes),
        method=method,
        own_data=True,
        data={"train": [{"uri": f"pvc://datasets/{model}.jsonl"}]},
        training={
            "maxSteps": 90,
            "globalBatchSize": 16,
            "learningRate": 0.01 if model == "llama" else 0.003,
            "earlyStopping": {"metric": metric},
        },
        checkpoint={"everySteps": 30},
        output={"uri": f"pvc://out/{model}"},
    )
    job.here()
    return request.param, job


def test_it_learns_and_the_table_shows_it(trained: tuple[str, Any]) -> None:
    name, job = trained
    metric, good = CASES[name][-2:]
    table = {row["metric"]: row for row in job.evaluation()["metrics"]}
    assert table["loss"]["tuned"] < 0.7 * table["loss"]["base"]
    assert table[metric]["tuned"] >= good > table[metric]["base"]


def test_plain_libraries_find_it_again(trained: tuple[str, Any], claims: Path) -> None:
    """What the samples say of the tuned model is what the published folder says."""
    name, job = trained
    folder = job.folder / "trained" / "model"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    samples = job.evaluation()["samples"]
    assert len(samples) == 8
    for sample in samples:
        given = tokenizer(
            sample["prompt"] + (tokenizer.eos_token if name.startswith("encoder-d") else ""), return_tensors="pt"
        )
        given.pop("token_type_ids", None)
        assert said(name, folder, claims, given, tokenizer) == sample["tuned"]


def test_card_and_report_tell_it(trained: tuple[str, Any], claims: Path) -> None:
    name, job = trained
    artifacts = publish(job.config("publish", 1, {}), lambda percent: None)
    folder = claims / artifacts.uri.removeprefix("pvc://")
    card, report = (folder / "README.md").read_text(), (folder / "report.html").read_text()
    sample = job.evaluation()["samples"][0]
    metric = {"accuracy": "Accuracy", "f1": "F1", "exact-match": "Exact match"}[CASES[name][-2]]
    for page in (card, report):
        assert metric in page
        assert sample["prompt"] in page
        assert sample["reference"] in page
    if name.startswith("encoder-decoder"):
        assert "AutoModelForSeq2SeqLM" in card
    else:
        assert all(f'"{colour}"' in card for colour in COLOURS), "the labels in the order of their numbers"


def said(name: str, folder: Path, claims: Path, given: Any, tokenizer: Any) -> str:
    import transformers

    if name.startswith("encoder-decoder"):
        model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
        return tokenizer.decode(model.generate(**given, max_new_tokens=20)[0], skip_special_tokens=True).strip()
    if "lora" in name:
        import peft

        base = transformers.AutoModelForSequenceClassification.from_pretrained(
            claims / "models" / CASES[name][0], num_labels=3
        )
        model = peft.PeftModel.from_pretrained(base, folder)
        return COLOURS_SORTED[int(model.eval()(**given).logits.argmax())]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.problem_type == "multi_label_classification"
    labels = [model.config.id2label[i] for i, logit in enumerate(model(**given).logits[0]) if logit > 0]
    return ", ".join(labels) or NO_LABEL


COLOURS_SORTED = sorted(COLOURS)
