"""Messages between daemon and clients: one JSON body per ZeroMQ message, tagged unions, version 1.

Owns the shapes of messages and nothing else; `reading` turns bytes into requests, `schema` prints the types. Requests
are strict: an unknown field, or a value outside its limits, is answered by an `error` that names it. Replies may get
new fields: clients ignore what they do not know. A request that does not ask for a stream gets exactly one reply, so
that a plain REQ socket can be a client.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from . import utf8

VERSION = 1

Body = bytes | memoryview  # of a reply's second frame

# What a request may hold. The longest legal ones are a prompt for a context of a million tokens: 8 MiB as text, as much
# as token ids. One message must not stop the daemon for the others while it is decoded.
MESSAGE_LIMIT = 12 << 20  # bytes of a request; libzmq closes the connection of who sends more
TEXT_LIMIT = 8 << 20  # characters
TOKENS_LIMIT = 1 << 20
ID_LIMIT = 256  # bytes: an id is in every reply, and in what everybody sees of the daemon
STOPS_LIMIT, STOP_LIMIT = 64, 1024  # stop strings, and characters of one
PARTS_LIMIT = 1 << 15  # values of a chat: messages, their fields, tools, arguments of the template
DEPTH_LIMIT = 64  # of lists and objects in what a template gets
STRUCTURE_LIMIT = 256 << 10  # bytes of a chat that are not in its strings: brackets, commas, numbers
SELECTED_LIMIT = 4096  # layers, experts
BIASES_LIMIT = 4096  # tokens with a bias
LOGITS_LIMIT = 24 << 20  # bytes of the logits frame of one reply

# ---------------------------------------------------------------------------------------------------------------------
# Requests

Id = str | Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | float
Text = Annotated[str, Meta(max_length=TEXT_LIMIT)]
Tokens = Annotated[list[Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]], Meta(max_length=TOKENS_LIMIT)]
Stop = Annotated[list[Annotated[str, Meta(min_length=1, max_length=STOP_LIMIT)]], Meta(max_length=STOPS_LIMIT)]
MaxTokens = Annotated[int, Meta(ge=0, le=1 << 24)]
Parts = Annotated[list[dict[str, Any]], Meta(max_length=PARTS_LIMIT)]
Selected = Annotated[list[Annotated[int, Meta(ge=0, le=1 << 16)]], Meta(max_length=SELECTED_LIMIT)]


class Request(Struct, tag_field="op", kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    id: Annotated[Id, Meta(description="repeated in every reply; at most 256 bytes")] = ""
    v: Annotated[int, Meta(ge=1, le=1 << 31, description="the protocol's version that the client speaks")] = VERSION


class Sampling(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How the next token is chosen."""

    temperature: Annotated[float, Meta(ge=0, le=1_000_000, description="0 is greedy")] = 0.8
    top_k: Annotated[int, Meta(ge=0, le=(1 << 31) - 1, description="of so many likeliest; 0: of all")] = 40
    top_p: Annotated[
        float, Meta(ge=0, le=1, description="of the likeliest that make up this share; 1: of all, 0 is greedy")
    ] = 0.95
    min_p: Annotated[
        float, Meta(ge=0, le=1, description="of those at least so likely, relative to the likeliest; 0: of all")
    ] = 0.05
    repeat_penalty: Annotated[
        float, Meta(ge=0.01, le=100, description="makes tokens that were there less likely; 1: off")
    ] = 1.0
    repeat_last: Annotated[
        int, Meta(ge=-1, le=1 << 24, description="so many last tokens are penalised; -1: all")
    ] = 64
    presence_penalty: Annotated[
        float, Meta(ge=-100, le=100, description="taken from the logits of tokens that the answer has already; 0: off")
    ] = 0.0
    frequency_penalty: Annotated[
        float, Meta(ge=-100, le=100, description="taken from them once for each time that the answer has them; 0: off")
    ] = 0.0
    logit_bias: Annotated[
        dict[Annotated[int, Meta(ge=0, le=(1 << 31) - 1)], Annotated[float, Meta(ge=-1_000_000, le=1_000_000)]],
        Meta(max_length=BIASES_LIMIT, description="added to the logits of token ids, after the penalties"),
    ] = {}
    seed: Annotated[
        Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None,
        Meta(description="the same seed, the same draws at the same places; none: others each time"),
    ] = None
    logprobs: Annotated[
        int, Meta(ge=0, le=100, description="so many alternatives are told with every token; 0: no log-probabilities")
    ] = 0


class Status(Request, tag="status"):
    """The daemon, its options in effect, state, warnings, last numbers."""


class Generation(Request, kw_only=True):
    """What every request for generated tokens says of them."""

    max_tokens: Annotated[MaxTokens, Meta(description="how many tokens at most")] = 256
    sampling: Annotated[Sampling, Meta(description="how tokens are chosen")] = msgspec.field(default_factory=Sampling)
    stop: Annotated[Stop, Meta(description="texts that end the answer; it ends before them")] = []
    ignore_eos: Annotated[bool, Meta(description="an end token is a token like any other")] = False
    stream: Annotated[bool, Meta(description="a `token` event for every token; not from a REQ socket")] = False


class Generate(Generation, tag="generate", kw_only=True):
    """Continue a prompt: `prompt` or `tokens`."""

    prompt: Annotated[Text | None, Meta(description="text to continue")] = None
    tokens: Annotated[Tokens | None, Meta(description="token ids instead of text")] = None


class Chat(Generation, tag="chat", kw_only=True):
    """Answer a conversation through the model's chat template."""

    messages: Annotated[Parts, Meta(min_length=1, description="`role` and `content`, and what else the template reads")]
    tools: Annotated[Parts | None, Meta(description="tools that the template may show to the model")] = None
    template_arguments: Annotated[
        dict[str, Any], Meta(max_length=PARTS_LIMIT, description="the template's own, such as `enable_thinking`")
    ] = {}
    continue_last: Annotated[
        bool, Meta(description="the last message, an assistant's, is the beginning of the answer")
    ] = False


class Tokenize(Request, tag="tokenize", kw_only=True):
    """Text to token ids."""

    text: Annotated[Text, Meta(description="what to tokenize")]
    special: Annotated[bool, Meta(description="special tokens in the text are tokens, not text")] = True
    bos: Annotated[bool | None, Meta(description="begin with BOS; none: as the model's metadata says")] = None


class Detokenize(Request, tag="detokenize", kw_only=True):
    """Token ids to text."""

    tokens: Annotated[Tokens, Meta(description="token ids")]


class Score(Request, tag="score", kw_only=True):
    """Log-probability of each token after those before it: `text` or `tokens`."""

    text: Annotated[Text | None, Meta(description="text to score")] = None
    tokens: Annotated[Tokens | None, Meta(description="token ids instead of text")] = None
    logits: Annotated[
        bool, Meta(description="a second frame: float32 logits [positions, vocabulary], little endian")
    ] = False
    logits_from: Annotated[
        int, Meta(ge=0, le=TOKENS_LIMIT, description="of the positions from here on: many are asked for piece by piece")
    ] = 0


class Residency(Request, tag="residency", kw_only=True):
    """What is mapped, cached, deferred; measured at that moment."""

    by: Annotated[Literal["role", "layer", "node", "tensor"], Meta(description="a row for each")] = "role"


class Experts(Request, tag="experts", kw_only=True):
    """How often each expert was used, and how much of it is resident."""

    layer: Annotated[
        Annotated[int, Meta(ge=0, le=1 << 16)] | None, Meta(description="of this layer only; none: of all")
    ] = None


class Plan(Request, tag="plan"):
    """Bytes per role and type, what the budget admits, what each option would do."""


class Selection(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which spans an operation means. Empty: all experts."""

    layers: Annotated[Selected | None, Meta(description="of these layers; none: of all")] = None
    experts: Annotated[Selected | None, Meta(description="these experts; none: all")] = None
    hottest: Annotated[
        Annotated[int, Meta(ge=0, le=1 << 16)] | None, Meta(description="so many hottest experts of each layer")
    ] = None
    dense: Annotated[bool, Meta(description="the dense spans too")] = False


class Warm(Request, tag="warm", kw_only=True):
    """Populate the selected spans."""

    select: Annotated[Selection, Meta(description="which spans")] = msgspec.field(default_factory=Selection)
    wait: Annotated[bool, Meta(description="the reply comes when it is done")] = False
    stream: Annotated[bool, Meta(description="wait, and tell the progress; not from a REQ socket")] = False


class Defer(Request, tag="defer", kw_only=True):
    """Give the selected spans' pages back."""

    select: Annotated[Selection, Meta(description="which spans")] = msgspec.field(default_factory=Selection)


class Pin(Request, tag="pin", kw_only=True):
    """Populate the selected spans and never give them back for others."""

    select: Annotated[Selection, Meta(description="which spans")] = msgspec.field(default_factory=Selection)
    release: Annotated[bool, Meta(description="treat them like the others again")] = False


class Cancel(Request, tag="cancel", kw_only=True):
    """End a request."""

    target: Annotated[Id, Meta(description="the id of the request to end")]


class Shutdown(Request, tag="shutdown"):
    """Finish the answers in progress and exit."""


AnyRequest = (
    Status | Generate | Chat | Tokenize | Detokenize | Score | Residency | Experts | Plan | Warm | Defer | Pin | Cancel
    | Shutdown
)
OPERATIONS: dict[str, type[Request]] = {str(kind.__struct_config__.tag): kind for kind in AnyRequest.__args__}

# ---------------------------------------------------------------------------------------------------------------------
# Replies


def _said(empty: str) -> str:
    """A field that is in every reply of its kind, also when it is empty: plain clients read it without asking."""
    return msgspec.field(default_factory=lambda: empty)


class Reply(Struct, tag_field="event", kw_only=True, omit_defaults=True):
    """What a reply says in `event`. A field that is empty is left out, but for those made by `_said`."""

    id: Id = ""
    v: int = VERSION


class Error(Reply, tag="error", kw_only=True, omit_defaults=True):
    code: str  # bad-json, bad-field, unknown-op, too-long, busy, cancelled, failed, stopping, ...
    message: str
    field: str = ""


class Result(Reply, tag="result", kw_only=True, omit_defaults=True):
    """The answer of an operation that is not a generation."""

    data: dict[str, Any]


class TokenEvent(Reply, tag="token", kw_only=True, omit_defaults=True):
    """The texts of a stream's token events add up to the `text` of its `done`."""

    token: int | None  # none: the text that only the end completed, in the last event
    text: str = _said("")  # whole characters only; a token may complete none
    logprob: float | None = None
    alternatives: list[tuple[int, float]] = []


class Progress(Reply, tag="progress", kw_only=True, omit_defaults=True):
    done: int
    total: int
    what: str = ""


class Timings(Struct, kw_only=True):
    prompt_tokens: int = 0
    queue_seconds: float = 0.0
    ttft_seconds: float = 0.0  # from the request's arrival to its first token
    prompt_seconds: float = 0.0
    generated: int = 0
    generate_seconds: float = 0.0


class Done(Reply, tag="done", kw_only=True, omit_defaults=True):
    reason: str  # stop, length, stop-string, cancelled, stopping, context
    text: str = _said("")
    tokens: list[int] = msgspec.field(default_factory=lambda: [])
    logprobs: list[float] = []
    warnings: list[Warning_] = []  # of chat: what of the request did not reach the model
    timings: Timings = msgspec.field(default_factory=Timings)


AnyReply = Error | Result | TokenEvent | Progress | Done

# ---------------------------------------------------------------------------------------------------------------------
# Telemetry: two frames, topic and body


Role = Literal["dense", "expert"]


class Bytes(Struct, kw_only=True):
    """Bytes of one role on one node, by state; the states exclude each other and add up to total."""

    node: int = 0
    role: Role = "dense"
    total: int = 0
    mapped: int = 0  # cached and in this process's page table
    cached: int = 0  # in the page cache only
    arena: int = 0  # only in the arena: read past the page cache
    deferred: int = 0  # in none of these
    unknown: int = 0
    locked: int = 0  # part of mapped
    evicted_recently: int = 0  # part of deferred
    wrong_node: int | None = None  # bytes that lie on another node than the one that reads them; None: not measured


class RequestRow(Struct, kw_only=True):
    id: str = ""
    op: str = ""
    phase: str = ""  # queued, prompt, generate
    prompt_tokens: int = 0
    prompt_done: int = 0
    generated: int = 0
    max_tokens: int = 0
    seconds: float = 0.0
    rate: float = 0.0  # tokens per second in this phase


class Warning_(Struct, kw_only=True):
    code: str  # a reason code such as defer-no-experts, numa-one-node, residency-unknown
    message: str


class Stats(Struct, tag_field="topic", tag="stats", kw_only=True):
    """4 Hz."""

    time: float = 0.0  # Unix time
    state: str = "mapped"  # mapped, serving-cold, warming, warm, stopping
    warm_percent: float = 0.0
    state_note: str = ""  # what the state alone does not tell, such as bytes that an operator's `defer` keeps cold
    warm_bytes: int = 0
    warm_rate: float = 0.0  # bytes per second, now
    prompt_rate: float = 0.0  # tokens per second over the last second; while a step outlasts it, as before that step
    generate_rate: float = 0.0
    steps_rate: float = 0.0  # steps per second
    prompt_rows: float = 0.0  # of a step, mean over the last second
    answer_rows: float = 0.0
    parts: float = 0.0  # sessions that had rows in a step, mean
    sessions: int = 0  # of requests in progress
    pool_blocks: int = 0  # of keys and values: there are; 0 where the model needs none
    pool_used: int = 0  # held by sessions
    pool_bytes: int = 0  # in memory
    prompt_tokens: int = 0  # since the start
    generated_tokens: int = 0
    requests: list[RequestRow] = []
    waiting: int = 0
    queue_depths: list[int] = []  # populate queue, spans per class: demand, routed, lookahead, cursor, sweep
    populated_bytes: int = 0  # since the start
    populate_rate: float = 0.0
    disk_read_bytes: int = 0  # by this process since the start, from the kernel
    faults_minor_per_token: float = 0.0
    faults_major_per_token: float = 0.0
    lookahead_recall: float | None = None
    lookahead_wasted_bytes: int = 0
    lookahead_reading: bool = False
    lookahead_reason: str = ""
    experts_used: int = 0  # (layer, expert) pairs that a token was routed to since the start
    experts_total: int = 0
    local_share: list[float] = []  # per node: share of weight bytes that its team reads from its own memory
    layer: int = -1  # where the running step is
    private_bytes: int = 0
    cpu_percent: float = 0.0

    def state_line(self) -> str:
        """`warming 35 %`, `serving-cold 35 %: 3.65 GiB deferred by order`, `warm`; never 100 % of less than all."""
        told = self.state == "warming" or (self.state_note and self.state in ("serving-cold", "warm"))
        line = self.state + (f" {int(self.warm_percent)} %" if told else "")
        return f"{line}: {self.state_note}" if self.state_note else line


class ResidencyNow(Struct, tag_field="topic", tag="residency", kw_only=True):
    """1 Hz."""

    time: float = 0.0
    rows: list[Bytes] = []  # one per node and role
    # One string per layer, one character per expert: 0 to 9 tenths resident, then # when whole, ? when unknown.
    experts: list[str] = []
    budget_bytes: int = 0
    unknown_reason: str = ""
    refresh_seconds: float = 0.0


Level = Literal["info", "warning", "error"]  # of an event


class EventNow(Struct, tag_field="topic", tag="event", kw_only=True):
    time: float = 0.0
    level: Level = "info"
    code: str = ""
    message: str = ""
    state: str | UnsetType = UNSET


AnyTelemetry = Stats | ResidencyNow | EventNow

# ---------------------------------------------------------------------------------------------------------------------
# What `status` answers (in Result.data)


class ModelInfo(Struct, kw_only=True):
    name: str = ""
    path: str = ""
    architecture: str = ""
    bytes: int = 0
    layers: int = 0  # that run
    layers_in_file: int = 0  # with those that only predict further tokens
    experts: int = 0
    experts_used: int = 0
    vocabulary: int = 0
    context: int = 0
    types: dict[str, int] = {}  # bytes per tensor type


class StatusData(Struct, kw_only=True):
    version: str = ""
    protocol: int = VERSION
    pid: int = 0
    uptime: float = 0.0
    control: str = ""
    telemetry: str = ""
    model: ModelInfo = msgspec.field(default_factory=ModelInfo)
    options: dict[str, Any] = {}  # what each option means in effect: experts, warm, budget, threads, context, numa
    isa: str = ""
    ready_seconds: float = 0.0  # process start to READY
    start_line: str = ""
    warnings: list[Warning_] = []
    stats: Stats = msgspec.field(default_factory=Stats)
    residency: ResidencyNow = msgspec.field(default_factory=ResidencyNow)
    warm: dict[str, Any] = {}  # bytes planned, done, failed and deferred by order; seconds, rate
    budget: dict[str, Any] = {}  # bytes of the model, reason, held_back by brakes, pressure, sessions
    arena: dict[str, Any] = {}  # in_use: arena or mapping, and why; bytes
    lookahead: dict[str, Any] = {}  # reading, reason, recall, precision, bytes read on guesses and wasted
    events: list[EventNow] = []  # the last few, oldest first
    heat: dict[str, Any] = {}  # effective number of experts per layer, whether it is used


_encoder = msgspec.json.Encoder()
_replies: msgspec.json.Decoder[AnyReply] = msgspec.json.Decoder(AnyReply)
_telemetry: msgspec.json.Decoder[AnyTelemetry] = msgspec.json.Decoder(AnyTelemetry)


def encode(message: Struct) -> bytes:
    """The body. What the daemon tells may name files that are not UTF-8 (see utf8.py); what a client asks may not."""
    return _encoder.encode(message) if isinstance(message, Request) else utf8.json(message)


def decode_reply(body: bytes) -> AnyReply:
    return _replies.decode(body)


def decode_telemetry(body: bytes) -> AnyTelemetry:
    return _telemetry.decode(body)
