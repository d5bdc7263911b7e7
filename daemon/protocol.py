"""Messages between daemon and clients: one JSON body per ZeroMQ message, tagged unions, version 1.

Owns the shapes of messages and nothing else. Unknown fields are ignored; a bad field is answered by an `error` that
names it. A request that does not ask for a stream gets exactly one reply, so that a plain REQ socket can be a client.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from . import utf8

VERSION = 1
MESSAGE_LIMIT = 12 << 20  # bytes of a request; libzmq closes the connection of who sends more
LOGITS_LIMIT = 24 << 20  # bytes of the logits frame of one reply

# ---------------------------------------------------------------------------------------------------------------------
# Requests


class Request(Struct, tag_field="op", kw_only=True, omit_defaults=True):
    id: str = ""  # echoed in every reply; chosen by the client
    v: int = VERSION


class Sampling(Struct, kw_only=True, omit_defaults=True):
    """How the next token is chosen. Temperature 0 is greedy."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last: int = 64
    seed: int | None = None
    logprobs: int = 0  # how many alternatives to report per token


class Status(Request, tag="status"):
    pass


class Generate(Request, tag="generate", kw_only=True, omit_defaults=True):
    """Continue a prompt: text, or token ids (`tokens` wins)."""

    prompt: str = ""
    tokens: list[int] | None = None
    max_tokens: int = 256
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    stop: list[str] = []
    ignore_eos: bool = False
    stream: bool = False


class Message(Struct, kw_only=True, omit_defaults=True):
    role: str
    content: Any = ""
    # Whatever else a template reads (tool_calls, reasoning_content, name) travels untouched.
    extra: dict[str, Any] = {}


class Chat(Request, tag="chat", kw_only=True, omit_defaults=True):
    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] | None = None
    template_arguments: dict[str, Any] = {}
    continue_last: bool = False  # the last message, an assistant's, is the beginning of the answer
    max_tokens: int = 256
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    stop: list[str] = []
    ignore_eos: bool = False
    stream: bool = False


class Tokenize(Request, tag="tokenize", kw_only=True, omit_defaults=True):
    text: str = ""
    special: bool = True  # parse special tokens in the text
    bos: bool | None = None  # None: as the model's metadata says


class Detokenize(Request, tag="detokenize", kw_only=True, omit_defaults=True):
    tokens: list[int] = []


class Score(Request, tag="score", kw_only=True, omit_defaults=True):
    """Log-probability of each given token after those before it; optionally the raw logits."""

    tokens: list[int] = []
    text: str = ""
    logits: bool = False  # the reply carries a second frame: float32 [positions, vocabulary], little endian
    logits_from: int = 0  # of the positions from here on: how logits of many tokens are asked for piece by piece


class Residency(Request, tag="residency", kw_only=True, omit_defaults=True):
    by: Literal["role", "layer", "node", "tensor"] = "role"


class Experts(Request, tag="experts", kw_only=True, omit_defaults=True):
    layer: int | None = None


class Plan(Request, tag="plan"):
    pass


class Selection(Struct, kw_only=True, omit_defaults=True):
    """Which spans an operation means. Empty: all experts."""

    layers: list[int] | None = None
    experts: list[int] | None = None
    hottest: int | None = None  # so many hottest experts of each layer
    dense: bool = False


class Warm(Request, tag="warm", kw_only=True, omit_defaults=True):
    select: Selection = msgspec.field(default_factory=Selection)
    stream: bool = False
    wait: bool = False


class Defer(Request, tag="defer", kw_only=True, omit_defaults=True):
    select: Selection = msgspec.field(default_factory=Selection)


class Pin(Request, tag="pin", kw_only=True, omit_defaults=True):
    select: Selection = msgspec.field(default_factory=Selection)
    release: bool = False


class Cancel(Request, tag="cancel", kw_only=True, omit_defaults=True):
    target: str = ""  # the id of the request to end


class Shutdown(Request, tag="shutdown"):
    pass


AnyRequest = (
    Status | Generate | Chat | Tokenize | Detokenize | Score | Residency | Experts | Plan | Warm | Defer | Pin | Cancel
    | Shutdown
)

# ---------------------------------------------------------------------------------------------------------------------
# Replies


class Reply(Struct, tag_field="event", kw_only=True, omit_defaults=True):
    id: str = ""
    v: int = VERSION


class Error(Reply, tag="error", kw_only=True, omit_defaults=True):
    code: str  # bad-json, bad-field, unknown-op, too-long, busy, cancelled, failed, stopping, ...
    message: str
    field: str = ""


class Result(Reply, tag="result", kw_only=True, omit_defaults=True):
    """The answer of an operation that is not a generation."""

    data: dict[str, Any] = {}


class TokenEvent(Reply, tag="token", kw_only=True, omit_defaults=True):
    token: int
    text: str = ""  # whole characters only; a token may complete none
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
    reason: str = ""  # stop, length, stop-string, cancelled, stopping, context, failed
    text: str = ""
    tokens: list[int] = []
    logprobs: list[float] = []
    warnings: list[Warning_] = []  # of chat: what of the request did not reach the model
    timings: Timings = msgspec.field(default_factory=Timings)


AnyReply = Error | Result | TokenEvent | Progress | Done

# ---------------------------------------------------------------------------------------------------------------------
# Telemetry: two frames, topic and body


class Bytes(Struct, kw_only=True):
    """Bytes of one role on one node, by state; the states exclude each other and add up to total."""

    node: int = 0
    role: Literal["dense", "expert"] = "dense"
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
    prompt_rate: float = 0.0  # tokens per second over the last second; 0 when none
    generate_rate: float = 0.0
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


class EventNow(Struct, tag_field="topic", tag="event", kw_only=True):
    time: float = 0.0
    level: Literal["info", "warning", "error"] = "info"
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
    budget: dict[str, Any] = {}  # bytes, reason, held_back by the brakes, pressure
    arena: dict[str, Any] = {}  # in_use: arena or mapping, and why; bytes
    lookahead: dict[str, Any] = {}  # reading, reason, recall, precision, bytes read on guesses and wasted
    events: list[EventNow] = []  # the last few, oldest first
    heat: dict[str, Any] = {}  # effective number of experts per layer, whether it is used


_encoder = msgspec.json.Encoder()
_requests = msgspec.json.Decoder(AnyRequest)
_replies = msgspec.json.Decoder(AnyReply)
_telemetry = msgspec.json.Decoder(AnyTelemetry)


def encode(message: Struct) -> bytes:
    """The body. What the daemon tells may name files that are not UTF-8 (see utf8.py); what a client asks may not."""
    return _encoder.encode(message) if isinstance(message, Request) else utf8.json(message)


def decode_request(body: bytes) -> AnyRequest:
    """Raises msgspec.ValidationError or msgspec.DecodeError."""
    return _requests.decode(body)


def decode_reply(body: bytes) -> AnyReply:
    return _replies.decode(body)


def decode_telemetry(body: bytes) -> AnyTelemetry:
    return _telemetry.decode(body)
