"""A model's chat template: messages in, prompt text out, as transformers' `apply_chat_template` renders it.

Owns the Jinja environment. A template comes with a model file from anywhere, so it runs sandboxed; jinja2 is imported
when a template is first rendered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
        """
        source = self._tools_source if tools and self._tools_source else self.source
        template = self._compiled.get(source)
        try:
            if template is None:
                template = self._compiled[source] = self._environment().from_string(source)
            variables = {"documents": None, **self._tokens, **arguments}
            return template.render(
                messages=messages, tools=tools or None, add_generation_prompt=add_generation_prompt, **variables
            )
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

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        environment.filters["tojson"] = tojson
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: self._now().strftime(form)
        return environment
