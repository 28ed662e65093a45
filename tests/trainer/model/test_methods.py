"""Each method trains what it should and nothing else, and what is saved is the same model for everybody else."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from finetune_trainer.model import load, targets
from finetune_trainer.model.purpose import Purpose

from .conftest import CAUSAL, CLASSES, PAIRS, batch_of, logits, made, plain, saved, spec_of, train, trained

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Case:
    """`trains` says of a parameter's name whether it should; `count` is the number of those that do."""

    method: dict[str, Any]
    trains: Callable[[str], bool]
    count: int
    family: str = "llama"
    purpose: Purpose = field(default_factory=lambda: CAUSAL)


def adapters(*targets: str) -> Callable[[str], bool]:
    return lambda name: "lora_" in name and any(f".{target}." in name for target in targets)


HEAD = lambda name: ".modules_to_save." in name  # noqa: E731
VIRTUAL = lambda name: name.startswith("prompt_encoder.")  # noqa: E731
ANY = lambda name: True  # noqa: E731

CASES = {
    "lora": Case({"type": "lora", "lora": {"rank": 4}}, adapters(*LINEAR), 28),
    "lora all-linear": Case({"type": "lora", "lora": {"rank": 4, "targetModules": ["all-linear"]}}, adapters(*LINEAR), 28),
    "lora some": Case({"type": "lora", "lora": {"rank": 4, "alpha": 3.5, "dropout": 0.1, "rslora": True, "targetModules": ["q_proj", "mlp.up_proj"]}}, adapters("q_proj", "up_proj"), 8),
    "lora saving norm": Case({"type": "lora", "lora": {"targetModules": ["q_proj"], "modulesToSave": ["model.norm"]}}, lambda n: adapters("q_proj")(n) or HEAD(n), 5),
    "lora saving head": Case({"type": "lora", "lora": {"targetModules": ["q_proj"], "modulesToSave": ["lm_head"]}}, lambda n: adapters("q_proj")(n) or n == "base_model.model.lm_head.modules_to_save.default.weight", 5),
    "lora saving tied head": Case({"type": "lora", "lora": {"targetModules": ["q_proj"], "modulesToSave": ["lm_head"]}}, lambda n: adapters("q_proj")(n) or HEAD(n), 5, "tied-llama"),
    "lora saving tied embeddings": Case({"type": "lora", "lora": {"targetModules": ["q_proj"], "modulesToSave": ["embed_tokens"]}}, lambda n: adapters("q_proj")(n) or HEAD(n), 5, "tied-llama"),
    "lora saving gpt2's tied embeddings": Case({"type": "lora", "lora": {"targetModules": ["c_attn"], "modulesToSave": ["wte"]}}, lambda n: adapters("c_attn")(n) or HEAD(n), 5, "gpt2"),
    "lora of a mixture": Case({"type": "lora", "lora": {"rank": 4}}, adapters("q_proj", "k_proj", "v_proj", "o_proj"), 16, "mixtral"),
    "lora of a mixture's linear layers": Case({"type": "lora", "lora": {"rank": 4, "targetModules": ["all-linear"]}}, adapters(*LINEAR), 28, "shared-experts"),
    "lora of a mixture whose linear layers peft mistakes": Case({"type": "lora", "lora": {"rank": 4, "targetModules": ["all-linear"]}}, adapters("q_proj", "k_proj", "v_proj", "o_proj"), 16, "glm-moe"),
    "lora of a mixture with a router of its own": Case({"type": "lora", "lora": {"rank": 4, "targetModules": ["all-linear"]}}, adapters("q_proj", "k_proj", "v_proj", "o_proj"), 16, "granite-moe"),
    "lora of experts": Case({"type": "lora", "lora": {"rank": 2, "targetModules": ["q_proj"], "targetParameters": ["experts.gate_up_proj", "experts.down_proj"]}}, adapters("q_proj", "experts"), 12, "qwen3-moe"),
    "lora of a router": Case({"type": "lora", "lora": {"rank": 2, "targetModules": ["q_proj"], "targetParameters": ["gate.weight"]}}, adapters("q_proj", "gate"), 8, "mixtral"),
    "dora": Case({"type": "dora", "lora": {"rank": 4}}, adapters(*LINEAR), 42),
    "dora of gpt2": Case({"type": "dora", "lora": {"rank": 4}}, adapters("c_attn", "c_proj", "c_fc"), 24, "gpt2"),
    "qlora nf4": Case({"type": "qlora", "lora": {"rank": 4}}, adapters(*LINEAR), 28, "wide-llama"),
    "qlora fp4": Case({"type": "qlora", "quantization": {"type": "fp4", "doubleQuant": False}}, adapters(*LINEAR), 28, "wide-llama"),
    "qlora in 8 bits": Case({"type": "qlora", "quantization": {"bits": 8}}, adapters(*LINEAR), 28),
    "qlora saving head": Case({"type": "qlora", "lora": {"targetModules": ["q_proj"], "modulesToSave": ["lm_head", "up_proj"]}}, lambda n: adapters("q_proj")(n) or HEAD(n), 7, "wide-llama"),
    "prefix": Case({"type": "prefix", "promptTuning": {"virtualTokens": 3}}, VIRTUAL, 1),
    "prompt": Case({"type": "prompt", "promptTuning": {"virtualTokens": 3}}, VIRTUAL, 1),
    "full": Case({"type": "full"}, ANY, 21),
    "full of tied": Case({"type": "full"}, ANY, 20, "tied-llama"),
    "full but a layer": Case({"type": "full", "freeze": {"layers": [0]}}, lambda n: ".layers.0." not in n, 12),
    "full but the last": Case({"type": "full", "freeze": {"allButLast": 1}}, lambda n: ".layers.0." not in n and "embed" not in n, 11),
    "full, head alone": Case({"type": "full", "freeze": {"allButLast": 0}}, lambda n: n in ("model.norm.weight", "lm_head.weight"), 2),
    "full of pairs, decoder alone": Case({"type": "full", "freeze": {"allButLast": 3}}, lambda n: n.startswith("decoder.block") or "final_layer_norm" in n, 42, "t5", PAIRS),
    "lora of pairs": Case({"type": "lora", "lora": {"rank": 4}}, adapters("q", "k", "v", "o", "wi", "wo"), 84, "t5", PAIRS),
    "prefix of pairs": Case({"type": "prefix", "promptTuning": {"virtualTokens": 3}}, VIRTUAL, 1, "t5", PAIRS),
    "prompt of pairs": Case({"type": "prompt", "promptTuning": {"virtualTokens": 3}}, VIRTUAL, 1, "t5", PAIRS),
    "prefix where all heads share keys": Case({"type": "prefix", "promptTuning": {"virtualTokens": 3}}, VIRTUAL, 1, "falcon"),
    "prefix of another decoder than encoder": Case({"type": "prefix", "promptTuning": {"virtualTokens": 3}}, VIRTUAL, 1, "bart", PAIRS),
    "lora of a recurrent model": Case({"type": "lora", "lora": {"rank": 4}}, adapters("in_proj", "x_proj"), 8, "mamba"),
    "qlora of pairs": Case({"type": "qlora", "lora": {"rank": 4}}, adapters("q", "k", "v", "o", "wi", "wo"), 64, "wide-t5", PAIRS),
    "lora of a decoder's classes": Case({"type": "lora", "lora": {"rank": 4}}, lambda n: adapters(*LINEAR)(n) or HEAD(n), 29, "llama", CLASSES),
    "dora of classes": Case({"type": "dora", "lora": {"rank": 4}}, lambda n: adapters("query", "key", "value", "dense")(n) or HEAD(n), 40, "bert", CLASSES),
    "qlora of classes": Case({"type": "qlora", "lora": {"rank": 4}}, lambda n: adapters("query", "key", "value", "dense")(n) or HEAD(n), 28, "wide-bert", CLASSES),
    "prompt of classes": Case({"type": "prompt", "promptTuning": {"virtualTokens": 3}}, lambda n: VIRTUAL(n) or HEAD(n), 5, "bert", CLASSES),
    "prefix of a decoder's classes": Case({"type": "prefix", "promptTuning": {"virtualTokens": 3}}, lambda n: VIRTUAL(n) or HEAD(n), 2, "llama", CLASSES),
    "full of classes": Case({"type": "full"}, ANY, 41, "bert", CLASSES),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_method_trains_what_it_should_and_reloads_plainly(name, folder_of, tmp_path):
    case = CASES[name]
    base, spec, batch = folder_of(case.family), spec_of(case.method), batch_of(case.purpose)
    net = made(base, spec, case.purpose)
    names = set(trained(net))
    assert names == {name for name, _ in net.named_parameters() if case.trains(name)}
    assert len(names) == case.count
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.train()
    net(**batch).loss.backward()
    gradients = {name for name, p in net.named_parameters() if p.grad is not None}
    assert gradients == names, "what trains has a gradient, and nothing else"
    net.zero_grad()
    losses = train(net, batch, steps=3)
    assert losses[-1] < losses[0]
    for parameter, tensor in net.named_parameters():
        assert parameter in names or torch.equal(tensor, before[parameter]), f"{parameter} is frozen"
    expected = logits(net, batch)
    result = saved(net, spec, tmp_path / "result")
    how = {}
    if case.method["type"] == "qlora":
        how = {"quantization_config": load.load(base, spec, case.purpose).config.quantization_config}
    torch.testing.assert_close(logits(plain(base, result, case.purpose, **how), batch), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("quantization", [{"type": "nf4"}, {"type": "fp4", "doubleQuant": False}, {"bits": 8}])
def test_quantised_weights_are_those_of_the_files(quantization, folder_of):
    """Also where bitsandbytes would read them back wrongly: rows that are no whole number of blocks, on a CPU."""
    from peft.utils.integrations import dequantize_module_weight

    base = folder_of("wide-llama")
    files = plain(base, base, CAUSAL).state_dict()
    model = load.load(base, spec_of({"type": "qlora", "quantization": quantization}), CAUSAL)
    whole = set()
    for name in targets.linear(model):
        read, written = dequantize_module_weight(model.get_submodule(name)).float(), files[f"{name}.weight"]
        error = float((read - written).std() / written.std())
        assert error < (0.02 if "bits" in quantization else 0.14), name
        if error == 0:
            whole.add(name.rsplit(".", 1)[-1])
    assert whole == ({"lm_head"} if "bits" in quantization else {"lm_head", "down_proj"})


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_files_that_are_quantised_already_serve_as_they_are(method, folder_of, tmp_path):
    base, batch = tmp_path / "base", batch_of(CAUSAL)
    load.load(folder_of("wide-llama"), spec_of({"type": "qlora"}), CAUSAL).save_pretrained(base)
    spec = spec_of({"type": method, "lora": {"rank": 4}})
    net = made(base, spec)
    assert any(p.dtype == torch.uint8 for p in net.parameters())
    losses = train(net, batch, steps=2)
    assert losses[-1] < losses[0]
    expected = logits(net, batch)
    result = saved(net, spec, tmp_path / "result")
    torch.testing.assert_close(logits(plain(base, result, CAUSAL), batch), expected, atol=1e-5, rtol=1e-4)


def test_what_trains_is_fp32_beside_a_bf16_base(folder_of):
    base = folder_of("llama", torch.bfloat16)
    for method in (
        {"type": "lora", "lora": {"modulesToSave": ["lm_head"]}},
        {"type": "dora"},
        {"type": "qlora"},
        {"type": "prefix"},
        {"type": "prompt"},
    ):
        net = made(base, spec_of(method, training={"precision": "bf16"}))
        kinds = {(p.dtype, p.requires_grad) for p in net.parameters() if p.is_floating_point()}
        assert kinds == {(torch.float32, True), (torch.bfloat16, False)}, method


def test_adapters_begin_as_the_base_does(folder_of):
    """Also in bf16, where rounded magnitudes of DoRA would not."""
    base, batch = folder_of("llama", torch.bfloat16), batch_of(CAUSAL)
    for method in ({"type": "lora"}, {"type": "dora"}):
        net = made(base, spec_of(method, training={"precision": "bf16"}))
        with torch.autocast("cpu", torch.bfloat16):
            tuned = logits(net, batch)
            with net.disable_adapter():
                untouched = logits(net, batch)
        torch.testing.assert_close(tuned, untouched, atol=2e-3, rtol=0)


def test_first_weights_depend_on_the_seed_alone(folder_of):
    for family, purpose, method in (
        ("llama", CAUSAL, {"type": "lora"}),
        ("llama", CAUSAL, {"type": "prefix"}),
        ("llama", CAUSAL, {"type": "prompt"}),
        ("bert", CLASSES, {"type": "full"}),
    ):
        first, again, other = (
            trained(made(folder_of(family), spec_of(method, training={"seed": seed}), purpose)) for seed in (1, 1, 2)
        )
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_prompt_begins_as_its_text(folder_of):
    class Tokenizer:
        def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            assert (text, add_special_tokens) == ("Say it:", False)
            return {"input_ids": [5, 7]}

    method = {"type": "prompt", "promptTuning": {"virtualTokens": 3, "initText": "Say it:"}}
    net = made(folder_of("llama"), spec_of(method), tokenizer=Tokenizer())
    expected = net.word_embeddings.weight[[5, 7, 5]]
    assert torch.equal(net.prompt_encoder["default"].embedding.weight, expected)


@pytest.mark.parametrize("family", ["tied-llama", "gpt2"])
def test_tied_weights_stay_one_through_a_merge(family, folder_of, tmp_path):
    base, batch = folder_of(family), batch_of(CAUSAL)
    target = "c_attn" if family == "gpt2" else "q_proj"
    spec = spec_of({"type": "lora", "lora": {"targetModules": [target], "modulesToSave": ["lm_head"]}})
    net = made(base, spec)
    train(net, batch, steps=4)
    expected = logits(net, batch)
    result = saved(net, spec, tmp_path / "result")
    assert json.loads((result / "adapter_config.json").read_text())["ensure_weight_tying"] is True
    merged = plain(base, result, CAUSAL).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(plain(base, tmp_path / "merged", CAUSAL), batch), expected, atol=1e-5, rtol=1e-4)


def test_a_whole_model_is_written_as_its_files_were(folder_of, tmp_path):
    base = folder_of("llama", torch.bfloat16)
    spec = spec_of({"type": "full", "freeze": {"layers": [0]}})
    net = made(base, spec)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    train(net, batch_of(CAUSAL), steps=2)
    result = saved(net, spec, tmp_path / "result")
    assert load.written_in(result) == torch.bfloat16
    assert json.loads((result / "config.json").read_text())["dtype"] == "bfloat16"
    again = plain(base, result, CAUSAL, dtype=torch.bfloat16).state_dict()
    frozen = {name: tensor for name, tensor in plain(base, base, CAUSAL, dtype=torch.bfloat16).state_dict().items() if ".layers.0." in name}  # fmt: skip
    assert frozen
    assert all(torch.equal(again[name], tensor) for name, tensor in frozen.items())


def test_a_classifier_carries_its_labels(folder_of, tmp_path):
    for family, method in (("bert", {"type": "full"}), ("llama", {"type": "lora"})):
        spec = spec_of(method)
        purpose = Purpose("sequence-classification", ("no", "yes"), multi_label=True, pad=0)
        result = saved(made(folder_of(family), spec, purpose), spec, tmp_path / family)
        config = json.loads((result / "config.json").read_text())
        assert config["id2label"] == {"0": "no", "1": "yes"}
        assert config["label2id"] == {"no": 0, "yes": 1}
        assert config["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize("method", [{"type": "lora"}, {"type": "full"}])
def test_a_full_disk_is_an_error_of_the_system(method, folder_of, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("finetune_trainer.model.save.save_file", full)
    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    spec = spec_of(method)
    with pytest.raises(OSError, match="No space left") as error:
        saved(made(folder_of("llama"), spec), spec, tmp_path / "result")
    assert error.value.errno == errno.ENOSPC


def test_an_adapter_names_its_base_as_the_user_did(folder_of, tmp_path):
    spec = spec_of({"type": "lora"}, model={"uri": "hf://org/model", "revision": "abc"})
    result = saved(made(folder_of("llama"), spec), spec, tmp_path / "result")
    written = json.loads((result / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("org/model", "abc")
    assert (written["r"], written["lora_alpha"], written["inference_mode"]) == (16, 32, True)
    assert sorted(path.name for path in result.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
