"""NEFTune (https://arxiv.org/abs/2310.05914): uniform noise on the input embeddings while training.

Each element gets alpha / sqrt(length * hidden size) times a number from [-1, 1), where length is that of its own row
without padding. Padding itself, virtual tokens and a decoder's input get none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from finetune_trainer.errors import BadInput
from finetune_trainer.model.wrapped import innermost
from finetune_trainer.tasks.base import Batch
from finetune_trainer.train.seeds import mixed

_PURPOSE = 0x4E454654  # keeps this noise apart from dropout's, which has the same step and rank


class Neftune:
    """A forward hook on the model's input embeddings. `begin` tells it of each step, `prepare` of each micro-batch."""

    def __init__(self, module: nn.Module, *, alpha: float, seed: int, rank: int, device: torch.device) -> None:
        self._alpha = alpha
        self._seed = seed
        self._rank = rank
        self._generator = torch.Generator(device)
        self._module = module
        self._ids: torch.Tensor | None = None
        self._lengths = torch.empty(0)
        self._added = False
        for embeddings in _embeddings(module):
            embeddings.register_forward_hook(self._add)

    def begin(self, step: int) -> None:
        """The noise of a step depends on the seed, the step and the rank alone."""
        self._generator.manual_seed(mixed(self._seed, step, self._rank, _PURPOSE))

    def prepare(self, batch: Batch, lengths: Sequence[int]) -> None:
        """The next forward is of this batch, which lies on the device. `lengths`: tokens of its rows, in order."""
        self._ids = batch.inputs["input_ids"]
        self._lengths = row_lengths(batch, lengths)

    def check(self) -> None:
        """After a forward. Raises BadInput (InvalidSpec) when it never went through the embeddings with its own ids."""
        if not self._added:
            raise BadInput(
                f"training.neftuneAlpha: {type(self._module).__name__} does not look up its input where noise could be added",
                code="InvalidSpec",
                remedy="remove training.neftuneAlpha",
            )

    def _add(self, embedding: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not self._module.training or self._ids is None or not args or args[0].data_ptr() != self._ids.data_ptr():
            return None
        self._added = True
        lengths = self._lengths
        scale = torch.where(lengths > 0, self._alpha / (lengths.clamp(min=1) * output.shape[-1]).sqrt(), 0.0)
        noise = torch.rand(output.shape, generator=self._generator, device=output.device) * 2 - 1
        return output + (noise * scale[..., None]).to(output.dtype)


def _embeddings(module: nn.Module) -> list[nn.Module]:
    """Where the input may be looked up: an encoder's table can be a module of its own, tied to the model's by its weights."""
    found = [module.get_input_embeddings()]
    base = innermost(module)
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        found.append(base.get_encoder().get_input_embeddings())
    return list(dict.fromkeys(found))


def row_lengths(batch: Batch, lengths: Sequence[int]) -> torch.Tensor:
    """For each position of `input_ids` the length of the row that it belongs to; 0 for padding.

    Packed rows tell it by their positions, which begin anew with each row; encoders by their mask; `lengths` are needed
    for rows that are padded on the right.
    """
    ids = batch.inputs["input_ids"]
    if (positions := batch.inputs.get("position_ids")) is not None:
        row = (positions.flatten() == 0).cumsum(0) - 1
        counts = torch.zeros_like(row).scatter_add_(0, row, torch.ones_like(row))
        return counts[row].reshape(ids.shape)
    if (mask := batch.inputs.get("attention_mask")) is not None:
        return mask.sum(-1, keepdim=True) * mask
    each = torch.as_tensor(lengths, device=ids.device)[:, None]
    return torch.where(torch.arange(ids.shape[1], device=ids.device) < each, each, 0)
