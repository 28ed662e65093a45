"""What cannot be: one sentence, with the names that exist, from the loaded model and from the one without weights alike."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from finetune_trainer.errors import BadInput
from finetune_trainer.model.probe import probe
from finetune_trainer.model.purpose import Purpose
from safetensors.torch import load_file, save_file

from .conftest import CAUSAL, CLASSES, FAMILIES, PAIRS, made, spec_of

LORA = "spec.method.lora"
REFUSED = {
    "module": ("llama", CAUSAL, {"type": "lora", "lora": {"targetModules": ["q_proj", "query"]}}, rf"{LORA}.targetModules\[1\]: 'query' is no linear layer of this model; it has down_proj, gate_proj, k_proj, lm_head"),
    "embedding as module": ("llama", CAUSAL, {"type": "lora", "lora": {"targetModules": ["embed_tokens"]}}, r"'embed_tokens' is no linear layer"),
    "tied head as module": ("tied-llama", CAUSAL, {"type": "lora", "lora": {"targetModules": ["q_proj", "lm_head"]}}, rf"{LORA}.targetModules: 'lm_head' shares its weight with model\.embed_tokens, and an adapter on one of them cannot be merged"),
    "experts as modules": ("mixtral", CAUSAL, {"type": "lora", "lora": {"targetModules": ["w1"]}}, r"'w1' is no linear layer .* and experts in experts\.down_proj, experts\.gate_up_proj"),
    "a shared expert": ("glm-moe", CAUSAL, {"type": "lora", "lora": {"targetModules": ["shared_experts.up_proj"]}}, r"'shared_experts\.up_proj' would match a part of this model's experts"),
    "parameter": ("mixtral", CAUSAL, {"type": "lora", "lora": {"targetParameters": ["experts.up"]}}, rf"{LORA}.targetParameters\[0\]: 'experts\.up' is no weight .* experts\.down_proj"),
    "parameter of a linear layer": ("llama", CAUSAL, {"type": "lora", "lora": {"targetParameters": ["q_proj.weight"]}}, r"it has none such"),
    "parameter and dropout": ("mixtral", CAUSAL, {"type": "lora", "lora": {"dropout": 0.1, "targetParameters": ["experts.down_proj"]}}, r"targetParameters and spec\.method\.lora\.dropout cannot go together"),
    "parameter and dora": ("mixtral", CAUSAL, {"type": "dora", "lora": {"targetParameters": ["experts.down_proj"]}}, r"targetParameters and spec\.method\.type dora cannot go together"),
    "saved module": ("llama", CAUSAL, {"type": "lora", "lora": {"modulesToSave": ["head"]}}, rf"{LORA}.modulesToSave\[0\]: 'head' is no module of this model; it has .*lm_head"),
    "one of many tied": ("t5", PAIRS, {"type": "lora", "lora": {"modulesToSave": ["lm_head"]}}, r"'lm_head' shares its weight with .*shared"),
    "layer": ("llama", CAUSAL, {"type": "full", "freeze": {"layers": [1, 2]}}, r"spec\.method\.freeze\.layers\[1\]: there is no layer 2: this model has 2 layers, 0 to 1"),
    "too many layers": ("t5", PAIRS, {"type": "full", "freeze": {"allButLast": 6}}, r"spec\.method\.freeze\.allButLast: 6 is more than the 5 layers"),
    "prefix of a recurrent model": ("mamba", CAUSAL, {"type": "prefix"}, r"prefix tuning hands keys and values to every layer, and a mamba model has layers without any"),
    "prefix of keys and values of two widths": ("deepseek", CAUSAL, {"type": "prefix"}, r"prefix tuning needs keys and values of one width, and those of a deepseek_v3 model have two"),
    "what peft alone knows": ("mamba", CAUSAL, {"type": "lora", "lora": {"targetModules": ["out_proj"]}}, r"spec\.method: .*'out_proj' is incompatible with Mamba"),
    "prefix of an encoder's classes": ("bert", CLASSES, {"type": "prefix"}, r"spec\.method\.type: a classifier made of an encoder model, as bert is, cannot be tuned by prefix"),
    "prompt of an encoder-decoder's classes": ("t5", CLASSES, {"type": "prompt"}, r"an encoder-decoder model, as t5 is, cannot be tuned by prompt"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_model_does_not_have_is_refused(name, folder_of):
    family, purpose, method, words = REFUSED[name]
    for way in (made, probe):
        with pytest.raises(BadInput, match=words) as bad:
            way(folder_of(family), spec_of(method), purpose)
        assert "\n" not in str(bad.value)
        assert (bad.value.cause.code, bad.value.exit_code) == ("InvalidSpec", 3)
        assert bad.value.cause.remedy or name == "what peft alone knows"


def _spoilt(base, folder, *, config=None, tensors=lambda tensors: None):
    shutil.copytree(base, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **(config or {})}))
    weights = load_file(folder / "model.safetensors")
    tensors(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


MISFITS = {
    "a layer too few in the files": ({"config": {"num_hidden_layers": 3}}, r"do not fit its config\.json: model\.layers\.2.* are missing"),
    "a layer too many in the files": ({"config": {"num_hidden_layers": 1}}, r"do not fit its config\.json: it knows nothing of model\.layers\.1"),
    "another size": ({"config": {"intermediate_size": 48}}, r"do not fit its config\.json: model\.layers\.0\.mlp\.down_proj\.weight has shape \[16, 32\] instead of \[16, 48\]"),
    "one tensor gone": ({"tensors": lambda tensors: tensors.pop("model.norm.weight")}, r"model\.norm\.weight is missing"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_weights_that_do_not_fit_the_config_are_refused(name, folder_of, tmp_path):
    change, words = MISFITS[name]
    folder = _spoilt(folder_of("llama"), tmp_path / "model", **change)
    for way in (made, probe):
        with pytest.raises(BadInput, match=words) as bad:
            way(folder, spec_of({"type": "lora"}), CAUSAL)
        assert (bad.value.cause.code, bad.value.exit_code) == ("InvalidModel", 3)


def test_only_the_head_of_a_classifier_may_be_missing(folder_of, tmp_path):
    folder = _spoilt(folder_of("bert"), tmp_path / "model", config={"num_hidden_layers": 3})
    for way in (made, probe):
        with pytest.raises(BadInput, match=r"bert\.encoder\.layer\.2"):
            way(folder, spec_of({"type": "lora"}), CLASSES)


def test_a_head_for_other_labels_is_made_anew(folder_of, tmp_path):
    spec = spec_of({"type": "full"})
    from .conftest import saved

    three = saved(made(folder_of("bert"), spec, CLASSES), spec, tmp_path / "three")
    two = Purpose("sequence-classification", ("no", "yes"), pad=0)
    net = made(three, spec, two)
    assert net.classifier.weight.shape == (2, 16)
    assert torch.equal(net.bert.pooler.dense.weight, load_file(three / "model.safetensors")["bert.pooler.dense.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_good_model_passes_without_its_weights(family, folder_of):
    purpose = {"t5": PAIRS, "bert": CLASSES}.get(family, CAUSAL)
    for method in ({"type": "dora"}, {"type": "full", "freeze": {"allButLast": 1}}):
        net = probe(folder_of(family), spec_of(method), purpose)
        assert all(p.is_meta for p in net.parameters() if not p.requires_grad)


@pytest.mark.parametrize(
    ("quantization", "method", "words"),
    [
        ({"quant_method": "mxfp4"}, "full", "are quantised by mxfp4 and cannot be trained whole"),
        ({"quant_method": "mxfp4"}, "qlora", "are quantised by mxfp4 already"),
        *(
            ({"quant_method": kind}, method, f"are quantised by {kind} for kernels that this image does not have")
            for kind in ("fp8", "gptq", "awq", "compressed-tensors", "a-new-one")
            for method in ("lora", "qlora")
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "full", "are quantised by bitsandbytes"),
    ],
)
def test_quantised_files_are_refused_where_they_cannot_serve(quantization, method, words, folder_of, tmp_path):
    folder = _spoilt(folder_of("llama"), tmp_path / "model", config={"quantization_config": quantization})
    for way in (made, probe):
        with pytest.raises(BadInput, match=words):
            way(folder, spec_of({"type": method}), CAUSAL)
