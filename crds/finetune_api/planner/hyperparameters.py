"""Hyperparameters from the numbers of model and data. Each function gives a value and the reason in one line.

Sources: Schulman et al., LoRA Without Regret, Thinking Machines 2025 (https://thinkingmachines.ai/blog/lora/), whose rate for
LoRA is 5e-5 * 10 * (2000 / hidden size)^0.781 for llamas, ten times that of full fine-tuning at every size, the same at
every rank, with adapters on all layers, enough parameters for the trained tokens, and batches that are not large; Devlin
et al. 2019 (https://arxiv.org/abs/1810.04805), appendix A.3, for whole encoders; the papers of prefix and prompt tuning.
"""

from __future__ import annotations

import math

from finetune_api.method import PROMPT_LEARNING, MethodSpec, MethodType
from finetune_api.planner import parameters
from finetune_api.planner.facts import DataFacts, ModelShape

_STEPS_WANTED = {"full": 300}
_STEPS_PROMPT = 1000
_STEPS = 400
"""Updates after which a method has mostly learnt what there is to learn, on the small data sets that most are."""
_MOST_EPOCHS = {"full": 3, "prefix": 20, "prompt": 20}
_EPOCHS = 6
_LARGEST_BATCH = {"full": 64}
_BATCH = 32
_ROWS_A_BATCH = 64
"""Batches of one epoch, until batches are as large as they get."""
_LARGEST_RANK = 256


def batch_size(method: MethodType, data: DataFacts, ranks: int) -> tuple[int, str]:
    """A power of two, at least a row for each of `ranks` processes."""
    largest = _LARGEST_BATCH.get(method, _BATCH)
    wanted = max(min(8, data.rows), min(largest, data.rows // _ROWS_A_BATCH))
    size = max(1, 2 ** int(math.log2(wanted)))
    why = f"{data.rows:,} rows make {math.ceil(data.rows / size):,} steps an epoch"
    if size == largest:
        why += f"; larger batches teach {'' if method == 'full' else 'adapters '}less from each row"
    if size < ranks:
        size = ranks
        why = f"one row for each of {ranks} processes"
    elif size % ranks:
        size = math.ceil(size / ranks) * ranks
        why += f"; a multiple of {ranks} processes"
    return size, why


def epochs(method: MethodType, data: DataFacts, batch: int) -> tuple[int, str]:
    """So many that there are enough updates."""
    wanted = _STEPS_PROMPT if method in PROMPT_LEARNING else _STEPS_WANTED.get(method, _STEPS)
    most = _MOST_EPOCHS.get(method, _EPOCHS)
    an_epoch = math.ceil(data.rows / batch)
    times = max(1, min(most, math.ceil(wanted / an_epoch)))
    why = f"{times * an_epoch:,} steps: about {wanted} are wanted"
    if times == most and times * an_epoch < wanted:
        why += f", but more than {most} passes over the same rows teach them by heart"
    elif times == 1:
        why = f"one pass over {data.rows:,} rows is {an_epoch:,} steps, which is enough"
    return times, why


def learning_rate(method: MethodSpec, model: ModelShape, task: str) -> tuple[float, str]:
    """Rounded down to one digit: too low costs a little, too high everything."""
    if method.type in PROMPT_LEARNING:
        return 1e-2, "virtual tokens begin far from where they end: the rate of their papers"
    h = model.hidden_size
    if method.type == "full":
        if task == "sequence-classification":
            return _down(
                3e-5 * 768 / h
            ), f"3e-5 * 768 / {h}: encoders are tuned whole at 2e-5 to 5e-5 (BERT, appendix A.3)"
        return _down(5e-5 * (2000 / h) ** 0.78), f"5e-5 * (2000 / {h})^0.78 (LoRA Without Regret)"
    rate = 5e-4 * (2000 / h) ** 0.78
    why = f"5e-4 * (2000 / {h})^0.78, ten times the rate of full fine-tuning (LoRA Without Regret)"
    lora = method.lora
    if lora is not None and lora.rslora:
        rate /= math.sqrt(lora.rank)
        why += f", over sqrt({lora.rank}) with rslora"
    return _down(min(rate, 1e-2)), why


def rank(method: MethodSpec, model: ModelShape, data: DataFacts) -> tuple[int, str]:
    """The smallest power of two from 16 whose adapters have as many parameters as half of the trained tokens: two bits a
    parameter, one a token."""
    from finetune_api.method import LoraSpec

    trained = data.trained_tokens or data.tokens
    size = 16
    while size < _LARGEST_RANK and 2 * parameters.low_rank(LoraSpec(rank=size), model) < trained:
        size *= 2
    count = parameters.low_rank(LoraSpec(rank=size), model, dora=method.type == "dora")
    return size, f"{_count(count)} parameters have room for {_count(trained)} trained tokens"


def warmup_ratio(steps: int) -> tuple[float, str]:
    """At least 3% and ten steps, at most a tenth."""
    ratio = round(min(0.1, max(0.03, 10 / steps)), 2)
    return ratio, f"{max(1, round(ratio * steps))} of {steps:,} steps"


def _down(value: float) -> float:
    """To one significant digit."""
    power = math.floor(math.log10(value))
    return float(f"{math.floor(value / 10**power + 1e-9)}e{power}")


def _count(number: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return str(number)
