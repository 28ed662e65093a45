"""Models that also see images: what text does not reach is neither adapted nor trained."""

from __future__ import annotations

import pytest
import torch
from finetune_trainer.errors import BadInput
from finetune_trainer.model.load import load
from finetune_trainer.model.probe import probe

from tests.trainer import two_ranks

from . import text_only_ranks
from .conftest import CAUSAL, batch_of, logits, made, plain, saved, spec_of, train

FAMILY = "gemma3-images"
MLP = {"gate_proj", "up_proj", "down_proj"}


def adapted(net):
    return [name for name, module in net.named_modules() if hasattr(module, "lora_A")]


@pytest.mark.parametrize(
    "lora", [{}, {"targetModules": ["all-linear"]}, {"targetModules": ["q_proj", "down_proj"]}], ids=str
)
def test_only_layers_that_text_reaches_get_adapters(folder_of, tmp_path, lora):
    spec = spec_of({"type": "lora", "lora": {"rank": 4, **lora}})
    net = made(folder_of(FAMILY), spec)
    assert all(".language_model." in name for name in adapted(net))
    named = set(lora.get("targetModules", ())) & {"q_proj", "down_proj"}
    leaves = {name.rsplit(".", 1)[-1] for name in adapted(net)}
    assert leaves == (named or {"q_proj", "k_proj", "v_proj", "o_proj"} | MLP)
    batch = batch_of(CAUSAL)
    losses = train(net, batch)
    assert losses[-1] < 0.95 * losses[0]
    expected = logits(net, batch)
    result = saved(net, spec, tmp_path / "result")
    torch.testing.assert_close(logits(plain(folder_of(FAMILY), result, CAUSAL), batch), expected, atol=1e-5, rtol=1e-4)


def test_full_trains_what_text_reaches(folder_of, caplog):
    with caplog.at_level("INFO", logger="finetune.model"):
        net = made(folder_of(FAMILY), spec_of({"type": "full"}))
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("vision_tower" in name or "multi_modal_projector" in name for name in frozen)
    assert "text does not reach it: model.vision_tower, model.multi_modal_projector." in caplog.text
    net(**batch_of(CAUSAL)).loss.backward()
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())


def test_layers_to_freeze_are_those_of_the_language_model(folder_of):
    net = made(folder_of(FAMILY), spec_of({"type": "full", "freeze": {"layers": [0]}}))
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert not any(".layers.0." in name for name in trained)
    assert any(".language_model.layers.1." in name for name in trained)
    with pytest.raises(BadInput, match=r"there is no layer 2: this model has 2 layers"):
        made(folder_of(FAMILY), spec_of({"type": "full", "freeze": {"layers": [2]}}))


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"targetModules": ["fc1"]}, r"targetModules\[0\]: 'fc1' is no linear layer of this model that text reaches"),
        ({"modulesToSave": ["multi_modal_projector"]}, r"'multi_modal_projector' is no module .* that text reaches"),
    ],
)
def test_a_name_that_text_does_not_reach(folder_of, lora, message):
    spec = spec_of({"type": "lora", "lora": lora})
    for act in (probe, lambda *how: made(*how[:2])):
        with pytest.raises(BadInput, match=message):
            act(folder_of(FAMILY), spec, CAUSAL)


@pytest.fixture(scope="module")
def gang(folder_of, tmp_path_factory):
    """What two ranks of each method saw, and an adapter that others put on the images' layers too."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("gang")
    base = folder_of(FAMILY)
    model = load(base, spec_of({"type": "lora"}), CAUSAL)
    everything = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    get_peft_model(model, everything).save_pretrained(folder / "adapter")
    two_ranks.run(text_only_ranks.__file__, folder, seconds=300, BASE=str(base))
    return two_ranks.found(folder)


@pytest.mark.parametrize("method", text_only_ranks.METHODS)
@pytest.mark.timeout(400)
def test_two_ranks_train_as_one_does(gang, method):
    found = gang[method]
    assert "error" not in found, found["error"]
    assert found["losses"] == pytest.approx(found["alone"], rel=1e-5)
