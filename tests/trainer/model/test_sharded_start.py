"""A model that comes in parts: no rank ever holds the whole of it, and its weights are those of a plain `from_pretrained`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from finetune_trainer.model import streaming
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trainer import two_ranks
from tests.trainer.model import sharded_start_ranks as ranks

from .conftest import CAUSAL, FAMILIES, OTHERS, made, spec_of

pytestmark = pytest.mark.timeout(400)  # the first test waits for the gang

FAMILIES_READ = [name for name in FAMILIES | OTHERS if not name.startswith("wide")]
CELLS = [
    f"{family}/{method['type']}/{strategy}"
    for family, method in ranks.ADAPTED
    for strategy in (("zero3", "fsdp2") if (family, method) in ranks.STARTED else ("fsdp2",))
]


@pytest.fixture(scope="module")
def gang(folder_of, tmp_path_factory):
    """What both ranks found, once for all tests."""
    folder = tmp_path_factory.mktemp("sharded-start")
    torch.manual_seed(0)
    large = LlamaConfig(
        vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=64,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(large).bfloat16()
    model.to_empty(device="cpu").init_weights()
    model.save_pretrained(folder / "large", max_shard_size="50MB")
    del model
    bases = {"large": str(folder / "large")} | {name: str(folder_of(name)) for name in FAMILIES_READ}
    try:
        two_ranks.run(ranks.__file__, folder, seconds=300, BASES=json.dumps(bases))
    finally:
        shutil.rmtree(folder / "large")
    return [two_ranks.found(folder, rank) for rank in (0, 1)]


@pytest.mark.parametrize(
    ("cell", "bytes_held"),
    [
        # Frozen weights in bf16.
        ("fsdp2/lora", 2),
        ("zero3/lora", 2),
        # Masters in fp32, as they came.
        ("fsdp2/full", 4),
        # DeepSpeed's copies in bf16, its masters and its gradients in fp32, and the exact weights until the masters have them.
        ("zero3/full", 2 + 4 + 4 + 4),
    ],
)
def test_no_rank_holds_more_than_its_half(gang, cell, bytes_held):
    """Peak of resident memory from the first file on: half of it, and a quarter of what the model itself takes for the tensors on their way."""
    for rank in (0, 1):
        found = gang[rank][cell]
        assert isinstance(found, dict), found
        own = 2 if cell.endswith("lora") else 4
        assert found["peak"] < (bytes_held / 2 + own / 4) * found["elements"]
        assert found["held"] < 0.52 * found["elements"]


def test_zero2_keeps_no_exact_weights_beside_the_rounded_ones(gang):
    """Whole weights in bf16; halves of masters, gradients and, at first, the exact weights in fp32."""
    found = gang[0]["zero2/full"]
    assert isinstance(found, dict), found
    assert found["peak"] < (2 + (4 + 4 + 4) / 2 + 1) * found["elements"]


@pytest.mark.parametrize("family", FAMILIES_READ)
def test_weights_are_those_of_from_pretrained(gang, family):
    assert [found[family] for found in gang] == ["", ""]


@pytest.mark.parametrize("cell", CELLS)
def test_adapters_and_engines_begin_with_the_same_weights(gang, cell):
    assert [found[cell] for found in gang] == ["", ""]


def test_another_frozen_weight_gives_another_digest(folder_of, tmp_path):
    spec = spec_of({"type": "lora"})
    digests = []
    for name in ("base", "copy", "other"):
        folder = shutil.copytree(folder_of("llama"), tmp_path / name)
        if name == "other":
            tensors = load_file(folder / "model.safetensors")
            tensors["model.layers.1.mlp.up_proj.weight"] *= 1.01
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        digests.append(streaming.digest(made(folder, spec, CAUSAL), [folder]))
    assert digests[0] == digests[1] != digests[2]


def test_weights_in_another_layout_beside_the_index_are_not_read(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("llama"), tmp_path / "base")
    save_file({"tok_embeddings.weight": torch.ones(2)}, folder / "consolidated.safetensors")
    assert streaming.files(folder) == [folder / "model.safetensors"]
