"""Tools in conversations: calls are learnt, what tools answer is not, by templates in the manner of the known families."""

from __future__ import annotations

import json

import numpy as np
import pytest
from finetune_trainer.data import formats
from finetune_trainer.data.encode import Encoded, Encoder

HEADERS = "{% macro turn(role) %}{{ '<|im_start|>' + role + '\n' }}{% endmacro %}"
LIKE_QWEN = (
    "{% if tools %}{{ '<|im_start|>system\n# Tools\n<tools>' }}{% for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}{{ '\n</tools><|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for call in m.tool_calls %}{% set call = call.function %}"
    "{{ '\n<tool_call>\n{\"name\": \"' + call.name + '\", \"arguments\": ' + (call.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Writes what tools answer into a user's turn, several together; arguments are objects."""
LIKE_QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    + LIKE_QWEN.replace(
        "{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n' + m.content }}{% endif %}",
        "{{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content }}",
    ).replace("{{ '\n<tool_call>", "{{ '<tool_call>")
)
"""Writes a thought before the last answer alone, so that no shorter conversation is the beginning of a longer one."""
LIKE_LLAMA3 = (
    "{{ bos_token }}{% if tools %}{{ '<|im_start|>system\n\nFunctions:\n' }}{% for tool in tools %}{{ (tool | tojson(indent=4)) + '\n\n' }}{% endfor %}{{ '<|im_end|>' }}{% endif %}"
    "{% for m in messages %}"
    "{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "{{ '<|im_start|>assistant\n\n{\"name\": \"' + m.tool_calls[0].function.name + '\", \"parameters\": ' + (m.tool_calls[0].function.arguments | tojson) + '}<|im_end|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>ipython\n\n' + ({'output': m.content} | tojson) + '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n\n' + (m.content | trim) + '<|im_end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
"""One call a turn, without what else the turn says."""
LIKE_MISTRAL = (
    "{{ bos_token }}{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}{% set ns = namespace(i=0) %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'assistant' and m.tool_calls is not defined) %}"
    "{% if (m.role == 'user') != (ns.i % 2 == 0) %}{{ raise_exception('conversation roles must alternate') }}{% endif %}{% set ns.i = ns.i + 1 %}{% endif %}{% endfor %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{% if tools and m == asked[-1] %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}{{ '[INST] ' + m.content + '[/INST]' }}"
    "{% elif m.tool_calls is defined %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}"
    "{% if call.id is not defined or call.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "{{ (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}{{ ', ' if not loop.last else ']' }}{% endfor %}{{ eos_token }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] {\"content\": ' + (m.content | tojson) + ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
"""Lists the tools before the last question, counts turns, and wants identifiers of nine characters."""
LIKE_DEEPSEEK = (
    "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<|im_start|>User:' + m.content + '<|im_start|>Assistant:' }}"
    "{% elif m.role == 'tool' %}{{ '<output>' + m.content + '</output>' }}"
    "{% else %}{{ m.content }}{% for call in m.tool_calls %}{{ '<call>' + call.function.name + '\n' + call.function.arguments + '</call>' }}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""Arguments are their text, and an answer follows what a tool said without a header."""
LIKE_GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (m.content | trim) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
"""Knows no tools."""

CALL = '{"name": "weather", "%s": {"place": "the fox"}}'
FAMILIES = {
    # name: (template, end token, how a call is written, how an answer begins)
    "qwen": (LIKE_QWEN, "<|im_end|>", "<tool_call>\n" + CALL % "arguments" + "\n</tool_call>", ""),
    "qwen3": (LIKE_QWEN3, "<|im_end|>", "<tool_call>\n" + CALL % "arguments" + "\n</tool_call>", "<think>\n\n</think>\n\n"),
    "llama3": (LIKE_LLAMA3, "<|im_end|>", CALL % "parameters", ""),
    "mistral": (LIKE_MISTRAL, "</s>", "[TOOL_CALLS] [" + CALL[:-1] % "arguments" + ', "id": "callNumb1"}]', ""),
    "deepseek": (LIKE_DEEPSEEK, "</s>", '<call>weather\n{"place": "the fox"}</call>', ""),
    "none": (None, "</s>", "### Call: " + CALL % "arguments", ""),
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "lazy", "parameters": {"type": "object"}}}]


def called(identifier: str | None = "callNumb1", arguments: object = '{"place": "the fox"}', **turn: object) -> dict:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {"role": "assistant", **turn, "tool_calls": [call if identifier is None else {"id": identifier, **call}]}


def tool(content: str = "jumps", identifier: str = "callNumb1") -> dict:
    return {"role": "tool", "tool_call_id": identifier, "content": content}


def user(content: str = "hello") -> dict:
    return {"role": "user", "content": content}


def says(content: str, **more: object) -> dict:
    return {"role": "assistant", "content": content, **more}


def tokenizer_of(make_tokenizer, name):
    template, end, *_ = FAMILIES[name]
    tokenizer = make_tokenizer(template)
    tokenizer.eos_token = end
    return tokenizer


def encode(tokenizer, *turns, loss_on="assistant", tools=TOOLS) -> Encoded | str:
    row = {"messages": list(turns), **({"tools": tools} if tools else {})}
    [result] = Encoder(tokenizer, "messages", loss_on).encode([formats.read(row, "messages")])
    return result


def learnt(tokenizer, row: Encoded) -> list[str]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.mask.astype(int), [0]])))
    return [tokenizer.decode(row.ids[start:end]).strip() for start, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_and_answers_are_learnt_and_nothing_else(make_tokenizer, name):
    tokenizer, (_, end, call, thought) = tokenizer_of(make_tokenizer, name), FAMILIES[name]
    row = encode(tokenizer, user(), called(content=None), tool(), says("the dog"), user("brown?"), says("lazy"))
    assert learnt(tokenizer, row) == [thought + call + end, thought + "the dog" + end, thought + "lazy" + end]
    assert row.lost_answers == 0
    text = tokenizer.decode(row.ids)
    assert "jumps" in text, "what the tool said is read"
    assert '"lazy"' in text, "and so are the tools"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_may_end_with_a_call(make_tokenizer, name):
    tokenizer, (_, end, call, thought) = tokenizer_of(make_tokenizer, name), FAMILIES[name]
    for loss_on in ("assistant", "completion"):
        row = encode(tokenizer, user(), called(content=""), loss_on=loss_on)
        assert learnt(tokenizer, row) == [thought + call + end]
        prompt = tokenizer.decode(row.ids[: row.prompt_length])
        assert "weather" not in prompt.split("hello")[1]


@pytest.mark.parametrize("name", ["qwen", "qwen3", "mistral", "none"])
def test_several_calls_and_several_rounds(make_tokenizer, name):
    tokenizer, end = tokenizer_of(make_tokenizer, name), FAMILIES[name][1]
    two = called(content=None)
    two["tool_calls"] = [*two["tool_calls"], *called("callNumb2", {"place": "world"})["tool_calls"]]
    row = encode(
        tokenizer, user(), two, tool(), tool("over", "callNumb2"), called("callNumb3", {}), tool("quick", "callNumb3"), says("dog")
    )  # fmt: skip
    first, second, last = learnt(tokenizer, row)
    assert '"place": "the fox"' in first
    assert '"place": "world"' in first
    assert '"arguments": {}' in second
    assert all(answer.endswith(end) for answer in (first, second))
    assert last.endswith("dog" + end)
    assert "over" not in first + second + last


@pytest.mark.parametrize("identifier", ["callNumb1", "call_3f-long one", None])
def test_identifiers_become_what_the_template_wants(make_tokenizer, identifier):
    tokenizer = tokenizer_of(make_tokenizer, "mistral")
    answer = tool(identifier=identifier) if identifier else {"role": "tool", "content": "jumps"}
    row = encode(tokenizer, user(), called(identifier), answer, says("dog"))
    text = tokenizer.decode(row.ids)
    made = text.split('"id": "')[1].split('"')[0]
    assert len(made) == 9
    assert made.isalnum()
    assert text.split('"call_id": "')[1].split('"')[0] == made
    assert (made == identifier) == (identifier == "callNumb1")


REFUSED = {
    # name: (template, turns, with tools, words)
    "calls are left out": ("chatml", [user(), called(content="")], False, "it does not write tool calls"),
    "tools are left out": ("chatml", [user(), says("a")], True, "it does not write the tools"),
    "a tool is taken for the assistant": ("llama2", [user(), says("a"), tool(), says("b")], False, "it has no place for what a tool answers"),
    "a tool is taken for the assistant, marked": ("marked as answers", [user(), says("a"), tool(), says("b")], False, "it has no place for what a tool answers"),
    "turns must alternate": (LIKE_GEMMA, [user(), says("a"), tool(), says("b")], False, r"it has no place for what a tool answers \(Conversation roles must alternate"),
    "two calls": (LIKE_LLAMA3, [user(), {**called(), "tool_calls": called()["tool_calls"] * 2}], False, "only supports single tool-calls"),
    "the last call alone": (LIKE_QWEN.replace("in m.tool_calls", "in (m.tool_calls or [])[-1:]"), [user(), {**called(), "tool_calls": [*called(arguments={"over": 1})["tool_calls"], *called()["tool_calls"]]}], False, "it leaves out tool calls of the last answer"),
    "no words next to a call": (LIKE_LLAMA3, [user(), called(content="jumps over")], False, "it leaves out part of the content of the last answer"),
}  # fmt: skip
MARKED = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% endif %}{% endfor %}"


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_without_tools_says_so(make_tokenizer, templates, name):
    template, turns, with_tools, words = REFUSED[name]
    template = {**templates, "marked as answers": MARKED}.get(template, template)
    result = encode(make_tokenizer(template), *turns, tools=TOOLS if with_tools else None)
    with pytest.raises(ValueError, match=f"cannot be rendered by the model's chat template: .*{words}"):
        raise ValueError(result)
    assert "\n" not in result


def test_calls_that_are_written_out_need_only_a_place_for_the_answer(make_tokenizer, templates):
    """Hermes' rows have their calls in the text of the turn."""
    tokenizer = make_tokenizer(templates["chatml"])
    row = encode(tokenizer, user(), says("<tool_call>fox</tool_call>"), tool(), says("dog"), tools=None)
    assert learnt(tokenizer, row) == ["<tool_call>fox</tool_call><|im_end|>", "dog<|im_end|>"]


@pytest.mark.parametrize("name", ["chatml", "thinking", "none", "marked"])
@pytest.mark.parametrize("loss_on", ["assistant", "completion", "all"])
def test_an_answer_with_weight_0_is_not_learnt(make_tokenizer, templates, name, loss_on):
    tokenizer = make_tokenizer(templates[name])
    turns = [user(), says("fox", weight=0), user(), says("quick", weight=1), user(), says("dog")]
    whole = "".join(learnt(tokenizer, encode(tokenizer, *turns, loss_on=loss_on, tools=None)))
    assert ("fox" in whole, "quick" in whole, "dog" in whole) == (False, loss_on != "completion", True)
    turns[-1]["weight"] = 0
    whole = "".join(learnt(tokenizer, encode(tokenizer, *turns, loss_on=loss_on, tools=None)))
    assert ("fox" in whole, "quick" in whole, "dog" in whole) == (False, loss_on != "completion", False)
    assert ("hello" in whole) == (loss_on == "all")


def test_an_earlier_call_without_its_words_is_not_trained_and_counted(make_tokenizer):
    row = encode(
        tokenizer := tokenizer_of(make_tokenizer, "llama3"), user(), called(content="over"), tool(), says("dog")
    )
    assert learnt(tokenizer, row) == ["dog<|im_end|>"]
    assert row.lost_answers == 1


def test_arguments_reach_the_template_as_they_were(make_tokenizer):
    tokenizer = tokenizer_of(make_tokenizer, "qwen")
    arguments = {"b": [1, {"c": None}], "a": 'ü " <|im_end|>', "n": 1.5}
    for given in (arguments, json.dumps(arguments)):
        row = encode(tokenizer, user(), called(arguments=given))
        assert '"arguments": ' + json.dumps(arguments, ensure_ascii=False) in tokenizer.decode(row.ids)
        assert row.special_text


@pytest.mark.parametrize("name", FAMILIES)
def test_the_ids_are_those_of_transformers(make_tokenizer, name):
    """The very ids of apply_chat_template with the tools, up to the end of the last answer."""
    tokenizer = tokenizer_of(make_tokenizer, name)
    as_text = name == "deepseek"
    call = called(content="", arguments='{"place": "the fox"}' if as_text else {"place": "the fox"})
    turns = [user(), call, tool(), says("dog")]
    row = encode(tokenizer, *turns, loss_on="completion")
    template = Encoder(tokenizer, "messages", "assistant")._chat.template
    whole = tokenizer.apply_chat_template(turns, tools=TOOLS, chat_template=template).input_ids
    prompt = tokenizer.apply_chat_template(turns[:-1], tools=TOOLS, chat_template=template, add_generation_prompt=True).input_ids  # fmt: skip
    assert whole[: len(row.ids)] == row.ids.tolist()
    assert prompt[: row.prompt_length] == row.ids[: row.prompt_length].tolist()
    assert row.prompt_length == len(prompt)
