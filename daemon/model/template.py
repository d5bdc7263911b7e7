"""A model's chat template: messages in, prompt text out, as transformers' `apply_chat_template` renders it.

Owns the things in which clients and templates disagree: what a message's reasoning is called, whether the arguments of
a tool's call are an object or its JSON, whether content is text or a list of parts, and what a template leaves out of
what it was given: it is rendered to see. A template runs in sandbox.py, on a copy of the messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple

from . import conversation
from .conversation import Message, Unfit

if TYPE_CHECKING:
    import jinja2

    from .hyper import Metadata
    from .sandbox import Sandbox
    from .tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# What a message's reasoning is called, here and there; the first found is shown to the template under all of them.
_REASONING = ("reasoning_content", "thinking", "reasoning")

class TemplateError(ValueError):
    """No template, one that does not compile, or messages that it refuses."""


class Prompt(NamedTuple):
    """A conversation as text: encode it with `bos=False`. `warnings`: code and words of what did not get into it."""

    text: str
    warnings: tuple[tuple[str, str], ...] = ()


class _Rendered(NamedTuple):
    text: str
    whole: bool  # all parts of content and all arguments of calls are in it as they were meant


class ChatTemplate:
    """One model's chat template.

    `warning` is set when the model brought none and ChatML stands in for it; a user should be told.
    """

    def __init__(
        self,
        source: str,
        bos: str | None = None,
        eos: str | None = None,
        *,
        tools_source: str | None = None,
        tokens: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """`source`: Jinja text; `tools_source`: another one for conversations with tools.

        `bos`, `eos`: how the tokens are spelled, '' in the template when there are none; `tokens`: more of them by the
        template's name, such as pad_token. `now`: the clock of `strftime_now`.
        """
        self.source = source
        self.warning: str | None = None
        self._tools_source = tools_source
        self._tokens = {"bos_token": bos or "", "eos_token": eos or "", **(tokens or {})}
        self._now = now
        self._compiled: dict[str, jinja2.Template] = {}
        self._sandbox: Sandbox | None = None

    @staticmethod
    def from_metadata(metadata: Metadata, tokenizer: Tokenizer) -> ChatTemplate:
        """The template of `tokenizer.chat_template` (and `.tool_use`, for tools).

        A model without one gets ChatML and a `warning` if its vocabulary has ChatML's tokens, else TemplateError.
        """

        def text(key: str) -> str | None:
            found = metadata.get(key)
            if found is not None and not isinstance(found, str):
                raise TemplateError(f"{key} is no text: use generate, not chat")
            return found

        source, tools_source = text("tokenizer.chat_template"), text("tokenizer.chat_template.tool_use")
        warning = None
        if not source:
            if None in (tokenizer.find("<|im_start|>"), tokenizer.find("<|im_end|>")):
                raise TemplateError("the model has no chat template (tokenizer.chat_template): use generate, not chat")
            source, warning = CHATML, "the model has no chat template: ChatML is used"
        spelled = {
            name: tokenizer.text(token) if token is not None else None
            for name, token in (("bos", tokenizer.bos), ("eos", tokenizer.eos))
        }
        template = ChatTemplate(source, spelled["bos"], spelled["eos"], tools_source=tools_source)
        template.warning = warning
        return template

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
        *,
        continue_last: bool = False,
    ) -> Prompt:
        """The prompt for a client's conversation: as `render` makes it, with all that it leaves out found out.

        `continue_last`: the last message, an assistant's, is left open for the model to go on with it.
        Raises Unfit naming the part of the request that does not go, else TemplateError.
        """
        arguments = arguments or {}
        reserved = {"messages", "tools", "add_generation_prompt", *self._tokens, *conversation.RESERVED}
        conversation.check(messages, arguments, reserved)
        last = len(messages) - 1
        mark = f"hearthd{token_hex(8)}"
        shown = conversation.marked(messages, mark) if continue_last else messages
        self._begin()

        def render(messages: Sequence[Message], shown_tools: Sequence[Mapping[str, Any]] | None = tools) -> _Rendered:
            return self._best(self._source(tools), messages, shown_tools, not continue_last, arguments)

        told = [
            ("parts-unread", f"{field}: the chat template tells of it, but this daemon gives the model text only")
            for field in self._unread(shown, render)
        ]
        text = render(shown).text
        if tools and text == _or_nothing(lambda: render(shown, None)):
            told.append(("tools-dropped", "tools: the model's chat template does not show them to the model"))
        if continue_last:
            if text.count(mark) != 1:
                raise Unfit(f"messages[{last}]", "the chat template does not show it as it is: it cannot be continued")
            text = text[: text.index(mark)]
        return Prompt(text, tuple(told))

    def _unread(self, messages: Sequence[Message], render: Callable[[Sequence[Message]], _Rendered]) -> list[str]:
        """The places of pictures and sounds that a template tells of. Raises Unfit for a part that it does not take."""
        parts = conversation.other_parts(messages)
        for kind, (i, j) in {kind: (i, j) for i, j, kind in reversed(parts)}.items():
            without = render(conversation.without_parts(messages, kind)).text
            try:
                rendered = render(messages)
                taken = rendered.whole and rendered.text != without
            except TemplateError:
                taken = False
            if not taken:
                raise Unfit(f"messages[{i}].content[{j}]", f"the model's chat template takes no part of type {kind}")
        return [
            f"messages[{i}].content[{j}]"
            for i, j, kind in parts
            if any(sense in kind for sense in ("image", "audio", "video"))
        ]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **arguments: object,
    ) -> str:
        """What the template writes for messages. It writes BOS itself where it belongs.

        `arguments` are the template's own (enable_thinking, reasoning_effort, documents, ...). Raises TemplateError
        with the template's words when it refuses.

        The arguments of a tool's call may be an object or JSON text, content may be text, nothing or a list of texts.
        Templates take one, the other or both: they get what came, and the other form if they refuse that, would quote
        it or leave it out. Content that is null or absent is empty.
        """
        self._begin()
        return self._best(self._source(tools), messages, tools, add_generation_prompt, arguments).text

    def _source(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        return self._tools_source if tools and self._tools_source else self.source

    def _best(
        self,
        source: str,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        arguments: Mapping[str, Any],
    ) -> _Rendered:
        variables = {"documents": None, **self._tokens, **arguments}
        variables |= {"tools": list(tools) if tools else None, "add_generation_prompt": add_generation_prompt}
        refusal = worse = None
        for form in _forms(messages):
            written = [call["arguments"] for call in _calls(form) if isinstance(call["arguments"], str)]
            parts = [part for message in form for part in conversation.parts(message)]
            try:
                text = self._render(source, form, variables)
            except TemplateError as error:
                refusal = refusal or error
                continue
            if all(json_text in text for json_text in written) and all(_shows(text, part) for part in parts):
                return _Rendered(text, True)
            worse = worse or text
        if worse is not None or refusal is None:
            return _Rendered(worse or "", False)
        raise refusal

    def _begin(self) -> None:
        if self._sandbox is None:
            from .sandbox import Sandbox

            self._sandbox = Sandbox(self._now)
        self._sandbox.begin()

    def _render(self, source: str, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        template = self._compiled.get(source)
        try:
            if template is None:
                assert self._sandbox is not None
                template = self._compiled[source] = self._sandbox.from_string(source)
            return template.render({**_copied(variables), "messages": messages})
        except Exception as error:  # a template is a foreign program: whatever it raises is its refusal
            line = getattr(error, "lineno", None)
            where = f" (line {line} of the template)" if line else ""
            raise TemplateError(f"chat template: {str(error)[:2000] or type(error).__name__}{where}") from error


def _copied(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of plain data, for a template to change as it likes."""
    return {key: _copy(item) for key, item in fields.items()}


def _copy(value: object) -> object:
    if isinstance(value, Mapping):
        return _copied(value)
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _forms(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages as templates may want them, the likeliest first: as they came, with reasoning under every name that
    templates read; with the arguments of calls as objects, as text; all that with content as text; just as they came.
    """
    named = list(map(_copied, messages))
    for message in named:
        message["content"] = message.get("content") or ""  # null, absent, no parts
        reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
        if reasoning is not None:
            message["reasoning_content"] = reasoning
            message.setdefault("thinking", reasoning)
    joined = list(map(_copied, named))
    for message in joined:
        message["content"] = _joined(message["content"])
    for base in (named, joined) if joined != named else (named,):
        yield list(map(_copied, base))
        for convert in (_parsed, _written):
            converted = list(map(_copied, base))
            for call in _calls(converted):
                call["arguments"] = convert(call["arguments"])
            if converted != base:
                yield converted
    if named != list(messages):
        yield list(map(_copied, messages))


def _calls(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The functions that the messages call, with their arguments."""
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function", call) if isinstance(call, dict) else None
            if isinstance(function, dict) and "arguments" in function:
                yield function


def _shows(text: str, part: Mapping[str, Any]) -> bool:
    """Whether a template that got a list of parts wrote this one: a text as words, not as Python or JSON print it."""
    words = part.get("text") if part.get("type") == "text" else ""
    printed = repr(part) in text or json.dumps(part, ensure_ascii=False) in text
    return isinstance(words, str) and words.strip() in text and not printed


def _or_nothing(render: Callable[[], _Rendered]) -> str | None:
    try:
        return render().text
    except TemplateError:
        return None


def _joined(content: object) -> object:
    texts: list[str] = []
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            return content
        texts.append(part["text"])
    return "".join(texts) if texts else content


def _parsed(arguments: object) -> object:
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else arguments


def _written(arguments: object) -> object:
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, Mapping) else arguments
