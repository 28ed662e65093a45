"""How many weights there are, and how many of them a method trains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_api.method import LOW_RANK, LoraSpec, MethodSpec, PromptTuningSpec
from finetune_api.planner.facts import ModelShape
from finetune_api.spec import FineTuneJobSpec


@dataclass(frozen=True, slots=True)
class Parameters:
    """`base` are the model's own; `trainable` are those that the optimizer changes, `added` those of them that are new, and
    `copied` those that are trained in a copy beside the model's own (modulesToSave)."""

    base: int
    trainable: int
    added: int = 0
    copied: int = 0

    @property
    def total(self) -> int:
        return self.base + self.added + self.copied


def count(spec: FineTuneJobSpec, model: ModelShape, *, labels: int = 0) -> Parameters:
    """Of a job. `labels`: of a classifier, whose head is trained whatever the method."""
    head = labels * model.hidden_size
    method = spec.method
    if method.type == "full":
        return Parameters(model.parameters, model.parameters - frozen(method, model), 0)
    if method.type in LOW_RANK:
        lora = method.lora or LoraSpec()
        copied = sum(module(name, model, labels) for name in lora.modules_to_save or ())
        added = low_rank(lora, model, dora=method.type == "dora")
    else:
        copied, added = 0, virtual(method, model)
    return Parameters(model.parameters, added + copied + head, added, copied + head)


def low_rank(lora: LoraSpec, model: ModelShape, *, dora: bool = False) -> int:
    """rank * (inputs + outputs) of each adapted layer; DoRA adds a magnitude for each output."""
    wanted = lora.target_modules
    if wanted in (None, ["all-linear"]):
        both = model.linear_in_out or sum(map(sum, linears(model)))
    else:
        both = sum(sum(sizes(name, model)) for name in wanted or ())
    outputs = both // 2 if dora else 0
    fused = sum(_experts(name, model) for name in lora.target_parameters or ())
    return lora.rank * (both + fused) + outputs


def linears(model: ModelShape) -> list[tuple[int, int]]:
    """Inputs and outputs of all linear layers that adapters go to when none are named, for a shape without `linear_in_out`."""
    h, q, kv = model.hidden_size, model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = [(h, q), (h, kv), (h, kv), (q, h)]
    f = model.intermediate_size
    forward = [(h, f)] * (2 if model.gated else 1) + [(f, h)]
    decoder = attention * (2 if model.encoder_layers else 1) + ([] if model.experts else forward)
    return decoder * model.layers + (attention + forward) * model.encoder_layers


_QUERY = ("q_proj", "q", "query", "query_proj", "q_lin")
_KEY = ("k_proj", "v_proj", "k", "v", "key", "value", "k_lin", "v_lin")
_OUT = ("o_proj", "o", "out_proj", "out_lin", "dense", "self_attn.o_proj", "wo_attention")
_FUSED = ("qkv_proj", "query_key_value", "c_attn", "wqkv")
_UP = (
    "up_proj",
    "gate_proj",
    "fc1",
    "fc_in",
    "c_fc",
    "wi",
    "wi_0",
    "wi_1",
    "dense_h_to_4h",
    "lin1",
    "intermediate.dense",
)
_GATE_UP = ("gate_up_proj",)
_DOWN = ("down_proj", "fc2", "fc_out", "dense_4h_to_h", "lin2", "wo", "output.dense")


def sizes(name: str, model: ModelShape) -> tuple[int, int]:
    """Inputs and outputs of a layer by the end of its name, over all layers of the model; 0 of a name that is not known."""
    h, q, kv, f = (
        model.hidden_size,
        model.heads * model.head_dim,
        model.kv_heads * model.head_dim,
        model.intermediate_size,
    )
    leaf = name.rsplit(".", 1)[-1].lower()
    table: tuple[tuple[tuple[str, ...], int, int], ...] = (
        (_QUERY, h, q),
        (_KEY, h, kv),
        (_OUT, q, h),
        (_FUSED, h, q + 2 * kv),
        (_UP, h, f),
        (_GATE_UP, h, 2 * f),
        (_DOWN, f, h),
    )
    if leaf == "c_proj":  # GPT-2 calls both outputs so
        return (q + f) * model.layers, 2 * h * model.layers
    depth = model.layers + model.encoder_layers
    for names, inputs, outputs in table:
        if leaf in names:
            return inputs * depth, outputs * depth
    return 0, 0


def _experts(name: str, model: ModelShape) -> int:
    """The rank of an adapter on fused experts counts for each expert."""
    h, f = model.hidden_size, model.expert_intermediate_size or model.intermediate_size
    both = h + 2 * f if "gate_up" in name else h + f
    return max(1, model.experts) * both * (model.layers - model.dense_layers)


def module(name: str, model: ModelShape, labels: int = 0) -> int:
    """Weights of a module that is trained whole."""
    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("score", "classifier", "classification_head"):
        return labels * model.hidden_size
    if leaf in ("lm_head", "embed_tokens", "wte", "shared", "embed_in", "embed_out", "word_embeddings"):
        return model.vocab_size * model.hidden_size
    inputs, outputs = sizes(name, model)
    depth = max(1, model.layers + model.encoder_layers)
    return (inputs // depth) * (outputs // depth) * depth


def virtual(method: MethodSpec, model: ModelShape) -> int:
    """Of virtual tokens: an embedding each, or a key and a value each in every layer."""
    tokens = (method.prompt_tuning or PromptTuningSpec()).virtual_tokens
    if method.type == "prompt":
        return tokens * model.hidden_size
    return tokens * 2 * model.kv_heads * model.head_dim * model.layers


def layer(model: ModelShape) -> int:
    """Weights of one layer, in the mean."""
    return max(0, model.parameters - outside(model)) // (model.layers + model.encoder_layers)


def linear(model: ModelShape) -> int:
    """Weights of linear layers, which fused experts are not, without the output head."""
    experts = (model.layers - model.dense_layers) * model.experts
    return max(0, model.parameters - outside(model) - experts * 3 * model.hidden_size * model.expert_intermediate_size)


def outside(model: ModelShape) -> int:
    """Weights of the embedding table and, if it is another one, of the output head."""
    return min(model.parameters, table(model) * (1 if model.tied or not generates(model) else 2))


def table(model: ModelShape) -> int:
    return model.vocab_size * model.hidden_size


def generates(model: ModelShape) -> bool:
    """Whether it has an output head over the vocabulary."""
    return model.model_type not in _ENCODERS


_ENCODERS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "distilbert",
    "modernbert",
    "deberta-v2",
    "deberta",
)


def frozen(method: MethodSpec, model: ModelShape) -> int:
    """Weights that `method.freeze` leaves as they are."""
    freeze = method.freeze
    if freeze is None:
        return 0
    depth = model.layers + model.encoder_layers
    if freeze.all_but_last is not None:
        return max(0, depth - freeze.all_but_last) * layer(model) + table(model)
    return len(_below(freeze.layers or (), depth)) * layer(model)


def _below(numbers: Iterable[int], depth: int) -> set[int]:
    return {number for number in numbers if number < depth}
