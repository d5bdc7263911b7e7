"""The opened model with all its parts: file, mapping, spans, queue, engine, tokenizer, residency. Only joins them.

Made in two acts: the constructor maps the model and is fast whatever its size; `prepare` makes what answers need.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio
from hearthd.cyext.mapping import Mapping
from hearthd.cyext.populate_queue import CLASSES, PopulateQueue
from hearthd.cyext.spans import Spans

from . import protocol, topology
from .config import Config, ConfigError, strange_variables
from .model import architectures
from .model.gguf import ModelError, open_model
from .model.hyper import Metadata, is_array
from .model.need import need
from .model.sampling import Sampler
from .processors import Processors
from .residency import Residency, numa_audit
from .residency.placement import Placement, choose
from .tending import Say

if TYPE_CHECKING:
    from .model.engine import Engine
    from .model.template import ChatTemplate
    from .model.tokenizer import Tokenizer

log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 4096
PIECE = 4 << 20  # bytes of one populate call
WORKERS = 4  # populate threads for what is waited for: direct reads of single experts need that many in flight
BACKGROUND = 2  # for the rest: blocks of 2 MiB keep a disk busy, and more would take processors from the kernels


def _check_isa(name: str) -> None:
    """Raises ConfigError before READY is said; who does not ask for an instruction set does not pay for the import."""
    from hearthd.cyext import kernels

    try:
        kernels.select(name)
    except ValueError as error:
        raise ConfigError(f"HEARTHD_ISA: {error}") from None


def tokens_named(metadata: Metadata) -> int:
    """How many tokens the tokenizer's list has; 0 without one."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if is_array(tokens) else 0


class Hearth:
    """One model, served by one daemon. Raises ModelError, ConfigError and OSError when it cannot be opened."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._prepared = trio.Event()
        self.engine: Engine | None = None
        self.tokenizer: Tokenizer  # once prepared, as the template
        self.template: ChatTemplate | None = None
        self._warnings: list[protocol.Warning_] = []

        if isa := os.environ.get("HEARTHD_ISA"):
            _check_isa(isa)
        self.model = open_model(config.model)
        self.checked = architectures.check(self.model)
        self.table = self.checked.table
        self._check_tokenizer()
        self.mapping = Mapping(self.model.paths)
        self.topology = topology.read()
        self.processors = Processors(config.threads, self.topology)
        self._read_bytes = int(self.table.nbytes.sum())
        smallest = int(min(self.table.nbytes[self.table.expert >= 0], default=0))
        self.numa = choose(config.numa, self.topology, self.processors.threads, nbytes=self._read_bytes,
                           expert_bytes=smallest)  # fmt: skip
        self.processors.divide(self.numa.teams, self.numa.nodes)
        self.spans = Spans(self.mapping, self.table.file, self.table.offset, self.table.nbytes, self.table.layer,
                           len(self.numa.teams))  # fmt: skip
        self.queue = PopulateQueue(self.spans, workers=WORKERS, background=BACKGROUND, piece=PIECE, nice=0,
                                   **self.numa.queue_options(self.topology))  # fmt: skip
        free = {node.number: node.free for node in self.topology.nodes}
        placement = Placement(self.numa, self.table, self.mapping, self.spans, self.queue, config.mirror_budget, free,
                              [node.number for node in self.topology.holding])  # fmt: skip
        if placement.active:
            self.queue.pause(range(len(CLASSES)))  # until the engine's teams are known
        self.info = self._info()
        self.need = need(self.model, self.checked.hyper, self.table, context=self.info.context,
                         sessions=config.sessions, batch=config.batch)  # fmt: skip
        self.residency = Residency(
            self.model, self.table, self.mapping, self.spans, self.queue, None, config, placement=placement,
            sessions_bytes=self.need.bytes,
        )  # fmt: skip
        self._audit()

    def _check_tokenizer(self) -> None:
        """What the header can tell of it comes before READY; its tables are made afterwards."""
        from .model.vocabulary import TokenizerError, check

        try:
            check(self.model.metadata)
        except TokenizerError as error:
            raise ModelError(self.model.paths[0], f"tokenizer: {error}") from None

    def _info(self) -> protocol.ModelInfo:
        model, hyper = self.model, self.checked.hyper
        types: dict[str, int] = {}
        for tensor in model.tensors.values():
            types[tensor.type_name] = types.get(tensor.type_name, 0) + tensor.nbytes
        return protocol.ModelInfo(
            name=model.name,
            path=os.path.abspath(model.paths[0]),
            architecture=model.architecture,
            bytes=model.nbytes,
            layers=hyper.n_layer,
            layers_in_file=architectures.layers_of(model),
            experts=hyper.n_expert,
            experts_used=hyper.n_expert_used,
            vocabulary=hyper.n_vocab,
            context=min(self._config.context or DEFAULT_CONTEXT, hyper.n_context_train or 1 << 30),
            types=types,
        )

    def _audit(self) -> None:
        """What an option cannot do here gets one warning; residency's audit adds those about the model's bytes."""
        config, info = self._config, self.info
        if info.context < config.context:
            text = f"the model was trained for {info.context} tokens: context is {info.context}, not {config.context}"
            self._warn("context-cut", text)
        if strange := strange_variables():
            self._warn("unknown-variable", f"not a setting, and without effect: {', '.join(strange)}")
        for code, text in self.checked.warnings():
            self._warn(code, text)
        if (named := tokens_named(self.model.metadata)) > info.vocabulary:
            text = (f"the tokenizer knows {named} tokens, the embedding has {info.vocabulary} rows: a request with one "
                    "of the others is refused")  # fmt: skip
            self._warn("vocabulary-over-embedding", text)

        self._warnings += numa_audit.audit(config.numa, self.numa, self.topology, self._read_bytes, info.experts)

    def _warn(self, code: str, message: str) -> None:
        self._warnings.append(protocol.Warning_(code=code, message=message))

    @property
    def warnings(self) -> list[protocol.Warning_]:
        """All so far."""
        return self._warnings + self.processors.warnings + self.residency.all_warnings

    # -- the second act ----------------------------------------------------------------------------------------------

    def begin(self, on_event: Callable[[protocol.EventNow], None]) -> None:
        """Populating begins: dense spans at once. Events go to `on_event` from now on."""
        self.residency.on_event = on_event
        self.residency.begin()

    @property
    def _engine(self) -> Engine:
        """Once prepared."""
        assert self.engine is not None
        return self.engine

    async def prepare(self) -> None:
        """Tokenizer and engine, beside the event loop. Raises ModelError."""
        started = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, self._make_tokenizer)
            nursery.start_soon(trio.to_thread.run_sync, self._make_engine)
        self.residency.attach(self._engine)
        log.debug("tokenizer and engine after %.2f s more", time.monotonic() - started)
        self._prepared.set()

    async def prepared(self) -> None:
        """Until requests can be answered."""
        await self._prepared.wait()

    async def follow(self, say: Say) -> None:
        """Until cancelled, once prepared: threads as processors and quotas allow. say: code, message, level."""
        await self.processors.follow(self._engine, say)

    def _make_tokenizer(self) -> None:
        from hearthd.cyext.gguf_header import HeaderError

        from .model.template import ChatTemplate, TemplateError
        from .model.tokenizer import Tokenizer, TokenizerError

        try:
            tokenizer = Tokenizer.from_metadata(self.model.metadata)
            tokenizer.prepare()
        except (TokenizerError, HeaderError) as error:
            raise ModelError(self.model.paths[0], f"tokenizer: {error}") from None
        for warning in tokenizer.warnings:
            self._warn("tokenizer", warning)
        try:
            self.template = ChatTemplate.from_metadata(self.model.metadata, tokenizer)
            if self.template.warning:
                self._warn("chat-template", self.template.warning)
        except TemplateError as error:
            if "tokenizer.chat_template" in self.model.metadata:
                self._warn("chat-template", f"no chat: {error}")
            log.debug("no chat: %s", error)
        self.tokenizer = tokenizer

    def _make_engine(self) -> None:
        from .model.engine import Engine

        self.engine = Engine(
            self.model,
            self.table,
            self.spans,
            self.queue,
            teams=self.numa.teams,
            nodes=self.numa.memory,
            context=self.info.context,
            sequences=self._config.sessions,
            batch=self._config.batch,
            isa=os.environ.get("HEARTHD_ISA") or None,
        )
        self.residency.place(self.engine)
        if self.numa.exact:
            self.queue.resume()

    # -- what the service asks ---------------------------------------------------------------------------------------

    def new_sampler(self, sampling: protocol.Sampling) -> Sampler:
        """Raises SamplingError (a ValueError) for a parameter out of range."""
        return Sampler(sampling, self._engine.hyper.n_vocab)

    def step_begins(self, prompts: int, answers: int) -> None:
        """So many rows of prompts and of answers; none at all: nothing is to be done for now."""
        try:
            self.residency.step_begins(prompts, answers)
        except Exception as error:  # the step goes on: residency only makes it faster
            self.residency.tending.failed("residency beside a step", error)

    def warmed(self) -> bool:
        """Nothing that was planned is left to warm."""
        return bool(self.residency.warmed())

    def start_line(self) -> str:
        """What happened to the model's bytes, for people."""
        return str(self.residency.start_line())

    def options(self) -> dict[str, Any]:
        """What each option means in effect."""
        config = self._config
        return {
            "experts": config.experts,
            "warm": config.warm,
            "memory_budget": config.memory_budget,
            "threads": self.processors.threads,
            **({"threads_reason": self.processors.reason} if self.processors.reason else {}),
            "context": self.info.context,
            "batch": config.batch,
            "step_ms": config.step_ms,
            "sessions": config.sessions,
            "numa": self.numa.mode,
            **({"numa_reason": self.numa.reason} if self.numa.reason else {}),
        }

    async def residency_by(self, by: str) -> dict[str, Any]:
        """Bytes by state, grouped; measured now."""
        return dict(await self.residency.residency_by(by))

    async def experts(self, layer: int | None) -> dict[str, Any]:
        """Per layer with experts: how often each was routed to since the start, its heat, how much is resident; per
        tensor how many experts were used at all, and in a step on the average, of how many."""
        data = dict(self.residency.experts(layer))
        for row in data["layers"]:
            row.update(self._usage(row["layer"]))
        return data

    def _usage(self, layer: int) -> dict[str, Any]:
        counts = self._engine.expert_counts[layer]
        steps, used, _ = (int(n) for n in self._engine.expert_touched[layer])
        per_step = round(used / steps, 2) if steps else 0.0
        tensors = []
        for name, spans in self.table.expert_tensors(layer):
            found = self.model.tensors[self.table.names[self.table.tensor[spans[0]]]]
            tensors.append({
                "name": name, "type": found.type_name, "total": len(spans), "used": int((counts > 0).sum()),
                "used_per_step": per_step, "bytes_per_step": round(per_step * int(self.table.nbytes[spans[0]])),
            })  # fmt: skip
        return {"counts": counts.tolist(), "steps": steps, "tensors": tensors}

    async def warm(
        self, select: protocol.Selection, *, wait: bool, progress: Callable[[int, int, str], None] | None
    ) -> dict[str, Any]:
        return dict(await self.residency.orders.warm(select, wait=wait, progress=progress))

    async def defer(self, select: protocol.Selection) -> dict[str, Any]:
        return dict(await self.residency.orders.defer(select))

    async def pin(self, select: protocol.Selection, *, release: bool) -> dict[str, Any]:
        return dict(await self.residency.orders.pin(select, release=release))

    def plan(self) -> dict[str, Any]:
        """What the budget admits and what each option would do. Blocks for a moment."""
        from .model.plan import plan, this_machine

        machine = this_machine(memory_budget=self._config.memory_budget)
        return plan(self.model, machine, context=self.info.context, sessions=self._config.sessions,
                    batch=self._config.batch)  # fmt: skip

    def bytes_read(self) -> int:
        """By the populate workers; grows while a cold step gets somewhere."""
        return int(self.residency.populated_bytes())

    def save(self) -> None:
        """Heat, to the state directory."""
        self.residency.save_at_the_end()

    def close(self) -> None:
        """After residency's task has ended: queue, engine, mapping."""
        if self.engine is not None:
            self.engine.close()
        self.queue.close()
        if self.residency.placement is not None:
            self.residency.placement.close()
        self.mapping.close()
