"""Rows in every dialect, what they become, by what they are recognised, and what is wrong with those that are in none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from finetune_api.checks import ROW_CODES
from finetune_api.data import DataFormat
from finetune_trainer.data import formats
from finetune_trainer.data.formats import Example, InvalidRow


def turns(*said: tuple[str, str]) -> tuple[dict, ...]:
    return tuple({"role": role, "content": content} for role, content in said)


MAIL, KEY = "jane.doe@firma.de", "ghp_" + "a8Kq2ZxP0mLr7TnW4vYs9BcD1eFg3HjU5iQo"
TALK = turns(("user", "Hi"), ("assistant", "Hello"))
ASKED = Example(messages=TALK)
CALL = {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ROUND = Example(
    messages=(
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Hello"},
    ),
    tools=(TOOL,),
)


def task(*results: dict, **more) -> dict:
    """A task as Label Studio exports it, with one annotation."""
    return {"id": 7, "data": {"text": "Hi"}, "annotations": [{"id": 1, "was_cancelled": False, "result": list(results)}], "predictions": [], **more}  # fmt: skip


def choice(*choices: str, name: str = "sentiment") -> dict:
    return {"type": "choices", "from_name": name, "to_name": "text", "value": {"choices": list(choices)}}


def written(*texts: str) -> dict:
    return {"type": "textarea", "from_name": "answer", "to_name": "text", "value": {"text": list(texts)}}


def record(question: str, *values: object, suggested: object = None, **fields: str) -> dict:
    """A record as Argilla 2 exports it."""
    responses = {question: [{"value": value, "user_id": str(number)} for number, value in enumerate(values)]}
    suggestions = {question: {"value": suggested, "score": None, "agent": None}} if suggested is not None else {}
    return {"id": "1", "status": "completed", "fields": fields or {"text": "Hi"}, "metadata": {}, "responses": responses, "suggestions": suggestions}  # fmt: skip


READ = {
    # name: (row, format, evidence, example)
    "messages": ({"messages": list(TALK), "id": 3}, "messages", "messages", ASKED),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, TALK[1]]}, "messages", "messages", ASKED),
    "developer": ({"messages": [{"role": "developer", "content": "Be kind."}, *TALK]}, "messages", "messages", Example(messages=turns(("system", "Be kind.")) + TALK)),
    "weights": ({"messages": [*TALK, {**TALK[1], "weight": 0}, {**TALK[1], "weight": 1}]}, "messages", "messages", Example(messages=TALK + TALK[1:] * 2, untrained=(2,))),
    "axolotl's mask": ({"messages": [*TALK, {**TALK[1], "train": False}, {**TALK[1], "train": True}]}, "messages", "messages", Example(messages=TALK + TALK[1:] * 2, untrained=(2,))),
    "ms-swift's masks": ({"messages": [TALK[0], {**TALK[1], "loss": False}, {**TALK[1], "loss_scale": 0.0}, TALK[1]]}, "messages", "messages", Example(messages=TALK + TALK[1:] * 2, untrained=(1, 2))),
    "a row's mask": ({"messages": list(TALK * 2), "loss_mask": [1, 0, 0, 1], "system": "S"}, "messages", "messages", Example(messages=turns(("system", "S")) + TALK * 2, untrained=(2,))),
    "a row's mask in a table": ({"messages": json.dumps(TALK * 2), "loss_mask": "[0, 0, 0, 1]"}, "messages", "messages", Example(messages=TALK * 2, untrained=(1,))),
    "a mask of a call": ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}, "id": "c1"}', "weight": 0}, {"from": "observation", "value": "2", "tool_call_id": "c1"}, {"from": "gpt", "value": "Hello"}], "tools": [TOOL]}, "messages", "conversations (ShareGPT)", replace(ROUND, untrained=(1,))),
    "tools": ({"messages": [TALK[0], {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {"name": "f", "arguments": '{"x": 1}'}}]}, {"role": "tool", "tool_call_id": "c1", "content": "2"}, TALK[1]], "tools": [TOOL]}, "messages", "messages", ROUND),
    "words and a call": ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Well."}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}, "id": "c1"}'}, {"from": "observation", "value": "2", "tool_call_id": "c1"}, {"from": "gpt", "value": "Hello", "weight": 0}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "tools": [TOOL]}, "messages", "conversations (ShareGPT)", Example(messages=(ROUND.messages[0], {**ROUND.messages[1], "content": "Well."}, *ROUND.messages[2:], *TALK), tools=(TOOL,), untrained=(3,))),
    "two calls": ({"messages": [TALK[0], {"role": "assistant", "tool_calls": [CALL]}, {"role": "assistant", "tool_calls": [CALL]}]}, "messages", "messages", Example(messages=(TALK[0], {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}))),
    "a call of another mask": ({"messages": [*TALK, {"role": "assistant", "tool_calls": [CALL], "weight": 0}]}, "messages", "messages", Example(messages=(*TALK, {"role": "assistant", "content": "", "tool_calls": [CALL]}), untrained=(2,))),
    "tools of Arrow": ({"messages": [{**TALK[0], "tool_calls": None, "tool_call_id": None}, {"role": "assistant", "content": None, "tool_calls": [CALL], "tool_call_id": None}, {"role": "tool", "content": "2", "tool_calls": None, "tool_call_id": "c1", "name": None}, {**TALK[1], "tool_calls": []}], "tools": [{"type": "function", "function": {**TOOL["function"], "strict": None}}]}, "messages", "messages", ROUND),
    "tools as text": ({"messages": json.dumps(ROUND.messages), "tools": json.dumps([TOOL["function"]])}, "messages", "messages", ROUND),
    "functions": ({"messages": [TALK[0], {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}, {"role": "function", "name": "f", "content": "2"}, TALK[1]], "functions": [{"name": "f"}]}, "messages", "messages", Example(messages=(TALK[0], {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}, {"role": "tool", "content": "2", "name": "f"}, TALK[1]), tools=({"type": "function", "function": {"name": "f"}},))),
    "ShareGPT": ({"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "messages", "conversations (ShareGPT)", Example(messages=turns(("system", "S")) + TALK)),
    "ShareGPT's tools": ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}, {"from": "observation", "value": "2"}, {"from": "gpt", "value": "Hello"}], "system": "S", "tools": "[]"}, "messages", "conversations (ShareGPT)", Example(messages=(*turns(("system", "S")), TALK[0], {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}, {"role": "tool", "content": "2"}, TALK[1]))),
    "ShareGPT as messages": ({"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "messages", "messages (ShareGPT)", ASKED),
    "turned pair": ({"prompt": [*TALK, TALK[0]], "completion": [TALK[1]]}, "messages", "prompt and completion as lists of turns", Example(messages=TALK * 2, untrained=(1,))),
    "turned pair in a table": ({"prompt": " " + json.dumps([*TALK, TALK[0]]), "completion": json.dumps(TALK[1:]), "tools": ""}, "messages", "prompt and completion as lists of turns", Example(messages=TALK * 2, untrained=(1,))),
    "pair of JSON texts": ({"prompt": '["role"]', "completion": '[{"role": []}]'}, "prompt-completion", "prompt and completion", Example(prompt='["role"]', completion='[{"role": []}]')),
    "messages in a padded cell": ({"messages": " " + json.dumps(TALK)}, "messages", "messages", ASKED),
    "no images": ({"messages": list(TALK), "images": [], "image": "https://a.example/of-the-recipe.png"}, "messages", "messages", ASKED),
    "no preference": ({"messages": list(TALK), "chosen": None, "rejected": None}, "messages", "messages", ASKED),
    "prompt and completion": ({"prompt": "Hi", "completion": " Hello", "meta": {}}, "prompt-completion", "prompt and completion", Example(prompt="Hi", completion=" Hello")),
    "instruction": ({"instruction": "Say", "input": "Hi", "output": "Hello", "text": "### Say"}, "instruction", "instruction and output", Example(messages=turns(("user", "Say\n\nHi"), ("assistant", "Hello")))),
    "rounds of Alpaca": ({"instruction": "Hi", "output": "Hello", "system": "S", "history": [["Who?", "I."]]}, "instruction", "instruction and output", Example(messages=turns(("system", "S"), ("user", "Who?"), ("assistant", "I.")) + TALK)),
    "rounds in a table": ({"instruction": "Hi", "output": "Hello", "system_prompt": "S", "history": '[["Who?", "I."]]', "tools": "[]"}, "instruction", "instruction and output", Example(messages=turns(("system", "S"), ("user", "Who?"), ("assistant", "I.")) + TALK)),
    "no rounds": ({"instruction": "Hi", "output": "Hello", "system": "", "history": []}, "instruction", "instruction and output", ASKED),
    "tools of Alpaca": ({"instruction": "Hi", "output": "Hello", "tools": [TOOL]}, "instruction", "instruction and output", Example(messages=TALK, tools=(TOOL,))),
    "a pair's system": ({"prompt": "Hi", "completion": "Hello", "system": "S"}, "prompt-completion", "prompt and completion", Example(prompt="S\n\nHi", completion="Hello")),
    "a turned pair's system": ({"prompt": [*TALK, TALK[0]], "completion": [TALK[1]], "system": "S"}, "messages", "prompt and completion as lists of turns", Example(messages=turns(("system", "S")) + TALK * 2, untrained=(2,))),
    "the same system twice": ({"messages": [*turns(("system", "S")), *TALK], "system": "S"}, "messages", "messages", Example(messages=turns(("system", "S")) + TALK)),
    "no input": ({"instruction": "Hi", "input": "", "output": "Hello"}, "instruction", "instruction and output", ASKED),
    "text": ({"text": "Hi", "label": None, "meta": 1} | {"label": 0}, "classification", "text and label", Example(text="Hi", label=0)),
    "plain": ({"text": "Hi"}, "text", "text", Example(completion="Hi")),
    "labels": ({"text": "Hi", "labels": '["a", "b"]'}, "classification", "text and labels", Example(text="Hi", label=("a", "b"))),
    "no second text": ({"text": "Hi", "text_pair": "", "label": "a"}, "classification", "text and label", Example(text="Hi", label="a")),
    "Label Studio, a choice": (task(choice("good")), "classification", "data and annotations (Label Studio, choices)", Example(text="Hi", label="good")),
    "Label Studio, choices": (task(choice("good", "short")), "classification", "data and annotations (Label Studio, choices)", Example(text="Hi", label=("good", "short"))),
    "Label Studio, an answer": (task(written("Hello")), "instruction", "data and annotations (Label Studio, textarea)", ASKED),
    "Label Studio, ground truth": (task(annotations=[{"result": [choice("bad")]}, {"result": [choice("good")], "ground_truth": True}, {"result": [choice("so so")], "was_cancelled": True}]), "classification", "data and annotations (Label Studio, choices)", Example(text="Hi", label="good")),
    "Argilla, a label": (record("sentiment", "good", "good", suggested="bad"), "classification", "fields and responses (Argilla, labels)", Example(text="Hi", label="good")),
    "Argilla, a suggestion": (record("kinds", suggested=["a", "b"]), "classification", "fields and responses (Argilla, labels)", Example(text="Hi", label=("a", "b"))),
    "Argilla, an answer": (record("response", "Hello", prompt="Hi", note="N"), "instruction", "fields and responses (Argilla, answers)", ASKED),
    "Argilla 1": ({"fields": {"text": "Hi"}, "responses": [{"values": {"label": {"value": "good"}}, "status": "submitted"}, {"values": {"label": {"value": "bad"}}, "status": "discarded"}], "suggestions": []}, "classification", "fields and responses (Argilla, labels)", Example(text="Hi", label="good")),
    "Argilla's table": ({"id": "1", "status": "completed", "prompt": "Hi", "answer.responses": ["Hello", "No"], "answer.responses.status": ["submitted", "draft"], "answer.suggestion": "Well"}, "instruction", "fields and responses (Argilla, answers)", ASKED),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_dialect_is_recognised_and_read(name):
    row, form, evidence, example = READ[name]
    assert formats.detect(row) == form
    assert formats.evidence(row, form) == evidence
    read = formats.read(row, form)
    assert read == example
    assert isinstance(hash(read.canonical()), int)


def test_the_format_that_is_named_decides():
    row = {
        "messages": list(TALK),
        "prompt": "a",
        "completion": "b",
        "text": "c",
        "label": "d",
        "chosen": 1,
        "rejected": 2,
    }
    assert formats.read(row, "messages") == ASKED
    assert formats.read(row, "prompt-completion").completion == "b"
    assert formats.read(row, "text").completion == "c"
    assert formats.read(row, "classification").label == "d"
    assert formats.read(record("verdict", "good"), "classification").label == "good"
    assert formats.read(record("verdict", "good"), "instruction").messages[-1]["content"] == "good"
    both = task(choice("good"), written("Hello"))
    assert (formats.read(both, "classification").label, formats.read(both, "instruction")) == ("good", ASKED)


def said(content: object = "Hello", **more: object) -> dict:
    return {"messages": [TALK[0], {"role": "assistant", "content": content, **more}]}


THOUGHTFUL = {
    # name: (row, reasoning)
    "reasoning_content": (said(reasoning_content="Hm.\n"), "Hm.\n"),
    "thinking": (said(thinking="Hm."), "Hm."),
    "reasoning": (said(reasoning="Hm.", thinking=None), "Hm."),
    "twice the same": (said(reasoning="Hm.", reasoning_content="Hm."), "Hm."),
    "parts of Anthropic": (said([{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "Hello"}]), "Hm."),
    "parts of Mistral": (said([{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Hello"}]), "Hm."),
    "parts of OpenAI": (said([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}, {"type": "output_text", "text": "Hello"}]), "Hm."),
    "none": (said(reasoning_content=" ", thinking=""), None),
    "of a call": (said(None, tool_calls=[CALL], reasoning="Hm."), "Hm."),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello", "reasoning": "Hm."}]}, "Hm."),
}  # fmt: skip


@pytest.mark.parametrize("name", THOUGHTFUL)
def test_what_an_assistant_thinks_is_kept_apart_from_what_it_says(name):
    row, reasoning = THOUGHTFUL[name]
    answer = formats.read(row, "messages").messages[-1]
    assert answer.get("reasoning_content") == reasoning
    assert answer["content"] == ("" if "tool_calls" in answer else "Hello")


def _called(arguments: object, **tool: dict) -> dict:
    properties = {
        "city": {"type": "string"},
        "unit": {"type": "string"},
        "days": {"items": {"properties": {"day": {}}}},
    }
    offered = {"name": "weather", "parameters": {"type": "object", "properties": properties}} | tool
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns = [TALK[0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    return {"messages": turns, "tools": [{"type": "function", "function": offered}]}


PADDED = {"city": "Rome", "unit": None, "zone": None, "days": [{"day": 1, "hour": None}]}
ARGUMENTS = {
    # name: (row, arguments that are trained)
    "undeclared nulls of an object": (_called(PADDED), {"city": "Rome", "unit": None, "days": [{"day": 1}]}),
    "nulls that the row wrote itself": (_called(json.dumps(PADDED)), PADDED),
    "a tool that declares nothing": (_called(PADDED, parameters={"type": "object"}), PADDED),
    "another tool": (_called(PADDED, name="clock"), PADDED),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_that_other_calls_have_is_no_argument(name):
    row, arguments = ARGUMENTS[name]
    [call] = formats.read(row, "messages").messages[-1]["tool_calls"]
    assert call["function"]["arguments"] == arguments


def test_what_is_offered_is_content_and_what_is_learnt_is_not():
    plain, offered = formats.read({"messages": list(TALK)}, "messages"), formats.read({"messages": list(TALK), "tools": [TOOL]}, "messages")  # fmt: skip
    weighed = formats.read({"messages": [*TALK, {**TALK[1], "weight": 0}, TALK[1]]}, "messages")
    unweighed = formats.read({"messages": [*TALK, TALK[1], TALK[1]]}, "messages")
    assert plain.canonical() != offered.canonical()
    assert weighed.canonical() == unweighed.canonical()


def talk(*messages: object, **more: object) -> dict:
    return {"messages": list(messages), **more}


UNKNOWN = {
    # name: (row, code, words)
    "chosen": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "PreferencePairs", "pairs chosen with rejected: training on preferences is not supported: keep the better answers"),
    "chosen beside messages": (talk(*TALK, chosen=[], rejected=[]), "PreferencePairs", "or set spec.data.format to messages"),
    "OpenAI's preferences": ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "PreferencePairs", "pairs preferred_output with non_preferred_output"),
    "KTO": ({"prompt": "a", "completion": "b", "label": True}, "PreferencePairs", "judges its completion by a label"),
    "Label Studio's pairs": (task({"type": "pairwise", "from_name": "p", "value": {"selected": "left"}}), "PreferencePairs", "annotated by pairwise"),
    "Argilla's ranking": (record("ranks", [{"value": "a", "rank": 1}]), "PreferencePairs", "annotated by a ranking"),
    "two formats": ({"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}, "UnknownFormat", r"may be prompt-completion \(by prompt and completion\) or instruction \(by instruction and output\): set spec.data.format"),
    "label or answer": (record("verdict", "good"), "UnknownFormat", "may be instruction .* or classification .*: set spec.data.format"),
    "choices and answers": (task(choice("good"), written("Hello")), "UnknownFormat", "may be instruction .* or classification"),
    "nothing known": ({"a": 1}, "UnknownFormat", r"is in no known format \(it has a\): rename the fields to messages; or"),
    "no fields": ({}, "UnknownFormat", "it has no fields at all"),
    "GSM8K": ({"question": "a", "answer": "b"}, "UnknownFormat", "rename question to prompt and answer to completion"),
    "ms-swift": ({"query": "a", "response": "b", "history": [["c", "d"]]}, "UnknownFormat", "rename query to instruction and response to output"),
    "Dolly": ({"Context": "a", "response": "b"}, "UnknownFormat", "rename Context to prompt and response to completion"),
    "a document": ({"sentence": "a"}, "UnknownFormat", "rename sentence to text"),
    "capitals": ({"Prompt": "a", "Completion ": "b"}, "UnknownFormat", "write the fields' names in lower case"),
    "half": ({"prompt": "a"}, "MissingField", "has a field 'prompt' but no 'completion'"),
    "the other half": ({"output": "a"}, "MissingField", "has a field 'output' but no 'instruction'"),
    "null": ({"text": None}, "EmptyField", "text is null"),
    "half null": ({"prompt": "a", "completion": None}, "EmptyField", "completion is null"),
    "Label Studio, other kinds": (task({"type": "labels", "value": {"labels": ["PER"], "start": 0}}), "UnknownFormat", "annotated by labels: of Label Studio's kinds only choices and textarea"),
    "Label Studio, nothing": (task(annotations=[{"result": [], "was_cancelled": False}]), "NothingToTrain", "no annotation that was submitted"),
    "Argilla, nothing": (record("label"), "NothingToTrain", "no response and no suggestion"),
    "Argilla, odd": (record("spans", [{"start": 0}]), "UnknownFormat", "neither labels nor texts"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_row_in_no_one_format_is_told_why(name):
    row, code, words = UNKNOWN[name]
    with pytest.raises(InvalidRow, match=words) as caught:
        formats.detect(row)
    assert caught.value.code == code


USER, BOT = TALK
INVALID = {
    # name: (row, format, code, words)
    "mixed": ({"prompt": "a", "completion": "b"}, "text", "MixedFormats", r"looks like prompt-completion \(by prompt and completion\), but text is read here: keep each"),
    "mixed turns": ({"prompt": [USER], "completion": [BOT]}, "prompt-completion", "MixedFormats", "looks like messages"),
    "pairs among others": ({"chosen": "a", "rejected": "b"}, "text", "PreferencePairs", "pairs chosen with rejected"),
    "unknown among others": ({"a": 1}, "text", "UnknownFormat", "is not in format text: it is in no known format"),
    "absent": ({"prompt": "a", "answer": "b"}, "prompt-completion", "MissingField", "no 'completion'"),
    "null": ({"instruction": None, "output": "b"}, "instruction", "EmptyField", "instruction is null"),
    "empty": ({"text": " \n"}, "text", "EmptyField", "text is empty"),
    "a number": ({"text": 5}, "text", "WrongType", "text is 5, not a text"),
    "an object": ({"prompt": {"a": 1}, "completion": "b"}, "prompt-completion", "WrongType", 'prompt is {"a": 1}, not a text'),
    "an address": ({"text": {"by": MAIL}}, "text", "WrongType", r'text is \{"by": "j\*\*\*@f\*\*\*.de"\}, not a text'),
    "a key that is longer than what is shown": ({"text": {"pw": KEY}}, "text", "WrongType", r'text is \{"pw": "ghp_…\(40 characters\)"\}, not'),
    "a role that is an address": (talk({"role": MAIL, "content": "a"}), "messages", "InvalidRole", r'role is "j\*\*\*@f\*\*\*.de": use'),
    "a field that is an address": ({MAIL: "a"}, "text", "UnknownFormat", r'it has "j\*\*\*@f\*\*\*.de"'),
    "bytes": ({"text": b"a"}, "text", "WrongType", 'text is "a bytes", not a text'),
    "half a list": ({"prompt": [USER], "completion": "b"}, "prompt-completion", "WrongType", "prompt is a list of turns: write completion as one too"),
    "half a list in a table": ({"prompt": json.dumps([USER]), "completion": "b"}, "prompt-completion", "WrongType", "prompt is a list of turns: write completion as one too"),
    "a list of words": ({"text": ["a", "b"]}, "text", "WrongType", r'text is \["a", "b"\], not a text'),
    "NUL": ({"text": "a\0"}, "text", "InvalidEncoding", "text holds a NUL character"),
    "surrogate": ({"text": "a\ud800"}, "text", "InvalidEncoding", "half of a surrogate pair at character 2"),
    "surrogate in a call": (talk(USER, {**BOT, "tool_calls": [{"function": {"name": "f", "arguments": {"\udc00": 1}}}]}), "messages", "InvalidEncoding", "surrogate"),
    "no list": (talk() | {"messages": "Hi"}, "messages", "WrongType", "messages is not a list of turns"),
    "no JSON": ({"messages": "[{"}, "messages", "WrongType", "messages is a text that is not JSON"),
    "no turn": (talk(), "messages", "EmptyField", "messages is empty"),
    "no object": (talk("Hi"), "messages", "WrongType", r'messages\[0\] is "Hi", not a turn: write an object with role and content'),
    "no role": (talk({"content": "a"}), "messages", "InvalidRole", r"messages\[0\] has no role"),
    "nobody": (talk({"role": ["user"], "content": "a"}), "messages", "InvalidRole", r'messages\[0\].role is \["user"\]: use'),
    "no content": (talk({"role": "user"}), "messages", "MissingField", r"messages\[0\] has no content"),
    "null content": (talk(USER, {"role": "assistant", "content": None}), "messages", "EmptyField", r"messages\[1\].content is null"),
    "an image": (talk({"role": "user", "content": [{"type": "image_url"}]}), "messages", "WrongType", r'content\[0\] is no text but "image_url"'),
    "images": (talk(*TALK, images=["a.png"]), "messages", "WrongType", "images is not empty, and only text can be trained on: leave the row out"),
    "a video": ({"prompt": "<video>What?", "completion": "A cat.", "video": "a.mp4"}, "prompt-completion", "WrongType", "video is not empty"),
    "no assistant": (talk(USER), "messages", "NothingToTrain", "messages has no assistant turn"),
    "last is a tool": (talk(USER, BOT, {"role": "tool", "content": "a"}), "messages", "InvalidTurnOrder", "the last turn is the tool's"),
    "first is the assistant": (talk(BOT), "messages", "InvalidTurnOrder", "begins with the assistant"),
    "late system": (talk(USER, {"role": "system", "content": "a"}, BOT), "messages", "InvalidTurnOrder", r"messages\[1\] is a system turn"),
    "tool without call": (talk(USER, {"role": "tool", "content": "a"}, BOT), "messages", "InvalidTurnOrder", r"messages\[1\] is a tool's turn, but no call"),
    "no weight left": (talk(USER, {**BOT, "weight": 0}), "messages", "NothingToTrain", "every answer is marked as not trained"),
    "half a weight": (talk(USER, {**BOT, "weight": 0.5}), "messages", "WrongType", r"messages\[1\].weight is 0.5: write 0"),
    "half a loss": (talk(USER, {**BOT, "loss": "no"}), "messages", "WrongType", r'messages\[1\].loss is "no": write 0'),
    "half a row's mask": (talk(USER, BOT, loss_mask=[1]), "messages", "WrongType", r"loss_mask is \[1\]: write a list with 0 or 1 for each of messages"),
    "half a turn's mask": (talk(USER, {**BOT, "train_detail": [{"begin_offset": 0}]}), "messages", "WrongType", r"messages\[1\] has train_detail: a turn is trained as a whole"),
    "call without name": (talk(USER, {**BOT, "tool_calls": [{"function": {}}]}), "messages", "WrongType", r"tool_calls\[0\] has no function with a name"),
    "calls are no list": (talk(USER, {**BOT, "tool_calls": 5}), "messages", "WrongType", r"tool_calls is 5, not a list"),
    "arguments": (talk(USER, {**BOT, "tool_calls": [{"function": {"name": "f", "arguments": "{x"}}]}), "messages", "WrongType", "arguments is a text that is not JSON"),
    "a list of arguments": (talk(USER, {**BOT, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}), "messages", "WrongType", r"arguments is \[1\], not an object"),
    "deep arguments": (talk(USER, {**BOT, "tool_calls": [{"function": {"name": "f", "arguments": '{"a":' + "[" * 99 + "]" * 99 + "}"}}]}), "messages", "WrongType", "nested too deeply"),
    "tools are no list": (talk(*TALK, tools="f"), "messages", "WrongType", 'tools is "f", not a list'),
    "a tool without name": (talk(*TALK, tools=[{}]), "messages", "WrongType", r"tools\[0\] is no function with a name"),
    "two systems": (talk({"role": "system", "content": "a"}, *TALK, system="b"), "messages", "UnknownFormat", r"has a system prompt next to that of messages\[0\]: keep one"),
    "a system that is no text": (talk(*TALK, system=["a"]), "messages", "WrongType", r'system is \["a"\], not a text'),
    "a pair's history": ({"prompt": "a", "completion": "b", "history": [["c", "d"]]}, "prompt-completion", "UnknownFormat", "has a history, and a pair is one prompt: write the row as messages"),
    "half a round": ({"instruction": "a", "output": "b", "history": [["c"]]}, "instruction", "WrongType", r'history is \[\["c"\]\], not a list of rounds: write each as \[instruction, output\]'),
    "two thoughts": (said(thinking="a", reasoning="b"), "messages", "UnknownFormat", r"messages\[1\] has different reasoning in thinking and reasoning: keep one"),
    "a thought that is none": (said(thinking=True), "messages", "WrongType", r"messages\[1\].thinking is true, not a text"),
    "a hidden thought": (said([{"type": "redacted_thinking", "data": "x"}]), "messages", "WrongType", 'no text but "redacted_thinking"'),
    "a label and labels": ({"text": "a", "label": 1, "labels": [1]}, "classification", "UnknownFormat", "has both label and labels"),
    "a fraction": ({"text": "a", "label": 0.5}, "classification", "WrongType", "label is 0.5, not the name or number of a class: leave scores out, which a classifier cannot learn, or divide"),
    "a whole number of a table with gaps": ({"text": "a", "label": 1.0}, "classification", "WrongType", "label is 1.0, not the name or number of a class: write 1$"),
    "a label that is an object": ({"text": "a", "label": {"a": 1}}, "classification", "WrongType", "a class: write a text, a whole number"),
    "no label": ({"text": "a", "label": None}, "classification", "EmptyField", "label is null"),
    "annotators": (task(annotations=[{"result": [choice("good")]}, {"result": [choice("bad")]}]), "classification", "NothingToTrain", r'do not agree \(\["good"\] and \["bad"\]\)'),
    "annotators of Argilla": (record("label", "good", "bad"), "classification", "NothingToTrain", 'do not agree \\("good" and "bad"\\)'),
    "two questions": (task(choice("a"), choice("b", name="other")), "classification", "UnknownFormat", r"several questions \(other, sentiment\)"),
    "two answers": (task(written("a", "b")), "instruction", "WrongType", "has 2 texts"),
    "two texts": (task(choice("a"), data={"title": "a", "body": "b"}), "classification", "UnknownFormat", r"data has several texts \(body, title\): name the one that counts text"),
    "no text": (task(choice("a"), data={"image": 5}), "classification", "EmptyField", "data has no text"),
    "an export among others": (task(), "classification", "NothingToTrain", "it has no annotation"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_row_has_its_check_and_one_clause(name):
    row, form, code, words = INVALID[name]
    with pytest.raises(InvalidRow, match=words) as caught:
        formats.read(row, form)
    assert caught.value.code == code
    assert code in ROW_CODES
    assert "\n" not in str(caught.value)


PAGE = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text()
TOLD = re.findall(r"^\| `([a-z-]+)` \|.*?`(\{.*?\})`", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("form", "row"), TOLD)
def test_the_rows_of_the_docs_are_what_they_say(form, row):
    assert formats.detect(json.loads(row)) == form
    assert formats.read(json.loads(row), form)


def test_the_docs_tell_every_format_and_a_row_with_tools():
    assert {form for form, _ in TOLD} == set(get_args(DataFormat))
    [row] = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert [turn["role"] for turn in formats.read(json.loads(row), "messages").messages].count("tool") == 1
