"""The spec that a stage runs: absent fields decided, the same way in every process of every stage.

What model and data decide is decided once, by prepare, and stands sealed beside the shards. Later stages lay it beneath
their spec, whether or not whoever started them did so too.
"""

from __future__ import annotations

from typing import Any

from finetune_api.contract import RunConfig
from finetune_api.effective import resolve

from finetune_trainer import sealed

DECIDED = "decided"
"""Key of the prepared manifest: a part of a spec, in its wire form."""


def settle(config: RunConfig) -> RunConfig:
    """`config` with its spec resolved."""
    config.spec = resolve(config.spec, decided=None if config.stage == "prepare" else _decided(config))
    return config


def _decided(config: RunConfig) -> dict[str, Any]:
    manifest = sealed.read_manifest(config.layout.prepared) or {}
    return manifest.get(DECIDED, {})
