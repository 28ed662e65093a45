"""Tokenizers and chat templates: the model's own, or a plain default, and which characters of a rendered chat are answers."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune_api.method import Task

from finetune_trainer.data import spans
from finetune_trainer.data.spans import common_prefix
from finetune_trainer.data.tool_style import ToolStyle, has_tools, probe
from finetune_trainer.errors import BadInput, first_line

Message = dict[str, Any]
"""{"role": ..., "content": ...}; an assistant's may have `tool_calls` (and then an empty content), a tool's `tool_call_id` and `name`."""

DEFAULT_TEMPLATE = (
    "{{ bos_token if bos_token else '' }}"
    "{% if tools %}{{ '### Tools:\n' }}{% for tool in tools %}{{ (tool | tojson) + '\n' }}{% endfor %}{{ '\n' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\n' + message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'tool' %}{{ '### Tool:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Assistant:\n' }}{% generation %}{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ '\n' if message['content'] or not loop.first }}"
    "{{ '### Call: ' + (call['function'] | tojson) }}{% endfor %}"
    "{{ eos_token }}{% endgeneration %}{{ '\n\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
"""Made of plain text, so that it needs no token that the vocabulary lacks; a turn ends with the tokenizer's end token."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class TemplateRefused(ValueError):
    """A chat template cannot render these messages; the message is the template's own."""


def load_tokenizer(
    folder: Path, *, field: str = "spec.model", template: str | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer of a model folder, with the chat template in force set on it (so that saving it saves the template).

    The template in force is `template` where one is given, else the model's own, else a plain one, which
    `tokenizer.finetune_template_is_default` tells. `trust_remote_code`: run Python code that the folder brings.
    Raises BadInput (InvalidModel; InvalidSpec for `template`).
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a broken tokenizer file raises
        raise BadInput(
            f"{field}: no tokenizer could be read from it: {first_line(error)}",
            code="InvalidModel",
            remedy="the folder needs tokenizer.json (and tokenizer_config.json) as Hugging Face writes them",
        ) from error
    if not getattr(tokenizer, "is_fast", False) or not len(tokenizer):
        raise BadInput(
            f"{field}: its tokenizer has no tokenizer.json, and one is needed to tell prompts from answers",
            code="InvalidModel",
            remedy="save the tokenizer once with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)",
        )
    if template is not None:
        _check_template(template)
        tokenizer.chat_template = template
    tokenizer.finetune_template_is_default = not tokenizer.chat_template
    if tokenizer.finetune_template_is_default:
        tokenizer.chat_template = DEFAULT_TEMPLATE
    return tokenizer


def check_end_token(tokenizer: Any, *, field: str) -> None:
    """Raises BadInput (InvalidModel) when a language model's tokenizer names no token that ends an answer."""
    if tokenizer.eos_token_id is None:
        raise BadInput(
            f"{field}: its tokenizer names no eos_token, so a model could never learn where an answer ends",
            code="InvalidModel",
            remedy="set eos_token in tokenizer_config.json",
        )


def pad_id(tokenizer: Any, vocabulary: int) -> int:
    """What fills up short rows: the pad token, or the end token where there is none among the model's `vocabulary`. Masks say what
    is trained, so that neither does harm."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return next((token for token in known if token is not None and token < vocabulary), 0)


def settle(tokenizer: Any, task: Task, vocabulary: int) -> None:
    """Make a tokenizer what is saved with the result of a task. Its digests change: compare them before.

    A classifier's names its pad token: a decoder that classifies finds the end of a row by it, and refuses batches
    without. One that the model's `vocabulary` does not have gives way to one that it has. The plain default template belongs to models that hold conversations.
    """
    pad = tokenizer.pad_token_id
    if pad >= vocabulary if pad is not None else task == "sequence-classification":
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(tokenizer, vocabulary))
    if task != "causal-lm" and tokenizer.finetune_template_is_default:
        tokenizer.chat_template = None


def _check_template(template: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        _compile_jinja_template(template)
    except Exception as error:  # jinja2.TemplateError, and whatever a lexer raises beside it
        line = getattr(error, "lineno", None)
        raise BadInput(
            f"spec.data.template: is no Jinja template{f' from its line {line} on' if line else ''}: {first_line(error)}",
            code="InvalidSpec",
            remedy="correct it, or leave data.template out to use the model's own",
        ) from error


def template_of(tokenizer: Any) -> str:
    """Text of the chat template in force."""
    return tokenizer.get_chat_template() if tokenizer.chat_template else DEFAULT_TEMPLATE


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text up to the end of its last answer; `answers` are character spans (start, end), the last one reaching the end.

    Each span includes the token that ends the turn. `prompt` is what a model is given to write the last answer.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    prompt: str
    turns: tuple[int, ...] = ()
    """Of each answer its place in the messages; empty where a template marks answers without telling which is which."""
    omitted: tuple[int, ...] = ()
    """System and user turns that are not in the text."""
    unwritten: str = ""
    """What the generation prompt ends with and the conversation does not have."""


class ChatRenderer:
    """Renders conversations by a tokenizer's template and finds the answers in the text.

    A template that marks its answers with {% generation %} is believed; otherwise an answer begins where the rendered
    conversation departs from the same conversation cut before it, with a generation prompt. Either way the
    end-of-turn token belongs to the answer, or the model would never learn to stop. Calls of tools are answers like any
    other; what tools answer is not.
    """

    def __init__(self, tokenizer: Any, arguments: dict[str, Any] | None = None) -> None:
        """`arguments`: spec.data.templateArguments."""
        self.template = template_of(tokenizer)
        self.marks_answers = bool(_GENERATION.search(self.template))
        self._variables = {**tokenizer.special_tokens_map, **(arguments or {})}
        self._eos: str = tokenizer.eos_token
        enders = {token for token in tokenizer.all_special_tokens if token != tokenizer.bos_token} | {self._eos}
        longest_first = "|".join(map(re.escape, sorted(enders, key=len, reverse=True)))
        self._end = re.compile(longest_first)
        self._end_follows = re.compile(rf"\s*(?:{longest_first})")
        self._ends = re.compile(rf"(?:{longest_first})\s*\Z")

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None, untrained: Sequence[int] = ()
    ) -> Rendered:
        """`messages` ends with an assistant's turn and has another turn before it; `untrained` are the turns with weight 0.

        An earlier answer that the template does not write as it is gets no span. Raises TemplateRefused with the template's
        words, with what it does not do with tools, or with what it leaves out of the last answer.
        """
        given, last = messages, len(messages) - 1
        if has_tools(messages, tools):
            if refusal := self._style.refusal(messages, tools):
                raise TemplateRefused(refusal)
            messages = self._style.written(messages)
        one = _Conversation(self, messages, tools)
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        text, marked = self.text(messages, tools, marks=self.marks_answers)
        if len(marked) != len(turns) and (untrained or any("tool_calls" in message for message in messages)):
            marked = []
        asked = one(messages[:-1], generation_prompt=True)
        prompt = self._prompt_within(asked, text, one, marked)
        if marked:
            found, turns = marked, turns if len(marked) == len(turns) else []
        else:
            found, turns = self._found(text, one, prompt)
        answers = [self._with_end(text, start, end) for start, end in found]
        start, end = answers[-1]
        if start >= end:
            raise TemplateRefused("it leaves the last answer out")
        written = text[min(start, common_prefix(prompt, text)) : end]
        if last not in untrained and (part := spans.left_out(given[last], written)):
            raise TemplateRefused(f"it leaves out {part} of the last answer")
        text = text[:end]
        if not self._ends.search(text, start):
            text += self._eos
            answers[-1] = (start, len(text))
        if turns:
            whole = [
                (turn, span)
                for turn, span in zip(turns, answers, strict=True)
                if turn == last or turn in untrained or not spans.left_out(given[turn], text[slice(*span)])
            ]
            turns, answers = [turn for turn, _ in whole], [span for _, span in whole]
        omitted = tuple(
            turn
            for turn, message in enumerate(given)
            if message["role"] in ("system", "user") and not spans.holds(text, message["content"])
        )
        unwritten = asked[common_prefix(asked, text) :]
        return Rendered(text, tuple(answers), prompt, tuple(turns), omitted, unwritten)

    @cached_property
    def _style(self) -> ToolStyle:
        def marked(messages: Sequence[Message]) -> str:
            text, spans = self.text(messages, marks=self.marks_answers)
            return "".join(text[start:end] for start, end in spans)

        return probe(lambda messages, tools: self.text(messages, tools)[0], marked)

    @cached_property
    def _unasked(self) -> str:
        """The generation prompt of a template that writes one behind every conversation; empty for all others."""
        turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "\u00a7"})
        try:
            prompt, text = self._rendered(turns[:1], generation_prompt=True)[0], self._rendered(turns)[0]
        except TemplateRefused:
            return ""
        behind = text.rpartition("\u00a7")[2]
        if (end := self._end.search(behind)) is not None:
            behind = behind.partition(self._eos if self._eos in behind else end.group())[2]
        return behind if behind.strip() and prompt.endswith(behind) else ""

    @staticmethod
    def _prompt_within(prompt: str, text: str, one: _Conversation, marked: Sequence[tuple[int, int]]) -> str:
        """The prompt as the conversation writes it. Some templates write a generation prompt that no conversation has."""
        last, common = one.messages[-1], common_prefix(prompt, text)
        if common == len(prompt):
            return prompt
        if marked:
            return text[: marked[-1][0]] if marked[-1][0] >= common else prompt
        if "tool_calls" in last:
            return text[: spans.begin_of_call(one, one.messages, text, common)]
        answer = (last.get("reasoning_content") or last["content"]).strip()
        # an answer may begin as that prompt goes on: with a <
        start = text.find(answer, max(0, common - len(answer) + 1))
        return text[:start] if start >= 0 else prompt

    def _found(self, text: str, one: _Conversation, prompt: str) -> tuple[list[tuple[int, int]], list[int]]:
        found, turns = [], []
        for number, message in enumerate(one.messages[:-1]):
            if message["role"] == "assistant" and (span := self._answer(text, one, number)):
                found.append(span)
                turns.append(number)
        found.append((common_prefix(prompt, text), len(text.rstrip())))
        return found, [*turns, len(one.messages) - 1]

    def _answer(self, text: str, one: _Conversation, number: int) -> tuple[int, int] | None:
        """The span of an answer that is not the last; None where it cannot be told."""
        before = one(one.messages[:number], generation_prompt=True)
        start = common_prefix(before, text)
        through = one(one.messages[: number + 1]).rstrip()
        known = start == len(before)
        if known and text.startswith(through):
            return start, len(through)
        message = one.messages[number]
        if "tool_calls" in message:
            return spans.call_of(one, one.messages, number, text, start if known else None, self._end)
        content = message["content"].strip()
        if text.startswith(content, start):  # a template that writes earlier turns otherwise than last ones
            return start, start + len(content)
        return spans.content_of(one, one.messages, number, text)

    def _with_end(self, text: str, start: int, end: int) -> tuple[int, int]:
        if self._ends.search(text, start, end):
            return start, len(text[:end].rstrip())
        follows = self._end_follows.match(text, end)
        return start, follows.end() if follows else end

    def text(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        generation_prompt: bool = False,
        marks: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        """What the template makes of a conversation, and with `marks` the spans that it marks. Raises TemplateRefused.

        A generation prompt that was not asked for is removed, or it would be trained as part of the last answer.
        """
        text, marked = self._rendered(messages, tools, generation_prompt=generation_prompt, marks=marks)
        return text if generation_prompt else text.removesuffix(self._unasked), marked

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        generation_prompt: bool = False,
        marks: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, marked = render_jinja_template(
                conversations=[list(messages)],
                tools=list(tools) if tools else None,
                chat_template=self.template,
                add_generation_prompt=generation_prompt,
                return_assistant_tokens_mask=marks,
                **self._variables,
            )
        except Exception as error:  # a template is a program of someone else's
            raise TemplateRefused(first_line(error)) from error
        return texts[0], [(start, end) for start, end in marked[0] if start < end] if marks else []


@dataclass(frozen=True, slots=True)
class _Conversation:
    """One conversation, whose turns are rendered again and again."""

    renderer: ChatRenderer
    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None

    def __call__(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        return self.renderer.text(messages, self.tools, generation_prompt=generation_prompt)[0]
