"""Conversations as text by a chat template, and which characters of that text are answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from finetune_trainer.data import spans
from finetune_trainer.data.spans import common_prefix
from finetune_trainer.data.tokenizer import template_of
from finetune_trainer.data.tool_style import ToolStyle, has_tools, probe
from finetune_trainer.errors import first_line

Message = dict[str, Any]
"""{"role": ..., "content": ...}; an assistant's may have `tool_calls` (and then an empty content), a tool's `tool_call_id` and `name`."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class TemplateRefused(ValueError):
    """A chat template cannot render these messages; the message is the template's own."""


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

    Templates of reasoning models write the last answer otherwise than earlier ones, of which they drop the thoughts, and some
    drop those of the last one too. An answer is trained as the model writes it: thoughts included, as behind the generation prompt.
    """

    def __init__(self, tokenizer: Any, arguments: dict[str, Any] | None = None) -> None:
        """`arguments`: spec.data.templateArguments."""
        self.template = template_of(tokenizer)
        self.marks_answers = bool(_GENERATION.search(self.template))
        self._knows_thoughts = spans.THOUGHT_ENDS in self.template
        self._variables = {**tokenizer.special_tokens_map, **(arguments or {})}
        self._eos: str = tokenizer.eos_token
        enders = {token for token in tokenizer.all_special_tokens if token != tokenizer.bos_token} | {self._eos}
        longest_first = "|".join(map(re.escape, sorted(enders, key=len, reverse=True)))
        self._end = re.compile(longest_first)
        self._end_follows = re.compile(rf"\s*(?:{longest_first})")
        self._ends = re.compile(rf"(?:{longest_first})\s*\Z")

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        untrained: Sequence[int] = (),
        *,
        every: bool = False,
    ) -> Rendered:
        """`messages` ends with an assistant's turn and has another turn before it; `untrained` are the turns with weight 0.

        `every`: earlier answers are to be trained too, and so are written as if each were the last one. Without, they are as the
        template writes them, which is how a server would send them. An earlier answer that is not written whole gets no
        span. Raises TemplateRefused with the template's words, with what it does not do with tools, or with what it leaves out
        of the last answer.
        """
        given, last = messages, len(messages) - 1
        if has_tools(messages, tools):
            if refusal := self._style.refusal(messages, tools):
                raise TemplateRefused(refusal)
            messages = self._style.written(messages)
        one = _Conversation(self, messages, tools, given)
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        raw, marked = self._text(messages, tools, marks=self.marks_answers)
        if len(marked) != len(turns) and (untrained or any("tool_calls" in message for message in messages)):
            marked = []
        final = self._last(one, last, raw, marked, whole=last not in untrained)
        rewritten = self._rewrites[_has_thoughts(messages)]
        if marked:
            found, turns = marked[:-1], turns if len(marked) == len(turns) else []
        else:
            places = self._found(raw, one, turns[:-1], rewritten)
            found, turns = [place for place in places.values() if place], [turn for turn in turns[:-1] if places[turn]]
            turns.append(last)
        answers = [self._with_end(raw, *span) for span in found]
        unwritten = final.asked[common_prefix(final.asked, final.text) :]
        if every and not marked and answers and rewritten:
            final, answers = self._as_asked(one, final, turns, answers, untrained)
        answers.append((final.start, len(final.text)))
        text = final.text
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
        return Rendered(text, tuple(answers), final.prompt, tuple(turns), omitted, unwritten)

    @cached_property
    def _style(self) -> ToolStyle:
        def marked(messages: Sequence[Message]) -> str:
            text, spans = self._text(messages, marks=self.marks_answers)
            return "".join(text[start:end] for start, end in spans)

        return probe(lambda messages, tools: self._text(messages, tools)[0], marked)

    @cached_property
    def _generation_prompt(self) -> str:
        """What the template writes for the model to go on from; empty where that cannot be told."""
        asked, text = self._rendered(_PROBE[:1], generation_prompt=True)[0], self._text(_PROBE[:1])[0]
        return asked.removeprefix(text) if asked.startswith(text) else ""

    @cached_property
    def _unasked(self) -> str:
        """The generation prompt of a template that writes one behind every conversation; empty for all others."""
        try:
            prompt, text = self._rendered(_PROBE[:1], generation_prompt=True)[0], self._rendered(_PROBE[:2])[0]
        except TemplateRefused:
            return ""
        behind = text.rpartition(_PROBE[1]["content"])[2]
        if (end := self._end.search(behind)) is not None:
            behind = behind.partition(self._eos if self._eos in behind else end.group())[2]
        return behind if behind.strip() and prompt.endswith(behind) else ""

    @cached_property
    def _rewrites(self) -> tuple[bool, bool]:
        """Whether an earlier answer may be written otherwise than the last one: one without thoughts, and one with."""
        try:
            plain = not self._text(_PROBE)[0].startswith(self._text(_PROBE[:2])[0].rstrip())
        except TemplateRefused:
            plain = True
        return plain, plain or self._knows_thoughts

    @cached_property
    def _may_mark(self) -> bool:
        """Whether marks around the answers find what comparing the conversation with its beginnings finds."""
        try:
            one, text = _Conversation(self, _PROBE, None, _PROBE), self._text(_PROBE)[0]
            compared, marked = self._answer(text, one, 1), self._by_marks(text, one, [1])
        except TemplateRefused:
            return False
        return compared is not None and marked == {1: self._with_end(text, *compared)}

    def _last(
        self,
        one: _Conversation,
        number: int,
        text: str,
        marked: Sequence[tuple[int, int]] = (),
        *,
        whole: bool = True,
    ) -> _Last:
        """The answer that is message `number`, in a conversation that ends with it. `whole`: nothing of it may be missing."""
        message, asked = one.given[number], one.through(number, generation_prompt=True)
        prompt = self._prompt_within(asked, text, one, number, marked)
        start, end = marked[-1] if marked else (common_prefix(prompt, text), len(text.rstrip()))
        start, end = self._with_end(text, start, end)
        if start >= end:
            raise TemplateRefused("it leaves the last answer out")
        begin = min(start, common_prefix(prompt, text))
        text = text[:end] if self._ends.search(text, start, end) else text[:end] + self._eos
        if whole and (part := spans.left_out(message, text[begin:])):
            thought, content = spans.thought_apart(message)
            place = text.find(content, begin)
            if marked or not (thought and content and self._knows_thoughts) or place < 0 or "tool_calls" in message:
                raise TemplateRefused(f"it leaves out {part} of the last answer")
            opens = asked.rstrip().endswith(spans.THOUGHT_BEGINS)
            prompt = asked if opens else text[:begin]
            start, thought = len(prompt), thought if opens else f"{spans.THOUGHT_BEGINS}\n{thought}"
            text = f"{prompt}{thought}\n{spans.THOUGHT_ENDS}\n\n{text[place:]}"
        return _Last(asked, prompt, text, start)

    def _as_asked(
        self,
        one: _Conversation,
        final: _Last,
        turns: Sequence[int],
        answers: list[tuple[int, int]],
        untrained: Sequence[int],
    ) -> tuple[_Last, list[tuple[int, int]]]:
        """Earlier answers as the model writes them, each behind the generation prompt."""
        if [*answers, (final.start, 0)] != sorted([*answers, (final.start, 0)]):
            return final, answers  # a template that writes the turns in another order
        prompt, pieces, found, cursor, length = self._generation_prompt, [], [], 0, 0
        for turn, (start, end) in zip(turns, answers, strict=False):
            kept, written = 0, final.text[start:end]
            alone = None if turn in untrained else self._alone(one, turn)
            if alone is not None:
                here = _overlap(final.text[cursor:start], prompt)
                there = _overlap(alone.text[: alone.start], prompt)
                if not prompt or (here and there):
                    start, kept, written = start - here, there, alone.text[alone.start - there :]
            pieces += [final.text[cursor:start], written]
            length += start - cursor
            found.append((length + kept, length + len(written)))
            cursor, length = end, length + len(written)
        shift, pieces = length - cursor, [*pieces, final.text[cursor:]]
        text, common = "".join(pieces), common_prefix(final.prompt, final.text)
        return _Last(final.asked, text[: common + shift] + final.prompt[common:], text, final.start + shift), found

    def _alone(self, one: _Conversation, number: int) -> _Last | None:
        try:
            return self._last(one, number, one.through(number + 1))
        except TemplateRefused:
            return None

    @staticmethod
    def _prompt_within(
        prompt: str, text: str, one: _Conversation, number: int, marked: Sequence[tuple[int, int]]
    ) -> str:
        """The prompt as the conversation writes it. Some templates write a generation prompt that no conversation has."""
        last, common = one.messages[number], common_prefix(prompt, text)
        if common == len(prompt):
            return prompt
        if marked:
            return text[: marked[-1][0]] if marked[-1][0] >= common else prompt
        if "tool_calls" in last:
            return text[: spans.begin_of_call(one, one.messages[: number + 1], text, common)]
        answer = (last.get("reasoning_content") or last["content"]).strip()
        for words in (answer, spans.thought_apart(last)[1]):
            # an answer may begin as the rest of that prompt does: with a <
            if words and (start := text.find(words, max(0, common - len(words) + 1))) >= 0:
                return text[:start]
        return prompt

    def _found(
        self, text: str, one: _Conversation, turns: Sequence[int], rewritten: bool
    ) -> dict[int, tuple[int, int] | None]:
        """The spans of earlier answers; None where one cannot be told."""
        quick = self._by_marks(text, one, turns) if turns and not rewritten and self._may_mark else None
        return quick or {turn: self._answer(text, one, turn) for turn in turns}

    def _by_marks(
        self, text: str, one: _Conversation, turns: Sequence[int]
    ) -> dict[int, tuple[int, int] | None] | None:
        """From one more rendering, with a mark before and behind each answer. None where the marks change what is written."""
        begin, end = _MARKS
        if begin in text or end in text:
            return None
        messages = list(one.messages)
        for turn in turns:
            messages[turn] = {**messages[turn], "content": f"{begin}{messages[turn]['content']}{end}"}
        try:
            parts = re.split(f"[{begin}{end}]", one(messages))
        except TemplateRefused:
            return None
        if len(parts) != 2 * len(turns) + 1 or "".join(parts) != text:
            return None
        found: dict[int, tuple[int, int] | None] = {}
        place = 0
        for turn, before, answer in zip(turns, parts[::2], parts[1::2], strict=False):
            place += len(before)
            if not before.endswith(self._generation_prompt) or not answer or "tool_calls" in messages[turn]:
                return None
            found[turn] = self._with_end(text, place, place + len(answer))
            place += len(answer)
        return found

    def _answer(self, text: str, one: _Conversation, number: int) -> tuple[int, int] | None:
        """The span of an answer that is not the last; None where it cannot be told."""
        before = one.through(number, generation_prompt=True)
        start = common_prefix(before, text)
        through = one.through(number + 1).rstrip()
        known = start == len(before)
        if known and text.startswith(through):
            return start, len(through)
        message = one.messages[number]
        if "tool_calls" in message:
            return spans.call_of(one, one.messages, number, text, start if known else None, self._end)
        for content in (message["content"].strip(), spans.thought_apart(message)[1]):
            if content and text.startswith(
                content, start
            ):  # a template that writes earlier turns otherwise than last ones
                return start, start + len(content)
        return spans.content_of(one, one.messages, number, text)

    def _with_end(self, text: str, start: int, end: int) -> tuple[int, int]:
        if self._ends.search(text, start, end):
            return start, len(text[:end].rstrip())
        follows = self._end_follows.match(text, end)
        return start, follows.end() if follows else end

    def _text(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None, **options: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """`_rendered` without a generation prompt that was not asked for, or it would be trained as part of the last answer."""
        text, marked = self._rendered(messages, tools, **options)
        return text if options.get("generation_prompt") else text.removesuffix(self._unasked), marked

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        generation_prompt: bool = False,
        marks: bool = False,
    ) -> tuple[str, list[tuple[int, int]]]:
        """What the template makes of a conversation, and with `marks` the spans that it marks. Raises TemplateRefused."""
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


_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "\u00a7"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "c"},
)
_MARKS = ("\ue000", "\ue001")
"""Characters for private use, put around answers to find them."""


@dataclass(frozen=True, slots=True)
class _Last:
    """A conversation up to the token that ends its last answer, which is `text[start:]`.

    `asked`: the conversation before that answer with a generation prompt, `prompt`: as it is in `text`.
    """

    asked: str
    prompt: str
    text: str
    start: int


def _overlap(text: str, prompt: str) -> int:
    """Length of the longest beginning of a generation prompt with which a text ends."""
    return next((length for length in range(len(prompt), 0, -1) if text.endswith(prompt[:length])), 0)


def _has_thoughts(messages: Sequence[Message]) -> bool:
    return any(message["role"] == "assistant" and spans.thought_apart(message)[0] for message in messages)


@dataclass(frozen=True, slots=True)
class _Conversation:
    """One conversation, whose turns are rendered again and again. `messages` are `given` as the template takes them."""

    renderer: ChatRenderer
    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None
    given: Sequence[Message]
    _beginnings: dict[tuple[int, bool], str] = field(default_factory=dict)

    def __call__(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        return self.renderer._text(messages, self.tools, generation_prompt=generation_prompt)[0]

    def through(self, count: int, *, generation_prompt: bool = False) -> str:
        """Its first `count` messages."""
        key = count, generation_prompt
        if key not in self._beginnings:
            self._beginnings[key] = self(self.messages[:count], generation_prompt=generation_prompt)
        return self._beginnings[key]
