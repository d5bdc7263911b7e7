"""Conversations as clients send them: what a message may be, before any template sees it.

Owns the form of messages and the naming of what is wrong with one.
What a model's template makes of it, template.py sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

# Names that a template finds in its surroundings: given as arguments they would change what it means.
RESERVED = frozenset(
    """
    raise_exception strftime_now namespace range dict cycler joiner self loop caller varargs kwargs context environment
    continue_final_message
    """.split()  # noqa: SIM905
)


class Unfit(ValueError):
    """A part of a request that does not go; `field` says which."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def check(messages: Sequence[Message], arguments: Mapping[str, Any], reserved: set[str]) -> None:
    """Raises Unfit for a message that is none, and for a template argument that is not the client's to give."""
    for name in arguments:
        if name in reserved:
            raise Unfit(f"template_arguments.{name}", "this name is the template's own, and cannot be an argument")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise Unfit(f"messages[{i}]", "a message is an object with `role` and `content`")
        if not isinstance(message.get("role"), str):
            raise Unfit(f"messages[{i}].role", "who speaks is missing, or no text")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise Unfit(f"messages[{i}].content", "content is text, null or a list of parts")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
                raise Unfit(f"messages[{i}].content[{j}]", "a part of content is an object with a `type`")
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise Unfit(f"messages[{i}].content[{j}].text", "a part of type text has a `text`")


def parts(message: Message) -> list[Mapping[str, Any]]:
    """The parts of a message whose content is a list."""
    content = message.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []


def other_parts(messages: Sequence[Message]) -> list[tuple[int, int, str]]:
    """Message, place and type of every part that is not text."""
    return [
        (i, j, part["type"])
        for i, message in enumerate(messages)
        for j, part in enumerate(parts(message))
        if part["type"] != "text"
    ]


def without_parts(messages: Sequence[Message], kind: str) -> list[Message]:
    """The messages less their parts of a type."""
    return [
        {**message, "content": [part for part in parts(message) if part["type"] != kind]}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def marked(messages: Sequence[Message], mark: str) -> list[Message]:
    """The messages with a mark behind the last one's content. Raises Unfit if that cannot be continued."""
    field = f"messages[{len(messages) - 1}]"
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        raise Unfit(f"{field}.role", "only an assistant's message can be continued")
    if last.get("tool_calls"):
        raise Unfit(f"{field}.tool_calls", "a message that calls tools is complete, it cannot be continued")
    content: Any = last.get("content") or ""
    if isinstance(content, list):
        if content[-1]["type"] != "text":
            raise Unfit(f"{field}.content[{len(content) - 1}]", "only text can be continued")
        content = [*content[:-1], {**content[-1], "text": content[-1]["text"] + mark}]
    else:
        content += mark
    return [*messages[:-1], {**last, "content": content}]
