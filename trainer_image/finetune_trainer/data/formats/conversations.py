"""Conversations: OpenAI's messages and ShareGPT's conversations, with tools, as one list of turns."""

from __future__ import annotations

from typing import Any

import orjson

from finetune_trainer.data.chat import Message
from finetune_trainer.data.formats.example import Example, InvalidRow
from finetune_trainer.data.formats.fields import shown, structured, text
from finetune_trainer.data.formats.tools import Tools, tool_calls, tools_of

NAMES = ("messages", "conversations", "conversation")

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields of a turn that hold its reasoning, and types of parts that do."""
_THOUGHTS = (*_REASONING, "text", "content", "summary")
"""Fields of such a part, by Anthropic, Mistral and OpenAI."""

_MASKS = ("weight", "train", "loss", "loss_scale", "loss_mask")
"""Fields that keep a turn from being trained: OpenAI's, axolotl's, ms-swift's two; the last is LLaMA-Factory's, of a row."""

_CALL = "call"
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "tool_call": _CALL,
    "function_call": _CALL,
}
"""What roles are called, by OpenAI, ShareGPT and their kin, and what chat templates call them."""


def read_conversation(row: dict[str, Any]) -> Example:
    """A row with a list of turns. Raises InvalidRow."""
    field = field_of(row)
    assert field
    turns = structured(row[field], field)
    if (mask := structured(row.get("loss_mask"), "loss_mask")) is not None:
        if not (isinstance(mask, list) and isinstance(turns, list) and len(mask) == len(turns)):
            raise InvalidRow(
                f"loss_mask is {shown(mask)}", "WrongType", f"write a list with 0 or 1 for each of {field}"
            )
        turns = [
            {**turn, "loss_mask": one} if type(turn) is dict else turn for turn, one in zip(turns, mask, strict=True)
        ]
    messages, untrained = turns_of(turns, field, tools := tools_of(row))
    return conversation(messages, untrained, row, tools, field)


def read_turned_pair(row: dict[str, Any]) -> Example:
    """Prompt and completion that are lists of turns: what the prompt's assistant says is not learnt. Raises InvalidRow."""
    tools = tools_of(row)
    prompt, _ = turns_of(structured(row["prompt"], "prompt"), "prompt", tools)
    completion, untrained = turns_of(structured(row["completion"], "completion"), "completion", tools)
    untrained = [number + len(prompt) for number in untrained]
    before = [number for number, message in enumerate(prompt) if message["role"] == "assistant"]
    return conversation(prompt + completion, before + untrained, row, tools, "prompt")


def has_turns(value: Any) -> bool:
    """Whether a field of a pair is a list, or the JSON text of turns, as a table has to write them. Other lists may be texts."""
    if type(value) is not str:
        return isinstance(value, list)
    if not value.lstrip().startswith("[") or '"role"' not in value:
        return False
    try:
        turns = orjson.loads(value)
    except ValueError:
        return False
    return bool(turns) and all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in turns)


def field_of(row: dict[str, Any]) -> str | None:
    """The field that holds the turns."""
    for name in NAMES:
        if row.get(name) is not None:
            return name
    return None


def is_sharegpt(row: dict[str, Any]) -> bool:
    """Whether the first turn is written with from and value."""
    turns = row[field_of(row) or ""]
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]


def read_instruction(row: dict[str, Any]) -> Example:
    """Alpaca's rows, which may have earlier rounds in `history`. Raises InvalidRow."""
    question = text(row["instruction"], "instruction")
    given = row.get("input")
    if given is not None and (given := text(given, "input", may_be_empty=True)).strip():
        question = f"{question}\n\n{given}"
    turns = [*_history(row), ("user", question), ("assistant", text(row["output"], "output"))]
    return conversation([{"role": role, "content": said} for role, said in turns], [], row, tools_of(row), "history")


def _history(row: dict[str, Any]) -> list[tuple[str, str]]:
    rounds = structured(row.get("history") or [], "history")
    if not isinstance(rounds, list) or any(not isinstance(one, list) or len(one) != 2 for one in rounds):
        raise InvalidRow(
            f"history is {shown(rounds)}, not a list of rounds", "WrongType", "write each as [instruction, output]"
        )
    return [
        (role, text(said, f"history[{number}]"))
        for number, one in enumerate(rounds)
        for role, said in zip(("user", "assistant"), one, strict=True)
    ]


def system_of(row: dict[str, Any]) -> str:
    """The system prompt that a row has in a field of its own; empty where it has none. Raises InvalidRow."""
    name = next((name for name in ("system", "system_prompt") if row.get(name)), None)
    said = text(row[name], name, may_be_empty=True) if name else ""
    return said if said.strip() else ""


def conversation(
    messages: list[Message], untrained: list[int], row: dict[str, Any], tools: Tools | None, field: str
) -> Example:
    """The example of these turns, after the system prompt that the row may have apart from them.

    Raises InvalidRow when their order is none that a conversation has.
    """
    if system := system_of(row):
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
            untrained = [number + 1 for number in untrained]
        elif messages[0]["content"] != system:
            raise InvalidRow(f"has a system prompt next to that of {field}[0]", "UnknownFormat", "keep one of them")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise InvalidRow(f"{field} has no assistant turn, so there is nothing to learn", "NothingToTrain")
    if roles[-1] != "assistant":
        raise InvalidRow(
            f"the last turn is the {roles[-1]}'s, but only the assistant's turns are trained",
            "InvalidTurnOrder",
            "end with an assistant turn",
        )
    if roles[0] == "assistant":
        raise InvalidRow(
            "the conversation begins with the assistant", "InvalidTurnOrder", "put a system or user turn before it"
        )
    if "system" in roles[1:]:
        late = roles.index("system", 1)
        raise InvalidRow(
            f"{field}[{late}] is a system turn, which can only be the first",
            "InvalidTurnOrder",
            "move its text to the first turn",
        )
    if "tool" in roles:
        _check_tools(roles, field)
    if untrained and len(untrained) == roles.count("assistant"):
        raise InvalidRow("every answer is marked as not trained", "NothingToTrain", "leave the row out")
    return Example(messages=tuple(messages), tools=tools, untrained=tuple(untrained))


def _check_tools(roles: list[str], field: str) -> None:
    for number, role in enumerate(roles):
        if role == "tool" and (number == 0 or roles[number - 1] not in ("assistant", "tool")):
            raise InvalidRow(
                f"{field}[{number}] is a tool's turn, but no call is before it",
                "InvalidTurnOrder",
                "put the assistant turn with its call before it",
            )


def turns_of(turns: Any, field: str, tools: Tools | None) -> tuple[list[Message], list[int]]:
    """Turns in the templates' own words, and the places of the answers that are not trained. Raises InvalidRow."""
    if not isinstance(turns, list):
        raise InvalidRow(
            f"{field} is not a list of turns", "WrongType", "write a list of objects with role and content"
        )
    if not turns:
        raise InvalidRow(f"{field} is empty", "EmptyField")
    messages: list[Message] = []
    untrained: list[int] = []
    for number, turn in enumerate(turns):
        if type(turn) is not dict:
            raise InvalidRow(
                f"{field}[{number}] is {shown(turn)}, not a turn", "WrongType", "write an object with role and content"
            )
        role, content = turn.get("role"), turn.get("content")
        if role is None and content is None and "from" in turn:
            role, content = turn["from"], turn.get("value")
        known = ROLES.get(role) if type(role) is str else None
        if known is None:
            raise _no_role(role, f"{field}[{number}]")
        if known == "user" or known == "system":
            if content is None and not {"content", "value"} & turn.keys():
                raise InvalidRow(f"{field}[{number}] has no content", "MissingField")
            said = text(content, f"{field}[{number}].content", parts=True, may_be_empty=known == "system")
            messages.append({"role": known, "content": said})
            continue
        message = _special(turn, known, content, f"{field}[{number}]", tools)
        masked = known != "tool" and _is_masked(turn, f"{field}[{number}]")
        if _continues(message, messages) and masked == (len(messages) - 1 in untrained):
            messages[-1]["tool_calls"] = messages[-1].get("tool_calls", []) + message["tool_calls"]
            continue
        if masked:
            untrained.append(len(messages))
        messages.append(message)
    return messages, untrained


def _continues(message: Message, before: list[Message]) -> bool:
    """Whether a turn is nothing but calls that the assistant makes in its turn before: what it says and calls is one turn, or
    it would be trained to stop in between."""
    calls_alone = "tool_calls" in message and not message["content"] and "reasoning_content" not in message
    return calls_alone and bool(before) and before[-1]["role"] == "assistant"


def _special(turn: dict[str, Any], role: str, content: Any, where: str, tools: Tools | None) -> Message:
    """An assistant's turn, which may call tools, or a tool's answer."""
    if role == "tool":
        return {
            "role": "tool",
            "content": text(content if content is not None else "", f"{where}.content", parts=True, may_be_empty=True),
            **{name: text(turn[name], f"{where}.{name}") for name in ("tool_call_id", "name") if turn.get(name)},
        }
    calls = content if role == _CALL else turn.get("tool_calls") or turn.get("function_call")
    if not calls and content is None and "content" not in turn and "value" not in turn:
        raise InvalidRow(f"{where} has no content", "MissingField")
    if calls and (role == _CALL or content is None):
        content = ""
    thoughts, content = _reasoning(turn, content, where)
    message = {"role": "assistant", "content": text(content, f"{where}.content", parts=True, may_be_empty=bool(calls))}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = tool_calls(calls, where if role == _CALL else f"{where}.tool_calls", tools)
    return message


def _reasoning(turn: dict[str, Any], content: Any, where: str) -> tuple[str, Any]:
    """What the assistant thinks before it answers, in whichever field or part of the content, and the content without it."""
    found = {name: turn[name] for name in _REASONING if turn.get(name)}
    if isinstance(content, list):
        thoughts = [part for part in content if isinstance(part, dict) and part.get("type") in _REASONING]
        content = [part for part in content if part not in thoughts]
        said = [next((part[name] for name in _THOUGHTS if part.get(name)), "") for part in thoughts]
        texts = [text(part, f"{where}.content", parts=True, may_be_empty=True) for part in said]
        found |= {"content": "".join(texts)} if texts else {}
    read = {text(value, f"{where}.{name}", parts=True, may_be_empty=True): name for name, value in found.items()}
    read = {thought: name for thought, name in read.items() if thought.strip()}
    if len(read) > 1:
        names = " and ".join(read.values())
        raise InvalidRow(f"{where} has different reasoning in {names}", "UnknownFormat", "keep one of them")
    return next(iter(read), ""), content


def _is_masked(turn: dict[str, Any], where: str) -> bool:
    """Whether a mask keeps an answer from being trained."""
    if turn.get("train_detail"):
        raise InvalidRow(f"{where} has train_detail", "WrongType", "a turn is trained as a whole: set train")
    given = {name: turn[name] for name in _MASKS if turn.get(name) is not None}
    for name, value in given.items():
        if value not in (0, 1):
            raise InvalidRow(f"{where}.{name} is {shown(value)}", "WrongType", "write 0 (not trained) or 1 (trained)")
    return 0 in given.values()


def _no_role(role: Any, where: str) -> InvalidRow:
    if role is None:
        return InvalidRow(f"{where} has no role", "InvalidRole", "add system, user, assistant or tool")
    return InvalidRow(f"{where}.role is {shown(role)}", "InvalidRole", "use system, user, assistant or tool")
