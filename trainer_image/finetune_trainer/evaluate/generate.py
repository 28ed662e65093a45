"""Answers by greedy generation: padded on the left, with a key-value cache, in batches that depend on the rows alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from finetune_trainer.data.shards import Split
from finetune_trainer.errors import Stopped
from finetune_trainer.train.gang import Gang

_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
_BATCH_ROWS = 64


def answers(
    gang: Gang,
    module: nn.Module,
    split: Split,
    rows: Sequence[int],
    *,
    max_new_tokens: int,
    pad: int,
    stop: Sequence[int],
    on_token: Callable[[], None],
    on_batch: Callable[[int], None],
) -> dict[int, list[int]]:
    """Token ids of the answer to each row's prompt, on every rank, without the token that ended it. Collective.

    Batches are the same at every world size. `on_token` is called for each position that a batch has generated,
    `on_batch(rows)` with the rows done so far. Raises Stopped, on all ranks alike, when one of them was asked to stop.
    """
    groups = _groups(split, rows, max_new_tokens, _BATCH_TOKENS[gang.device.type])
    mine: dict[int, list[int]] = {}
    measured = 0

    def go_on() -> bool:
        on_token()
        return not gang.asked_to_stop  # the rest of this batch would be thrown away

    training = module.training
    module.eval()
    try:
        for start in range(0, len(groups), gang.world_size):
            _stop_if_agreed(gang)
            if start + gang.rank < len(groups):
                group = groups[start + gang.rank]
                mine |= _generate(module, split, group, max_new_tokens, pad, stop, gang.device, go_on)
            measured += sum(len(group) for group in groups[start : start + gang.world_size])
            on_batch(measured)
        _stop_if_agreed(gang)  # else a batch that was cut short would count
    finally:
        module.train(training)
    return {row: ids for part in gang.gather(mine) for row, ids in part.items()}


def _stop_if_agreed(gang: Gang) -> None:
    if gang.should_stop():
        raise Stopped("asked to stop while generating answers", code="Stopped")


def _groups(split: Split, rows: Sequence[int], max_new_tokens: int, budget: int) -> list[list[int]]:
    """Rows with prompts of similar length together, the longest first: if memory is short, that shows at once."""
    lengths = {row: split.prompt_length(row) for row in rows}
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        if groups:
            width = lengths[groups[-1][0]] + max_new_tokens
            if len(groups[-1]) < _BATCH_ROWS and (len(groups[-1]) + 1) * width <= budget:
                groups[-1].append(row)
                continue
        groups.append([row])
    return groups


def _generate(
    module: nn.Module,
    split: Split,
    rows: Sequence[int],
    max_new_tokens: int,
    pad: int,
    stop: Sequence[int],
    device: torch.device,
    go_on: Callable[[], bool],
) -> dict[int, list[int]]:
    from transformers import GenerationConfig, StoppingCriteriaList

    def ends(ids: torch.Tensor, _: torch.Tensor, **__: object) -> torch.Tensor:
        return torch.full((len(ids),), not go_on(), device=ids.device)

    prompts = [split.tokens(row)[: split.prompt_length(row)] for row in rows]
    width = max(len(prompt) for prompt in prompts)
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = prompt
        mask[i, width - len(prompt) :] = 1
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=_within_context(module, width, max_new_tokens),
        eos_token_id=list(stop),
        pad_token_id=pad,
        use_cache=True,
    )
    own, module.generation_config = module.generation_config, greedy  # else its values would fill what is left open
    try:
        with torch.inference_mode():
            out = module.generate(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(mask).to(device),
                generation_config=greedy,
                stopping_criteria=StoppingCriteriaList([ends]),
            )
    finally:
        module.generation_config = own
    return {row: _until(out[i, width:].tolist(), stop) for i, row in enumerate(rows)}


def _within_context(module: nn.Module, prompt: int, wanted: int) -> int:
    context = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    return max(1, min(wanted, context - prompt)) if isinstance(context, int) else wanted


def _until(ids: list[int], stop: Sequence[int]) -> list[int]:
    ends = [i for i, token in enumerate(ids) if token in stop]
    return ids[: ends[0]] if ends else ids
