"""Short runs of the harnesses in tests/fuzz, each as it is run for long: no changed header, no message of any kind and
no client that does not read may do harm, nor many clients to each other. Seeds and counts are fixed; what they find is
in the output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> None:
    """The harness in a process of its own: it forks, and it must not have this one's threads."""
    found = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    print(found.stdout)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-3000:]


@pytest.mark.parametrize("more", [[], ["--tensors"]], ids=["metadata", "tensors"])
def test_changed_headers_are_refused_by_name_or_answer_alike(more: list[str]) -> None:
    run("tests.fuzz.headers", "--count", "120", "--seed", "3", "--command", "60", "--only=-q", *more)


def test_every_message_is_a_request_or_an_error() -> None:
    run("tests.fuzz.messages", "--decoder", "20000", "--seed", "3")


def test_a_bystander_is_answered_beside_messages_of_all_kinds() -> None:
    run("tests.fuzz.messages", "--daemon", "3000", "--seed", "3", "--largest", "100000")


@pytest.mark.parametrize("kind", ["long id", "16 connections", "tokenize 8", "prompts of 4 MB, 8"])
def test_little_is_held_for_who_does_not_read(kind: str) -> None:
    run("tests.fuzz.unread", "--only", kind, "--seconds", "2")


def test_every_answer_beside_others_is_the_one_alone() -> None:
    run("tests.fuzz.soak", "--minutes", "0.1", "--clients", "8", "--deck", "10", "--longest", "60", "--settle", "0")
