"""A model's chat template: messages in, prompt text out, as transformers' `apply_chat_template` renders it.

Owns the Jinja environment and the things in which clients and templates disagree: what a message's reasoning is called,
whether the arguments of a tool's call are an object or its JSON, whether content is text or a list of texts. A template
comes with a model file from anywhere, so it runs sandboxed, on a copy of the messages; jinja2 is imported when a
template is first rendered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

    from .tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# What a message's reasoning is called, here and there; the first found is shown to the template under all of them.
_REASONING = ("reasoning_content", "thinking", "reasoning")

# A list of texts as Python prints it: what a template makes of it that knows only text.
_QUOTED_PART = "[{'type': 'text'"


class TemplateError(ValueError):
    """No template, one that does not compile, or messages that it refuses."""


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

    @staticmethod
    def from_metadata(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """The template of `tokenizer.chat_template` (and `.tool_use`, for tools).

        A model without one gets ChatML and a `warning` if its vocabulary has ChatML's tokens, else TemplateError.
        """
        source = metadata.get("tokenizer.chat_template")
        warning = None
        if not source:
            if None in (tokenizer.find("<|im_start|>"), tokenizer.find("<|im_end|>")):
                raise TemplateError("the model has no chat template (tokenizer.chat_template): use generate, not chat")
            source, warning = CHATML, "the model has no chat template: ChatML is used"
        spelled = {
            name: tokenizer.text(token) if token is not None else None
            for name, token in (("bos", tokenizer.bos), ("eos", tokenizer.eos))
        }
        template = ChatTemplate(
            source, spelled["bos"], spelled["eos"], tools_source=metadata.get("tokenizer.chat_template.tool_use")
        )
        template.warning = warning
        return template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **arguments: Any,
    ) -> str:
        """The prompt for a conversation. Encode it with `bos=False`: the template writes BOS itself where it belongs.

        `arguments` are the template's own (enable_thinking, reasoning_effort, documents, ...). Raises TemplateError
        with the template's words when it refuses.

        The arguments of a tool's call may be an object or JSON text, content may be text or a list of texts. Templates
        take one, the other or both: they get what came, and the other form if they refuse that or would quote it.
        """
        source = self._tools_source if tools and self._tools_source else self.source
        variables = {"documents": None, **self._tokens, **arguments}
        variables |= {"tools": tools or None, "add_generation_prompt": add_generation_prompt}
        refusal = quoted = None
        for form in _forms(messages):
            written = [call["arguments"] for call in _calls(form) if isinstance(call["arguments"], str)]
            try:
                text = self._render(source, form, variables)
            except TemplateError as error:
                refusal = refusal or error
                continue
            if all(json_text in text for json_text in written) and _QUOTED_PART not in text:
                return text
            quoted = quoted or text
        if quoted is not None or refusal is None:
            return quoted or ""
        raise refusal

    def _render(self, source: str, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        template = self._compiled.get(source)
        try:
            if template is None:
                template = self._compiled[source] = self._environment().from_string(source)
            return template.render(messages=messages, **_plain(variables))
        except Exception as error:  # a template is a foreign program: whatever it raises is its refusal
            line = getattr(error, "lineno", None)
            where = f" (line {line} of the template)" if line else ""
            raise TemplateError(f"chat template: {error or type(error).__name__}{where}") from error

    def _environment(self) -> jinja2.Environment:
        """As transformers' utils/chat_template_utils.py sets it up."""
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """{% generation %} marks what an assistant wrote, for training; here it means its content."""

            tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

            def parse(self, parser: Parser) -> nodes.Node:
                line = next(parser.stream).lineno
                return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

        class Sandbox(ImmutableSandboxedEnvironment):
            def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
                # Templates made for llama.cpp keep lists (Kimi K2 with tools); what they see is a copy.
                return (attr in ("append", "pop") and type(obj) is list) or super().is_safe_attribute(obj, attr, value)

        def raise_exception(message: str) -> None:
            raise jinja2.TemplateError(message)

        def tojson(
            value: Any,
            ensure_ascii: bool = False,
            indent: int | None = None,
            separators: tuple[str, str] | None = None,
            sort_keys: bool = False,
        ) -> str:
            # jinja2's own escapes <, > and & for HTML, which no model was trained on.
            return json.dumps(
                value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
            )

        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: self._now().strftime(form)
        return environment


def _plain(value: Any) -> Any:
    """A copy of plain data, for a template to change as it likes."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _forms(messages: Sequence[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages as templates may want them, the likeliest first: as they came, with reasoning under every name that
    templates read; with the arguments of calls as objects, as text; all that with content as text; just as they came.
    """
    named: list[dict[str, Any]] = _plain(messages)
    for message in named:
        reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
        if reasoning is not None:
            message["reasoning_content"] = reasoning
            message.setdefault("thinking", reasoning)
    joined: list[dict[str, Any]] = _plain(named)
    for message in joined:
        if "content" in message:
            message["content"] = _joined(message["content"])
    for base in (named, joined) if joined != named else (named,):
        yield _plain(base)
        for convert in (_parsed, _written):
            converted: list[dict[str, Any]] = _plain(base)
            for call in _calls(converted):
                call["arguments"] = convert(call["arguments"])
            if converted != base:
                yield converted
    if named != list(messages):
        yield _plain(messages)


def _calls(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The functions that the messages call, with their arguments."""
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function", call) if isinstance(call, dict) else None
            if isinstance(function, dict) and "arguments" in function:
                yield function


def _joined(content: Any) -> Any:
    texts: list[str] = []
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            return content
        texts.append(part["text"])
    return "".join(texts) if texts else content


def _parsed(arguments: Any) -> Any:
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else arguments


def _written(arguments: Any) -> Any:
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, Mapping) else arguments
