"""All that the shards depend on, and the digest by which a later run knows that nothing changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from finetune_api.contract import RunConfig
from finetune_api.method import PROMPT_LEARNING, PromptTuningSpec

from finetune_trainer.data import digests
from finetune_trainer.data.encode import RENDERER_VERSION
from finetune_trainer.data.shards import FORMAT
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare.files import DataFile
from finetune_trainer.prepare.mend import Mended
from finetune_trainer.prepare.model import ModelFacts

_SHORTEST = 8
LONGEST_UNASKED = 4096
"""Tokens of the longest row where the user names no maxLength."""

_POSITIONS_AFTER_PAD = (
    "camembert", "data2vec-text", "ibert", "longformer", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta",
    "xlm-roberta-xl", "xmod",
)  # fmt: skip
"""Model types whose positions are counted from their pad token's id on, so that the first ones are never a token's."""


class Base(NamedTuple):
    """What is tuned; `adapter` is the folder of the one to go on from."""

    model: ModelFacts
    tokenizer: Any
    adapter: Path | None


@dataclass(frozen=True)
class Inputs:
    config: RunConfig
    base: Base
    files: list[DataFile]
    data_digest: str
    tokenizer_digest: str
    template_digest: str
    mended: Mended | None = None
    """What the fixes that were asked for have made of the original files."""
    stays: bool = True
    """Whether people find the run's folder afterwards."""

    @property
    def model(self) -> ModelFacts:
        return self.base.model

    @property
    def tokenizer(self) -> Any:
        return self.base.tokenizer

    @property
    def adapter(self) -> Path | None:
        return self.base.adapter

    def with_mended(self, mended: Mended | None) -> Inputs:
        """To read what was mended in place of the originals, whose digest stays the data's."""
        return self if mended is None else replace(self, files=mended.files, mended=mended)

    @property
    def bytes(self) -> int:
        """Of the data files."""
        return sum(file.path.stat().st_size for file in self.files)

    def check_lengths(self) -> None:
        """Raises BadInput when the model cannot read rows of the wanted length, or its tokenizer has more tokens than it."""
        wanted, context = self.config.spec.data.max_length, self.context()
        if wanted and context and wanted > context:
            beside = f" beside {self._virtual_tokens()} virtual ones" if self._virtual_tokens() else ""
            raise BadInput(
                f"spec.data.maxLength: {wanted} is more than the {context} tokens that the model can read{beside}",
                code="InvalidSpec",
                remedy=f"set maxLength to {context} at most, or leave it out",
            )

    def context(self) -> int | None:
        """Tokens of a row that the model can read, beside what else takes its positions; None where they are not bounded.

        Raises BadInput (InvalidSpec) when virtual tokens leave no room.
        """
        context = self.model.context_length
        if context is None:
            return None
        if self.model.model_type in _POSITIONS_AFTER_PAD:
            context -= 1 + (self.tokenizer.pad_token_id or 0)
        left = context - self._virtual_tokens()
        if left < _SHORTEST:
            raise BadInput(
                f"spec.method.promptTuning.virtualTokens: {self._virtual_tokens()} leave no room for rows in the {context} tokens that the model can read",
                code="InvalidSpec",
                remedy=f"set it to {max(1, context // 4)} or fewer",
            )
        return left

    def _virtual_tokens(self) -> int:
        method = self.config.spec.method
        if method.type not in PROMPT_LEARNING:
            return 0
        if self.adapter is not None:
            return int(json.loads((self.adapter / "adapter_config.json").read_bytes()).get("num_virtual_tokens") or 0)
        return (method.prompt_tuning or PromptTuningSpec()).virtual_tokens

    def longest_allowed(self) -> int:
        """Tokens of the longest row, or of the longer half of one for an encoder-decoder model."""
        return self.config.spec.data.max_length or min(self.context() or LONGEST_UNASKED, LONGEST_UNASKED)

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
                "task": spec.model.task,
                "data": spec.data.wire(),
                "training": spec.training.wire(),
                "checkpoint": spec.checkpoint.every_steps,
                "evaluation": spec.evaluation.wire(),
                "longest": self.longest_allowed(),
            }
        )
