"""Tools and calls of them, in the many ways in which they are written, as OpenAI and chat templates know them.

tools        [{"type": "function", "function": {"name", "description", "parameters"}}]
tool_calls   [{"type": "function", "id", "function": {"name", "arguments": {...}}}]
"""

from __future__ import annotations

from typing import Any

from finetune_trainer.data.formats.example import InvalidRow
from finetune_trainer.data.formats.fields import from_json, shown, structured, text
from finetune_trainer.data.readers.parquet import without_null

_DEEPEST = 64

Tools = tuple[dict[str, Any], ...]


def tools_of(row: dict[str, Any]) -> Tools | None:
    """The functions that a row offers in `tools`, or in `functions` as OpenAI once had it. Raises InvalidRow."""
    name = next((name for name in ("tools", "functions") if row.get(name)), None)
    if name is None:
        return None
    tools = structured(row[name], name)
    if not isinstance(tools, list):
        raise InvalidRow(f"{name} is {shown(tools)}, not a list of functions", "WrongType", "write a list")
    return tuple(_tool(tool, f"{name}[{number}]") for number, tool in enumerate(tools)) or None


def _sound(value: Any, where: str, depth: int = 0) -> Any:
    """A value that can be written as JSON again. Raises InvalidRow."""
    if type(value) is str:
        return text(value, where, may_be_empty=True)
    if type(value) is dict or type(value) is list:
        if depth == _DEEPEST:
            raise InvalidRow(f"{where} is nested too deeply", "WrongType", f"nest {_DEEPEST} levels at most")
        for inner in (*value.keys(), *value.values()) if type(value) is dict else value:
            _sound(inner, where, depth + 1)
    elif value is not None and not isinstance(value, int | float):
        raise InvalidRow(f"{where} holds {shown(value)}, which JSON does not know", "WrongType", "write it as a string")
    return value


def _tool(tool: Any, where: str) -> dict[str, Any]:
    tool = structured(tool, where)
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRow(f"{where} is no function with a name", "WrongType", "add its name")
    function = {**function, "parameters": structured(function.get("parameters"), f"{where}.function.parameters")}
    return {"type": "function", "function": without_null(_sound(function, where))}


def tool_calls(calls: Any, where: str, tools: Tools | None) -> list[dict[str, Any]]:
    """Calls as templates take them: arguments are an object, whether the row has one or its JSON text. Raises InvalidRow."""
    calls = structured(calls, where)
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list):
        raise InvalidRow(f"{where} is {shown(calls)}, not a list of calls", "WrongType", "write a list")
    return [_call(call, f"{where}[{number}]", tools) for number, call in enumerate(calls)]


def _call(call: Any, where: str, tools: Tools | None) -> dict[str, Any]:
    function = call.get("function") or call if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRow(f"{where} has no function with a name", "WrongType", "add its name")
    name = text(function["name"], f"{where}.function.name")
    known = {"id": text(call["id"], f"{where}.id", may_be_empty=True)} if isinstance(call.get("id"), str) else {}
    written = function.get("arguments", function.get("parameters"))
    arguments = _arguments(written, f"{where}.function.arguments")
    if isinstance(written, dict):
        called = next((tool["function"] for tool in tools or () if tool["function"]["name"] == name), {})
        arguments = _declared(arguments, called.get("parameters"))
    return {"type": "function", **known, "function": {"name": name, "arguments": arguments}}


def _declared(value: Any, schema: Any) -> Any:
    """Without nulls that a schema does not declare: they are the parameters of other tools, written from Arrow to JSON."""
    if isinstance(value, list) and isinstance(schema, dict):
        return [_declared(inner, schema.get("items")) for inner in value]
    known = schema.get("properties") if isinstance(value, dict) and isinstance(schema, dict) else None
    if not isinstance(known, dict):
        return value
    return {
        name: _declared(inner, known.get(name)) for name, inner in value.items() if inner is not None or name in known
    }


def _arguments(value: Any, where: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        value = from_json(text(value, where), where)
    if not isinstance(value, dict):
        raise InvalidRow(
            f"{where} is {shown(value)}, not an object", "WrongType", "write an object of names and values"
        )
    return _sound(value, where)
