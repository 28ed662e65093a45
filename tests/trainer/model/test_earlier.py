"""Going on from an adapter, made here or elsewhere."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from finetune_trainer.errors import BadInput
from finetune_trainer.model import earlier
from finetune_trainer.model.load import auto_class
from finetune_trainer.model.probe import probe
from safetensors.torch import load_file, save_file

from .conftest import CAUSAL, CLASSES, PAIRS, batch_of, logits, made, plain, saved, spec_of, train, trained

LOCATION = {"uri": "pvc://adapters/first"}

HERE = {
    "lora": ({"type": "lora", "lora": {"rank": 3, "rslora": True, "targetModules": ["q_proj"], "modulesToSave": ["lm_head"]}}, "lora", "llama", CAUSAL),
    "lora, tied": ({"type": "lora", "lora": {"rank": 3, "modulesToSave": ["lm_head"]}}, "lora", "tied-llama", CAUSAL),
    "lora of experts": ({"type": "lora", "lora": {"rank": 2, "targetParameters": ["experts.down_proj"]}}, "lora", "mixtral", CAUSAL),
    "lora, quantised": ({"type": "lora", "lora": {"rank": 3, "modulesToSave": ["lm_head"]}}, "qlora", "llama", CAUSAL),
    "dora": ({"type": "dora", "lora": {"rank": 3}}, "dora", "llama", CAUSAL),
    "prefix": ({"type": "prefix", "promptTuning": {"virtualTokens": 3}}, "prefix", "t5", PAIRS),
    "prompt": ({"type": "prompt", "promptTuning": {"virtualTokens": 3}}, "prompt", "llama", CAUSAL),
    "classes": ({"type": "lora"}, "lora", "bert", CLASSES),
}  # fmt: skip


@pytest.mark.parametrize("name", HERE)
def test_training_goes_on_where_it_ended(name, folder_of, tmp_path):
    first, then, family, purpose = HERE[name]
    base, batch, rate = folder_of(family), batch_of(purpose), 0.003 if purpose.classifies else 0.03
    net = made(base, spec_of(first), purpose)
    train(net, batch, steps=2, rate=rate)
    ended, weights = logits(net, batch), trained(net)
    adapter = saved(net, spec_of(first), tmp_path / "first")
    spec = spec_of({"type": then, "initFrom": LOCATION})
    net = made(base, spec, purpose, adapter=adapter)
    probe(base, spec, purpose, adapter)
    assert trained(net).keys() == weights.keys(), "everything that trained does again"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trained(net).items())
    if then != "qlora":
        torch.testing.assert_close(logits(net, batch), ended, atol=1e-5, rtol=1e-4)
    losses = train(net, batch, steps=2, rate=rate)
    assert losses[-1] < losses[0]
    if then != "qlora":
        expected = logits(net, batch)
        result = saved(net, spec, tmp_path / "second")
        torch.testing.assert_close(logits(plain(base, result, purpose), batch), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_one_of_two_tied_modules_is_refused(folder_of, tmp_path, target):
    base = folder_of("tied-llama")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", target])
    adapter = tmp_path / "adapter"
    foreign(base, adapter, config)
    spec = spec_of({"type": "lora", "initFrom": LOCATION})
    for act in (lambda: made(base, spec, adapter=adapter), lambda: probe(base, spec, CAUSAL, adapter)):
        with pytest.raises(
            BadInput, match=rf"spec\.method\.initFrom: '{target}' shares its weight with .*, and an adapter"
        ):
            act()


def foreign(base, folder, config):
    """Made and saved by peft alone."""
    torch.manual_seed(3)
    net = peft.get_peft_model(auto_class("causal-lm").from_pretrained(base), config)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    net.save_pretrained(folder)
    return net


def test_an_adapter_with_settings_that_we_never_make(folder_of, tmp_path):
    base, batch = folder_of("opt"), batch_of(CAUSAL)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=r".*\.1\.self_attn\.(q|v)_proj", rank_pattern={"v_proj": 5},
        bias="lora_only", lora_dropout=0.5, use_rslora=True,
    )  # fmt: skip
    expected = logits(foreign(base, tmp_path / "theirs", config), batch)
    spec = spec_of({"type": "lora", "initFrom": LOCATION})
    net = made(base, spec, adapter=tmp_path / "theirs")
    torch.testing.assert_close(logits(net, batch), expected, atol=1e-5, rtol=1e-4)
    assert {name.rsplit(".", 1)[-1] for name in trained(net)} == {"weight", "bias"}
    losses = train(net, batch)
    assert losses[-1] < losses[0]
    expected = logits(net, batch)
    result = saved(net, spec, tmp_path / "result")
    torch.testing.assert_close(logits(plain(base, result, CAUSAL), batch), expected, atol=1e-5, rtol=1e-4)


def test_a_prefix_with_its_projection_goes_on_as_what_it_became(folder_of, tmp_path):
    base, batch = folder_of("llama"), batch_of(CAUSAL)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True)
    expected = logits(foreign(base, tmp_path / "theirs", config), batch)
    net = made(base, spec_of({"type": "prefix", "initFrom": LOCATION}), adapter=tmp_path / "theirs")
    torch.testing.assert_close(logits(net, batch), expected, atol=1e-5, rtol=1e-4)
    assert len(trained(net)) == 1


def test_copies_of_the_base_embeddings_are_no_hindrance(folder_of, tmp_path):
    base = folder_of("llama")
    net = foreign(base, tmp_path / "theirs", peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    net.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    assert any("embed_tokens" in name for name in load_file(tmp_path / "theirs" / earlier.WEIGHTS))
    net = made(base, spec_of({"type": "lora", "initFrom": LOCATION}), adapter=tmp_path / "theirs")
    assert len(trained(net)) == 4


def _edit(**values):
    def act(folder):
        path = folder / earlier.SETTINGS
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return act


def _weights(change):
    def act(folder):
        tensors = load_file(folder / earlier.WEIGHTS)
        change(tensors)
        save_file(tensors, folder / earlier.WEIGHTS)

    return act


REFUSED = {
    "no settings": (lambda folder: (folder / earlier.SETTINGS).unlink(), "lora", "llama", r"holds no adapter_config\.json: it is no adapter"),
    "no json": (lambda folder: (folder / earlier.SETTINGS).write_text("{"), "lora", "llama", r"adapter_config\.json cannot be read"),
    "no weights": (lambda folder: (folder / earlier.WEIGHTS).unlink(), "lora", "llama", r"holds no adapter_model\.safetensors"),
    "cut": (lambda folder: (folder / earlier.WEIGHTS).write_bytes(b"x" * 9), "lora", "llama", r"adapter_model\.safetensors cannot be read"),
    "another kind": (_edit(), "dora", "llama", "is an adapter of kind LORA, and spec.method.type is dora"),
    "unknown kind": (_edit(peft_type="IA3"), "lora", "llama", "of kind IA3"),
    "bad setting": (_edit(lora_dropout=[], r="x"), "lora", "llama", "pvc://adapters/first"),
    "another task": (_edit(task_type="SEQ_CLS"), "lora", "llama", "for task SEQ_CLS, and this run's is CAUSAL_LM"),
    "another architecture": (_edit(), "lora", "gpt2", "does not fit pvc://models/base"),
    "another shape": (_edit(), "lora", "qwen3", "was made for another base model: .* has shape"),
    "fewer layers": (_weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name]), "lora", "llama", r"was made for another base model: it lacks .*layers\.1"),
    "more layers": (_weights(lambda tensors: tensors.update({name.replace("layers.1", "layers.2"): t.clone() for name, t in tensors.items() if "layers.1" in name})), "lora", "llama", r"was made for another base model: it has .*layers\.2"),
    "trained embeddings": (_weights(lambda tensors: tensors.update({"base_model.model.model.embed_tokens.weight": torch.ones(97, 16)})), "lora", "llama", r"it has .*embed_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_does_not_fit_is_refused_in_one_sentence(name, folder_of, tmp_path):
    spoil, method, family, words = REFUSED[name]
    base = folder_of("llama")
    wide = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    foreign(base, tmp_path / "theirs", wide)
    if name == "another shape":
        _weights(lambda tensors: tensors.update({n: t[:-1].clone() for n, t in tensors.items() if "lora_B" in n}))(
            tmp_path / "theirs"
        )
    spoil(tmp_path / "theirs")
    for way in (made, probe):
        spec = spec_of({"type": method, "initFrom": LOCATION})
        if name == "trained embeddings" and way is probe:  # nobody can tell without the base's weights
            continue
        with pytest.raises(BadInput, match=words) as bad:
            way(folder_of(family), spec, CAUSAL, adapter=tmp_path / "theirs")
        assert str(bad.value).startswith("spec.method.initFrom: ")
        assert "\n" not in str(bad.value)
        assert (bad.value.cause.code, bad.value.exit_code) == ("InvalidModel", 3)
