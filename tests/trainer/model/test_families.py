"""Any model: adapters train on it, and what is saved is the same model for everybody else."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from finetune_trainer.model.load import load
from finetune_trainer.model.save import save
from safetensors.torch import load_file

from .conftest import (
    CAUSAL,
    CLASSES,
    FAMILIES,
    OTHERS,
    PAIRS,
    batch_of,
    logits,
    made,
    plain,
    saved,
    spec_of,
    train,
    trained,
)

PURPOSES = {"t5": PAIRS, "bert": CLASSES, "wide-t5": PAIRS, "bart": PAIRS, "wide-bert": CLASSES}


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_and_reloads_in_plain_peft(family, folder_of, tmp_path):
    base, purpose = folder_of(family), PURPOSES.get(family, CAUSAL)
    spec = spec_of({"type": "lora", "lora": {"rank": 4}})
    net = made(base, spec, purpose)
    batch = batch_of(purpose)
    losses = train(net, batch)
    assert losses[-1] < 0.95 * losses[0]
    expected = logits(net, batch)
    result = saved(net, spec, tmp_path / "result")
    torch.testing.assert_close(logits(plain(base, result, purpose), batch), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("flag", ["output_router_logits", "output_hidden_states", "return_dict"])
def test_outputs_that_a_config_asks_for_are_left_out(flag, folder_of, tmp_path):
    """A mixture that returns its router's logits fails where answers are written, after the whole training."""
    base = shutil.copytree(folder_of("mixtral"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {flag: flag != "return_dict"}))
    spec = spec_of({"type": "full"})
    net = made(base, spec)
    ids = batch_of(CAUSAL)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    out = net.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, do_sample=False)
    assert out.shape == (3, 12)
    assert set(net(input_ids=ids, use_cache=False)) == {"logits"}
    written = json.loads((saved(net, spec, tmp_path / "result") / "config.json").read_text())
    assert written.get(flag, flag == "return_dict") == (flag != "return_dict")


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "mixtral", "t5", "bert"])
def test_full_reloads_in_plain_transformers(family, folder_of, tmp_path):
    base, purpose = folder_of(family), PURPOSES.get(family, CAUSAL)
    spec = spec_of({"type": "full"})
    net = made(base, spec, purpose)
    batch = batch_of(purpose)
    losses = train(net, batch, steps=6, rate=0.01)
    assert losses[-1] < 0.95 * losses[0]
    expected = logits(net, batch)
    result = saved(net, spec, tmp_path / "result")
    torch.testing.assert_close(logits(plain(base, result, purpose), batch), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_a_streamed_model_is_that_which_transformers_saves(family, dtype, folder_of, tmp_path, monkeypatch):
    """Bit by bit, frozen weights and those in several files included, and each trained one is read once."""
    base, purpose = folder_of(family, dtype), PURPOSES.get(family, CAUSAL)
    spec = spec_of({"type": "full"})
    net = made(base, spec, purpose)
    tensors = {name: tensor + 0.37 for name, tensor in trained(net).items()}
    expected = load(base, spec, purpose, dtype=dtype)
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])
    expected.save_pretrained(tmp_path / "whole")
    asked = []

    class Read(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    monkeypatch.setattr("finetune_trainer.model.save._SHARD", "5KB")
    save(net, Read(tensors), spec, tmp_path / "result")
    whole, result = weights_in(tmp_path / "whole"), weights_in(tmp_path / "result")
    assert len(list((tmp_path / "result").glob("*.safetensors"))) > 1
    assert whole.keys() == result.keys()
    for name, tensor in whole.items():
        assert tensor.dtype == result[name].dtype
        assert torch.equal(tensor, result[name]), name
    assert sorted(asked) == sorted(tensors)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "result"}
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "result")]
    assert configs[0] | {"dtype": None} == configs[1] | {"dtype": None}


def weights_in(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
