"""What this very model can do, tried before the first step on a few made-up tokens.

Libraries mix packed rows silently where one argument goes another way than expected, and models do things to their
logits that no config tells. So nothing fast is used that did not give the same as the plain way, here and now.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from finetune_api.spec import FineTuneJobSpec
from torch import nn

from finetune_trainer.errors import BadInput
from finetune_trainer.model import attention
from finetune_trainer.model.targets import expert_blocks
from finetune_trainer.model.wrapped import innermost
from finetune_trainer.tasks import output_head
from finetune_trainer.tasks.base import Batch, Task
from finetune_trainer.tasks.causal import CausalTask, packed, padded, targets_of
from finetune_trainer.tasks.fused_loss import After

if TYPE_CHECKING:
    from finetune_trainer.train.gang import Gang

_LENGTHS = (7, 12)
_SAME_LOSS = {"fp32": 1e-5, "bf16": 3e-3}
"""Largest relative difference between two ways to the same loss: rounding, by precision."""
_ROUNDING = {"fp32": 1e-4, "bf16": 0.15}
"""Largest root mean square of the difference between packed and separate logits, over their spread. Kernels of other shapes round
otherwise, and layers amplify it: a pretrained model in bf16 has 0.03 to 0.07, and 0.5 where rows see each other. The largest
single difference does not tell the two apart."""
_UNTOUCHED = {"fp32": 1e-5, "bf16": 1e-2}
"""The same when only the other row's tokens change: kernels of one shape round alike, but for a mixture's, whose experts then get
other numbers of tokens."""
_WINDOWS = ("sliding_window", "attention_chunk_size")
_NARROW = 5
"""Tokens: shorter than the probe's rows."""
_NO_PACKING = ("prefix", "prompt")


def settle(task: Task, module: nn.Module, spec: FineTuneJobSpec, gang: Gang, *, longest: int) -> list[str]:
    """Choose the fastest way that is right for this model; what was decided, in sentences. Collective, and needs `module` where it will train.

    No row has more than `longest` tokens.
    Raises BadInput (InvalidSpec) when data.packing is asked for and the rows of a pack would see each other.
    """
    if not isinstance(task, CausalTask):
        return []
    precision = spec.training.precision or "fp32"
    with _quietly(module):
        rows = _rows(module, gang.device)
        task.way, task.after = _way(module, rows, precision)
        refusal = None
        if spec.data.packing is not False and spec.method.type not in _NO_PACKING:
            attention.install()
            task.few_shapes = gang.device.type == "cuda"
            refusal = _agreed(gang, _mixes(module, rows, precision))
            if refusal is None and (windows := _windows(module, longest)):
                with _narrowed(module, windows):
                    lost = _agreed(gang, _mixes(module, rows, precision)) is not None
                if lost:
                    width = min(windows.values())
                    refusal = (
                        f"packed rows do not keep its attention window of {width} tokens, and rows have up to {longest}"
                    )
            task.packs = refusal is None
    if refusal is not None and spec.data.packing:
        raise BadInput(
            f"data.packing: rows of this model cannot be packed: {refusal}",
            code="InvalidSpec",
            remedy="remove data.packing; rows of similar length are put together instead",
        )
    said = [f"rows are {'packed' if task.packs else 'padded'}" + (f", since {refusal}" if refusal else "")]
    return [*said, f"output head: {task.way}"]


def _way(module: nn.Module, rows: list[np.ndarray], precision: str) -> tuple[output_head.Way, After]:
    """The fastest loss that equals the plain one."""
    batch = _to(padded(rows, [np.arange(1, len(row)) for row in rows], pad=0), module)
    targets = targets_of(batch)
    plain = output_head.loss_of(module, batch.inputs, targets, "full", after=After())
    after = _after(module, batch)
    ways: list[tuple[output_head.Way, After]] = [("picked", After())]
    if after is not None and output_head.linears(output_head.head_of(module)):
        ways.insert(0, ("fused", after))
    for way, then in ways:
        with contextlib.suppress(Exception):  # models of unknown make may stumble over anything; the plain way remains
            loss = output_head.loss_of(module, batch.inputs, targets, way, after=then)
            if bool(torch.isclose(loss, plain, rtol=_SAME_LOSS[precision], atol=0)):
                return way, then
    return "full", After()


def _after(module: nn.Module, batch: Batch) -> After | None:
    """What the model does to the output of its head: read from the config, and proved on logits of every size."""
    config = getattr(getattr(module, "config", None), "get_text_config", lambda: None)()
    cap = getattr(config, "final_logit_softcapping", None)
    scales = [1.0]
    if isinstance(scale := getattr(config, "logit_scale", None), (int, float)):
        scales.append(float(scale))
    if isinstance(scale := getattr(config, "logits_scaling", None), (int, float)) and scale:
        scales += [1.0 / scale, float(scale)]
    logits = torch.linspace(-80, 80, 101, device=batch.labels.device)[None, None]
    with contextlib.suppress(Exception):
        made = output_head.made_of(module, batch.inputs, logits).float()
        for scale, limit in itertools.product(scales, dict.fromkeys([None, cap])):
            after = After(scale, limit)
            if made.shape == logits.shape and torch.allclose(made, after(logits), rtol=1e-5, atol=1e-5):
                return after
    return None


def _mixes(module: nn.Module, rows: list[np.ndarray], precision: str) -> str | None:
    """Why packing would be wrong, or None: each segment must give what it gives alone, whatever lies before it."""
    first, second = rows
    lay = functools.partial(packed, few_shapes=True)  # as on a GPU
    try:
        alone = torch.cat([_logits(module, padded, [row]) for row in rows])
        together = _logits(module, lay, rows)
        beside_another = _logits(module, lay, [first[::-1].copy(), second])
    except Exception as error:
        return f"its attention does not take them ({type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''})"
    return _differs(alone, together, beside_another, len(first) - 1, precision, bool(expert_blocks(innermost(module))))


def _differs(
    alone: torch.Tensor,
    together: torch.Tensor,
    beside_another: torch.Tensor,
    first: int,
    precision: str,
    mixture: bool,
) -> str | None:
    """Why logits show that packing is wrong, or None. The `first` positions are those of the other row."""
    spread = alone.std()
    apart = (together - alone).square().mean().sqrt() / spread
    moved = (together - beside_another)[first:].square().mean().sqrt() / spread
    if not moved < (_ROUNDING if mixture else _UNTOUCHED)[precision]:  # also when it is no number
        return "a row in a pack would see the rows before it"
    if not apart < _ROUNDING[precision]:
        return "a row gives other logits in a pack than alone"
    return None


def _agreed(gang: Gang, refusal: str | None) -> str | None:
    """Some rank's refusal, or None. Collective."""
    return next((one for one in gang.gather(refusal) if one is not None), None)


def _windows(module: nn.Module, longest: int) -> dict[str, int]:
    """Fields of the config with the widths of attention that the probe's rows are too short for, and the job's are not."""
    config = module.config.get_text_config()
    return {name: width for name in _WINDOWS if _NARROW < (width := getattr(config, name, None) or 0) < longest}


@contextlib.contextmanager
def _narrowed(module: nn.Module, windows: dict[str, int]) -> Iterator[None]:
    """With attention so narrow that short rows show what becomes of long ones. Layers know the width from the config, or keep it."""
    changed = [
        (vars(owner), name)
        for name, width in windows.items()
        for owner in (module.config.get_text_config(), *module.modules())
        if vars(owner).get(name) == width
    ]
    for fields, name in changed:
        fields[name] = _NARROW
    try:
        with torch.compiler.set_stance("force_eager"):  # compiled layers would be compiled again for it
            yield
    finally:
        for fields, name in changed:
            fields[name] = windows[name]


def _logits(module: nn.Module, lay: object, rows: list[np.ndarray]) -> torch.Tensor:
    """[tokens - rows, vocabulary]: of every position but the last of each row."""
    batch = _to(lay(rows, [np.arange(1, len(row)) for row in rows], pad=0), module)  # type: ignore[operator]
    way: output_head.Way = "picked" if output_head.head_of(module) is not None else "full"
    return output_head.logits_of(module, batch.inputs, targets_of(batch), way).float()


def _rows(module: nn.Module, device: torch.device) -> list[np.ndarray]:
    """Rows of different tokens, the same on every rank."""
    config = module.config.get_text_config()
    draw = np.random.default_rng(0)
    return [draw.integers(1, config.vocab_size, size=length) for length in _LENGTHS]


def _to(batch: Batch, module: nn.Module) -> Batch:
    return batch.to(next(module.parameters()).device)


@contextlib.contextmanager
def _quietly(module: nn.Module) -> Iterator[None]:
    """Without gradients, dropout or a trace in the random numbers."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
