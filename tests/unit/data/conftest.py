"""A tiny tokenizer (bytes and a few merges) with templates of several families, made in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.contract import RunConfig
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import DataStatus, PlanStatus
from finetune_trainer.data.shards import Shards
from finetune_trainer.prepare import prepare

from tests.unit.tiny_tokenizers import CHATML, TEMPLATES, make


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """make_tokenizer(template, adds_bos=, adds_eos=, pad=) -> a transformers tokenizer."""
    return make


@pytest.fixture(scope="session")
def templates() -> dict[str, str | None]:
    return TEMPLATES


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in Hugging Face layout: real tokenizer and config, weights of a few kilobytes."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("model") / "base"
    tokenizer = make(CHATML)
    tokenizer.save_pretrained(folder)
    hidden, vocabulary = 8, len(tokenizer)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary, "hidden_size": hidden,
        "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 256, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,),
        f"{layer}input_layernorm.weight": (hidden,), f"{layer}post_attention_layernorm.weight": (hidden,),
        **{f"{layer}self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"},
        f"{layer}mlp.gate_proj.weight": (16, hidden), f"{layer}mlp.up_proj.weight": (16, hidden), f"{layer}mlp.down_proj.weight": (hidden, 16),
    }  # fmt: skip
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


class Job:
    """A job over claims in a temporary folder."""

    def __init__(self, claims: Path, model: Path) -> None:
        self.claims = claims
        for name in ("datasets", "scratch", "models"):
            (claims / name).mkdir(parents=True)
        shutil.copytree(model, claims / "models" / "base")
        self.model = claims / "models" / "base"

    def write(self, name: str, content: str | bytes | list[Any]) -> str:
        """Put a data file on the claim: text, bytes, or rows as JSON Lines. Gives its URI."""
        path = self.claims / "datasets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return f"pvc://datasets/{name}"

    def config(self, *uris: str, **groups: Any) -> RunConfig:
        data = {"train": [{"uri": uri} for uri in uris], **groups.pop("data", {})}
        spec = {
            "model": {"uri": "pvc://models/base"},
            "method": {"type": "lora"},
            "data": data,
            "compute": {"device": "cpu"},
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": "pvc://models/out"},
            **groups,
        }
        return RunConfig(
            job={"name": "job", "namespace": "team-a", "uid": "uid-1", "run": "abcde"},
            stage="prepare",
            attempt=1,
            spec=resolve(FineTuneJobSpec.model_validate(spec), decided={}),
            claims_root=str(self.claims),
        )

    def prepare(self, *uris: str, **groups: Any) -> tuple[DataStatus, PlanStatus, Shards]:
        config = self.config(*uris, **groups)
        done = prepare(config, lambda rows, percent: None)
        return done.data, done.plan, Shards.open(config.layout.prepared, content=True)


@pytest.fixture
def job(tmp_path: Path, model_folder: Path) -> Job:
    return Job(tmp_path / "claims", model_folder)
