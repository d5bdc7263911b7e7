"""Conversations with a daemon: what of a request reaches the model, and what its reply says of the rest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hearthd.daemon import client, protocol

from .conftest import DaemonProcess, daemons
from .test_metadata import PACKAGED, changed

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content if m.content is string else '<picture>' }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
USER = {"role": "user", "content": "Once upon a time"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    directory = tmp_path_factory.mktemp("chat")
    model = changed(PACKAGED, directory / "m.gguf", {"tokenizer.chat_template": TEMPLATE})
    with daemons(directory) as start:
        yield start(str(model), "--context", "64")


def prompt_tokens(hearth: client.Client, messages: list[dict[str, Any]], **fields: Any) -> int:
    return hearth.chat(messages, max_tokens=1, **fields).done.timings.prompt_tokens


def test_what_does_not_reach_the_model_is_told(daemon: DaemonProcess) -> None:
    with client.Client(daemon.endpoint, timeout=60) as hearth:
        assert hearth.chat([USER], max_tokens=1).done.warnings == []
        done = hearth.chat([USER], max_tokens=1, tools=[{"type": "function"}]).done
        assert [warning.code for warning in done.warnings] == ["tools-dropped"]
        assert prompt_tokens(hearth, [USER, {"role": "assistant"}]) == prompt_tokens(
            hearth, [USER, {"role": "assistant", "content": ""}]
        )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": [USER, {"content": "hi"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]},
         "messages[0].content[1]"),
        ({"template_arguments": {"add_generation_prompt": False}}, "template_arguments.add_generation_prompt"),
        ({"template_arguments": {"self": 1}}, "template_arguments.self"),
        ({"continue_last": True}, "messages[0].role"),
    ],
)  # fmt: skip
def test_what_does_not_go_is_refused_by_its_place(daemon: DaemonProcess, fields: dict[str, Any], field: str) -> None:
    with client.Client(daemon.endpoint, timeout=60) as hearth:
        reply = hearth.request(protocol.Chat(**{"messages": [USER], "max_tokens": 1, **fields}))
    assert isinstance(reply, protocol.Error)
    assert (reply.code, reply.field) == ("bad-field", field)
    assert reply.message.startswith(field)


def test_an_answer_goes_on_where_it_began(daemon: DaemonProcess) -> None:
    begun = {"role": "assistant", "content": "there was "}
    with client.Client(daemon.endpoint, timeout=60) as hearth:
        continued = hearth.chat([USER, begun], continue_last=True, max_tokens=8, temperature=0).done
        same = hearth.generate("user: Once upon a time\nassistant: there was ", max_tokens=8, temperature=0).done
        assert continued.tokens == same.tokens
        assert continued.timings.prompt_tokens < prompt_tokens(hearth, [USER, begun])
    told = subprocess.run(
        [sys.executable, "-m", "hearthd.daemon.ctl", "chat", USER["content"], "--begin", "there was ", "-n", "8",
         "--temperature", "0", "--control", daemon.endpoint],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert told.stdout == "there was " + same.text + "\n"
    refused = subprocess.run(
        [sys.executable, "-m", "hearthd.daemon.ctl", "chat", "a", "--begin", "there was ", "--top-p", "2",
         "--control", daemon.endpoint], capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert refused.returncode == 1 and not refused.stdout and "sampling.top_p" in refused.stderr


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("a b c d " * 20, r"has \d+ tokens, the context holds 64"), ("a b " * 9000, r"more than 256 tokens.* holds 64")],
)
def test_a_prompt_beyond_the_context_says_how_long_it_is(daemon: DaemonProcess, prompt: str, words: str) -> None:
    with client.Client(daemon.endpoint, timeout=60) as hearth:
        for ask in (
            lambda: hearth.generate(prompt).done,
            lambda: hearth.score(text=prompt),
            lambda: hearth.chat([{"role": "user", "content": prompt}]).done,
        ):
            with pytest.raises(client.RequestError, match=words) as refused:
                ask()
            assert refused.value.code == "too-long"
