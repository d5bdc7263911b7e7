"""The header parser: agrees with the gguf package on whole files, and refuses everything else without crashing."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hearthd.cyext.gguf_header import Array, HeaderError, parse, tensor_types
from hearthd.daemon.model.synth.write import encode_header
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

METADATA = {
    "general.architecture": "qwen3moe",
    "general.alignment": 32,
    "a.float": 0.5,
    "a.flag": True,
    "a.negative": -7,
    "tokenizer.ggml.tokens": ["a", "", "Ġthe", "日本"],
    "tokenizer.ggml.token_type": [1, 2, -3],
    "a.scores": [0.25, -1.0],
    "a.flags": [True, False],
}
TENSORS = [("token_embd.weight", (256, 8), 12, 8 * 144), ("blk.0.attn_norm.weight", (256,), 0, 1024),
           ("blk.0.ffn_up_exps.weight", (32, 4, 3), 8, 12 * 34)]
HEADER = encode_header(METADATA, TENSORS)
DATA = 8 * 144 + 1024 + (12 * 34 + 31) // 32 * 32
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def header(tensors: list[bytes], keys: list[bytes] = [], version: int = 3) -> bytes:  # noqa: B006
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)


def tensor(name: str, shape: tuple[int, ...], type_: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_, offset)


def parse_bytes(folder: Path, data: bytes):
    path = folder / "x.gguf"
    path.write_bytes(data)
    return parse(path)


def test_reads_what_the_gguf_package_reads(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(HEADER + bytes(DATA))
    found, expected = parse(path), gguf.GGUFReader(path)
    assert (found.version, found.alignment, found.data_offset) == (3, 32, len(HEADER))
    assert [(t.name, int(t.tensor_type), tuple(map(int, t.shape)), int(t.data_offset), int(t.n_bytes))
            for t in expected.tensors] == found.tensors
    for name, field in expected.fields.items():
        if not name.startswith("GGUF."):
            value = found.metadata[name]
            assert (value.tolist() if isinstance(value, Array) else value) == field.contents()


def test_reads_every_shared_model_like_the_gguf_package(models_dir):
    for path in sorted(models_dir.glob("tiny/*.gguf")):
        found, expected = parse(path), gguf.GGUFReader(path)
        assert [(t.name, int(t.tensor_type), int(t.data_offset), int(t.n_bytes)) for t in expected.tensors] == [
            (name, type_, offset, nbytes) for name, type_, _, offset, nbytes in found.tensors], path


def test_arrays_are_lists_numbers_or_bytes(tmp_path):
    tokens, kinds = (parse_bytes(tmp_path, HEADER + bytes(DATA)).metadata[f"tokenizer.ggml.{name}"]
                     for name in ("tokens", "token_type"))
    assert (len(tokens), tokens.element, tokens[2], tokens[-1]) == (4, "string", "Ġthe", "日本")
    assert tokens.bytes() == [token.encode() for token in METADATA["tokenizer.ggml.tokens"]]
    assert kinds.numpy().dtype == np.int32
    assert kinds.tolist() == [1, 2, -3] == [kinds[i] for i in range(3)]
    for wrong in (tokens.numpy, kinds.bytes):
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(IndexError):
        kinds[3]


def test_text_that_is_no_utf8_is_kept_as_bytes(tmp_path):
    array = string("t") + struct.pack("<IIQ", 9, 8, 1) + struct.pack("<Q", 2) + b"\xff\xfe"
    value = parse_bytes(tmp_path, header([], [array])).metadata["t"]
    assert value.bytes() == [b"\xff\xfe"]
    assert value.tolist() == ["\ufffd\ufffd"]


def test_types_are_those_of_the_gguf_package():
    known = {number: (name, block, size) for number, name, block, size in tensor_types()}
    for type_, sizes in gguf.GGML_QUANT_SIZES.items():
        if type_.value in known:
            assert known[type_.value] == (type_.name, *sizes)
    assert {0, 1, 2, 8, 12, 13, 14, 30, 39} <= set(known)


def test_tensors_without_dimensions_or_without_bytes_are_read(tmp_path):
    entries = [tensor("scalar", ()), tensor("empty", (0, 4), offset=32), tensor("whole", (8,), offset=32),
               tensor("none", (8, 0), offset=1 << 20)]  # what has no bytes lies nowhere, so neither beyond the end
    found = parse_bytes(tmp_path, header(entries) + bytes(96)).tensors
    assert [(name, shape, nbytes) for name, _, shape, _, nbytes in found] == [
        ("scalar", (), 4), ("empty", (0, 4), 0), ("whole", (8,), 32), ("none", (8, 0), 0)]


WHOLE = header([tensor("a", (4,))]) + bytes(64)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"GG", "ends at byte 2"),
        (b"\x7fELF" + bytes(60), "no GGUF file"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(32), "big-endian"),
        (header([], version=1), "version 1"),
        (header([], version=4), "version 4"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0) + bytes(64), "tensors do not fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, (1 << 64) - 1) + bytes(64), "keys do not fit"),
        (header([], [string("k") + struct.pack("<IIQ", 9, 4, 1 << 61)]) + bytes(64), "key k: an array"),
        (header([], [string("k") + struct.pack("<IIQ", 9, 8, 1 << 61)]) + bytes(64), "key k: an array"),
        (header([], [string("k") + struct.pack("<IIQ", 9, 9, 1)]) + bytes(64), "element type 9"),
        (header([], [string("k") + struct.pack("<I", 99)]) + bytes(64), "value type 99"),
        (header([], [struct.pack("<Q", (1 << 64) - 1)]) + bytes(64), "ends at byte"),
        (header([], [string("k") + struct.pack("<II", 4, 1)] * 2), "occurs twice"),
        (header([], [string("general.alignment") + struct.pack("<II", 4, 24)]), "power of two"),
        (header([], [string("general.alignment") + struct.pack("<II", 4, 0)]), "power of two"),
        (header([tensor("a", (4,))] * 2) + bytes(96), "begins inside"),
        (header([tensor("a", (4,)), tensor("a", (4,), offset=32)]) + bytes(96), "occurs twice"),
        (header([tensor("a", (1, 1, 1, 1, 1))]) + bytes(96), "5 dimensions"),
        (header([tensor("a", (1 << 32, 1 << 32))]) + bytes(96), "too large"),
        (header([tensor("a", (1 << 40, 1 << 20, 1 << 20))]) + bytes(96), "too large"),
        (header([tensor("a", (4,), offset=(1 << 64) - 32)]) + bytes(96), "too large"),
        (header([tensor("a", (4,), offset=7)]) + bytes(96), "multiple of the alignment"),
        (header([tensor("a", (4,), offset=64)]) + bytes(64), "tensor a: the file ends"),
        (header([tensor("a", (33,), type_=8)]) + bytes(96), "whole number of Q8_0 blocks"),
        (header([tensor("a", (4,), type_=4)]) + bytes(96), "type 4 is not known"),
        (header([tensor("a", (4,), type_=(1 << 32) - 1)]) + bytes(96), "not known"),
        (header([tensor("big", (64,), offset=64), tensor("a", (17,))]) + bytes(512), "tensor big: its data begins"),
    ],
)
def test_refuses_with_the_place_and_the_reason(tmp_path, data, words):
    with pytest.raises(HeaderError, match=words) as caught:
        parse_bytes(tmp_path, data)
    assert 0 <= caught.value.byte < 1 << 64


def test_tensors_may_lie_in_any_order(tmp_path):
    found = parse_bytes(tmp_path, header([tensor("b", (4,), offset=32), tensor("a", (4,))]) + bytes(96))
    assert [entry[0] for entry in found.tensors] == ["b", "a"]


def test_version_2_and_an_alignment_of_its_own(tmp_path):
    keys = [string("general.alignment") + struct.pack("<II", 4, 256)]
    found = parse_bytes(tmp_path, header([tensor("a", (4,))], keys, version=2) + bytes(512))
    assert (found.version, found.data_offset % 256, found.tensors[0][3]) == (2, 0, found.data_offset)


def test_a_file_that_changes_or_shrinks_later_is_an_error(tmp_path):
    path = tmp_path / "x.gguf"
    for spoil in (lambda file: file.truncate(0), lambda file: file.write(b"\xff" * len(HEADER))):
        path.write_bytes(HEADER + bytes(DATA))
        tokens = parse(path).metadata["tokenizer.ggml.tokens"]
        with open(path, "r+b") as file:
            spoil(file)
        with pytest.raises(HeaderError, match=r"shrunk|changed"):
            tokens.tolist()


def test_every_truncation_is_refused(tmp_path):
    used = 8 * 144 + 1024 + 12 * 34  # the padding after the last tensor may be missing
    for length in [*range(len(HEADER)), *range(len(HEADER), len(HEADER) + used, 7), len(HEADER) + used - 1]:
        with pytest.raises(HeaderError):
            parse_bytes(tmp_path, (HEADER + bytes(DATA))[:length])


def test_what_is_no_regular_file_is_an_os_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent", Path("/dev/null")):
        with pytest.raises(OSError):
            parse(path)


def attempt(folder: Path, data: bytes) -> None:
    """Parsing ends in a Header whose tensors all lie in the file, or in a HeaderError."""
    try:
        found = parse_bytes(folder, data)
    except HeaderError:
        return
    for _, _, _, offset, nbytes in found.tensors:
        assert found.data_offset <= offset <= offset + nbytes <= len(data)
    for value in found.metadata.values():
        if isinstance(value, Array):
            assert len(value.tolist()) == len(value)


@FUZZ
@given(st.binary(max_size=400))
@example(WHOLE)
def test_survives_random_bytes(tmp_path, data):
    attempt(tmp_path, data)
    attempt(tmp_path, b"GGUF" + struct.pack("<I", 3) + data)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(HEADER) - 1), st.integers(0, 255)), min_size=1, max_size=8),
       st.integers(0, len(HEADER) + DATA))
def test_survives_a_mutated_header(tmp_path, changes, length):
    data = bytearray(HEADER + bytes(DATA))
    for at, value in changes:
        data[at] = value
    attempt(tmp_path, bytes(data))
    attempt(tmp_path, bytes(data[:length]))


@FUZZ
@given(st.integers(4, len(HEADER) - 8),
       st.sampled_from([0, 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 32,
                        (1 << 64) - 1]))
def test_survives_absurd_numbers_anywhere(tmp_path, at, number):
    attempt(tmp_path, HEADER[:at] + struct.pack("<Q", number) + HEADER[at + 8 :] + bytes(DATA))


@FUZZ
@given(st.lists(st.tuples(st.lists(st.integers(0, 1 << 64) | st.integers(1, 64), min_size=1, max_size=4).map(tuple),
                          st.integers(0, 45), st.integers(0, 64).map(lambda n: n * 32) | st.integers(0, (1 << 64) - 1)),
                max_size=6))
def test_survives_absurd_tensors(tmp_path, entries):
    described = [tensor(f"t{i}", tuple(min(n, (1 << 64) - 1) for n in shape), type_, offset)
                 for i, (shape, type_, offset) in enumerate(entries)]
    attempt(tmp_path, header(described) + bytes(2048))
