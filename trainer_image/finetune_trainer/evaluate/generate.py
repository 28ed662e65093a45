"""Answers by greedy generation: with a key-value cache, in batches that depend on the rows alone.

Decoders get their prompts padded on the left, so that every row goes on at the same place; the encoder of an
encoder-decoder model gets its sources padded on the right, as in training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from finetune_trainer.data.shards import Split
from finetune_trainer.errors import Stopped
from finetune_trainer.evaluate.rounds import evaluating
from finetune_trainer.model.wrapped import innermost, virtual_embeddings, virtual_tokens
from finetune_trainer.train.gang import Gang

_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
_BATCH_ROWS = 64

_OF_THE_MODEL = ("decoder_start_token_id", "forced_bos_token_id")
"""What a model's own generation settings say about how its answers begin; everything else there would change what is measured."""


@dataclass(frozen=True, slots=True)
class Greedy:
    """How answers are written. Ids: `pad` is only ever a filler, `stop` end an answer."""

    max_new_tokens: int
    pad: int
    stop: tuple[int, ...]
    module_communicates: bool = False
    """Calling the module gathers weights: every rank has to call it as often as the others."""


def answers(
    gang: Gang,
    module: nn.Module,
    split: Split,
    rows: Sequence[int],
    how: Greedy,
    *,
    on_token: Callable[[], None],
    on_batch: Callable[[int], None],
) -> dict[int, list[int]]:
    """Token ids of the answer to each row's prompt, on every rank, without the token that ended it. Collective.

    Batches are the same at every world size. `on_token` is called for each position that a batch has generated,
    `on_batch(rows)` with the rows done so far. Raises Stopped, on all ranks alike, when one of them was asked to stop.
    """
    together = how.module_communicates and gang.world_size > 1
    # Where weights are gathered as they are used, peft must bring the virtual embeddings, and it takes no padding: see `_behind`.
    alike = together and _embeds(module)
    groups = _groups(split, rows, how.max_new_tokens, _BATCH_TOKENS[gang.device.type], alike=alike)
    mine: dict[int, list[int]] = {}
    measured = 0

    def go_on() -> bool:
        on_token()
        return not gang.asked_to_stop  # the rest of this batch would be thrown away

    with evaluating(module):
        for start in range(0, len(groups), gang.world_size):
            now = groups[start : start + gang.world_size]
            limits = [_within_context(module, _width(split, group), how.max_new_tokens) for group in now]
            for turn in _together(now, limits, gang.world_size) if together else [list(zip(now, limits, strict=True))]:
                _stop_if_agreed(gang)
                if gang.rank < len(turn):
                    group, limit = turn[gang.rank]
                    mine |= _generate(module, split, group, limit, how, gang.device, go_on, together=together)
            measured += sum(len(group) for group in now)
            on_batch(measured)
        _stop_if_agreed(gang)  # else a batch that was cut short would count
    return {row: ids for part in gang.gather(mine) for row, ids in part.items()}


def _together(groups: list[list[int]], limits: list[int], ranks: int) -> list[list[tuple[list[int], int]]]:
    """Turns in which every rank has a group, and all the same limit: a rank goes on for as long as any other does, and
    must not leave the model's context meanwhile. Where there are too few groups or their limits differ, ranks repeat each other."""
    each = list(zip(groups, limits, strict=True))
    if len(set(limits)) == 1:
        return [each + each[-1:] * (ranks - len(each))]
    return [[one] * ranks for one in each]


def _stop_if_agreed(gang: Gang) -> None:
    if gang.should_stop():
        raise Stopped("asked to stop while generating answers", code="Stopped")


def _groups(
    split: Split, rows: Sequence[int], max_new_tokens: int, budget: int, *, alike: bool = False
) -> list[list[int]]:
    """Rows with prompts of similar length together (`alike`: of the same), the longest first: if memory is short, that shows at once."""
    lengths = {row: split.prompt_length(row) for row in rows}
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        if groups:
            width = lengths[groups[-1][0]] + max_new_tokens
            fits = not alike or lengths[row] == lengths[groups[-1][0]]
            if fits and len(groups[-1]) < _BATCH_ROWS and (len(groups[-1]) + 1) * width <= budget:
                groups[-1].append(row)
                continue
        groups.append([row])
    return groups


def _width(split: Split, rows: Sequence[int]) -> int:
    return max(split.prompt_length(row) for row in rows)


def _generate(
    module: nn.Module,
    split: Split,
    rows: Sequence[int],
    limit: int,
    how: Greedy,
    device: torch.device,
    go_on: Callable[[], bool],
    *,
    together: bool,
) -> dict[int, list[int]]:
    from transformers import GenerationConfig, StoppingCriteriaList

    def ends(ids: torch.Tensor, _: torch.Tensor, **__: object) -> torch.Tensor:
        return torch.full((len(ids),), not go_on(), device=ids.device)

    inner = innermost(module)
    of_encoder = inner.config.is_encoder_decoder
    width = _width(split, rows)
    ids = np.full((len(rows), width), how.pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        prompt = split.tokens(row)[: split.prompt_length(row)]
        place = slice(0, len(prompt)) if of_encoder else slice(width - len(prompt), width)
        ids[i, place], mask[i, place] = prompt, 1
    own = inner.generation_config
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=limit,
        eos_token_id=list(how.stop),
        pad_token_id=how.pad,
        use_cache=True,
        **({name: _said(inner, name) for name in _OF_THE_MODEL} if of_encoder else {}),
    )
    inner.generation_config = greedy  # else its values would fill what is left open
    given = {"input_ids": torch.from_numpy(ids).to(device), "attention_mask": torch.from_numpy(mask).to(device)}
    # An adapter of virtual tokens that is disabled would still put them before an encoder's rows.
    writer = module if getattr(module, "has_active_enabled_adapter", True) else inner
    begins = 1 if of_encoder else width  # a decoder's answer begins after its start token
    if _embeds(module) and not together:
        given, writer, begins = _behind(module, given), inner, 0
    try:
        with _mixed(module, device), _gathered(module) if together else torch.inference_mode():
            out = writer.generate(
                **given,
                generation_config=greedy,
                stopping_criteria=StoppingCriteriaList([ends]),
                synced_gpus=together,
            )
    finally:
        inner.generation_config = own
    return {row: until(out[i, begins:].tolist(), how.stop) for i, row in enumerate(rows)}


def _embeds(module: nn.Module) -> bool:
    """Whether a decoder has virtual tokens before each row as embeddings."""
    return virtual_embeddings(module) and not innermost(module).config.is_encoder_decoder


@torch.no_grad()
def _behind(module: nn.Module, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Prompts with their virtual tokens right before them, as embeddings. peft puts them before the padding, where they stand farther away than in training."""
    ids, mask = given["input_ids"], given["attention_mask"]
    virtual = module.get_prompt(batch_size=len(ids))  # [rows, virtual tokens, hidden]
    count = virtual.shape[1]
    width = ids.shape[1] + count
    begins = ids.shape[1] - mask.sum(dim=1, keepdim=True)
    place = torch.arange(width, device=ids.device)[None]
    is_virtual = (place >= begins) & (place < begins + count)
    rows = torch.nn.functional.pad(ids, (count, 0))
    embeds = module.word_embeddings(rows)
    embeds[is_virtual] = virtual.flatten(0, 1).to(embeds.dtype)
    return {"inputs_embeds": embeds, "attention_mask": (place >= begins).long()}


def _mixed(module: nn.Module, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where what was trained is kept more exactly than the rest, the two meet as they do in training, where generation goes past the module's own forward."""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    mixed = torch.bfloat16 in kinds and len(kinds) > 1
    return torch.autocast(device.type, torch.bfloat16) if mixed else contextlib.nullcontext()


@contextlib.contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    """Where weights are sharded: layers gather their own as ever, but what belongs to no layer is FSDP2's root's, which
    generation need not call."""
    root = isinstance(module, FSDPModule)
    if root:
        module.unshard()
    try:
        with torch.no_grad():  # what is gathered in inference mode could not be trained with later
            yield
    finally:
        if root:
            module.reshard()


def _said(inner: nn.Module, name: str) -> int | None:
    """What the model's generation settings say, or its config."""
    value = getattr(inner.generation_config, name, None)
    return getattr(inner.config, name, None) if value is None else value


def _within_context(module: nn.Module, prompt: int, wanted: int) -> int:
    config = innermost(module).config.get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if not isinstance(context, int):
        return wanted
    taken = 1 if innermost(module).config.is_encoder_decoder else prompt + virtual_tokens(module)
    return max(1, min(wanted, context - taken))


def until(ids: Sequence[int], stop: Sequence[int]) -> list[int]:
    """The ids before the first that ends an answer."""
    ends = [i for i, token in enumerate(ids) if token in stop]
    return list(ids[: ends[0]] if ends else ids)
