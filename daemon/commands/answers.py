"""Commands that make the model answer: generate, chat, score, tokenize, detokenize."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

from .. import protocol
from . import Add, CommandError, connect, print_json, text_or_stdin, text_or_tokens, token_list, utf8

if TYPE_CHECKING:
    from ..client import Client, Stream


def number(text: str) -> float:
    """A float that JSON can say. For argparse."""
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def biases(text: str) -> dict[int, float]:
    """`15043=-1.5,7=4`. For argparse."""
    try:
        pairs = [part.split("=") for part in text.replace(",", " ").split()]
        return {int(token): number(bias) for token, bias in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a list of ID=BIAS") from None


STDIN = "- reads standard input, less one newline at its end"
TEXT = "text; none or " + STDIN

SAMPLING = (
    ("--temperature", number, "0 is greedy (default: 0.8)"),
    ("--top-k", int, "0 switches it off (default: 40)"),
    ("--top-p", number, "default: 0.95"),
    ("--min-p", number, "default: 0.05"),
    ("--repeat-penalty", number, "default: 1"),
    ("--repeat-last", int, "tokens that the penalty looks back at (default: 64)"),
    ("--presence-penalty", number, "of tokens that the answer has already (default: 0)"),
    ("--frequency-penalty", number, "of them, for each time (default: 0)"),
    ("--logit-bias", biases, "ID=BIAS,ID=BIAS,...: added to the logits of these tokens"),
    ("--seed", int, "of the draws"),
    ("--logprobs", int, "alternatives to report per token, with --json"),
)


def register(add: Add) -> None:
    generate = add("generate", "continue a text or token ids", run_generate, json=True)
    generate.add_argument("prompt", nargs="?", help=TEXT)
    generate.add_argument("--tokens", type=token_list, metavar="IDS", help="token ids instead of text: 1,2,3")
    _generation(generate)
    chat = add("chat", "talk through the model's chat template; interactive on a terminal", run_chat, json=True)
    chat.add_argument("message", nargs="?", help="one message; " + STDIN + ", as does none where no terminal is")
    chat.add_argument("--system", help="a system message to begin with")
    chat.add_argument("--begin", metavar="TEXT", help="what the first answer begins with; the model goes on from there")
    _generation(chat)
    score = add("score", "log-probabilities of given tokens", run_score, json=True)
    score.add_argument("text", nargs="?", help=TEXT)
    score.add_argument("--tokens", type=token_list, metavar="IDS", help="token ids instead of text: 1,2,3")
    score.add_argument("--logits", metavar="OUT.npy", help="save float32 logits [positions, vocabulary]")
    tokenize = add("tokenize", "text to token ids", run_tokenize, json=True)
    tokenize.add_argument("text", nargs="?", help=TEXT)
    tokenize.add_argument("--no-special", action="store_true", help="special tokens in the text are ordinary text")
    tokenize.add_argument("--bos", action=argparse.BooleanOptionalAction, default=None, help="begin with BOS")
    detokenize = add("detokenize", "token ids to text", run_detokenize, json=True)
    detokenize.add_argument("tokens", type=token_list, metavar="IDS", help="1,2,3; - reads standard input")


def _generation(command: argparse.ArgumentParser) -> None:
    command.add_argument("-n", "--max-tokens", type=int, default=256, metavar="N", help="default: 256")
    for flag, kind, text in SAMPLING:
        command.add_argument(flag, type=kind, default=None, metavar="LIST" if kind is biases else "N", help=text)
    command.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; may be repeated")
    command.add_argument("--ignore-eos", action="store_true", help="an end token is a token like any other")


def _sampling(given: argparse.Namespace) -> dict[str, Any]:
    if given.logprobs and not given.json:
        raise CommandError("--logprobs shows nothing without --json", 2)
    names = [flag[2:].replace("-", "_") for flag, _, _ in SAMPLING]
    return {name: value for name in names if (value := getattr(given, name)) is not None}


def _play(stream: Stream, given: argparse.Namespace, begin: str = "") -> protocol.Done:
    """Print a stream as it comes, behind its given beginning (or collect it for --json); its Done. Ctrl-C ends the
    request, not only us."""
    alternatives = []
    try:
        for event in stream:
            if not given.json:
                sys.stdout.write(begin + event.text)
                sys.stdout.flush()
                begin = ""
            elif event.token is not None:
                alternatives.append(event.alternatives)
    except KeyboardInterrupt:
        if not given.json:
            print(file=sys.stderr)
        raise
    done = stream.done
    if given.json:
        data: dict[str, Any] = {
            "tokens": done.tokens,
            "text": done.text,
            "reason": done.reason,
            "timings": done.timings,
        }
        if done.warnings:
            data["warnings"] = done.warnings
        if given.logprobs:
            data["logprobs"] = done.logprobs
            data["alternatives"] = alternatives
        print_json(data)
    else:
        print(begin, flush=True)
        for warning in done.warnings:
            print(f"hearthctl: {warning.message}", file=sys.stderr)
        if done.reason not in ("stop", "length", "stop-string"):
            print(f"hearthctl: the answer ended: {done.reason}", file=sys.stderr)
    return done


def _code(done: protocol.Done) -> int:
    return 0 if done.reason in ("stop", "length", "stop-string", "context") else 1


def run_generate(given: argparse.Namespace) -> int:
    prompt, sampling = text_or_tokens(given.prompt, given.tokens), _sampling(given)
    with connect(given) as hearth:
        stream = hearth.generate(
            prompt,
            tokens=given.tokens,
            max_tokens=given.max_tokens,
            stop=[utf8(text) for text in given.stop],
            ignore_eos=given.ignore_eos,
            **sampling,
        )
        return _code(_play(stream, given))


def run_chat(given: argparse.Namespace) -> int:
    messages: list[dict[str, Any]] = [{"role": "system", "content": utf8(given.system)}] if given.system else []
    fields = {"stop": [utf8(text) for text in given.stop], "ignore_eos": given.ignore_eos, **_sampling(given)}
    begin = utf8(given.begin) if given.begin else ""
    interactive = given.message is None and sys.stdin.isatty() and not given.json
    with connect(given) as hearth:

        def answer(text: str, begin: str = "") -> protocol.Done:
            messages.append({"role": "user", "content": utf8(text)})
            begun = [{"role": "assistant", "content": begin}] if begin else []
            stream = hearth.chat(
                messages + begun, max_tokens=given.max_tokens, continue_last=bool(begun), **fields
            )
            done = _play(stream, given, begin)
            messages.append({"role": "assistant", "content": begin + done.text})
            return done

        if not interactive:
            text = text_or_stdin(given.message)
            if not text:
                raise CommandError("there is no message", 2)
            return _code(answer(text, begin))
        print("Ctrl-D ends the conversation, Ctrl-C an answer.", file=sys.stderr)
        while True:
            try:
                text = input("> ")
            except EOFError:
                print()
                return 0
            if not text.strip():
                continue
            try:
                answer(text, begin)
                begin = ""
            except KeyboardInterrupt:
                messages.pop()


def _save_logits(hearth: Client, tokens: list[int], path: str) -> dict[str, Any]:
    """All logits into a file of NumPy's, in pieces where they are more than a reply may hold: each is asked for as the
    end of a longer beginning. The reply to all tokens."""
    import numpy as np

    row = 4 * hearth.status().model.vocabulary
    most = max(protocol.LOGITS_LIMIT // max(row, 1), 1)
    file: Any = None
    data: dict[str, Any] = {}
    for start in range(0, max(len(tokens), 1), most):
        data, body = hearth.score(tokens[: start + most], logits=True, logits_from=start)
        if body is None:
            raise CommandError("the daemon sent no logits")
        if file is None:  # np.save would append .npy to another name
            file = np.lib.format.open_memmap(path, "w+", "<f4", (len(tokens), data["shape"][1]))
        file[start : start + most] = np.frombuffer(body, "<f4").reshape(data["shape"])
    return data | {"shape": list(file.shape)}


def run_score(given: argparse.Namespace) -> None:
    text = text_or_tokens(given.text, given.tokens)
    with connect(given) as hearth:
        if given.logits:
            tokens = given.tokens if given.tokens is not None else hearth.tokenize(text or "")
            data = _save_logits(hearth, tokens, given.logits)
        else:
            data, _ = hearth.score(given.tokens, text=text)
    if given.json:
        print_json(data)
        return
    for token, logprob in zip(data["tokens"], data["logprobs"], strict=True):
        print(f"{token}\t{'-' if logprob is None else f'{logprob:.4f}'}")
    if data["perplexity"] is not None:
        print(f"perplexity {data['perplexity']:.3f} over {len(data['tokens']) - 1} tokens", file=sys.stderr)


def run_tokenize(given: argparse.Namespace) -> None:
    with connect(given) as hearth:
        tokens = hearth.tokenize(text_or_stdin(given.text), special=not given.no_special, bos=given.bos)
    if given.json:
        print_json({"tokens": tokens, "count": len(tokens)})
    else:
        print(",".join(map(str, tokens)))


def run_detokenize(given: argparse.Namespace) -> None:
    with connect(given) as hearth:
        text = hearth.detokenize(given.tokens)
    if given.json:
        print_json({"text": text})
    else:
        print(text)
