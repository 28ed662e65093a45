"""All that the shards depend on, and the digest by which a later run knows that nothing changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.contract import RunConfig

from finetune_trainer.data import digests
from finetune_trainer.data.encode import RENDERER_VERSION
from finetune_trainer.data.shards import FORMAT
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare.model import ModelFacts
from finetune_trainer.prepare.rows import DataFile

LONGEST_UNASKED = 4096
"""Tokens of the longest row where the user names no maxLength."""


@dataclass(frozen=True)
class Inputs:
    config: RunConfig
    model: ModelFacts
    tokenizer: Any
    files: list[DataFile]
    data_digest: str
    tokenizer_digest: str
    template_digest: str

    def check_lengths(self) -> None:
        """Raises BadInput when the model cannot read rows of the wanted length, or its tokenizer has more tokens than it."""
        wanted, context = self.config.spec.data.max_length, self.model.context_length
        if wanted and context and wanted > context:
            raise BadInput(
                f"spec.data.maxLength: {wanted} is more than the {context} tokens that the model can read",
                code="InvalidSpec",
                remedy=f"set maxLength to {context} at most, or leave it out",
            )

    def longest_allowed(self) -> int:
        return self.config.spec.data.max_length or min(self.model.context_length or LONGEST_UNASKED, LONGEST_UNASKED)

    def digests(self) -> dict[str, Any]:
        return {
            "data": self.data_digest,
            "tokenizer": self.tokenizer_digest,
            "template": self.template_digest,
            "renderer": RENDERER_VERSION,
            "code": digests.code_digest(),
        }

    def digest(self) -> str:
        spec = self.config.spec
        return digests.json_digest(
            {
                "format": FORMAT,
                "digests": self.digests(),
                "files": [[file.part, file.name] for file in self.files],
                "data": spec.data.wire(),
                "training": spec.training.wire(),
                "checkpoint": spec.checkpoint.every_steps,
                "evaluation": spec.evaluation.wire(),
                "longest": self.longest_allowed(),
            }
        )
