"""Chat templates as published, and the habits of templates that plain Jinja does not know."""

from datetime import datetime

import pytest
from hearthd.daemon.model import sandbox
from hearthd.daemon.model.conversation import Unfit
from hearthd.daemon.model.template import ChatTemplate, TemplateError
from hearthd.daemon.model.tokenizer import Tokenizer

USER = {"role": "user", "content": "What is 2 < 3 & 'é'?"}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds <numbers> & größen",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "first"}}},
    },
}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": "ß<"}}}]}


@pytest.fixture
def published(models_dir):
    def load(name):
        path = models_dir / "templates" / name
        if not path.exists():
            pytest.skip(f"no {path}")
        return ChatTemplate(path.read_text(encoding="utf-8"), eos="<|im_end|>")

    return load


def test_qwen3(published):
    template = published("Qwen-Qwen3-0.6B.jinja")
    turn = f"<|im_start|>user\n{USER['content']}<|im_end|>\n"
    assert template.render([USER]) == turn + "<|im_start|>assistant\n"
    assert template.render([USER], add_generation_prompt=False) == turn
    assert template.render([USER], enable_thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}
    # What was thought before the last question is left out.
    assert "hm" not in template.render([USER, thought, USER])
    assert "<think>\nhm\n</think>\n\nYes.<|im_end|>" in template.render([USER, thought])
    with_tools = template.render([USER, CALL, {"role": "tool", "content": "5"}], tools=[TOOL])
    assert '"description": "Adds <numbers> & größen"' in with_tools
    assert '<tool_call>\n{"name": "add", "arguments": {"a": "ß<"}}\n</tool_call><|im_end|>\n' in with_tools
    assert "<|im_start|>user\n<tool_response>\n5\n</tool_response><|im_end|>\n<|im_start|>assistant\n" in with_tools


def test_qwen3_coder(published):
    template = published("Qwen3-Coder.jinja")
    assert template.render([USER]) == f"<|im_start|>user\n{USER['content']}<|im_end|>\n<|im_start|>assistant\n"
    with_tools = template.render([USER, CALL, {"role": "tool", "content": "5"}], tools=[TOOL])
    assert "<name>add</name>\n<description>Adds <numbers> & größen</description>" in with_tools
    assert "<function=add>\n<parameter=a>\nß<\n</parameter>\n</function>\n</tool_call><|im_end|>" in with_tools
    assert template.render([USER], tools=[]) == template.render([USER])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "What is 2 < 3 & \'é\'?"}'),
        ("{{ {'b': 1, 'a': [2]} | tojson(indent=2, sort_keys=true) }}", '{\n  "a": [\n    2\n  ],\n  "b": 1\n}'),
        ("{{ {'b': 1} | tojson(separators=(',', ':')) }}", '{"b":1}'),
        ("{{ strftime_now('%d %b %Y') }}", "09 Aug 2025"),
        ("{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "10"),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{{ i }}"
            "{% endfor %}",
            "023",
        ),
        ("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}", "x\n"),
        ("a{% generation %}{{ messages[0].role }}{% endgeneration %}b", "auserb"),
        ("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}", "<s>|</s>|<pad>"),
        ("{{ tools is none }} {{ documents is none }} {{ missing is defined }}", "True True False"),
        ("{{ 'think' if enable_thinking is defined and enable_thinking else 'not' }}", "think"),
        ("{%- for k, v in {'x': 1} | items %}{{ k ~ v }}{% endfor %}{{ 'a b'.split(' ')[-1].lstrip('b') }}", "x1"),
        ("{{ messages[0].content | length }}{{ messages[0]['nothing'] or '-' }}{{ '%02d' | format(7) }}", "20-07"),
        ("{{ [1, 2] is sequence and messages[0] is mapping and 'x' is string and [] is iterable }}", "True"),
        ("{% macro m(x, y=2) %}{{ x + y }}{% endmacro %}{{ m(1) }}", "3"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages[::-1][0].role }}", "1user"),
    ],
)
def test_template_habits(source, text):
    template = ChatTemplate(
        source, "<s>", "</s>", tokens={"pad_token": "<pad>"}, now=lambda: datetime(2025, 8, 9, 12, 0)
    )
    assert template.render([USER], enable_thinking=True) == text


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% if %}", "line 1"),
        ("{{ messages[7].content.strip() }}", "no element 7|undefined"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.insert(0, 1) }}", "unsafe"),
        ("{{ messages[0].update(role='x') }}", "unsafe"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "[Rr]ange"),
    ],
)
def test_refusals(source, word):
    with pytest.raises(TemplateError, match=word):
        ChatTemplate(source).render([USER])


CALLS = "{% for m in messages %}{% for call in m.tool_calls or [] %}{{ SHOWN }}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("call.function.arguments | tojson", '{"a": "ß<"}'),  # gpt-oss
        ("'a=' ~ call.function.arguments.a", "a=ß<"),
        ("call.function.arguments + ''", None),  # DeepSeek R1: only text
        ("call.function.arguments | items | list | length", "1"),  # Qwen3.5, Step 3.5, GLM, MiniMax: only an object
        ("call.function.arguments if call.function.arguments is string else 'no'", None),
    ],
)
def test_arguments_of_calls_as_objects_and_as_text(shown, text):
    template = ChatTemplate(CALLS.replace("SHOWN", shown))
    written = '{"a":"ß<"}'
    told = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": written}}]}
    assert template.render([USER, told]) == (text or written)
    if "no" not in shown:
        assert template.render([USER, CALL]) == (text or '{"a": "ß<"}')
    assert told["tool_calls"][0]["function"]["arguments"] == written


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        ("m.content + '!'", "one two!"),  # only text
        ("m.content", "one two"),  # would print the list
        ("m.content | map(attribute='text') | join('+')", "one +two"),  # takes the list
    ],
)
def test_content_as_text_and_as_a_list_of_texts(shown, text):
    template = ChatTemplate("{% for m in messages %}{{ SHOWN }}{% endfor %}".replace("SHOWN", shown))
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert template.render([{"role": "user", "content": parts}]) == text


@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": []}, {"content": ""}])
@pytest.mark.parametrize(
    "shown", ["m.content", "m['content'] | trim", "m.content + ''", "'' if m.content is none else m.content"]
)
def test_no_content_is_empty_text(content, shown):
    template = ChatTemplate("{% for m in messages %}{{ m.role }}:{{ SHOWN }};{% endfor %}".replace("SHOWN", shown))
    assert template.render([{"role": "assistant", **content}, {"role": "user"}]) == "assistant:;user:;"


TEXTS = "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ PART }}{% endfor %}{% endif %}"


def parts_of(part):
    return ChatTemplate("{% for m in messages %}" + TEXTS.replace("PART", part) + "{% endfor %}")


PICTURE = {"role": "user", "content": [{"type": "text", "text": "see "}, {"type": "image", "image": "data:AAAA"}]}
NOTE = {"role": "user", "content": [{"type": "text", "text": "see "}, {"type": "note", "note": "this"}]}


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content + '' }}{% endfor %}",  # refuses a list
        "{% for m in messages %}{{ m.content }}{% endfor %}",  # prints it
        "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
        "{% for m in messages %}{{ m.content if m.content is string else '' }}{% endfor %}",  # drops it
        "{% for m in messages %}" + TEXTS.replace("PART", "p.text") + "{% endfor %}",
    ],
)
@pytest.mark.parametrize("message", [PICTURE, NOTE], ids=["image", "note"])
def test_a_part_that_the_template_does_not_take_is_refused(source, message):
    with pytest.raises(Unfit, match=message["content"][1]["type"]) as refused:
        ChatTemplate(source).prompt([USER, message])
    assert refused.value.field == "messages[1].content[1]"


def test_a_part_that_the_template_takes():
    assert parts_of("p.text or p.note").prompt([NOTE]) == ("see this", ())
    prompt = parts_of("p.text or '<picture>'").prompt([PICTURE])
    assert prompt.text == "see <picture>"
    assert [code for code, _ in prompt.warnings] == ["parts-unread"]
    assert "messages[0].content[1]" in prompt.warnings[0][1]


def test_texts_are_joined_where_a_template_drops_lists():
    drops = ChatTemplate("{% for m in messages %}{{ m.content if m.content is string else '' }}{% endfor %}")
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    assert drops.render([{"role": "user", "content": parts}]) == "one two"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"content": "hi"}, ".role"),
        ({"role": 5, "content": "hi"}, ".role"),
        ({"role": "user", "content": 5}, ".content"),
        ({"role": "user", "content": {"text": "hi"}}, ".content"),
        ({"role": "user", "content": ["hi"]}, ".content[0]"),
        ({"role": "user", "content": [{"text": "hi"}]}, ".content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, ".content[0].text"),
        ("hi", ""),
    ],
)
def test_messages_that_are_none(message, field):
    with pytest.raises(Unfit) as refused:
        ChatTemplate("x").prompt([USER, message])
    assert refused.value.field == "messages[1]" + field


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "raise_exception", "self", "loop"]
)
def test_names_that_are_the_templates_own(name):
    with pytest.raises(Unfit) as refused:
        ChatTemplate("x").prompt([USER], arguments={name: 1})
    assert refused.value.field == f"template_arguments.{name}"
    assert ChatTemplate("{{ deep }}").prompt([USER], arguments={"deep": 1}).text == "1"


def test_tools_that_the_template_drops_are_told():
    assert [code for code, _ in ChatTemplate("x").prompt([USER], [TOOL]).warnings] == ["tools-dropped"]
    assert ChatTemplate("{{ tools | tojson }}").prompt([USER], [TOOL]).warnings == ()
    only = ChatTemplate("{% for t in tools %}{{ t.function.name }}{% endfor %}")  # refuses to do without
    assert only.prompt([USER], [TOOL]) == ("add", ())


TURNS = "{% for m in messages %}<{{ m.role }}>{{ SHOWN }}</>{% endfor %}"
TURNS += "{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.mark.parametrize("shown", ["m.content", "m.content | trim", "m.content.split('</think>')[-1]"])
@pytest.mark.parametrize("content", ["According to ", [{"type": "text", "text": t} for t in ("According ", "to ")]])
def test_the_last_message_is_continued(shown, content):
    begun = {"role": "assistant", "content": content}
    template = ChatTemplate(TURNS.replace("SHOWN", shown))
    text = template.prompt([{"role": "user", "content": "Why?"}, begun], continue_last=True).text
    assert text == "<user>Why?</><assistant>According to "
    assert template.prompt([begun]).text.endswith("</><assistant>")


@pytest.mark.parametrize(
    ("message", "shown", "field"),
    [
        (USER, "m.content", ".role"),
        (CALL, "m.content", ".tool_calls"),
        (PICTURE | {"role": "assistant"}, "m.content", ".content[1]"),
        ({"role": "assistant", "content": "a"}, "''", ""),
        ({"role": "assistant", "content": "a"}, "m.content ~ m.content", ""),
        ({"role": "assistant", "content": "a"}, "m.content | upper", ""),
    ],
)
def test_a_message_that_cannot_be_continued(message, shown, field):
    with pytest.raises(Unfit, match="continued") as refused:
        ChatTemplate(TURNS.replace("SHOWN", shown)).prompt([USER, message], continue_last=True)
    assert refused.value.field == "messages[1]" + field


def test_published_templates_go_on_where_the_answer_began(models_dir):
    paths = sorted((models_dir / "templates").glob("*.jinja"))
    begun = {"role": "assistant", "content": "According to the sea "}
    refused = set()
    for path in paths:
        template = ChatTemplate(path.read_text(encoding="utf-8"), "<s>", "</s>")
        try:
            text = template.prompt([{"role": "user", "content": "Why?"}, begun], continue_last=True).text
        except TemplateError:  # made for tools only: they want them, or an argument
            refused.add(path.name.partition("-")[0])
            continue
        assert text.endswith("According to the sea "), path.name
    assert refused <= {"CohereForAI", "NousResearch", "fireworks"}


NESTED = "{% set ns = namespace(a=['x']) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
DOUBLED = "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = SHOWN %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ [1] * 10 ** 10 }}",
        *(
            DOUBLED.replace("SHOWN", shown)
            for shown in ("ns.s + ns.s", "ns.s ~ ns.s", "ns.s.replace('a', 'aa')", "ns.s | replace('a', 'aa')")
        ),
        *(NESTED + shown for shown in ("{{ ns.a }}", "{{ ns.a | tojson }}", "{{ ns.a ~ '' }}", "{{ ns.a | string }}")),
        *(NESTED + shown for shown in ("{{ '%s' % [ns.a] }}", "{{ '{}'.format(ns.a) }}")),
        "{{ 'x' | center(10 ** 10) }}",
        "{{ 'x'.center(10 ** 10) }}",
        "{{ '%10000000000d' % 3 }}",
        "{{ '%10000000000d' | format(3) }}",
        "{{ '{:10000000000}'.format(3) }}",
        "{{ range(99999) | map('string') | join('x' * 4000) }}",
        "{{ 'a'.join(['b' * 9999] * 9999) }}",
        "{{ ([[1]] * 99) | sum(start=[]) }}",
        *(
            "{% set n = namespace(a=(), b=()) %}{% for _ in range(40) %}{% set n.a = (n.a, n.a) %}"
            "{% set n.b = (n.b, n.b) %}{% endfor %}{% if " + walked + " %}{% endif %}"
            for walked in ("n.a == n.b", "n.a in [n.b]", "[n.a, n.b] | sort", "[n.a] | unique | list", "n.a | trim",
                           "[n.a] | select('eq', n.b) | list", "{n.a: 1}", "{}[n.a]", "[n.a].index(n.b)", "n.a < n.b")
        ),
    ],
)
def test_a_template_has_a_budget(source, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.05)
    with pytest.raises(TemplateError, match=r"it takes more than|it makes a|too wide|center by|numbers only"):
        ChatTemplate(source).render([USER])


def test_reasoning_by_any_name():
    template = ChatTemplate("{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }};{% endfor %}")
    thoughts = [{"role": "assistant", name: "hm"} for name in ("reasoning_content", "thinking", "reasoning")]
    assert template.render(thoughts) == "hm/hm;" * 3
    # gpt-oss refuses a call with both; then the message is shown as it came.
    strict = ChatTemplate("{% if messages[0].thinking %}{{ raise_exception('both') }}{% endif %}fine")
    assert strict.render([thoughts[0]]) == "fine"
    with pytest.raises(TemplateError, match="both"):
        strict.render([thoughts[1]])


def test_lists_that_templates_keep():
    """Kimi K2 numbers calls in a list of its own; what the caller gave stays as it was."""
    queue = (
        "{% set q = namespace(ids=[]) %}{% for m in messages %}{% set _ = q.ids.append(m.role) %}{% endfor %}"
        "{{ q.ids.pop(0) }}{{ messages.append(1) }}{{ messages | length }}"
    )
    messages = [USER]
    assert ChatTemplate(queue).render(messages) == "userNone2"
    assert messages == [USER]


def test_from_metadata():
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": ["a", "<s>", "<|im_start|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1, 3, 3, 3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 1,
    }
    tokenizer = Tokenizer.from_metadata(metadata)
    named = {"tokenizer.chat_template": "{{ bos_token }}plain", "tokenizer.chat_template.tool_use": "tools"}
    template = ChatTemplate.from_metadata(metadata | named, tokenizer)
    assert (template.render([USER]), template.render([USER], tools=[TOOL])) == ("<s>plain", "tools")
    assert template.warning is None

    fallback = ChatTemplate.from_metadata(metadata, tokenizer)
    assert fallback.warning is not None and "ChatML" in fallback.warning
    assert fallback.render([USER]) == f"<|im_start|>user\n{USER['content']}<|im_end|>\n<|im_start|>assistant\n"

    for key in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use"):
        with pytest.raises(TemplateError, match=rf"{key} is no text"):
            ChatTemplate.from_metadata(metadata | named | {key: ["x"]}, tokenizer)

    metadata["tokenizer.ggml.tokens"] = ["a", "<s>", "b", "c"]
    with pytest.raises(TemplateError, match="no chat template"):
        ChatTemplate.from_metadata(metadata, Tokenizer.from_metadata(metadata))
